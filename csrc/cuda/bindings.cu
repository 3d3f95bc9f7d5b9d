// The module xmplug._cuda. Arrays come as addresses on the device, so that neither PyTorch nor numpy is needed to build
// it; the callers in xmplug/ops check shapes and types, keep the arrays alive, make their device the current one and
// give its stream last.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

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
                                             int products) {
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
          static_cast<xmplug::cuda::Products>(products)};
}

// Whether there is code for compute capability 9.0 itself: what is made at run time for a lesser one has no wgmma.
constexpr bool has_wgmma() {
#ifdef __CUDACC__
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    if (architecture == 900) return true;
  }
  return false;
#else
  return true;
#endif
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

template <class Real>
void beam_step(uintptr_t logits, uintptr_t nodes, uintptr_t parents, int64_t rows, int64_t width, int64_t k,
               uintptr_t scores, uintptr_t best, uintptr_t columns, uintptr_t workspace, uintptr_t stream) {
  xmplug::cuda::beam_step(at<const Real>(logits), at<const int64_t>(nodes), at<const Real>(parents), rows, width, k,
                          at<Real>(scores), at<int64_t>(best), at<int64_t>(columns), at<void>(workspace),
                          stream_of(stream));
}

xmplug::cuda::TreeLevels levels_of(const std::vector<int64_t>& offsets, const std::vector<int64_t>& most_children) {
  if (offsets.size() < 3 || most_children.size() != offsets.size() - 2) {
    throw std::invalid_argument("a tree needs the largest number of children for each of its levels but the last");
  }
  return {offsets.data(), most_children.data(), static_cast<int64_t>(offsets.size()) - 1};
}

int64_t tree_beam_search_workspace(int64_t texts, const std::vector<int64_t>& level_offsets,
                                   const std::vector<int64_t>& most_children, int64_t beam) {
  return xmplug::cuda::tree_beam_search_workspace(texts, levels_of(level_offsets, most_children), beam);
}

template <class Weight>
void tree_beam_search(uintptr_t hidden, uintptr_t weights, int64_t texts, int64_t width, uintptr_t first_child,
                      uintptr_t labels, const std::vector<int64_t>& level_offsets,
                      const std::vector<int64_t>& most_children, int64_t beam, int64_t k, uintptr_t scores,
                      uintptr_t leaves, uintptr_t best_labels, uintptr_t workspace, uintptr_t stream) {
  const xmplug::cuda::TreeSearch<Weight> search{at<const float>(hidden),
                                                at<const Weight>(weights),
                                                texts,
                                                width,
                                                at<const int64_t>(first_child),
                                                at<const int64_t>(labels),
                                                levels_of(level_offsets, most_children),
                                                beam,
                                                k,
                                                at<float>(scores),
                                                at<int64_t>(leaves),
                                                at<int64_t>(best_labels)};
  xmplug::cuda::tree_beam_search(search, at<void>(workspace), stream_of(stream));
}

template <class Top, class Label>
void ranking_sums(uintptr_t top, int64_t rows, int64_t width, uintptr_t indptr, uintptr_t indices, int64_t num_indices,
                  int64_t num_labels, uintptr_t inverse_propensity, uintptr_t tables, int64_t num_cutoffs,
                  int64_t depth, uintptr_t partial, int64_t blocks, uintptr_t sums, uintptr_t stream) {
  xmplug::cuda::ranking_sums(at<const Top>(top), rows, width, at<const int64_t>(indptr), at<const Label>(indices),
                             num_indices, num_labels, at<const double>(inverse_propensity), at<const double>(tables),
                             num_cutoffs, depth, at<double>(partial), blocks, at<double>(sums), stream_of(stream));
}

template <class T>
void linear_bce_chunk(uintptr_t logits, int64_t stride, int64_t rows, int64_t width, uintptr_t bias, uintptr_t indptr,
                      uintptr_t indices, int64_t first, uintptr_t sums, int64_t num_sums, int64_t num_labels,
                      int64_t num_indices, uintptr_t stream) {
  xmplug::cuda::linear_bce_chunk(at<T>(logits), stride, rows, width, at<const float>(bias), at<const int64_t>(indptr),
                                 at<const int64_t>(indices), first, at<double>(sums), num_sums, num_labels, num_indices,
                                 stream_of(stream));
}

template <class Change>
void add_rounded(uintptr_t weight, uintptr_t change, int64_t size, int64_t position, uint64_t seed, uint64_t step,
                 uintptr_t stream) {
  xmplug::cuda::add_rounded(at<xmplug::cuda::BFloat16>(weight), at<const Change>(change), size, position, seed, step,
                            stream_of(stream));
}

}  // namespace

PYBIND11_MODULE(XMPLUG_MODULE, module) {
  module.doc() = "Native CUDA kernels of xmplug; call them through xmplug.ops.";
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  module.attr("has_wgmma") = has_wgmma();
  pybind11::class_<xmplug::cuda::AttentionInput>(module, "AttentionInput").def(pybind11::init(&attention_input));
  pybind11::class_<xmplug::cuda::AttentionPlan>(module, "AttentionPlan")
      .def(pybind11::init(&xmplug::cuda::plan_backward))
      .def_readonly("texts", &xmplug::cuda::AttentionPlan::texts)
      .def_readonly("candidates", &xmplug::cuda::AttentionPlan::candidates)
      .def_readonly("bytes", &xmplug::cuda::AttentionPlan::bytes);
  module.def("pack_tokens", &pack_tokens, without_gil);
  // With a stream that it does not need: all that asks the current device is called in one way.
  module.def("label_attention_takes_turns",
             [](const xmplug::cuda::AttentionInput& in, uintptr_t) { return label_attention_takes_turns(in); });
  module.def("label_attention", &label_attention, without_gil);
  module.def("label_attention_backward", &label_attention_backward, without_gil);
  module.def("sparse_adam_step_float", &sparse_adam_step<float>, without_gil);
  module.def("sparse_adam_step_bfloat16", &sparse_adam_step<xmplug::cuda::BFloat16>, without_gil);
  module.def("beam_step_workspace_float", &xmplug::cuda::beam_step_workspace<float>);
  module.def("beam_step_workspace_double", &xmplug::cuda::beam_step_workspace<double>);
  module.def("beam_step_float", &beam_step<float>, without_gil);
  module.def("beam_step_double", &beam_step<double>, without_gil);
  module.def("tree_beam_search_workspace", &tree_beam_search_workspace);
  module.def("tree_beam_search_float", &tree_beam_search<float>, without_gil);
  module.def("tree_beam_search_bfloat16", &tree_beam_search<xmplug::cuda::BFloat16>, without_gil);
  module.def("tree_beam_search_half", &tree_beam_search<xmplug::cuda::Half>, without_gil);
  module.def("ranking_sums_int32_int32", &ranking_sums<int32_t, int32_t>, without_gil);
  module.def("ranking_sums_int32_int64", &ranking_sums<int32_t, int64_t>, without_gil);
  module.def("ranking_sums_int64_int32", &ranking_sums<int64_t, int32_t>, without_gil);
  module.def("ranking_sums_int64_int64", &ranking_sums<int64_t, int64_t>, without_gil);
  module.def("linear_bce_chunk_float", &linear_bce_chunk<float>, without_gil);
  module.def("linear_bce_chunk_bfloat16", &linear_bce_chunk<xmplug::cuda::BFloat16>, without_gil);
  module.def("linear_bce_chunk_half", &linear_bce_chunk<xmplug::cuda::Half>, without_gil);
  module.def("add_rounded_float", &add_rounded<float>, without_gil);
  module.def("add_rounded_bfloat16", &add_rounded<xmplug::cuda::BFloat16>, without_gil);
}
