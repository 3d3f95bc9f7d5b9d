// What the threads of a block find together: prefix sums, the largest of many keys, the order of a few. All threads
// of the block, whole warps of them, call these functions, and what was written to memory before is there for all.
#pragma once

#include "device.h"

namespace xmplug::cuda {

__device__ inline unsigned warp_sum(unsigned value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_add_sync(kAllLanes, value);
#else
  for (int other = 16; other > 0; other /= 2) value += __shfl_xor_sync(kAllLanes, value, other);
  return value;
#endif
}

// The sum of `value` over the threads before this one; `total` becomes that over all.
__device__ inline unsigned sum_before(unsigned value, unsigned& total) {
  __shared__ unsigned sums[32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned sum = value;
  for (unsigned step = 1; step < 32; step *= 2) {
    const unsigned before = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += before;
  }
  __syncthreads();  // the sums of the call before this one have been read
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  unsigned before = 0;
  total = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) {
    if (i == warp) before = total;
    total += sums[i];
  }
  return before + sum - value;
}

// Which keys are the largest: those above `key`, and `equal` of those that equal it.
template <class Key>
struct Threshold {
  Key key;
  unsigned equal;
};

// The `wanted` largest of the keys key_of(i), i < size, or all where there are fewer; a key of 0 is never taken.
//
// The threshold is found from its highest bits on, two at a time, by counting the keys above three bounds: that takes
// the same time whatever the keys, which crowd in a few octaves as probabilities do, and ends as soon as a bound
// parts the wanted from the others.
template <class Key, class KeyOf>
__device__ Threshold<Key> find_largest(unsigned size, unsigned wanted, const KeyOf& key_of) {
  constexpr int kRounds = 4 * sizeof(Key);
  __shared__ unsigned counts[kRounds][3];
  __syncthreads();
  for (unsigned i = threadIdx.x; i < 3 * kRounds; i += blockDim.x) counts[i / 3][i % 3] = 0;
  __syncthreads();
  Key key = 0;
  unsigned above = 0;
  if (size <= wanted) return {key, 0};
  for (int round = 0; round < kRounds; ++round) {
    const Key step = Key{1} << (2 * (kRounds - 1 - round));
    unsigned first = 0, second = 0, third = 0;
    for (unsigned i = threadIdx.x; i < size; i += blockDim.x) {
      const Key each = key_of(i);
      first += each >= key + step;
      second += each >= key + 2 * step;
      third += each >= key + 3 * step;
    }
    first = warp_sum(first), second = warp_sum(second), third = warp_sum(third);
    const unsigned lane = threadIdx.x % 32;
    if (lane < 3) atomicAdd(&counts[round][lane], lane == 0 ? first : lane == 1 ? second : third);
    __syncthreads();
    int digit = 0;
    while (digit < 3 && counts[round][digit] >= wanted) ++digit;
    if (digit < 3) above = counts[round][digit];
    key += static_cast<Key>(digit) * step;
    if (digit > 0 && counts[round][digit - 1] == wanted) return {key - 1, 0};
  }
  return {key, key == 0 ? 0 : wanted - above};
}

// Lists, ascending, the i < size for which side_of(i) is above 0, and the first `equal` of those for which it is 0:
// put(place, i) for each. Returns their number.
template <class SideOf, class Put>
__device__ unsigned list(unsigned size, unsigned equal, const SideOf& side_of, const Put& put) {
  unsigned above = 0, equals = 0;
  for (unsigned begin = 0; begin < size; begin += blockDim.x) {
    const unsigned i = begin + threadIdx.x;
    const int side = i < size ? side_of(i) : -1;
    unsigned total;
    const unsigned before = sum_before(side > 0 ? 1U << 16 : side == 0, total);  // a block has 2^10 threads at most
    const unsigned above_before = above + (before >> 16), equals_before = equals + (before & 0xffff);
    if (side > 0 || (side == 0 && equals_before < equal)) put(above_before + min(equals_before, equal), i);
    above += total >> 16;
    equals += total & 0xffff;
  }
  __syncthreads();
  return above + min(equals, equal);
}

// On which side of `threshold` a key is.
template <class Key>
__device__ int side(Key key, const Threshold<Key>& threshold) {
  return key > threshold.key ? 1 : key == threshold.key ? 0 : -1;
}

// As many are ordered by comparing each with each; from about here on a sort is faster.
constexpr unsigned kMostToRank = 512;

// Gives each i < size (at most kMostToRank) its place when keys descend, those with equal keys by ascending tie, then
// by i: put(place, i, key). Returns whether a tie is there twice.
template <class Key, class KeyOf, class TieOf, class Put>
__device__ bool rank(unsigned size, const KeyOf& key_of, const TieOf& tie_of, const Put& put) {
  __shared__ Key keys[kMostToRank];
  __shared__ int64_t ties[kMostToRank];
  __syncthreads();
  for (unsigned i = threadIdx.x; i < size; i += blockDim.x) keys[i] = key_of(i), ties[i] = tie_of(i);
  __syncthreads();
  bool twice = false;
  for (unsigned i = threadIdx.x; i < size; i += blockDim.x) {
    const Key key = keys[i];
    const int64_t tie = ties[i];
    unsigned place = 0;
    for (unsigned j = 0; j < size; ++j) {
      const bool same = ties[j] == tie;
      twice |= same && j != i;
      place += keys[j] > key || (keys[j] == key && (ties[j] < tie || (same && j < i)));
    }
    put(place, i, key);
  }
  return __syncthreads_or(twice) != 0;
}

// Sorts values[0, size), in shared or global memory: a bitonic sort, whose first step in each run compares with the
// mirror image, so that all steps put what comes before first and `size` may be any.
template <class T, class Before>
__device__ void sort(T* values, unsigned size, const Before& before) {
  for (unsigned half = 1; half < size; half *= 2) {
    for (unsigned step = half; step > 0; step /= 2) {
      __syncthreads();
      for (unsigned i = threadIdx.x; i < size; i += blockDim.x) {
        if ((i & step) != 0) continue;
        const unsigned other = step == half ? i ^ (2 * half - 1) : i + step;
        if (other >= size || !before(values[other], values[i])) continue;
        const T value = values[i];
        values[i] = values[other];
        values[other] = value;
      }
    }
  }
  __syncthreads();
}

}  // namespace xmplug::cuda
