#include <cmath>
#include <functional>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace xmplug {
namespace {

constexpr int64_t kMetrics = 8;
constexpr int64_t kChunk = 512;  // documents; sums are made per chunk, then in chunk order, whatever the threads
constexpr int64_t kShort = 16;   // true labels that are looked through; more of them are sorted and searched

template <class Top, class Label>
struct Request {
  const Top* top;
  int64_t width;
  const int64_t* indptr;
  const Label* indices;
  int64_t num_labels;
  const double* inverse_propensity;
  const int64_t* cutoffs;
  int64_t num_cutoffs;
  std::vector<double> discounts;      // of rank i, counted from 0: 1 / log2(i + 2)
  std::vector<double> inverse_ideal;  // one over the sum of the first i discounts
};

template <class Label>
struct Workspace {
  std::vector<Label> sorted;  // a document's true labels in ascending order
  std::vector<double> best;   // their weights, the first `depth` in descending order
  std::vector<int64_t> hits;  // the ranks at which one of them is predicted
};

// Whether true labels are labels. Has their weights fetched meanwhile, which lie anywhere in memory.
template <class Label>
bool are_labels(const Label* truth, int64_t size, int64_t num_labels, const double* weights) {
  bool fine = true;
  for (int64_t i = 0; i < size; ++i) {
    fine &= static_cast<uint64_t>(static_cast<int64_t>(truth[i])) < static_cast<uint64_t>(num_labels);
    if (weights != nullptr) __builtin_prefetch(weights + truth[i]);
  }
  return fine;
}

// The `depth` largest weights of a document's true labels, in descending order.
template <class Label>
void rank_weights(const Label* truth, int64_t num_true, const double* weights, int64_t depth, Workspace<Label>& work) {
  double* best = work.best.data();
  if (num_true > kShort) {
    for (int64_t i = 0; i < num_true; ++i) best[i] = weights[truth[i]];
    if (num_true > depth) std::nth_element(best, best + depth, best + num_true, std::greater<>());
    std::sort(best, best + std::min(num_true, depth), std::greater<>());
    return;
  }
  // Few: each goes to the place that it has by comparing it with all. That takes no branch that could be guessed wrong.
  double weight[kShort];
  int64_t place[kShort];
  for (int64_t i = 0; i < num_true; ++i) {
    weight[i] = weights[truth[i]];
    int64_t larger = 0;
    for (int64_t j = 0; j < i; ++j) {
      const bool smaller = weight[j] < weight[i];
      place[j] += smaller;
      larger += !smaller;
    }
    place[i] = larger;
  }
  for (int64_t i = 0; i < num_true; ++i) best[place[i]] = weight[i];
}

// The ranks below `depth` at which a true label is predicted for the first time, ascending, into work.hits, and their
// number. Candidates are written first and counted after, since whether one is a hit could only be guessed.
template <class Top, class Label>
int64_t find_hits(const Top* top, int64_t depth, const Label* truth, int64_t num_true, Workspace<Label>& work) {
  int64_t* hits = work.hits.data();
  int64_t candidates = 0, found = 0;
  if (num_true > kShort) {
    if (!std::is_sorted(truth, truth + num_true)) {
      work.sorted.assign(truth, truth + num_true);
      std::sort(work.sorted.begin(), work.sorted.end());
      truth = work.sorted.data();
    }
    for (int64_t rank = 0; rank < depth; ++rank) {
      hits[candidates] = rank;
      candidates += std::binary_search(truth, truth + num_true, static_cast<int64_t>(top[rank]));
    }
  } else {
    // Bit b is set if a true label ends in the bits of b: nearly all predictions that miss are known by it.
    uint64_t endings = 0;
    for (int64_t i = 0; i < num_true; ++i) endings |= uint64_t{1} << (static_cast<uint64_t>(truth[i]) & 63);
    for (int64_t rank = 0; rank < depth; ++rank) {
      hits[candidates] = rank;
      candidates += static_cast<int64_t>((endings >> (static_cast<uint64_t>(top[rank]) & 63)) & 1);
    }
  }
  for (int64_t c = 0; c < candidates; ++c) {
    const int64_t label = top[hits[c]];
    bool hit = num_true > kShort;
    if (!hit) {
      for (int64_t i = 0; i < num_true; ++i) hit |= static_cast<int64_t>(truth[i]) == label;
    }
    for (int64_t j = 0; j < found; ++j) hit &= static_cast<int64_t>(top[hits[j]]) != label;
    hits[found] = hits[c];
    found += hit;
  }
  return found;
}

template <class Top, class Label>
void add_document(const Request<Top, Label>& request, int64_t row, Workspace<Label>& work, double* sums) {
  const Label* truth = request.indices + request.indptr[row];
  const int64_t num_true = request.indptr[row + 1] - request.indptr[row];
  const Top* top = request.top + row * request.width;
  const auto depth = static_cast<int64_t>(request.discounts.size());
  const double* weights = request.inverse_propensity;
  if (weights != nullptr) rank_weights(truth, num_true, weights, depth, work);
  const int64_t found = find_hits(top, std::min(depth, request.width), truth, num_true, work);

  double hits = 0, dcg = 0, ps_hits = 0, ps_best = 0, ps_dcg = 0, ps_ideal = 0;
  const double inverse_num_true = 1.0 / static_cast<double>(num_true);
  int64_t hit = 0, rank = 0;
  for (int64_t c = 0; c < request.num_cutoffs; ++c) {
    const int64_t cutoff = request.cutoffs[c];
    const int64_t possible = std::min(cutoff, num_true);
    for (; hit < found && work.hits[static_cast<size_t>(hit)] < cutoff; ++hit) {
      const int64_t at = work.hits[static_cast<size_t>(hit)];
      const double discount = request.discounts[static_cast<size_t>(at)];
      hits += 1;
      dcg += discount;
      if (weights == nullptr) continue;
      ps_hits += weights[top[at]];
      ps_dcg += weights[top[at]] * discount;
    }
    for (; weights != nullptr && rank < possible; ++rank) {
      const double weight = work.best[static_cast<size_t>(rank)];
      ps_best += weight;
      ps_ideal += weight * request.discounts[static_cast<size_t>(rank)];
    }
    const double inverse_ideal = request.inverse_ideal[static_cast<size_t>(possible)];
    double* sum = sums + c * kMetrics;
    sum[0] += hits / static_cast<double>(cutoff);
    sum[1] += dcg * inverse_ideal;
    sum[2] += hits * inverse_num_true;
    sum[3] += hits / static_cast<double>(possible);
    sum[4] += ps_hits;
    sum[5] += ps_best;
    sum[6] += ps_dcg * inverse_ideal;
    sum[7] += ps_ideal * inverse_ideal;
  }
}

}  // namespace

template <class Top, class Label>
int64_t ranking_sums(const Top* top, int64_t rows, int64_t width, const int64_t* indptr, const Label* indices,
                     int64_t num_indices, int64_t num_labels, const double* inverse_propensity, const int64_t* cutoffs,
                     int64_t num_cutoffs, double* sums, int threads) {
  int64_t longest = 0;
  for (int64_t row = 0; row < rows; ++row) {
    if (indptr[row] > indptr[row + 1]) return -1;
    longest = std::max(longest, indptr[row + 1] - indptr[row]);
  }
  if (indptr[0] != 0 || indptr[rows] != num_indices) return -1;

  Request<Top, Label> request{top,     width,       indptr, indices, num_labels, inverse_propensity,
                              cutoffs, num_cutoffs, {},     {0.0}};
  const int64_t depth = cutoffs[num_cutoffs - 1];
  double ideal = 0;
  for (int64_t i = 0; i < depth; ++i) {
    request.discounts.push_back(1.0 / std::log2(static_cast<double>(i) + 2.0));
    ideal += request.discounts.back();
    request.inverse_ideal.push_back(1.0 / ideal);
  }
  const int64_t size = num_cutoffs * kMetrics;
  const int64_t chunks = (rows + kChunk - 1) / kChunk;
  std::vector<double> chunk_sums(static_cast<size_t>(chunks * size), 0.0);
  std::vector<int64_t> chunk_counts(static_cast<size_t>(chunks), 0);

  const double per_row = rows == 0 ? 0.0 : static_cast<double>(num_indices) / static_cast<double>(rows);
  threads = useful_threads(rows, 50.0 + 5.0 * (static_cast<double>(depth) + per_row), threads);
  std::vector<Workspace<Label>> workspaces(static_cast<size_t>(threads));
  for (auto& work : workspaces) {
    work.sorted.reserve(static_cast<size_t>(longest));
    work.best.resize(static_cast<size_t>(longest));
    work.hits.resize(static_cast<size_t>(std::min(depth, width)));
  }
  std::atomic<bool> fine{true};
  parallel_for(rows, kChunk, threads, [&](int worker, int64_t begin, int64_t end) {
    const int64_t chunk = begin / kChunk;
    if (!are_labels(indices + indptr[begin], indptr[end] - indptr[begin], num_labels, inverse_propensity)) {
      fine = false;
      return;
    }
    for (int64_t row = begin; row < end; ++row) {
      if (indptr[row + 1] == indptr[row]) continue;
      add_document(request, row, workspaces[static_cast<size_t>(worker)], chunk_sums.data() + chunk * size);
      ++chunk_counts[static_cast<size_t>(chunk)];
    }
  });
  if (!fine) return -1;

  int64_t documents = 0;
  std::fill(sums, sums + size, 0.0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < size; ++i) sums[i] += chunk_sums[static_cast<size_t>(chunk * size + i)];
    documents += chunk_counts[static_cast<size_t>(chunk)];
  }
  return documents;
}

template int64_t ranking_sums(const int32_t*, int64_t, int64_t, const int64_t*, const int32_t*, int64_t, int64_t,
                              const double*, const int64_t*, int64_t, double*, int);
template int64_t ranking_sums(const int32_t*, int64_t, int64_t, const int64_t*, const int64_t*, int64_t, int64_t,
                              const double*, const int64_t*, int64_t, double*, int);
template int64_t ranking_sums(const int64_t*, int64_t, int64_t, const int64_t*, const int32_t*, int64_t, int64_t,
                              const double*, const int64_t*, int64_t, double*, int);
template int64_t ranking_sums(const int64_t*, int64_t, int64_t, const int64_t*, const int64_t*, int64_t, int64_t,
                              const double*, const int64_t*, int64_t, double*, int);

}  // namespace xmplug
