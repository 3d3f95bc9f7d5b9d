#include "kernels.h"

namespace xmplug::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 8;  // of a thread
constexpr int kTile = kThreads * kColumns;

// log(1 + x) for x in [0, 1], within 3 units in the last place: 2 artanh(s) with s = x / (2 + x), which the caller has.
__device__ inline float log1p_of(float s) {
  const float q = s * s;
  float p = 2.0F / 15;
  p = p * q + 2.0F / 13;
  p = p * q + 2.0F / 11;
  p = p * q + 2.0F / 9;
  p = p * q + 2.0F / 7;
  p = p * q + 2.0F / 5;
  p = p * q + 2.0F / 3;
  return p * q * s + 2.0F * s;
}

// The columns of one thread, as they lie in memory.
template <class T>
struct __align__(16) Columns {
  T of[kColumns];
};

// A block for each text and tile of labels. What one thread reads and writes starts on a border of 16 bytes.
template <class T>
__global__ void __launch_bounds__(kThreads)
    bce_tile(T* logits, int64_t stride, int64_t tiles, int64_t width, const float* bias, const int64_t* indptr,
             const int64_t* indices, int64_t first, double* sums, int64_t num_sums, int64_t num_labels,
             int64_t num_indices) {
  __align__(8) __shared__ uint8_t positive[kTile];
  __shared__ float warp_sums[kThreads / 32];
  const int64_t row = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  *reinterpret_cast<uint2*>(positive + threadIdx.x * kColumns) = make_uint2(0, 0);
  __syncthreads();
  const int64_t begin = indptr[row], end = indptr[row + 1];
  check_index(begin >= 0 && begin <= end && end <= num_indices);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const int64_t label = indices[i];
    check_index(label >= 0 && label < num_labels);
    const int64_t column = label - first - tile * kTile;
    if (column >= 0 && column < kTile) positive[column] = 1;
  }
  __syncthreads();

  // softplus(z) - y z is softplus(t) and sigmoid(z) - y is sign sigmoid(t), with t = sign z and sign = -1 where y is 1,
  // else 1: neither subtracts what is nearly equal.
  float loss = 0;
  const int64_t column = tile * kTile + threadIdx.x * kColumns;
  if (column < width) {
    auto* place = reinterpret_cast<Columns<T>*>(logits + row * stride + column);
    Columns<T> mine = *place;
    for (int i = 0; i < kColumns && column + i < width; ++i) {
      const float sign = positive[threadIdx.x * kColumns + i] ? -1.0F : 1.0F;
      const float t = sign * (to_float(mine.of[i]) + (bias == nullptr ? 0.0F : bias[column + i]));
      const float e = expf(-fabsf(t));
      const float both = __fdividef(1.0F, (1.0F + e) * (2.0F + e));
      mine.of[i] = from_float<T>(sign * (t < 0 ? e : 1.0F) * ((2.0F + e) * both));
      loss += (t < 0 ? 0.0F : t) + log1p_of(e * (1.0F + e) * both);
    }
    *place = mine;
  }
  for (int other = 16; other > 0; other /= 2) loss += __shfl_xor_sync(kAllLanes, loss, other);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = loss;
  __syncthreads();
  if (threadIdx.x == 0) {
    double sum = 0;
    for (const float each : warp_sums) sum += static_cast<double>(each);
    sums[row * num_sums + tile] += sum;
  }
}

__device__ inline uint32_t high_product(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

// Philox4x32-10 (Salmon et al., SC 2011).
__device__ inline uint4 philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
  auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint32_t next0 = high_product(c2, 0xCD9E8D57U) ^ c1 ^ k0, next2 = high_product(c0, 0xD2511F53U) ^ c3 ^ k1;
    c1 = c2 * 0xCD9E8D57U;
    c3 = c0 * 0xD2511F53U;
    c0 = next0;
    c2 = next2;
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return make_uint4(c0, c1, c2, c3);
}

__device__ inline BFloat16 rounded(float sum, uint32_t bits) {
  return {static_cast<uint16_t>(sum == sum ? (__float_as_uint(sum) + bits) >> 16 : 0x7fc0U)};
}

template <class T>
struct __align__(2 * sizeof(T)) Pair {
  T first, second;
};

// A warp for each block of 256 weights, in four rounds of a pair for each lane: one word of Philox has the bits for
// two.
template <class Change>
__global__ void __launch_bounds__(kThreads) add_rounded_blocks(BFloat16* weight, const Change* change, int64_t size,
                                                               int64_t position, uint64_t seed, uint64_t step) {
  const int64_t lane = threadIdx.x % 32;
  const int64_t block = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const auto counter = static_cast<uint64_t>((position / 256 + block) * 32 + lane);
  const uint4 random = philox(static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                              static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), seed);
  const uint32_t words[4] = {random.x, random.y, random.z, random.w};
  for (int k = 0; k < 4; ++k) {
    const int64_t at = block * 256 + k * 64 + lane * 2;
    if (at + 1 < size) {
      const auto old = *reinterpret_cast<const Pair<BFloat16>*>(weight + at);
      const auto added = *reinterpret_cast<const Pair<Change>*>(change + at);
      *reinterpret_cast<Pair<BFloat16>*>(weight + at) = {
          rounded(to_float(old.first) + to_float(added.first), words[k] & 0xffffU),
          rounded(to_float(old.second) + to_float(added.second), words[k] >> 16)};
    } else if (at < size) {
      weight[at] = rounded(to_float(weight[at]) + to_float(change[at]), words[k] & 0xffffU);
    }
  }
}

}  // namespace

template <class T>
void linear_bce_chunk(T* logits, int64_t stride, int64_t rows, int64_t width, const float* bias, const int64_t* indptr,
                      const int64_t* indices, int64_t first, double* sums, int64_t num_sums, int64_t num_labels,
                      int64_t num_indices, cudaStream_t stream) {
  const int64_t tiles = parts(width, kTile);
  if (rows * tiles == 0) return;
  launch(bce_tile<T>, static_cast<unsigned>(rows * tiles), kThreads, 0, stream, logits, stride, tiles, width, bias,
         indptr, indices, first, sums, num_sums, num_labels, num_indices);
}

template <class Change>
void add_rounded(BFloat16* weight, const Change* change, int64_t size, int64_t position, uint64_t seed, uint64_t step,
                 cudaStream_t stream) {
  if (size == 0) return;
  launch(add_rounded_blocks<Change>, static_cast<unsigned>(parts(size, kThreads / 32 * 256)), kThreads, 0, stream,
         weight, change, size, position, seed, step);
}

template void linear_bce_chunk(float*, int64_t, int64_t, int64_t, const float*, const int64_t*, const int64_t*, int64_t,
                               double*, int64_t, int64_t, int64_t, cudaStream_t);
template void linear_bce_chunk(BFloat16*, int64_t, int64_t, int64_t, const float*, const int64_t*, const int64_t*,
                               int64_t, double*, int64_t, int64_t, int64_t, cudaStream_t);
template void linear_bce_chunk(Half*, int64_t, int64_t, int64_t, const float*, const int64_t*, const int64_t*, int64_t,
                               double*, int64_t, int64_t, int64_t, cudaStream_t);
template void add_rounded(BFloat16*, const float*, int64_t, int64_t, uint64_t, uint64_t, cudaStream_t);
template void add_rounded(BFloat16*, const BFloat16*, int64_t, int64_t, uint64_t, uint64_t, cudaStream_t);

}  // namespace xmplug::cuda
