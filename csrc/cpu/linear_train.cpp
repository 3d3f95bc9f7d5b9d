#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "linear.h"
#include "linear_kernels.h"
#include "parallel.h"

namespace xmplug {
namespace {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// A buffer that grows and is used again: the groups of a level differ in size.
template <class T>
class Buffer {
 public:
  T* at_least(int64_t size) {
    if (size > capacity) {
      capacity = size + size / 4 + 16;
      const size_t bytes = (static_cast<size_t>(capacity) * sizeof(T) + 63) / 64 * 64;
      memory.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
      if (!memory) throw std::bad_alloc();
    }
    return memory.get();
  }

 private:
  std::unique_ptr<T, Free> memory;
  int64_t capacity = 0;
};

// The texts of one group, with the features that occur in them renumbered from 0: in the order of their first
// occurrence, which puts frequent ones together. Place 0 is the bias, where there is one.
struct Rows {
  std::vector<int64_t> begin;
  std::vector<int32_t> places;
  std::vector<float> values;
  std::vector<int32_t> feature_of;  // of each place; -1 for the bias
  std::vector<int32_t> place_of;    // of each feature, 0 = not seen, else place + 1

  void gather(const LinearProblem& p, int64_t group) {
    for (const int32_t feature : feature_of) {
      if (feature >= 0) place_of[static_cast<size_t>(feature)] = 0;
    }
    place_of.resize(static_cast<size_t>(p.num_features), 0);
    feature_of.clear();
    begin.assign(1, 0);
    places.clear();
    values.clear();
    if (p.bias != 0) feature_of.push_back(-1);
    for (int64_t t = p.text_indptr[group]; t < p.text_indptr[group + 1]; ++t) {
      const int32_t text = p.texts[t];
      if (p.bias != 0) {
        places.push_back(0);
        values.push_back(p.bias);
      }
      for (int64_t e = p.features.indptr[text]; e < p.features.indptr[text + 1]; ++e) {
        int32_t& place = place_of[static_cast<size_t>(p.features.indices[e])];
        if (place == 0) {
          feature_of.push_back(p.features.indices[e]);
          place = static_cast<int32_t>(feature_of.size());
        }
        places.push_back(place - 1);
        values.push_back(p.features.values[e]);
      }
      begin.push_back(static_cast<int64_t>(places.size()));
    }
  }

  int64_t size() const { return static_cast<int64_t>(begin.size()) - 1; }
};

struct Entry {
  int32_t feature, column;
  float weight;
};

class Solver {
 public:
  Solver(const LinearProblem& problem, InstructionSet set) : p(problem), kernels(kernels_for<LinearKernels>(set)) {}

  // Nodes `first` to `first + lanes` of a group whose texts are `rows`; kept weights go to `entries`, by place.
  void solve(const Rows& rows, int64_t group, int64_t first, int lanes, std::vector<Entry>& entries, float* biases) {
    const int64_t texts = rows.size();
    positive.assign(static_cast<size_t>(texts), 0);
    const int32_t* const begin = p.texts + p.text_indptr[group];
    const int32_t* const end = p.texts + p.text_indptr[group + 1];
    for (int l = 0; l < lanes; ++l) {
      const int64_t node = first + l - p.groups[0];
      const int32_t* at = begin;
      for (int64_t t = p.true_indptr[node]; t < p.true_indptr[node + 1]; ++t) {
        at = std::lower_bound(at, end, p.true_texts[t]);
        if (at == end) break;
        if (*at == p.true_texts[t]) positive[static_cast<size_t>(at - begin)] |= static_cast<uint16_t>(1u << l);
      }
    }
    const auto places = static_cast<int64_t>(rows.feature_of.size());
    float* const weights = weight.at_least(places * kSiblings);
    kernels.solve({rows.begin.data(), rows.places.data(), rows.values.data(), texts, places, positive.data(), lanes,
                   p.cost, p.tolerance, p.passes, p.logistic,
                   p.seed ^ (static_cast<uint64_t>(p.groups[group]) * 0x9e3779b97f4a7c15u), weights,
                   dual.at_least(texts * kSiblings), diagonal.at_least(texts), order.at_least(texts)});
    for (int64_t place = 0; place < places; ++place) {
      const int32_t feature = rows.feature_of[static_cast<size_t>(place)];
      for (int l = 0; l < lanes; ++l) {
        const float value = weights[place * kSiblings + l];
        if (feature < 0) {
          biases[l] = value * p.bias;
        } else if (value != 0 && std::abs(value) >= p.prune) {
          entries.push_back({feature, static_cast<int32_t>(first + l - p.groups[group]), value});
        }
      }
    }
  }

 private:
  const LinearProblem& p;
  const LinearKernels& kernels;
  std::vector<uint16_t> positive;
  Buffer<float> weight, dual, diagonal;
  Buffer<int32_t> order;
};

bool before(const Entry& a, const Entry& b) {
  return a.feature != b.feature ? a.feature < b.feature : a.column < b.column;
}

// The entries of a group's panels become one list by feature and column.
void merge(std::vector<std::vector<Entry>>& panels, std::vector<Entry>& merged) {
  merged.clear();
  for (auto& panel : panels) merged.insert(merged.end(), panel.begin(), panel.end());
  std::sort(merged.begin(), merged.end(), before);
}

}  // namespace

LinearWeights train_linear(const LinearProblem& p, InstructionSet set, int threads) {
  struct Group {
    std::vector<Entry> entries;
    std::vector<float> biases;
  };
  std::vector<Group> solved(static_cast<size_t>(p.num_groups));
  for (int64_t g = 0; g < p.num_groups; ++g) {
    solved[static_cast<size_t>(g)].biases.assign(static_cast<size_t>(p.groups[g + 1] - p.groups[g]), 0.0f);
  }
  const auto num_panels = [&](int64_t g) { return (p.groups[g + 1] - p.groups[g] + kSiblings - 1) / kSiblings; };
  const auto lanes_of = [&](int64_t g, int64_t first) {
    return static_cast<int>(std::min<int64_t>(kSiblings, p.groups[g + 1] - first));
  };
  std::vector<Solver> solvers;
  for (int worker = 0; worker < threads; ++worker) solvers.emplace_back(p, set);
  std::vector<Rows> rows(static_cast<size_t>(threads));
  const auto solve_group = [&](int64_t g, int own, int team) {
    Rows& texts = rows[static_cast<size_t>(own)];
    texts.gather(p, g);
    std::vector<std::vector<Entry>> panels(static_cast<size_t>(num_panels(g)));
    Group& group = solved[static_cast<size_t>(g)];
    parallel_for(num_panels(g), 1, team, [&](int worker, int64_t from, int64_t to) {
      for (int64_t panel = from; panel < to; ++panel) {
        const int64_t first = p.groups[g] + panel * kSiblings;
        solvers[static_cast<size_t>(own + worker)].solve(texts, g, first, lanes_of(g, first),
                                                         panels[static_cast<size_t>(panel)],
                                                         group.biases.data() + panel * kSiblings);
      }
    });
    merge(panels, group.entries);
    group.entries.shrink_to_fit();
  };
  // Of few groups, those with work for all threads are solved one after another; all others each by one thread.
  std::vector<int64_t> narrow;
  for (int64_t g = 0; g < p.num_groups; ++g) {
    if (p.num_groups < 8 * threads && num_panels(g) >= threads && threads > 1) {
      solve_group(g, 0, threads);
    } else {
      narrow.push_back(g);
    }
  }
  parallel_for(static_cast<int64_t>(narrow.size()), 1, threads, [&](int worker, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) solve_group(narrow[static_cast<size_t>(i)], worker, 1);
  });
  LinearWeights out;
  for (Group& group : solved) {
    for (size_t e = 0; e < group.entries.size(); ++e) {
      const Entry& entry = group.entries[e];
      if (e == 0 || entry.feature != group.entries[e - 1].feature) {
        if (e != 0) out.feature_indptr.push_back(static_cast<int64_t>(out.columns.size()));
        out.features.push_back(entry.feature);
      }
      out.columns.push_back(entry.column);
      out.weights.push_back(entry.weight);
    }
    if (!group.entries.empty()) out.feature_indptr.push_back(static_cast<int64_t>(out.columns.size()));
    out.group_indptr.push_back(static_cast<int64_t>(out.features.size()));
    out.biases.insert(out.biases.end(), group.biases.begin(), group.biases.end());
    group.entries = {};
  }
  return out;
}

}  // namespace xmplug
