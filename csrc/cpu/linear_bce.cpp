#include <algorithm>

#include "bce_kernels.h"
#include "instruction_sets.h"
#include "kernels.h"
#include "parallel.h"

namespace xmplug {

template <class T>
void linear_bce_chunk(T* logits, int64_t stride, int64_t rows, int64_t width, const float* bias, const int64_t* indptr,
                      const int64_t* indices, int64_t first, double* sums, int64_t num_sums, InstructionSet set,
                      int threads) {
  const auto& kernels = kernels_for<BceKernels<T>>(set);
  const int64_t tiles = (width + kBceTile - 1) / kBceTile;
  threads = useful_threads(rows * tiles, 1.0 * static_cast<double>(std::min(width, kBceTile)), threads);
  parallel_for(rows * tiles, 4, threads, [&](int, int64_t from, int64_t to) {
    alignas(64) float signs[kBceTile];
    for (int64_t task = from; task < to; ++task) {
      const int64_t row = task / tiles, begin = task % tiles * kBceTile, size = std::min(kBceTile, width - begin);
      std::fill_n(signs, kBceTile, 1.0f);
      for (int64_t i = indptr[row]; i < indptr[row + 1]; ++i) {
        const int64_t column = indices[i] - first - begin;
        if (column >= 0 && column < size) signs[column] = -1.0f;
      }
      sums[row * num_sums + task % tiles] +=
          kernels.tile(logits + row * stride + begin, bias == nullptr ? nullptr : bias + begin, signs, size);
    }
  });
}

template <class Change>
void add_rounded(BFloat16* weight, const Change* change, int64_t size, int64_t position, uint64_t seed, uint64_t step,
                 InstructionSet set, int threads) {
  const auto& kernels = kernels_for<RoundingKernels<Change>>(set);
  constexpr int64_t piece = 64 * kRoundedBlock;
  threads = useful_threads(size, 1.0, threads);
  parallel_for(size, piece, threads, [&](int, int64_t from, int64_t to) {
    kernels.add(weight + from, change + from, to - from, static_cast<uint64_t>((position + from) / kRoundedBlock), seed,
                step);
  });
}

template void linear_bce_chunk(float*, int64_t, int64_t, int64_t, const float*, const int64_t*, const int64_t*, int64_t,
                               double*, int64_t, InstructionSet, int);
template void linear_bce_chunk(BFloat16*, int64_t, int64_t, int64_t, const float*, const int64_t*, const int64_t*,
                               int64_t, double*, int64_t, InstructionSet, int);
template void add_rounded(BFloat16*, const float*, int64_t, int64_t, uint64_t, uint64_t, InstructionSet, int);
template void add_rounded(BFloat16*, const BFloat16*, int64_t, int64_t, uint64_t, uint64_t, InstructionSet, int);

}  // namespace xmplug
