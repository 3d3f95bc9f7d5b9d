#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "beam_kernels.h"
#include "kernels.h"
#include "parallel.h"

namespace xmplug {
namespace {

// Whether a number is there twice. Each writes its place into a slot that its hash names; those that then find another
// there, a few, are compared with it and, where they differ, go through this again among themselves. What was in the
// slots before does not matter.
class Repeats {
 public:
  explicit Repeats(int64_t most) : named_(static_cast<size_t>(most)), others_(named_.size()) {
    int bits = 1;
    while (bits < 30 && (int64_t{1} << bits) < 16 * most) ++bits;
    slots_.resize(size_t{1} << bits);
    shift_ = 64 - bits;
  }

  bool among(const int64_t* nodes, int64_t size) {
    int32_t* const slots = slots_.data();
    uint32_t* const named = named_.data();
    int32_t* const others = others_.data();
    int64_t left = 0;
    for (int64_t i = 0; i < size; ++i) {
      // Siblings fall far apart.
      named[i] = static_cast<uint32_t>((static_cast<uint64_t>(nodes[i]) * 0x9e3779b97f4a7c15u) >> shift_);
      slots[named[i]] = static_cast<int32_t>(i);
    }
    for (int64_t i = 0; i < size; ++i) {  // no branch that could be foretold wrongly
      others[left] = static_cast<int32_t>(i);
      left += slots[named[i]] != i;
    }
    while (left > 0) {
      for (int64_t i = 0; i < left; ++i) {
        if (nodes[slots[named[others[i]]]] == nodes[others[i]]) return true;
      }
      for (int64_t i = 0; i < left; ++i) slots[named[others[i]]] = others[i];
      left = std::remove_if(others, others + left, [&](int32_t i) { return slots[named[i]] == i; }) - others;
    }
    return false;
  }

 private:
  int shift_;
  std::vector<uint32_t> named_;
  std::vector<int32_t> others_, slots_;
};

// What one worker needs for rows of float32.
class FloatRow {
 public:
  FloatRow(const BeamKernels& kernels, int64_t width, int64_t k)
      : kernels_(kernels),
        width_(width),
        k_(k),
        keys_(static_cast<size_t>(width + kSlack)),
        chosen_keys_(keys_.size()),
        places_(keys_.size()),
        spare_keys_(keys_.size()),
        spare_places_(keys_.size()),
        repeats_(std::min(width, k)) {}

  void operator()(const float* logits, const int64_t* nodes, const float* parents, float* scores, int64_t* best,
                  int64_t* columns) {
    kernels_.score(logits, parents, nodes, width_, keys_.data());
    int64_t found = choose(nodes, best);
    if (repeats_.among(best, found)) {
      drop_repeats(nodes);
      found = choose(nodes, best);
    }
    for (int64_t i = 0; i < found; ++i) scores[i] = score_of(chosen_keys_[at(i)]);
    for (int64_t i = 0; i < found; ++i) columns[i] = places_[at(i)];
    std::fill(scores + found, scores + k_, 0.0f);
    std::fill(columns + found, columns + k_, int64_t{-1});
    std::fill(best + found, best + k_, int64_t{-1});
  }

 private:
  static size_t at(int64_t place) { return static_cast<size_t>(place); }

  // The best keys and their places, in order, and the nodes there. Returns how many of the k are found.
  int64_t choose(const int64_t* nodes, int64_t* best) {
    // Half more than wanted are soon ordered, and sooner found than the very k best.
    const int64_t most = k_ + k_ / 2 + kSlack;
    const int64_t size = kernels_.select(keys_.data(), width_, k_, most, places_.data(), chosen_keys_.data());
    order_chosen(kernels_, {chosen_keys_.data(), places_.data(), spare_keys_.data(), spare_places_.data(), size});
    const int64_t found = std::min(size, k_);
    if (has_equals(std::min(size - 1, k_))) order_equals_by_node(nodes, size);
    for (int64_t i = 0; i < found; ++i) best[i] = nodes[places_[at(i)]];
    return found;
  }

  // Whether any of the first `size` keys is equal to the next.
  bool has_equals(int64_t size) const {
    int32_t equals = 0;
    for (int64_t i = 0; i < size; ++i) equals |= chosen_keys_[at(i)] == chosen_keys_[at(i + 1)];
    return equals;
  }

  void order_equals_by_node(const int64_t* nodes, int64_t size) {
    for (int64_t begin = 0, end; begin < std::min(size, k_); begin = end) {
      for (end = begin + 1; end < size && chosen_keys_[at(end)] == chosen_keys_[at(begin)];) ++end;
      if (end - begin == 1) continue;
      std::sort(places_.begin() + begin, places_.begin() + end,
                [&](int32_t a, int32_t b) { return nodes[a] < nodes[b]; });
    }
  }

  // Leaves each node its best key, the first of equal ones.
  void drop_repeats(const int64_t* nodes) {
    std::vector<int32_t>& order = spare_places_;
    for (size_t i = 0; i < at(width_); ++i) order[i] = static_cast<int32_t>(i);
    std::sort(order.begin(), order.begin() + width_, [&](int32_t a, int32_t b) {
      if (nodes[a] != nodes[b]) return nodes[a] < nodes[b];
      return keys_[at(a)] != keys_[at(b)] ? keys_[at(a)] > keys_[at(b)] : a < b;
    });
    for (int64_t i = 1; i < width_; ++i) {
      if (nodes[order[at(i)]] == nodes[order[at(i - 1)]]) keys_[at(order[at(i)])] = -1;
    }
  }

  const BeamKernels& kernels_;
  const int64_t width_, k_;
  std::vector<int32_t> keys_, chosen_keys_, places_, spare_keys_, spare_places_;
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
  // A share is several times what it takes to wake a thread.
  threads = useful_threads(rows, nanoseconds, threads, 5e4);
  std::vector<Row> workers(static_cast<size_t>(threads), Row(kernels_for<BeamKernels>(set), width, k));
  parallel_for(rows, 4, threads, [&](int worker, int64_t begin, int64_t end) {
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
  const double nanoseconds = 0.4 * static_cast<double>(width) + 4.0 * static_cast<double>(std::min(width, k));
  step_rows<FloatRow>(logits, nodes, parents, rows, width, k, scores, best, columns, set, nanoseconds, threads);
}

void beam_step(const double* logits, const int64_t* nodes, const double* parents, int64_t rows, int64_t width,
               int64_t k, double* scores, int64_t* best, int64_t* columns, InstructionSet set, int threads) {
  const double nanoseconds = 12.0 * static_cast<double>(width);
  step_rows<DoubleRow>(logits, nodes, parents, rows, width, k, scores, best, columns, set, nanoseconds, threads);
}

}  // namespace xmplug
