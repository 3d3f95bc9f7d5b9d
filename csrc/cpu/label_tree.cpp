#include <array>
#include <cmath>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace xmplug {
namespace {

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

struct Workspace {
  std::vector<double> centroids;  // left and right value of each feature, side by side; all 0 between uses
  std::vector<std::array<double, 2>> products;  // of each member with the left and the right centroid
  std::vector<Member> members;
  std::vector<Member> ranked;
  std::vector<signed char> side;  // of each member: 0 left, 1 right, -1 neither (before the first round)
};

double inverse_norm(double squared) { return squared > 0 ? 1.0 / std::sqrt(squared) : 0.0; }

void split_segment(const Features& x, int64_t* labels, int64_t size, int64_t left_size, int64_t first, int64_t second,
                   int rounds, Workspace& work) {
  double* centroids = work.centroids.data();
  work.products.resize(static_cast<size_t>(size));
  work.members.resize(static_cast<size_t>(size));
  work.side.assign(static_cast<size_t>(size), -1);
  work.side[static_cast<size_t>(first)] = 0;
  work.side[static_cast<size_t>(second)] = 1;
  std::vector<std::array<double, 2>>& products = work.products;
  std::vector<Member>& members = work.members;
  std::vector<signed char>& side = work.side;

  for (int round = 0; round < rounds; ++round) {
    for (int64_t i = 0; i < size; ++i) {
      const int which = side[static_cast<size_t>(i)];
      if (which < 0) continue;
      const double scale = x.scale[labels[i]];
      for (int64_t j = x.indptr[labels[i]]; j < x.indptr[labels[i] + 1]; ++j) {
        centroids[2 * static_cast<int64_t>(x.indices[j]) + which] += static_cast<double>(x.values[j]) * scale;
      }
    }
    // A centroid is the sum of its members, so that its squared norm is the sum of their products with it.
    double left_squared = 0, right_squared = 0;
    for (int64_t i = 0; i < size; ++i) {
      double left = 0, right = 0;
      const double scale = x.scale[labels[i]];
      for (int64_t j = x.indptr[labels[i]]; j < x.indptr[labels[i] + 1]; ++j) {
        const double value = static_cast<double>(x.values[j]) * scale;
        left += value * centroids[2 * static_cast<int64_t>(x.indices[j])];
        right += value * centroids[2 * static_cast<int64_t>(x.indices[j]) + 1];
      }
      if (side[static_cast<size_t>(i)] == 0) left_squared += left;
      if (side[static_cast<size_t>(i)] == 1) right_squared += right;
      products[static_cast<size_t>(i)] = {left, right};
    }
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = x.indptr[labels[i]]; j < x.indptr[labels[i] + 1]; ++j) {
        centroids[2 * static_cast<int64_t>(x.indices[j])] = 0;
        centroids[2 * static_cast<int64_t>(x.indices[j]) + 1] = 0;
      }
    }
    const double left_scale = inverse_norm(left_squared), right_scale = inverse_norm(right_squared);
    for (int64_t i = 0; i < size; ++i) {
      const auto [left, right] = products[static_cast<size_t>(i)];
      members[static_cast<size_t>(i)] = {right * right_scale - left * left_scale, labels[i]};
    }
    work.ranked = members;
    const auto pivot = work.ranked.begin() + static_cast<ptrdiff_t>(left_size);
    std::nth_element(work.ranked.begin(), pivot, work.ranked.end(), more_left);
    bool stable = true;
    for (int64_t i = 0; i < size; ++i) {
      const auto now = static_cast<signed char>(!more_left(members[static_cast<size_t>(i)], *pivot));
      stable = stable && now == side[static_cast<size_t>(i)];
      side[static_cast<size_t>(i)] = now;
    }
    if (stable) break;
  }

  int64_t to_left = 0, to_right = left_size;
  for (int64_t i = 0; i < size; ++i) {
    labels[side[static_cast<size_t>(i)] == 0 ? to_left++ : to_right++] = members[static_cast<size_t>(i)].label;
  }
}

}  // namespace

void split_segments(const int64_t* indptr, const int32_t* indices, const float* values, const double* scale,
                    int64_t num_features, int64_t num_labels, int64_t* order, const int64_t* begin,
                    const int64_t* middle, const int64_t* end, const int64_t* first, const int64_t* second,
                    int64_t num_segments, int rounds, int threads) {
  const Features x{indptr, indices, values, scale};
  int64_t longest = 0;
  for (int64_t s = 0; s < num_segments; ++s) longest = std::max(longest, end[s] - begin[s]);

  const double per_label = static_cast<double>(indptr[num_labels]) / static_cast<double>(num_labels);
  const double per_segment =
      60.0 * per_label * static_cast<double>(num_labels) / static_cast<double>(std::max<int64_t>(num_segments, 1));
  threads = useful_threads(num_segments, per_segment, threads);
  std::vector<Workspace> workspaces(static_cast<size_t>(threads));
  for (auto& work : workspaces) {
    work.centroids.assign(static_cast<size_t>(2 * num_features), 0.0);
    work.products.reserve(static_cast<size_t>(longest));
    work.members.reserve(static_cast<size_t>(longest));
    work.ranked.reserve(static_cast<size_t>(longest));
    work.side.reserve(static_cast<size_t>(longest));
  }
  parallel_for(num_segments, 1, threads, [&](int worker, int64_t from, int64_t to) {
    for (int64_t s = from; s < to; ++s) {
      split_segment(x, order + begin[s], end[s] - begin[s], middle[s] - begin[s], first[s], second[s], rounds,
                    workspaces[static_cast<size_t>(worker)]);
    }
  });
}

}  // namespace xmplug
