// The module xmplug._cpu. Arrays come as addresses, so that neither PyTorch nor numpy is needed to build it; the
// callers in xmplug/ops check shapes and types and keep the arrays alive.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "instruction_sets.h"
#include "kernels.h"

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

int64_t ranking_sums(uintptr_t top, int64_t rows, int64_t width, uintptr_t indptr, uintptr_t indices,
                     uintptr_t inverse_propensity, uintptr_t cutoffs, int64_t num_cutoffs, uintptr_t sums,
                     int threads) {
  return xmplug::ranking_sums(at<const int64_t>(top), rows, width, at<const int64_t>(indptr),
                              at<const int64_t>(indices), at<const double>(inverse_propensity),
                              at<const int64_t>(cutoffs), num_cutoffs, at<double>(sums), threads);
}

void split_segments(uintptr_t indptr, uintptr_t indices, uintptr_t values, uintptr_t scale, int64_t num_features,
                    int64_t num_labels, uintptr_t order, uintptr_t begin, uintptr_t middle, uintptr_t end,
                    uintptr_t first, uintptr_t second, int64_t num_segments, int rounds, int threads) {
  xmplug::split_segments(at<const int64_t>(indptr), at<const int32_t>(indices), at<const float>(values),
                         at<const double>(scale), num_features, num_labels, at<int64_t>(order),
                         at<const int64_t>(begin), at<const int64_t>(middle), at<const int64_t>(end),
                         at<const int64_t>(first), at<const int64_t>(second), num_segments, rounds, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  const py::call_guard<py::gil_scoped_release> without_gil;
  module.def("best_instruction_set", [] { return static_cast<int>(xmplug::best_instruction_set()); });
  module.def("beam_step_float", &beam_step<float>, without_gil);
  module.def("beam_step_double", &beam_step<double>, without_gil);
  module.def("tree_beam_search", &tree_beam_search, without_gil);
  module.def("ranking_sums", &ranking_sums, without_gil);
  module.def("split_segments", &split_segments, without_gil);
}
