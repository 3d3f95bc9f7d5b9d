// The module xmplug._cpu. Arrays come as addresses, so that neither PyTorch nor numpy is needed to build it; the
// callers in xmplug/ops check shapes and types and keep the arrays alive.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "instruction_sets.h"
#include "kernels.h"
#include "linear.h"

namespace py = pybind11;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class Real>
void beam_step(uintptr_t logits, uintptr_t nodes, uintptr_t parents, int64_t rows, int64_t width, int64_t k,
               uintptr_t scores, uintptr_t best, uintptr_t columns, int set, int threads) {
  xmplug::beam_step(at<const Real>(logits), at<const int64_t>(nodes), at<const Real>(parents), rows, width, k,
                    at<Real>(scores), at<int64_t>(best), at<int64_t>(columns), static_cast<xmplug::InstructionSet>(set),
                    threads);
}

void tree_beam_search(uintptr_t hidden, uintptr_t weights, bool hidden_is_bfloat16, bool weights_are_bfloat16,
                      int64_t texts, int64_t width, uintptr_t first_child, uintptr_t level_offsets, uintptr_t labels,
                      int64_t num_levels, int64_t beam, int64_t k, uintptr_t scores, uintptr_t leaves,
                      uintptr_t best_labels, int set, int threads) {
  xmplug::tree_beam_search(
      {at<const char>(hidden), at<const char>(weights), hidden_is_bfloat16, weights_are_bfloat16, texts, width,
       at<const int64_t>(first_child), at<const int64_t>(level_offsets), at<const int64_t>(labels), num_levels, beam, k,
       at<float>(scores), at<int64_t>(leaves), at<int64_t>(best_labels)},
      static_cast<xmplug::InstructionSet>(set), threads);
}

template <class Top, class Label>
int64_t ranking_sums(uintptr_t top, int64_t rows, int64_t width, uintptr_t indptr, uintptr_t indices,
                     int64_t num_indices, int64_t num_labels, uintptr_t inverse_propensity, uintptr_t cutoffs,
                     int64_t num_cutoffs, uintptr_t sums, int threads) {
  return xmplug::ranking_sums(at<const Top>(top), rows, width, at<const int64_t>(indptr), at<const Label>(indices),
                              num_indices, num_labels, at<const double>(inverse_propensity), at<const int64_t>(cutoffs),
                              num_cutoffs, at<double>(sums), threads);
}

bool inverse_norms(uintptr_t indptr, uintptr_t values, int64_t num_rows, uintptr_t scale, int threads) {
  return xmplug::inverse_norms(at<const int64_t>(indptr), at<const float>(values), num_rows, at<double>(scale),
                               threads);
}

void split_segments(uintptr_t indptr, uintptr_t indices, uintptr_t values, uintptr_t scale, int64_t num_features,
                    uintptr_t order, uintptr_t begin, uintptr_t middle, uintptr_t end, uintptr_t first,
                    uintptr_t second, int64_t num_segments, int rounds, int threads) {
  xmplug::split_segments(at<const int64_t>(indptr), at<const int32_t>(indices), at<const float>(values),
                         at<const double>(scale), num_features, at<int64_t>(order), at<const int64_t>(begin),
                         at<const int64_t>(middle), at<const int64_t>(end), at<const int64_t>(first),
                         at<const int64_t>(second), num_segments, rounds, threads);
}

xmplug::AttentionInput attention_input(uintptr_t states, uintptr_t mask, uintptr_t queries, uintptr_t candidates,
                                       int64_t batch, int64_t tokens, int64_t size, int64_t width, bool bfloat16_states,
                                       bool bfloat16_queries) {
  return {at<const void>(states),
          at<const bool>(mask),
          at<const void>(queries),
          at<const int64_t>(candidates),
          batch,
          tokens,
          size,
          width,
          bfloat16_states,
          bfloat16_queries};
}

void label_attention(const xmplug::AttentionInput& in, uintptr_t out, int set, int threads) {
  xmplug::label_attention(in, at<void>(out), set, threads);
}

void label_attention_backward(const xmplug::AttentionInput& in, uintptr_t grad, uintptr_t rows, int64_t num_rows,
                              uintptr_t grad_states, uintptr_t grad_queries, int set, int threads) {
  xmplug::label_attention_backward(in, at<const void>(grad), at<const int64_t>(rows), num_rows, at<void>(grad_states),
                                   at<void>(grad_queries), set, threads);
}

template <class Weight>
bool sparse_adam_step(uintptr_t weight, int64_t num_rows, int64_t width, uintptr_t rows, int64_t count, uintptr_t grad,
                      uintptr_t exp_avg, uintptr_t exp_avg_sq, double step_size, double keep_avg, double keep_sq,
                      double eps, int threads) {
  return xmplug::sparse_adam_step(at<Weight>(weight), num_rows, width, at<const int64_t>(rows), count,
                                  at<const float>(grad), at<float>(exp_avg), at<float>(exp_avg_sq),
                                  static_cast<float>(step_size), static_cast<float>(keep_avg),
                                  static_cast<float>(keep_sq), static_cast<float>(eps), threads);
}

template <class T>
void linear_bce_chunk(uintptr_t logits, int64_t stride, int64_t rows, int64_t width, uintptr_t bias, uintptr_t indptr,
                      uintptr_t indices, int64_t first, uintptr_t sums, int64_t num_sums, int set, int threads) {
  xmplug::linear_bce_chunk(at<T>(logits), stride, rows, width, at<const float>(bias), at<const int64_t>(indptr),
                           at<const int64_t>(indices), first, at<double>(sums), num_sums,
                           static_cast<xmplug::InstructionSet>(set), threads);
}

template <class Change>
void add_rounded(uintptr_t weight, uintptr_t change, int64_t size, int64_t position, uint64_t seed, uint64_t step,
                 int set, int threads) {
  xmplug::add_rounded(at<xmplug::BFloat16>(weight), at<const Change>(change), size, position, seed, step,
                      static_cast<xmplug::InstructionSet>(set), threads);
}

xmplug::LinearWeights train_linear(uintptr_t indptr, uintptr_t indices, uintptr_t values, int64_t num_texts,
                                   int64_t num_features, double bias, uintptr_t groups, int64_t num_groups,
                                   uintptr_t text_indptr, uintptr_t texts, uintptr_t true_indptr, uintptr_t true_texts,
                                   double cost, double tolerance, double prune, int passes, bool logistic,
                                   uint64_t seed, int set, int threads) {
  return xmplug::train_linear({{at<const int64_t>(indptr), at<const int32_t>(indices), at<const float>(values)},
                               num_texts,
                               num_features,
                               static_cast<float>(bias),
                               at<const int64_t>(groups),
                               num_groups,
                               at<const int64_t>(text_indptr),
                               at<const int32_t>(texts),
                               at<const int64_t>(true_indptr),
                               at<const int32_t>(true_texts),
                               static_cast<float>(cost),
                               static_cast<float>(tolerance),
                               static_cast<float>(prune),
                               passes,
                               logistic,
                               seed},
                              static_cast<xmplug::InstructionSet>(set), threads);
}

// Lengths of the arrays of trained weights, then the arrays, into memory of the caller's.
std::tuple<size_t, size_t, size_t> linear_sizes(const xmplug::LinearWeights& weights) {
  return {weights.group_indptr.size(), weights.features.size(), weights.columns.size()};
}

void linear_copy(const xmplug::LinearWeights& from, uintptr_t group_indptr, uintptr_t features,
                 uintptr_t feature_indptr, uintptr_t columns, uintptr_t weights, uintptr_t biases) {
  std::copy(from.group_indptr.begin(), from.group_indptr.end(), at<int64_t>(group_indptr));
  std::copy(from.features.begin(), from.features.end(), at<int32_t>(features));
  std::copy(from.feature_indptr.begin(), from.feature_indptr.end(), at<int64_t>(feature_indptr));
  std::copy(from.columns.begin(), from.columns.end(), at<int32_t>(columns));
  std::copy(from.weights.begin(), from.weights.end(), at<float>(weights));
  std::copy(from.biases.begin(), from.biases.end(), at<float>(biases));
}

int linear_scores(uintptr_t indptr, uintptr_t indices, uintptr_t values, int64_t num_texts, int64_t num_features,
                  uintptr_t groups, int64_t num_groups, uintptr_t group_indptr, uintptr_t group_features,
                  uintptr_t feature_indptr, uintptr_t columns, uintptr_t weights, int64_t num_entries, uintptr_t biases,
                  uintptr_t nodes, int64_t width, uintptr_t scores, int threads) {
  return xmplug::linear_scores({{at<const int64_t>(indptr), at<const int32_t>(indices), at<const float>(values)},
                                num_texts,
                                num_features,
                                at<const int64_t>(groups),
                                num_groups,
                                at<const int64_t>(group_indptr),
                                at<const int32_t>(group_features),
                                at<const int64_t>(feature_indptr),
                                at<const int32_t>(columns),
                                at<const float>(weights),
                                num_entries,
                                at<const float>(biases),
                                at<const int64_t>(nodes),
                                width,
                                at<float>(scores)},
                               threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  const py::call_guard<py::gil_scoped_release> without_gil;
  module.def("best_instruction_set", [] { return static_cast<int>(xmplug::best_instruction_set()); });
  py::class_<xmplug::AttentionInput>(module, "AttentionInput").def(py::init(&attention_input));
  module.def("label_attention", &label_attention, without_gil);
  module.def("label_attention_backward", &label_attention_backward, without_gil);
  module.def("beam_step_float", &beam_step<float>, without_gil);
  module.def("beam_step_double", &beam_step<double>, without_gil);
  module.def("tree_beam_search", &tree_beam_search, without_gil);
  // Overloads by type have no meaning for addresses: the types of top and of indices are in the name.
  module.def("ranking_sums_int32_int32", &ranking_sums<int32_t, int32_t>, without_gil);
  module.def("ranking_sums_int32_int64", &ranking_sums<int32_t, int64_t>, without_gil);
  module.def("ranking_sums_int64_int32", &ranking_sums<int64_t, int32_t>, without_gil);
  module.def("ranking_sums_int64_int64", &ranking_sums<int64_t, int64_t>, without_gil);
  module.def("inverse_norms", &inverse_norms, without_gil);
  module.def("split_segments", &split_segments, without_gil);
  py::class_<xmplug::LinearWeights>(module, "LinearWeights").def("sizes", &linear_sizes).def("copy", &linear_copy);
  module.def("train_linear", &train_linear, without_gil);
  module.def("linear_scores", &linear_scores, without_gil);
  module.def("sparse_adam_step_float", &sparse_adam_step<float>, without_gil);
  module.def("sparse_adam_step_bfloat16", &sparse_adam_step<xmplug::BFloat16>, without_gil);
  module.def("linear_bce_chunk_float", &linear_bce_chunk<float>, without_gil);
  module.def("linear_bce_chunk_bfloat16", &linear_bce_chunk<xmplug::BFloat16>, without_gil);
  module.def("add_rounded_float", &add_rounded<float>, without_gil);
  module.def("add_rounded_bfloat16", &add_rounded<xmplug::BFloat16>, without_gil);
}
