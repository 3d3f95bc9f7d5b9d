// Vectors of floats in the instruction set that the including file is compiled for. Only simd_*.cpp include this, and
// everything in it and in what they include has internal linkage: were an inline function shared with other files, the
// linker could keep the copy with instructions that a processor does not have.
#pragma once

#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "bfloat16.h"
#include "instruction_sets.h"

#define XMPLUG_INLINE __attribute__((always_inline)) inline
// For a loop whose sums fill the registers: inlined into a larger function, compilers keep some of them in memory.
#define XMPLUG_APART __attribute__((noinline))

namespace xmplug {
namespace {

#if defined(__AVX512BF16__)
constexpr InstructionSet kSet = kAvx512Bf16;
#elif defined(__AVX512F__)
constexpr InstructionSet kSet = kAvx512;
#elif defined(__AVX2__)
constexpr InstructionSet kSet = kAvx2;
#else
constexpr InstructionSet kSet = kBaseline;
#endif
constexpr int kBytes = kSet >= kAvx512 ? 64 : kSet == kAvx2 ? 32 : 16;
constexpr int kLanes = kBytes / 4;

typedef float Vec __attribute__((vector_size(kBytes)));
typedef uint32_t WordVec __attribute__((vector_size(kBytes)));
typedef uint16_t HalfVec __attribute__((vector_size(kBytes / 2)));

template <class To, class From>
XMPLUG_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "another number of bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
XMPLUG_INLINE T load_as(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
XMPLUG_INLINE void store(void* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

// Not Vec{} + value: that is an addition, for it turns -0 into 0.
XMPLUG_INLINE Vec splat(float value) { return value - Vec{}; }

// b where one of them is NaN. Compilers make two instructions of the conditions; GCC 12 warns without the masks.
XMPLUG_INLINE Vec larger(Vec a, Vec b) {
#ifdef __AVX512F__
  return bits_as<Vec>(_mm512_maskz_max_ps(0xffff, bits_as<__m512>(a), bits_as<__m512>(b)));
#else
  return a > b ? a : b;
#endif
}

XMPLUG_INLINE Vec smaller(Vec a, Vec b) {
#ifdef __AVX512F__
  return bits_as<Vec>(_mm512_maskz_min_ps(0xffff, bits_as<__m512>(a), bits_as<__m512>(b)));
#else
  return a < b ? a : b;
#endif
}

// The bfloat16 nearest to the numbers, ties to even. NaN stays NaN. What is below the smallest normal number may become
// 0.
XMPLUG_INLINE HalfVec rounded_bits(Vec x) {
#ifdef __AVX512BF16__
  return bits_as<HalfVec>(_mm512_cvtneps_pbh(bits_as<__m512>(x)));
#else
  const auto bits = bits_as<WordVec>(x);
  const WordVec rounded = (bits + (((bits >> 16) & 1u) + 0x7fffu)) >> 16;
  return __builtin_convertvector(x == x ? rounded : (WordVec{} + 0x7fc0u), HalfVec);
#endif
}

XMPLUG_INLINE Vec load(const float* from) { return load_as<Vec>(from); }

XMPLUG_INLINE Vec load(const BFloat16* from) {
  return bits_as<Vec>(__builtin_convertvector(load_as<HalfVec>(from), WordVec) << 16);
}

XMPLUG_INLINE void store_as(float* to, Vec value) { store(to, value); }

XMPLUG_INLINE void store_as(BFloat16* to, Vec value) { store(to, rounded_bits(value)); }

XMPLUG_INLINE float to_float(float value) { return value; }

XMPLUG_INLINE float to_float(BFloat16 value) { return bits_as<float>(static_cast<uint32_t>(value.bits) << 16); }

XMPLUG_INLINE uint32_t rounded_bits(float value) {
  const auto bits = bits_as<uint32_t>(value);
  return value == value ? (bits + (((bits >> 16) & 1u) + 0x7fffu)) >> 16 : 0x7fc0u;
}

// e to the x within 2 units in the last place, between the smallest normal number (for everything below) and 2^127;
// NaN stays NaN. Cody and Waite's reduction to |r| <= ln(2)/2 and Cephes' polynomial.
XMPLUG_INLINE Vec exp(Vec x) {
  const Vec low = splat(-87.3365448f), high = splat(88.0f), shift = splat(12582912.0f);  // 1.5 * 2^23: rounds
  x = smaller(high, larger(low, x));
  const Vec shifted = x * 1.44269504f + shift;
  const Vec n = shifted - shift;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const WordVec scale = (bits_as<WordVec>(shifted) << 23) + (127u << 23);
  return p * bits_as<Vec>(scale);
}

}  // namespace
}  // namespace xmplug
