// CUDA kernels: addresses on the current device and sizes in, work on `stream`; no Python and no PyTorch. All arrays
// are dense and row-major, owned by the caller, and already checked as far as that can be done without waiting for the
// device. Nothing waits for the device, nothing allocates: outputs and workspaces are the caller's. Every function
// means what its reference in xmplug/ops means; errors of a launch are thrown as std::runtime_error.
#pragma once

#include <cstdint>

#include "device.h"

namespace xmplug::cuda {

// One step of lazy Adam on the rows `rows` (ascending, each once, count of them) of weight, exp_avg and exp_avg_sq
// (num_rows, width); see xmplug::sparse_adam_step in csrc/cpu/kernels.h. A row out of range stops with a CUDA error.
template <class Weight>
void sparse_adam_step(Weight* weight, int64_t num_rows, int64_t width, const int64_t* rows, int64_t count,
                      const float* grad, float* exp_avg, float* exp_avg_sq, float step_size, float keep_avg,
                      float keep_sq, float eps, cudaStream_t stream);

// One chunk of a full output layer; see xmplug::linear_bce_chunk in csrc/cpu/kernels.h. The logits begin on a border of
// 16 bytes and stride is a multiple of 8. indptr and indices that are not a CSR matrix (rows, num_labels) with
// num_indices numbers stop with a CUDA error.
template <class T>
void linear_bce_chunk(T* logits, int64_t stride, int64_t rows, int64_t width, const float* bias, const int64_t* indptr,
                      const int64_t* indices, int64_t first, double* sums, int64_t num_sums, int64_t num_labels,
                      int64_t num_indices, cudaStream_t stream);

// weight += change, rounded up or down at random; see xmplug::add_rounded in csrc/cpu/kernels.h. weight and change
// begin on the border of a pair.
template <class Change>
void add_rounded(BFloat16* weight, const Change* change, int64_t size, int64_t position, uint64_t seed, uint64_t step,
                 cudaStream_t stream);

}  // namespace xmplug::cuda
