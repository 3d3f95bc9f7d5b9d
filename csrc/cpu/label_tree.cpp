#include <cmath>
#include <memory>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace xmplug {
namespace {

constexpr int64_t kMembers = 1024;  // labels that a thread takes at a time, where several split one segment
constexpr int64_t kAhead = 4;       // labels whose features are fetched while those of one are copied
constexpr int64_t kLanes = 4;       // sums that a squared norm is made of: places 0, 4, 8, ... are the first of them

// The nearest multiple of 2^-bits, ties to even, of a number far below 2^(51 - bits): beside so large a number, smaller
// bits have no place. Sums of such numbers are exact, and do not depend on the order in which threads make them.
template <int bits>
double rounded(double value) {
  constexpr auto large = 1.5 * static_cast<double>(int64_t{1} << (52 - bits));
  return (value + large) - large;
}

struct Features {
  const int64_t* indptr;
  const int32_t* indices;
  const float* values;
  const double* scale;
};

struct Member {
  double score;  // how much closer to the right centroid than to the left one
  int64_t label;
};

bool more_left(const Member& a, const Member& b) { return a.score != b.score ? a.score < b.score : a.label < b.label; }

template <class T>
std::unique_ptr<T[]> memory(int64_t size) {  // not set to 0
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(size)]);
}

// Splits segments, one after another, with a team of threads. All memory is taken here, once, for the longest of them.
class Splitter {
 public:
  Splitter(const Features& features, int64_t num_features, int64_t most_labels, int64_t most_entries, int team)
      : x(features),
        most_places((std::min(num_features, most_entries) + kLanes - 1) / kLanes * kLanes),
        place_of(memory<int32_t>(num_features)),
        seen(static_cast<size_t>(team), std::vector<uint64_t>(static_cast<size_t>(num_features / 64 + 1), 0)),
        begin(memory<int64_t>(most_labels + 1)),
        places(memory<int32_t>(most_entries)),
        values(memory<float>(most_entries)),
        members(memory<Member>(most_labels)),
        ranked(memory<Member>(most_labels)),
        side(memory<signed char>(most_labels)),
        counted(memory<signed char>(most_labels)),
        direction(memory<float>(most_places)) {
    for (int worker = 0; worker < team; ++worker) sums.push_back(memory<double>(2 * most_places));
  }

  void split(int64_t* labels, int64_t size, int64_t left_size, int64_t first, int64_t second, int rounds) {
    copy_features(labels, size);
    std::fill_n(side.get(), size, static_cast<signed char>(-1));
    std::fill_n(counted.get(), size, static_cast<signed char>(-1));
    side[first] = 0;
    side[second] = 1;
    for (int round = 0; round < rounds; ++round) {
      add_moved(size);
      point();
      score(labels, size);
      std::copy_n(members.get(), size, ranked.get());
      Member* pivot = ranked.get() + left_size;
      std::nth_element(ranked.get(), pivot, ranked.get() + size, more_left);
      bool stable = true;
      for (int64_t i = 0; i < size; ++i) {
        const auto now = static_cast<signed char>(!more_left(members[i], *pivot));
        stable = stable && now == side[i];
        side[i] = now;
      }
      if (stable) break;
    }
    int64_t to_left = 0, to_right = left_size;
    for (int64_t i = 0; i < size; ++i) labels[side[i] == 0 ? to_left++ : to_right++] = members[i].label;
  }

 private:
  template <class Body>
  void share(int64_t size, const Body& body) {
    parallel_for(size, kMembers, static_cast<int>(sums.size()), body);
  }

  // Copies the unit vectors of labels into one piece, with features numbered in their order and without gaps, so that
  // centroids take as little cache as can be.
  void copy_features(const int64_t* labels, int64_t size) {
    begin[0] = 0;
    for (int64_t i = 0; i < size; ++i) begin[i + 1] = begin[i] + x.indptr[labels[i] + 1] - x.indptr[labels[i]];
    share(size, [&](int worker, int64_t from, int64_t to) {
      uint64_t* bits = seen[static_cast<size_t>(worker)].data();
      for (int64_t i = from; i < to; ++i) {
        if (i + kAhead < to) fetch(labels[i + kAhead]);
        const int64_t start = x.indptr[labels[i]] - begin[i];
        const double scale = x.scale[labels[i]];
        for (int64_t j = begin[i]; j < begin[i + 1]; ++j) {
          const int32_t feature = x.indices[start + j];
          bits[feature / 64] |= uint64_t{1} << (feature % 64);
          places[j] = feature;
          values[j] = static_cast<float>(rounded<24>(static_cast<double>(x.values[start + j]) * scale));
        }
      }
    });
    int32_t num_places = 0;
    for (size_t word = 0; word < seen[0].size(); ++word) {
      uint64_t bits = 0;
      for (auto& of_worker : seen) {
        bits |= of_worker[word];
        of_worker[word] = 0;
      }
      for (; bits != 0; bits &= bits - 1) {
        place_of[word * 64 + static_cast<size_t>(__builtin_ctzll(bits))] = num_places++;
      }
    }
    width = (num_places + kLanes - 1) / kLanes * kLanes;
    for (auto& of_worker : sums) std::fill_n(of_worker.get(), 2 * width, 0.0);
    share(size, [&](int, int64_t from, int64_t to) {
      for (int64_t j = begin[from]; j < begin[to]; ++j) places[j] = place_of[places[j]];
    });
  }

  void fetch(int64_t label) const {
    for (int64_t j = x.indptr[label]; j < x.indptr[label + 1]; j += 16) {  // a line of cache
      __builtin_prefetch(x.indices + j);
      __builtin_prefetch(x.values + j);
    }
  }

  // Brings the sums of each side's members, which lie in sums[0], left then right, to what `side` now says.
  void add_moved(int64_t size) {
    share(size, [&](int worker, int64_t from, int64_t to) {
      double* sum = sums[static_cast<size_t>(worker)].get();
      for (int64_t i = from; i < to; ++i) {
        if (side[i] == counted[i]) continue;
        double* now = sum + (side[i] == 0 ? 0 : width);
        double* before = sum + (side[i] == 0 ? width : 0);
        for (int64_t j = begin[i]; j < begin[i + 1]; ++j) now[places[j]] += static_cast<double>(values[j]);
        for (int64_t j = counted[i] < 0 ? begin[i + 1] : begin[i]; j < begin[i + 1]; ++j) {
          before[places[j]] -= static_cast<double>(values[j]);
        }
        counted[i] = side[i];
      }
    });
    for (size_t worker = 1; worker < sums.size(); ++worker) {
      for (int64_t place = 0; place < 2 * width; ++place) {
        sums[0][place] += sums[worker][place];
        sums[worker][place] = 0;
      }
    }
  }

  // The direction from the left centroid to the right one: the difference of the sums' unit vectors.
  void point() {
    const double* left = sums[0].get();
    const double* right = left + width;
    const double left_scale = inverse_norm(left), right_scale = inverse_norm(right);
    for (int64_t place = 0; place < width; ++place) {
      direction[place] = static_cast<float>(rounded<23>(right[place] * right_scale - left[place] * left_scale));
    }
  }

  double inverse_norm(const double* sum) const {
    double lanes[kLanes] = {};
    for (int64_t place = 0; place < width; place += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += sum[place + lane] * sum[place + lane];
    }
    double squared = 0;
    for (const double lane : lanes) squared += lane;
    return squared > 0 ? 1.0 / std::sqrt(squared) : 0.0;
  }

  void score(const int64_t* labels, int64_t size) {
    share(size, [&](int, int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        double even = 0, odd = 0;  // exact, as the sum of products of so few bits each is: any order will do
        int64_t j = begin[i];
        for (; j + 1 < begin[i + 1]; j += 2) {
          even += static_cast<double>(values[j]) * static_cast<double>(direction[places[j]]);
          odd += static_cast<double>(values[j + 1]) * static_cast<double>(direction[places[j + 1]]);
        }
        if (j < begin[i + 1]) even += static_cast<double>(values[j]) * static_cast<double>(direction[places[j]]);
        members[i] = {even + odd, labels[i]};
      }
    });
  }

  const Features x;
  const int64_t most_places;
  int64_t width = 0;                        // of the segment's features, a multiple of kLanes
  std::unique_ptr<int32_t[]> place_of;      // of each feature of the segment
  std::vector<std::vector<uint64_t>> seen;  // of each worker: a bit for each feature; all 0 between uses
  std::unique_ptr<int64_t[]> begin;         // of each member in `places` and `values`
  std::unique_ptr<int32_t[]> places;
  std::unique_ptr<float[]> values;  // multiples of 2^-24
  std::unique_ptr<Member[]> members, ranked;
  std::unique_ptr<signed char[]> side, counted;  // of each member: 0 left, 1 right, -1 neither
  std::vector<std::unique_ptr<double[]>> sums;   // of each worker: what it adds to those of the first
  std::unique_ptr<float[]> direction;            // multiples of 2^-23
};

}  // namespace

bool inverse_norms(const int64_t* indptr, const float* values, int64_t num_rows, double* scale, int threads) {
  const double per_row = static_cast<double>(indptr[num_rows]) / static_cast<double>(std::max<int64_t>(num_rows, 1));
  threads = useful_threads(num_rows, per_row, threads);
  std::atomic<bool> finite{true};
  parallel_for(num_rows, kMembers, threads, [&](int, int64_t from, int64_t to) {
    for (int64_t row = from; row < to; ++row) {
      double squared = 0;
      for (int64_t j = indptr[row]; j < indptr[row + 1]; ++j) {
        squared += static_cast<double>(values[j]) * static_cast<double>(values[j]);
      }
      if (!std::isfinite(squared)) finite = false;
      scale[row] = squared > 0 ? 1.0 / std::sqrt(squared) : 0.0;
    }
  });
  return finite;
}

void split_segments(const int64_t* indptr, const int32_t* indices, const float* values, const double* scale,
                    int64_t num_features, int64_t* order, const int64_t* begin, const int64_t* middle,
                    const int64_t* end, const int64_t* first, const int64_t* second, int64_t num_segments, int rounds,
                    int threads) {
  int64_t most_labels = 0, most_entries = 0, all_entries = 0;
  for (int64_t s = 0; s < num_segments; ++s) {
    int64_t entries = 0;
    for (int64_t i = begin[s]; i < end[s]; ++i) entries += indptr[order[i] + 1] - indptr[order[i]];
    most_labels = std::max(most_labels, end[s] - begin[s]);
    most_entries = std::max(most_entries, entries);
    all_entries += entries;
  }
  // Few and long segments are split one after another by all threads, others each by one.
  const int team = num_segments < 4 * threads ? useful_threads(most_entries, 0.7, threads) : 1;
  if (team > 1) {
    threads = 1;
  } else {
    const double per_segment = 15.0 * static_cast<double>(all_entries) / static_cast<double>(num_segments);
    threads = useful_threads(num_segments, per_segment, threads);
  }
  std::vector<Splitter> splitters;
  splitters.reserve(static_cast<size_t>(threads));
  for (int worker = 0; worker < threads; ++worker) {
    splitters.emplace_back(Features{indptr, indices, values, scale}, num_features, most_labels, most_entries, team);
  }
  parallel_for(num_segments, 1, threads, [&](int worker, int64_t from, int64_t to) {
    for (int64_t s = from; s < to; ++s) {
      splitters[static_cast<size_t>(worker)].split(order + begin[s], end[s] - begin[s], middle[s] - begin[s], first[s],
                                                   second[s], rounds);
    }
  });
}

}  // namespace xmplug
