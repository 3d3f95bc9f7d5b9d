// The loss of full output layers and its gradient, and weights that are rounded at random; compiled for each
// instruction set.
#pragma once

#include <algorithm>

#include "bce_kernels.h"
#include "simd.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace xmplug {
namespace {

// log(1 + x) for x in [0, 1], within 3 units in the last place: 2 artanh(s) with s = x / (2 + x), which the caller has.
XMPLUG_INLINE Vec log1p_of(Vec s) {
  const Vec q = s * s;
  Vec p = splat(2.0f / 15);
  p = p * q + 2.0f / 13;
  p = p * q + 2.0f / 11;
  p = p * q + 2.0f / 9;
  p = p * q + 2.0f / 7;
  p = p * q + 2.0f / 5;
  p = p * q + 2.0f / 3;
  return p * q * s + 2.0f * s;
}

// softplus(z) - y z is softplus(t) and sigmoid(z) - y is sign sigmoid(t), with t = sign z and sign = -1 where y is 1,
// else 1: neither subtracts what is nearly equal.
XMPLUG_INLINE Vec bce_of(Vec z, Vec sign, Vec& gradient) {
  const Vec t = z * sign;
  const Vec e = exp(larger(t, -t) * -1.0f);
  const Vec both = 1.0f / ((1.0f + e) * (2.0f + e));
  gradient = sign * (t < 0.0f ? e : splat(1.0f)) * ((2.0f + e) * both);
  return larger(t, splat(0.0f)) + log1p_of(e * (1.0f + e) * both);
}

template <class T>
double bce_tile(T* logits, const float* bias, const float* signs, int64_t width) {
  Vec loss = splat(0.0f);
  Vec gradient;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    Vec z = load(logits + i);
    if (bias != nullptr) z += load(bias + i);
    loss += bce_of(z, load(signs + i), gradient);
    store_as(logits + i, gradient);
  }
  if (i < width) {
    float last[kLanes] = {}, there[kLanes] = {};
    for (int64_t lane = 0; lane < width - i; ++lane) {
      last[lane] = bias == nullptr ? 0.0f : bias[i + lane];
      there[lane] = 1.0f;
    }
    const Vec more = bce_of(load(logits + i) + load(last), load(signs + i), gradient);
    loss += load(there) > 0.0f ? more : splat(0.0f);
    store_as(logits + i, gradient);
  }
  float lanes[kLanes];
  store(lanes, loss);
  double sum = 0;
  for (const float lane : lanes) sum += static_cast<double>(lane);
  return sum;
}

typedef uint64_t LongVec __attribute__((vector_size(kBytes)));

// The products of every second lane with b. Compilers do not find the instruction for it.
XMPLUG_INLINE LongVec even_products(LongVec a, uint32_t b) {
#if defined(__AVX512F__)
  // With a mask, which costs nothing, because without one GCC 12 warns of its own header.
  const __m512i factor = _mm512_set1_epi32(static_cast<int>(b));
  return bits_as<LongVec>(_mm512_maskz_mul_epu32(0xff, bits_as<__m512i>(a), factor));
#elif defined(__AVX2__)
  return bits_as<LongVec>(_mm256_mul_epu32(bits_as<__m256i>(a), _mm256_set1_epi32(static_cast<int>(b))));
#elif defined(__SSE2__)
  return bits_as<LongVec>(_mm_mul_epu32(bits_as<__m128i>(a), _mm_set1_epi32(static_cast<int>(b))));
#else
  return (a & 0xffffffffu) * static_cast<uint64_t>(b);
#endif
}

// The lower halves of the products of all lanes with b; the upper ones into `high`.
XMPLUG_INLINE WordVec product(WordVec a, uint32_t b, WordVec& high) {
  constexpr uint64_t upper = 0xffffffff00000000u;
  const LongVec even = even_products(bits_as<LongVec>(a), b), odd = even_products(bits_as<LongVec>(a) >> 32, b);
  high = bits_as<WordVec>((even >> 32) | (odd & upper));
  return bits_as<WordVec>((even & ~upper) | (odd << 32));
}

// Philox4x32-10 (Salmon et al., SC 2011): four words for each lane's counter.
struct PhiloxVec {
  WordVec words[4];
};

XMPLUG_INLINE PhiloxVec philox(WordVec c0, WordVec c1, WordVec c2, WordVec c3, uint64_t seed) {
  auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    WordVec high0, high2;
    const WordVec low0 = product(c0, 0xD2511F53u, high0), low2 = product(c2, 0xCD9E8D57u, high2);
    c0 = high2 ^ c1 ^ k0;
    c1 = low2;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

template <class Change>
void add_rounded(BFloat16* weight, const Change* change, int64_t size, uint64_t block, uint64_t seed, uint64_t step) {
  // Word `lane` + 32 k of a block is the k-th of counter 32 block + lane; each has the bits for two weights, the lower
  // half first. Their order in memory is that of the weights (little-endian).
  alignas(64) uint32_t words[kRoundedBlock / 2];
  WordVec lanes;
  for (uint32_t lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  for (int64_t begin = 0; begin < size; begin += kRoundedBlock, ++block) {
    for (uint32_t lane = 0; lane < 32; lane += kLanes) {
      const uint64_t counter = block * 32 + lane;  // no lane of a block carries into the upper word
      const WordVec zero = {};
      const PhiloxVec random =
          philox(lanes + static_cast<uint32_t>(counter), zero + static_cast<uint32_t>(counter >> 32),
                 zero + static_cast<uint32_t>(step), zero + static_cast<uint32_t>(step >> 32), seed);
      for (int k = 0; k < 4; ++k) store(words + 32 * k + lane, random.words[k]);
    }
    const auto* halves = reinterpret_cast<const char*>(words);
    const int64_t end = std::min(size - begin, kRoundedBlock);
    int64_t i = 0;
    for (; i + kLanes <= end; i += kLanes) {
      const Vec sum = load(weight + begin + i) + load(change + begin + i);
      const WordVec bits = __builtin_convertvector(load_as<HalfVec>(halves + 2 * i), WordVec);
      const WordVec rounded = sum == sum ? (bits_as<WordVec>(sum) + bits) >> 16 : (WordVec{} + 0x7fc0u);
      store(weight + begin + i, __builtin_convertvector(rounded, HalfVec));
    }
    for (; i < end; ++i) {
      const float sum = to_float(weight[begin + i]) + to_float(change[begin + i]);
      const uint32_t bits = bits_as<uint32_t>(sum) + load_as<uint16_t>(halves + 2 * i);
      weight[begin + i].bits = static_cast<uint16_t>(sum == sum ? bits >> 16 : 0x7fc0u);
    }
  }
}

}  // namespace

template <>
const BceKernels<float>& kernels<BceKernels<float>, kSet>() {
  static constexpr BceKernels<float> found{bce_tile<float>};
  return found;
}

template <>
const BceKernels<BFloat16>& kernels<BceKernels<BFloat16>, kSet>() {
  static constexpr BceKernels<BFloat16> found{bce_tile<BFloat16>};
  return found;
}

template <>
const RoundingKernels<float>& kernels<RoundingKernels<float>, kSet>() {
  static constexpr RoundingKernels<float> found{add_rounded<float>};
  return found;
}

template <>
const RoundingKernels<BFloat16>& kernels<RoundingKernels<BFloat16>, kSet>() {
  static constexpr RoundingKernels<BFloat16> found{add_rounded<BFloat16>};
  return found;
}

}  // namespace xmplug
