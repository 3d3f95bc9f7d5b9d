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

cudaStream_t stream_of(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

xmplug::cuda::AttentionInput attention_input(uintptr_t states, uintptr_t token, uintptr_t lengths, uintptr_t queries,
                                             uintptr_t candidates, int64_t batch, int64_t tokens, int64_t size,
                                             int64_t width, int64_t labels, int states_type, int queries_type,
                                             bool tensor_cores) {
  return {at<const void>(states),
          at<const int32_t>(token),
          at<const int32_t>(lengths),
          at<const void>(queries),
          at<const int64_t>(candidates),
          batch,
          tokens,
          size,
          width,
          labels,
          static_cast<xmplug::cuda::Type>(states_type),
          static_cast<xmplug::cuda::Type>(queries_type),
          tensor_cores};
}

void pack_tokens(uintptr_t mask, int64_t batch, int64_t tokens, uintptr_t token, uintptr_t lengths, uintptr_t stream) {
  xmplug::cuda::pack_tokens(at<const bool>(mask), batch, tokens, at<int32_t>(token), at<int32_t>(lengths),
                            stream_of(stream));
}

void label_attention(const xmplug::cuda::AttentionInput& in, uintptr_t views, uintptr_t log_sums, uintptr_t partial,
                     uintptr_t stream) {
  xmplug::cuda::label_attention(in, at<void>(views), at<float>(log_sums), at<float>(partial), stream_of(stream));
}

void label_attention_backward(const xmplug::cuda::AttentionInput& in, const xmplug::cuda::AttentionPlan& plan,
                              uintptr_t grad, uintptr_t log_sums, uintptr_t sorted_rows, uintptr_t order,
                              int64_t num_rows, uintptr_t workspace, uintptr_t grad_states, uintptr_t state_sums,
                              uintptr_t grad_queries, uintptr_t stream) {
  xmplug::cuda::label_attention_backward(in, plan, at<const void>(grad), at<const float>(log_sums),
                                         at<const int64_t>(sorted_rows), at<const int64_t>(order), num_rows,
                                         at<char>(workspace), at<void>(grad_states), at<float>(state_sums),
                                         at<float>(grad_queries), stream_of(stream));
}

template <class Weight>
void sparse_adam_step(uintptr_t weight, int64_t num_rows, int64_t width, uintptr_t rows, int64_t count, uintptr_t grad,
                      uintptr_t exp_avg, uintptr_t exp_avg_sq, float step_size, float keep_avg, float keep_sq,
                      float eps, uintptr_t stream) {
  xmplug::cuda::sparse_adam_step(at<Weight>(weight), num_rows, width, at<const int64_t>(rows), count,
                                 at<const float>(grad), at<float>(exp_avg), at<float>(exp_avg_sq), step_size, keep_avg,
                                 keep_sq, eps, stream_of(stream));
}

}  // namespace

PYBIND11_MODULE(XMPLUG_MODULE, module) {
  module.doc() = "Native CUDA kernels of xmplug; call them through xmplug.ops.";
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  pybind11::class_<xmplug::cuda::AttentionInput>(module, "AttentionInput").def(pybind11::init(&attention_input));
  pybind11::class_<xmplug::cuda::AttentionPlan>(module, "AttentionPlan")
      .def(pybind11::init(&xmplug::cuda::plan_backward))
      .def_readonly("texts", &xmplug::cuda::AttentionPlan::texts)
      .def_readonly("candidates", &xmplug::cuda::AttentionPlan::candidates)
      .def_readonly("bytes", &xmplug::cuda::AttentionPlan::bytes);
  module.def("pack_tokens", &pack_tokens, without_gil);
  module.def("label_attention_takes_turns", &xmplug::cuda::label_attention_takes_turns);
  module.def("label_attention", &label_attention, without_gil);
  module.def("label_attention_backward", &label_attention_backward, without_gil);
  module.def("sparse_adam_step_float", &sparse_adam_step<float>, without_gil);
  module.def("sparse_adam_step_bfloat16", &sparse_adam_step<xmplug::cuda::BFloat16>, without_gil);
}
