// The module xmplug._cuda. Arrays come as addresses on the device, so that neither PyTorch nor numpy is needed to build
// it; the callers in xmplug/ops check shapes and types, keep the arrays alive, make their device the current one and
// give its stream last.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "kernels.h"

#ifndef XMPLUG_MODULE
#define XMPLUG_MODULE _cuda
#endif

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class Weight>
void sparse_adam_step(uintptr_t weight, int64_t num_rows, int64_t width, uintptr_t rows, int64_t count, uintptr_t grad,
                      uintptr_t exp_avg, uintptr_t exp_avg_sq, float step_size, float keep_avg, float keep_sq,
                      float eps, uintptr_t stream) {
  xmplug::cuda::sparse_adam_step(at<Weight>(weight), num_rows, width, at<const int64_t>(rows), count,
                                 at<const float>(grad), at<float>(exp_avg), at<float>(exp_avg_sq), step_size, keep_avg,
                                 keep_sq, eps, reinterpret_cast<cudaStream_t>(stream));
}

template <class T>
void linear_bce_chunk(uintptr_t logits, int64_t stride, int64_t rows, int64_t width, uintptr_t bias, uintptr_t indptr,
                      uintptr_t indices, int64_t first, uintptr_t sums, int64_t num_sums, int64_t num_labels,
                      int64_t num_indices, uintptr_t stream) {
  xmplug::cuda::linear_bce_chunk(at<T>(logits), stride, rows, width, at<const float>(bias), at<const int64_t>(indptr),
                                 at<const int64_t>(indices), first, at<double>(sums), num_sums, num_labels, num_indices,
                                 reinterpret_cast<cudaStream_t>(stream));
}

template <class Change>
void add_rounded(uintptr_t weight, uintptr_t change, int64_t size, int64_t position, uint64_t seed, uint64_t step,
                 uintptr_t stream) {
  xmplug::cuda::add_rounded(at<xmplug::cuda::BFloat16>(weight), at<const Change>(change), size, position, seed, step,
                            reinterpret_cast<cudaStream_t>(stream));
}

}  // namespace

PYBIND11_MODULE(XMPLUG_MODULE, module) {
  module.doc() = "Native CUDA kernels of xmplug; call them through xmplug.ops.";
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  module.def("sparse_adam_step_float", &sparse_adam_step<float>, without_gil);
  module.def("sparse_adam_step_bfloat16", &sparse_adam_step<xmplug::cuda::BFloat16>, without_gil);
  module.def("linear_bce_chunk_float", &linear_bce_chunk<float>, without_gil);
  module.def("linear_bce_chunk_bfloat16", &linear_bce_chunk<xmplug::cuda::BFloat16>, without_gil);
  module.def("linear_bce_chunk_half", &linear_bce_chunk<xmplug::cuda::Half>, without_gil);
  module.def("add_rounded_float", &add_rounded<float>, without_gil);
  module.def("add_rounded_bfloat16", &add_rounded<xmplug::cuda::BFloat16>, without_gil);
}
