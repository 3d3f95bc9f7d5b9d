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

}  // namespace

PYBIND11_MODULE(XMPLUG_MODULE, module) {
  module.doc() = "Native CUDA kernels of xmplug; call them through xmplug.ops.";
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  module.def("sparse_adam_step_float", &sparse_adam_step<float>, without_gil);
  module.def("sparse_adam_step_bfloat16", &sparse_adam_step<xmplug::cuda::BFloat16>, without_gil);
}
