#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace xmplug {
namespace {

constexpr int64_t kMetrics = 8;
constexpr int64_t kChunk = 512;  // documents; sums are made per chunk, then in chunk order, whatever the threads

struct Request {
  const int64_t* top;
  int64_t width;
  const int64_t* indptr;
  const int64_t* indices;
  const double* inverse_propensity;
  const int64_t* cutoffs;
  int64_t num_cutoffs;
  std::vector<double> discounts;  // of rank i, counted from 0: 1 / log2(i + 2)
};

void add_document(const Request& request, int64_t row, std::vector<double>& best, double* sums) {
  const int64_t* truth = request.indices + request.indptr[row];
  const int64_t num_true = request.indptr[row + 1] - request.indptr[row];
  const int64_t* top = request.top + row * request.width;
  const auto depth = static_cast<int64_t>(request.discounts.size());
  const bool weighted = request.inverse_propensity != nullptr;
  if (weighted) {
    best.clear();
    for (int64_t i = 0; i < num_true; ++i) best.push_back(request.inverse_propensity[truth[i]]);
    const auto kept = std::min<size_t>(best.size(), static_cast<size_t>(depth));
    std::partial_sort(best.begin(), best.begin() + static_cast<ptrdiff_t>(kept), best.end(), std::greater<>());
  }
  double hits = 0, dcg = 0, ideal = 0, ps_hits = 0, ps_best = 0, ps_dcg = 0, ps_ideal = 0;
  int64_t cutoff = 0;
  for (int64_t i = 0; i < depth; ++i) {
    const double discount = request.discounts[static_cast<size_t>(i)];
    if (i < num_true) {
      ideal += discount;
      if (weighted) {
        ps_best += best[static_cast<size_t>(i)];
        ps_ideal += best[static_cast<size_t>(i)] * discount;
      }
    }
    if (i < request.width && top[i] >= 0 && std::find(top, top + i, top[i]) == top + i &&
        std::find(truth, truth + num_true, top[i]) != truth + num_true) {
      hits += 1;
      dcg += discount;
      if (weighted) {
        ps_hits += request.inverse_propensity[top[i]];
        ps_dcg += request.inverse_propensity[top[i]] * discount;
      }
    }
    if (i + 1 != request.cutoffs[cutoff]) continue;
    const auto k = static_cast<double>(i + 1);
    const auto possible = static_cast<double>(num_true);
    const std::array<double, kMetrics> values = {hits / k, dcg / ideal, hits / possible, hits / std::min(k, possible),
                                                 ps_hits,  ps_best,     ps_dcg / ideal,  ps_ideal / ideal};
    for (int64_t m = 0; m < kMetrics; ++m) sums[cutoff * kMetrics + m] += values[static_cast<size_t>(m)];
    ++cutoff;
  }
}

}  // namespace

int64_t ranking_sums(const int64_t* top, int64_t rows, int64_t width, const int64_t* indptr, const int64_t* indices,
                     const double* inverse_propensity, const int64_t* cutoffs, int64_t num_cutoffs, double* sums,
                     int threads) {
  Request request{top, width, indptr, indices, inverse_propensity, cutoffs, num_cutoffs, {}};
  const int64_t depth = cutoffs[num_cutoffs - 1];
  for (int64_t i = 0; i < depth; ++i) request.discounts.push_back(1.0 / std::log2(static_cast<double>(i) + 2.0));

  const int64_t size = num_cutoffs * kMetrics;
  const int64_t chunks = (rows + kChunk - 1) / kChunk;
  std::vector<double> chunk_sums(static_cast<size_t>(chunks * size), 0.0);
  std::vector<int64_t> chunk_counts(static_cast<size_t>(chunks), 0);
  int64_t longest = 0;
  for (int64_t row = 0; row < rows; ++row) longest = std::max(longest, indptr[row + 1] - indptr[row]);

  const double per_row = rows == 0 ? 0.0 : static_cast<double>(indptr[rows]) / static_cast<double>(rows);
  threads = useful_threads(rows, 20.0 + static_cast<double>(depth) * (10.0 + per_row), threads);
  std::vector<std::vector<double>> best(static_cast<size_t>(threads));
  for (auto& of_worker : best) of_worker.reserve(static_cast<size_t>(longest));
  parallel_for(rows, kChunk, threads, [&](int worker, int64_t begin, int64_t end) {
    const int64_t chunk = begin / kChunk;
    for (int64_t row = begin; row < end; ++row) {
      if (indptr[row + 1] == indptr[row]) continue;
      add_document(request, row, best[static_cast<size_t>(worker)], chunk_sums.data() + chunk * size);
      ++chunk_counts[static_cast<size_t>(chunk)];
    }
  });

  int64_t documents = 0;
  std::fill(sums, sums + size, 0.0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < size; ++i) sums[i] += chunk_sums[static_cast<size_t>(chunk * size + i)];
    documents += chunk_counts[static_cast<size_t>(chunk)];
  }
  return documents;
}

}  // namespace xmplug
