#include <cmath>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace xmplug {
namespace {

template <class Real>
struct Place {
  Real score;
  int64_t node;
  int64_t column;
};

template <class Real>
bool better(const Place<Real>& a, const Place<Real>& b) {
  if (a.score != b.score) return a.score > b.score;
  if (a.node != b.node) return a.node < b.node;
  return a.column < b.column;
}

template <class Real>
void keep_best(std::vector<Place<Real>>& places, size_t k) {
  if (places.size() <= k) return;
  std::nth_element(places.begin(), places.begin() + static_cast<ptrdiff_t>(k), places.end(), better<Real>);
  places.resize(k);
}

template <class Real>
bool by_node(const Place<Real>& a, const Place<Real>& b) {
  return a.node != b.node ? a.node < b.node : better(a, b);
}

template <class Real>
bool same_node(const Place<Real>& a, const Place<Real>& b) {
  return a.node == b.node;
}

template <class Real>
void collect(const Real* logits, const int64_t* nodes, const Real* parents, int64_t width,
             std::vector<Place<Real>>& places) {
  places.clear();
  for (int64_t column = 0; column < width; ++column) {
    if (nodes[column] < 0) continue;
    const Real score = parents[column] / (Real(1) + std::exp(-logits[column]));
    places.push_back({score > 0 ? score : Real(0), nodes[column], column});
  }
}

template <class Real>
void select_row(const Real* logits, const int64_t* nodes, const Real* parents, int64_t width, int64_t k, Real* scores,
                int64_t* best, int64_t* columns, std::vector<Place<Real>>& places) {
  const auto wanted = static_cast<size_t>(k);
  collect(logits, nodes, parents, width, places);
  keep_best(places, wanted);
  std::sort(places.begin(), places.end(), by_node<Real>);
  if (std::adjacent_find(places.begin(), places.end(), same_node<Real>) != places.end()) {
    // Rare: a node is among the best twice, so that others were pushed out. Start again without repeats.
    collect(logits, nodes, parents, width, places);
    std::sort(places.begin(), places.end(), by_node<Real>);
    places.erase(std::unique(places.begin(), places.end(), same_node<Real>), places.end());
    keep_best(places, wanted);
  }
  std::sort(places.begin(), places.end(), better<Real>);
  for (size_t i = 0; i < wanted; ++i) {
    const bool found = i < places.size();
    scores[i] = found ? places[i].score : Real(0);
    best[i] = found ? places[i].node : -1;
    columns[i] = found ? places[i].column : -1;
  }
}

}  // namespace

template <class Real>
void beam_step(const Real* logits, const int64_t* nodes, const Real* parents, int64_t rows, int64_t width, int64_t k,
               Real* scores, int64_t* best, int64_t* columns, int threads) {
  threads = useful_threads(rows, 12.0 * static_cast<double>(width), threads);
  std::vector<std::vector<Place<Real>>> places(static_cast<size_t>(threads));
  for (auto& of_worker : places) of_worker.reserve(static_cast<size_t>(width));
  parallel_for(rows, 1, threads, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      select_row(logits + row * width, nodes + row * width, parents + row * width, width, k, scores + row * k,
                 best + row * k, columns + row * k, places[static_cast<size_t>(worker)]);
    }
  });
}

template void beam_step(const float*, const int64_t*, const float*, int64_t, int64_t, int64_t, float*, int64_t*,
                        int64_t*, int);
template void beam_step(const double*, const int64_t*, const double*, int64_t, int64_t, int64_t, double*, int64_t*,
                        int64_t*, int);

}  // namespace xmplug
