// The inner loops of full output layers, which simd_bce.h compiles for each instruction set, as the driver sees them.
#pragma once

#include <cstdint>

#include "bfloat16.h"

namespace xmplug {

constexpr int64_t kBceTile = 2048;  // columns that are done at once; xmplug/ops/bce.py has it too
constexpr int64_t kRoundedBlock = 256;

template <class T>
struct BceKernels {
  // sigmoid(z) - y in the place of z = logits[i] + bias[i], for i < width <= kBceTile; returns the sum of
  // softplus(z) - y z. signs, whole vectors of it: -1 where y is 1, else 1. Logits may be read and written up to whole
  // vectors; bias may be null.
  double (*tile)(T* logits, const float* bias, const float* signs, int64_t width);
};

template <class Change>
struct RoundingKernels {
  // Adds a change to `size` weights, of which the first is the first of block `block`; see add_rounded in kernels.h.
  void (*add)(BFloat16* weight, const Change* change, int64_t size, uint64_t block, uint64_t seed, uint64_t step);
};

}  // namespace xmplug
