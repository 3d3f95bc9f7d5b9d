#include <algorithm>
#include <atomic>

#include "linear.h"
#include "parallel.h"

namespace xmplug {
namespace {

constexpr int kAbreast = 16;

// Nodes of one group that one text asks for, side by side in its row.
struct Run {
  int64_t group, text, column, length;
};

// Where in the features of a group each feature of a text is. Two ways: a table of all features, worth filling where
// many texts ask for the group, and a search, where few do.
class Finder {
 public:
  explicit Finder(const LinearScores& in) : in(in) {}

  void open(int64_t group, int64_t asked) {
    close();
    begin = in.group_features + in.group_indptr[group];
    first_feature = in.group_indptr[group];
    size = in.group_indptr[group + 1] - first_feature;
    tabled = asked > size;  // features to look up against features to enter
    if (!tabled) return;
    table.resize(static_cast<size_t>(in.num_features), -1);
    for (int64_t f = 0; f < size; ++f) {
      if (known(begin[f])) table[static_cast<size_t>(begin[f])] = static_cast<int32_t>(f);
    }
  }

  void close() {
    if (tabled) {
      for (int64_t f = 0; f < size; ++f) {
        if (known(begin[f])) table[static_cast<size_t>(begin[f])] = -1;
      }
    }
    tabled = false;
  }

  // Calls found(place among the group's features, value) for each feature of `text` that the group has.
  template <class Found>
  void match(int64_t text, const Found& found) const {
    const int64_t from = in.features.indptr[text], to = in.features.indptr[text + 1];
    if (tabled) {
      for (int64_t e = from; e < to; ++e) {
        const int32_t place = table[static_cast<size_t>(in.features.indices[e])];
        if (place >= 0) found(place, in.features.values[e]);
      }
      return;
    }
    // Halving, sixteen searches side by side: what each waits for from memory is on its way for all of them.
    for (int64_t e = from; e < to; e += kAbreast) {
      const auto count = static_cast<int>(std::min<int64_t>(kAbreast, to - e));
      const int32_t* const wanted = in.features.indices + e;
      int64_t low[kAbreast] = {};  // the last place whose feature is not above the wanted one, or 0
      for (int64_t left = size; left > 1;) {
        const int64_t half = left / 2;
        left -= half;
        for (int i = 0; i < count; ++i) {
          if (begin[low[i] + half] <= wanted[i]) low[i] += half;
          __builtin_prefetch(begin + low[i] + left / 2);
        }
      }
      bool there[kAbreast];
      for (int i = 0; i < count; ++i) {
        there[i] = size > 0 && begin[low[i]] == wanted[i];
        if (there[i]) __builtin_prefetch(in.feature_indptr + first_feature + low[i]);
      }
      for (int i = 0; i < count; ++i) {
        if (!there[i]) continue;
        __builtin_prefetch(in.columns + in.feature_indptr[first_feature + low[i]]);
        __builtin_prefetch(in.weights + in.feature_indptr[first_feature + low[i]]);
      }
      for (int i = 0; i < count; ++i) {
        if (there[i]) found(low[i], in.features.values[e + i]);
      }
    }
  }

 private:
  bool known(int32_t feature) const { return feature >= 0 && feature < in.num_features; }

  const LinearScores& in;
  const int32_t* begin = nullptr;
  int64_t first_feature = 0, size = 0;
  bool tabled = false;
  std::vector<int32_t> table;
};

}  // namespace

int linear_scores(const LinearScores& in, int threads) {
  const int64_t num_nodes = in.groups[in.num_groups];
  std::vector<Run> runs;
  for (int64_t text = 0; text < in.num_texts; ++text) {
    for (int64_t e = in.features.indptr[text]; e < in.features.indptr[text + 1]; ++e) {
      if (in.features.indices[e] < 0 || in.features.indices[e] >= in.num_features) return 2;
    }
    const int64_t* const row = in.nodes + text * in.width;
    int64_t group = -1, begin = 0, end = 0;  // of the group that the last node was in
    for (int64_t column = 0; column < in.width; ++column) {
      const int64_t node = row[column];
      if (node < 0) {
        in.scores[text * in.width + column] = 0;
        group = -1, begin = end = 0;
        continue;
      }
      if (node >= num_nodes) return 1;
      if (group >= 0 && node >= begin && node < end) {
        ++runs.back().length;
        continue;
      }
      group = std::upper_bound(in.groups, in.groups + in.num_groups + 1, node) - in.groups - 1;
      begin = in.groups[group], end = in.groups[group + 1];
      runs.push_back({group, text, column, 1});
    }
  }
  std::stable_sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.group < b.group; });
  const auto num_runs = static_cast<int64_t>(runs.size());
  const int64_t mean_size = in.num_texts ? in.features.indptr[in.num_texts] / in.num_texts + 1 : 1;
  threads = useful_threads(num_runs, 10.0 * static_cast<double>(mean_size), threads);
  constexpr int64_t kChunk = 256;
  std::atomic<bool> damaged{false};
  std::vector<Finder> finders(static_cast<size_t>(threads), Finder(in));
  parallel_for(num_runs, kChunk, threads, [&](int worker, int64_t from, int64_t to) {
    Finder& own = finders[static_cast<size_t>(worker)];
    std::vector<float> local;
    for (int64_t at = from; at < to;) {
      const int64_t group = runs[static_cast<size_t>(at)].group;
      int64_t last = at;
      int64_t asked = 0;
      for (; last < to && runs[static_cast<size_t>(last)].group == group; ++last) {
        const int64_t text = runs[static_cast<size_t>(last)].text;
        asked += in.features.indptr[text + 1] - in.features.indptr[text];
      }
      own.open(group, asked);
      const int64_t first = in.groups[group];
      local.resize(static_cast<size_t>(in.groups[group + 1] - first));
      for (; at < last; ++at) {
        const Run& run = runs[static_cast<size_t>(at)];
        std::copy(in.biases + first, in.biases + in.groups[group + 1], local.begin());
        own.match(run.text, [&](int64_t place, float value) {
          const int64_t feature = in.group_indptr[group] + place;
          const int64_t first_entry = in.feature_indptr[feature], last_entry = in.feature_indptr[feature + 1];
          if (first_entry < 0 || last_entry > in.num_entries) {
            damaged = true;
            return;
          }
          for (int64_t e = first_entry; e < last_entry; ++e) {
            if (static_cast<uint32_t>(in.columns[e]) >= local.size()) {
              damaged = true;
              return;
            }
            local[static_cast<size_t>(in.columns[e])] += value * in.weights[e];
          }
        });
        const int64_t out = run.text * in.width + run.column;
        for (int64_t c = 0; c < run.length; ++c) {
          in.scores[out + c] = local[static_cast<size_t>(in.nodes[out + c] - first)];
        }
      }
    }
    own.close();
  });
  return damaged ? 3 : 0;
}

}  // namespace xmplug
