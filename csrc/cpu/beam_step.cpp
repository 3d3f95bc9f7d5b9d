#include <cmath>
#include <vector>

#include "beam_kernels.h"
#include "kernels.h"
#include "parallel.h"

namespace xmplug {
namespace {

// Whether a number is there twice: a table with open addressing.
class Repeats {
 public:
  explicit Repeats(int64_t most) : slots_(size_t{1} << bits(most)) {}

  bool among(const int64_t* nodes, const int32_t* places, int64_t size) {
    const int used = bits(size);
    const size_t last = (size_t{1} << used) - 1;
    std::fill_n(slots_.begin(), last + 1, int64_t{-1});
    for (int64_t i = 0; i < size; ++i) {
      const int64_t node = nodes[places[i]];
      size_t slot = (static_cast<uint64_t>(node) * 0x9e3779b97f4a7c15u) >> (64 - used);  // siblings fall far apart
      for (; slots_[slot] >= 0; slot = (slot + 1) & last) {
        if (slots_[slot] == node) return true;
      }
      slots_[slot] = node;
    }
    return false;
  }

 private:
  static int bits(int64_t size) {  // two to four slots for each
    int bits = 1;
    while ((int64_t{1} << bits) < 2 * size) ++bits;
    return bits;
  }

  std::vector<int64_t> slots_;
};

// What one worker needs for rows of float32.
class FloatRow {
 public:
  FloatRow(const BeamKernels& kernels, int64_t width, int64_t k)
      : kernels_(kernels),
        width_(width),
        k_(k),
        keys_(static_cast<size_t>(width + kSlack)),
        best_keys_(keys_.size()),
        places_(keys_.size()),
        order_(keys_.size()),
        repeats_(width) {}

  void operator()(const float* logits, const int64_t* nodes, const float* parents, float* scores, int64_t* best,
                  int64_t* columns) {
    kernels_.score(logits, parents, nodes, width_, keys_.data());
    int64_t size = select();
    if (repeats_.among(nodes, places_.data(), size)) {
      drop_repeats(nodes);
      size = select();
    }
    for (int64_t i = 0; i < size; ++i) best_keys_[at(i)] = keys_[at(places_[at(i)])];
    order_keys(kernels_, best_keys_.data(), size, order_.data());
    order_equals_by_node(nodes, size);
    for (int64_t i = 0; i < k_; ++i) {
      const bool found = i < size;
      const int32_t place = found ? order_[at(i)] : 0;
      scores[i] = found ? score_of(best_keys_[at(place)]) : 0.0f;
      columns[i] = found ? places_[at(place)] : -1;
      best[i] = found ? nodes[columns[i]] : -1;
    }
  }

 private:
  static size_t at(int64_t place) { return static_cast<size_t>(place); }

  // An eighth more than wanted is soon ordered, and sooner found than the very k best.
  int64_t select() { return kernels_.select(keys_.data(), width_, k_, k_ + k_ / 8, places_.data()); }

  // Leaves each node its best key, the first of equal ones.
  void drop_repeats(const int64_t* nodes) {
    for (size_t i = 0; i < at(width_); ++i) order_[i] = static_cast<int32_t>(i);
    std::sort(order_.begin(), order_.begin() + width_, [&](int32_t a, int32_t b) {
      if (nodes[a] != nodes[b]) return nodes[a] < nodes[b];
      return keys_[at(a)] != keys_[at(b)] ? keys_[at(a)] > keys_[at(b)] : a < b;
    });
    for (int64_t i = 1; i < width_; ++i) {
      if (nodes[order_[at(i)]] == nodes[order_[at(i - 1)]]) keys_[at(order_[at(i)])] = -1;
    }
  }

  void order_equals_by_node(const int64_t* nodes, int64_t size) {
    for (int64_t begin = 0, end; begin < size; begin = end) {
      const int32_t key = best_keys_[at(order_[at(begin)])];
      for (end = begin + 1; end < size && best_keys_[at(order_[at(end)])] == key;) ++end;
      if (end - begin == 1) continue;
      std::sort(order_.begin() + begin, order_.begin() + end,
                [&](int32_t a, int32_t b) { return nodes[places_[at(a)]] < nodes[places_[at(b)]]; });
    }
  }

  const BeamKernels& kernels_;
  const int64_t width_, k_;
  std::vector<int32_t> keys_, best_keys_, places_, order_;
  Repeats repeats_;
};

struct Place {
  double score;
  int64_t node;
  int64_t column;
};

bool better(const Place& a, const Place& b) {
  if (a.score != b.score) return a.score > b.score;
  if (a.node != b.node) return a.node < b.node;
  return a.column < b.column;
}

bool by_node(const Place& a, const Place& b) { return a.node != b.node ? a.node < b.node : better(a, b); }

bool same_node(const Place& a, const Place& b) { return a.node == b.node; }

// What one worker needs for rows of float64.
class DoubleRow {
 public:
  DoubleRow(const BeamKernels&, int64_t width, int64_t k) : width_(width), k_(static_cast<size_t>(k)) {
    places_.reserve(static_cast<size_t>(width));
  }

  void operator()(const double* logits, const int64_t* nodes, const double* parents, double* scores, int64_t* best,
                  int64_t* columns) {
    collect(logits, nodes, parents);
    keep_best();
    std::sort(places_.begin(), places_.end(), by_node);
    if (std::adjacent_find(places_.begin(), places_.end(), same_node) != places_.end()) {
      // Rare: a node is among the best twice, so that others were pushed out. Start again without repeats.
      collect(logits, nodes, parents);
      std::sort(places_.begin(), places_.end(), by_node);
      places_.erase(std::unique(places_.begin(), places_.end(), same_node), places_.end());
      keep_best();
    }
    std::sort(places_.begin(), places_.end(), better);
    for (size_t i = 0; i < k_; ++i) {
      const bool found = i < places_.size();
      scores[i] = found ? places_[i].score : 0.0;
      best[i] = found ? places_[i].node : -1;
      columns[i] = found ? places_[i].column : -1;
    }
  }

 private:
  void collect(const double* logits, const int64_t* nodes, const double* parents) {
    places_.clear();
    for (int64_t column = 0; column < width_; ++column) {
      if (nodes[column] < 0) continue;
      const double score = parents[column] / (1.0 + std::exp(-logits[column]));
      places_.push_back({score > 0 ? score : 0.0, nodes[column], column});
    }
  }

  void keep_best() {
    if (places_.size() <= k_) return;
    std::nth_element(places_.begin(), places_.begin() + static_cast<ptrdiff_t>(k_), places_.end(), better);
    places_.resize(k_);
  }

  const int64_t width_;
  const size_t k_;
  std::vector<Place> places_;
};

template <class Row, class Real>
void step_rows(const Real* logits, const int64_t* nodes, const Real* parents, int64_t rows, int64_t width, int64_t k,
               Real* scores, int64_t* best, int64_t* columns, InstructionSet set, double nanoseconds, int threads) {
  threads = useful_threads(rows, nanoseconds, threads);
  std::vector<Row> workers(static_cast<size_t>(threads), Row(kernels_for<BeamKernels>(set), width, k));
  parallel_for(rows, 1, threads, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t in = row * width, out = row * k;
      workers[static_cast<size_t>(worker)](logits + in, nodes + in, parents + in, scores + out, best + out,
                                           columns + out);
    }
  });
}

}  // namespace

void beam_step(const float* logits, const int64_t* nodes, const float* parents, int64_t rows, int64_t width, int64_t k,
               float* scores, int64_t* best, int64_t* columns, InstructionSet set, int threads) {
  const double nanoseconds = 1.0 * static_cast<double>(width) + 5.0 * static_cast<double>(std::min(width, k));
  step_rows<FloatRow>(logits, nodes, parents, rows, width, k, scores, best, columns, set, nanoseconds, threads);
}

void beam_step(const double* logits, const int64_t* nodes, const double* parents, int64_t rows, int64_t width,
               int64_t k, double* scores, int64_t* best, int64_t* columns, InstructionSet set, int threads) {
  const double nanoseconds = 12.0 * static_cast<double>(width);
  step_rows<DoubleRow>(logits, nodes, parents, rows, width, k, scores, best, columns, set, nanoseconds, threads);
}

}  // namespace xmplug
