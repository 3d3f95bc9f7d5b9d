// Scores of a beam search, and keys that order as they do.
#pragma once

#include "device.h"

namespace xmplug::cuda {

// As PyTorch has it.
__device__ inline float sigmoid(float x) { return __fdiv_rn(1.0F, __fadd_rn(1.0F, expf(-x))); }
__device__ inline double sigmoid(double x) { return __ddiv_rn(1.0, __dadd_rn(1.0, exp(-x))); }

__device__ inline float score(float logit, float parent) { return __fmul_rn(sigmoid(logit), parent); }
__device__ inline double score(double logit, double parent) { return __dmul_rn(sigmoid(logit), parent); }

// The bits of a score that is not negative order as it does. One more, so that 0 is below all; what is not above 0,
// NaN too, counts as 0.
__device__ inline uint32_t key_of(float score) { return score > 0 ? __float_as_uint(score) + 1 : 1; }
__device__ inline uint64_t key_of(double score) {
  return score > 0 ? static_cast<uint64_t>(__double_as_longlong(score)) + 1 : 1;
}

__device__ inline float score_of(uint32_t key) { return __uint_as_float(key - 1); }
__device__ inline double score_of(uint64_t key) { return __longlong_as_double(static_cast<long long>(key - 1)); }

}  // namespace xmplug::cuda
