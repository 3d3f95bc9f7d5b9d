// Dual coordinate descent on up to 16 problems that share their rows; compiled for each instruction set.
//
// Squared hinge: Hsieh, Chang, Lin, Keerthi and Sundararajan, A dual coordinate descent method for large-scale linear
// SVM, ICML 2008, algorithms 1 and 3 (with shrinking). Logistic: Yu, Huang and Lin, Dual coordinate descent methods
// for logistic regression and maximum entropy models, Machine Learning 2011, algorithm 5. A row leaves the passes when
// it has shrunk in all lanes; a lane stops changing when it has converged.
#pragma once

#include <cmath>
#include <limits>

#include "linear_kernels.h"
#include "simd.h"

namespace xmplug {
namespace {

constexpr int kVecs = kSiblings / kLanes;

struct PanelVec {
  Vec v[kVecs];
};

XMPLUG_INLINE PanelVec panel_of(float value) {
  PanelVec out;
  for (int i = 0; i < kVecs; ++i) out.v[i] = splat(value);
  return out;
}

XMPLUG_INLINE PanelVec load_panel(const float* from) {
  PanelVec out;
  for (int i = 0; i < kVecs; ++i) out.v[i] = load(from + i * kLanes);
  return out;
}

XMPLUG_INLINE void store_panel(float* to, const PanelVec& from) {
  for (int i = 0; i < kVecs; ++i) store(to + i * kLanes, from.v[i]);
}

XMPLUG_INLINE uint64_t next_random(uint64_t& state) {  // splitmix64
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// w . x in each lane. Two sums, because one would wait for itself.
XMPLUG_INLINE PanelVec margins(const float* weights, const int32_t* places, const float* values, int64_t size) {
  PanelVec even = panel_of(0), odd = panel_of(0);
  int64_t e = 0;
  for (; e + 1 < size; e += 2) {
    const float* first = weights + static_cast<int64_t>(places[e]) * kSiblings;
    const float* second = weights + static_cast<int64_t>(places[e + 1]) * kSiblings;
    for (int i = 0; i < kVecs; ++i) even.v[i] += values[e] * load(first + i * kLanes);
    for (int i = 0; i < kVecs; ++i) odd.v[i] += values[e + 1] * load(second + i * kLanes);
  }
  if (e < size) {
    const float* last = weights + static_cast<int64_t>(places[e]) * kSiblings;
    for (int i = 0; i < kVecs; ++i) even.v[i] += values[e] * load(last + i * kLanes);
  }
  for (int i = 0; i < kVecs; ++i) even.v[i] += odd.v[i];
  return even;
}

XMPLUG_INLINE void add(float* weights, const int32_t* places, const float* values, int64_t size,
                       const PanelVec& change) {
  for (int64_t e = 0; e < size; ++e) {
    float* row = weights + static_cast<int64_t>(places[e]) * kSiblings;
    for (int i = 0; i < kVecs; ++i) store(row + i * kLanes, load(row + i * kLanes) + values[e] * change.v[i]);
  }
}

XMPLUG_INLINE bool any_set(const PanelVec& lanes) {
  float all[kSiblings];
  store_panel(all, lanes);
  uint32_t bits = 0;
  for (float value : all) bits |= bits_as<uint32_t>(value) << 1;  // without the sign of zero
  return bits != 0;
}

void shuffle(int32_t* order, int64_t size, uint64_t& random) {
  for (int64_t i = size - 1; i > 0; --i) {
    const auto j = static_cast<int64_t>((static_cast<unsigned __int128>(next_random(random)) * (i + 1)) >> 64);
    const int32_t row = order[i];
    order[i] = order[j];
    order[j] = row;
  }
}

XMPLUG_APART void solve_squared_hinge(const Panel& p) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float ridge = 0.5f / p.cost;
  alignas(64) float sign[kSiblings], moving[kSiblings], most_before[kSiblings], most[kSiblings], least[kSiblings];
  alignas(64) float left_out[kSiblings];
  for (int l = 0; l < kSiblings; ++l) {
    moving[l] = l < p.lanes ? 1.0f : 0.0f;
    most_before[l] = kInfinity;
  }
  uint64_t random = p.seed;
  int64_t active = p.num_rows;
  for (int pass = 0; pass < p.passes; ++pass) {
    shuffle(p.order, active, random);
    const PanelVec bound = load_panel(most_before), allowed = load_panel(moving);
    PanelVec high = panel_of(-kInfinity), low = panel_of(kInfinity), skipped = panel_of(0);
    for (int64_t s = 0; s < active; ++s) {
      const int32_t row = p.order[s];
      const int64_t from = p.begin[row], size = p.begin[row + 1] - from;
      for (int l = 0; l < kSiblings; ++l) sign[l] = (p.positive[row] >> l) & 1 ? 1.0f : -1.0f;
      const PanelVec y = load_panel(sign), dot = margins(p.weights, p.places + from, p.values + from, size);
      float* const dual = p.dual + static_cast<int64_t>(row) * kSiblings;
      PanelVec alpha = load_panel(dual), change, stays;
      for (int i = 0; i < kVecs; ++i) {
        const Vec zero = splat(0.0f), one = splat(1.0f);
        const Vec gradient = y.v[i] * dot.v[i] - 1.0f + ridge * alpha.v[i];
        const Vec projected = (alpha.v[i] == zero) & (gradient > zero) ? zero : gradient;
        const Vec shrunk = (alpha.v[i] == zero) & (gradient > bound.v[i]) ? one : zero;
        stays.v[i] = shrunk == zero ? allowed.v[i] : zero;
        skipped.v[i] = shrunk == zero ? skipped.v[i] : one;
        high.v[i] = (projected > high.v[i]) & (shrunk == zero) ? projected : high.v[i];
        low.v[i] = (projected < low.v[i]) & (shrunk == zero) ? projected : low.v[i];
        Vec next = alpha.v[i] - gradient / p.diagonal[row];
        next = next > zero ? next : zero;
        next = allowed.v[i] > zero ? next : alpha.v[i];
        change.v[i] = (next - alpha.v[i]) * y.v[i];
        alpha.v[i] = next;
      }
      if (any_set(change)) {
        store_panel(dual, alpha);
        add(p.weights, p.places + from, p.values + from, size, change);
      } else if (!any_set(stays)) {
        p.order[s--] = p.order[--active];
        p.order[active] = row;
      }
    }
    store_panel(most, high);
    store_panel(least, low);
    store_panel(left_out, skipped);
    // A lane has converged when a pass over all rows says so, none of them left out in it. When all lanes have on the
    // rows that are left, the next pass looks at all again.
    bool done = true, whole = true;
    for (int l = 0; l < p.lanes; ++l) {
      if (moving[l] == 0) continue;
      const bool converged = most[l] - least[l] <= p.tolerance;
      const bool complete = active == p.num_rows && left_out[l] == 0;
      if (converged && complete) moving[l] = 0;
      done = done && converged;
      whole = whole && complete;
      most_before[l] = most[l] > 0 ? most[l] : kInfinity;
    }
    if (done && whole) return;
    if (done) {
      active = p.num_rows;
      for (float& value : most_before) value = kInfinity;
    }
  }
}

// Minimises the dual of one row in one lane by Newton's method, from `alpha` in (0, cost); returns the new alpha.
// margin = y (w . x), size = |x|^2. Algorithm 4 of Yu, Huang and Lin.
double logistic_coordinate(double alpha, double cost, double margin, double size) {
  double low = alpha, high = cost - alpha;
  bool swapped = false;
  double slope = margin;
  if (0.5 * size * (high - low) + margin < 0) {  // the solution is in the upper half: count from the other end
    std::swap(low, high);
    slope = -margin;
    swapped = true;
  }
  const double start = low;
  double z = cost - start < 0.5 * cost ? 0.1 * start : start;
  for (int step = 0; step < 100; ++step) {
    const double gradient = size * (z - start) + slope + std::log(z / (cost - z));
    if (std::fabs(gradient) < 1e-6) break;
    const double curvature = size + cost / (cost - z) / z;
    const double next = z - gradient / curvature;
    z = next <= 0 ? 0.1 * z : next;
  }
  return swapped ? cost - z : z;
}

XMPLUG_APART void solve_logistic(const Panel& p) {
  alignas(64) float dots[kSiblings], change[kSiblings];
  uint64_t random = p.seed;
  const float first = std::fmin(1e-3f * p.cost, 1e-8f);
  for (int64_t row = 0; row < p.num_rows; ++row) {  // alpha starts inside (0, cost): weights follow
    const int64_t from = p.begin[row];
    for (int l = 0; l < kSiblings; ++l) {
      p.dual[row * kSiblings + l] = first;
      change[l] = (p.positive[row] >> l) & 1 ? first : -first;
    }
    add(p.weights, p.places + from, p.values + from, p.begin[row + 1] - from, load_panel(change));
  }
  uint16_t moving = static_cast<uint16_t>((1u << p.lanes) - 1);
  for (int pass = 0; pass < p.passes && moving; ++pass) {
    shuffle(p.order, p.num_rows, random);
    double most[kSiblings] = {};
    for (int64_t s = 0; s < p.num_rows; ++s) {
      const int32_t row = p.order[s];
      const int64_t from = p.begin[row], size = p.begin[row + 1] - from;
      float* const dual = p.dual + static_cast<int64_t>(row) * kSiblings;
      store_panel(dots, margins(p.weights, p.places + from, p.values + from, size));
      bool changed = false;
      for (int l = 0; l < kSiblings; ++l) {
        change[l] = 0;
        if (!((moving >> l) & 1)) continue;
        const double y = (p.positive[row] >> l) & 1 ? 1 : -1, alpha = dual[l];
        const double gradient = y * dots[l] + std::log(alpha / (p.cost - alpha));
        most[l] = std::fmax(most[l], std::fabs(gradient));
        if (std::fabs(gradient) < 1e-3 * p.tolerance) continue;
        double next = logistic_coordinate(alpha, p.cost, y * dots[l], p.diagonal[row]);
        next = std::fmin(std::fmax(next, 1e-30), p.cost * (1.0 - 1e-7));  // as float32 too inside (0, cost)
        dual[l] = static_cast<float>(next);
        change[l] = static_cast<float>(y * (static_cast<double>(dual[l]) - alpha));  // what the dual has kept of it
        changed = true;
      }
      if (changed) add(p.weights, p.places + from, p.values + from, size, load_panel(change));
    }
    for (int l = 0; l < p.lanes; ++l) {
      if (most[l] < p.tolerance) moving &= static_cast<uint16_t>(~(1u << l));
    }
  }
}

void solve_panel(const Panel& p) {
  const float ridge = p.logistic ? 0.0f : 0.5f / p.cost;
  for (int64_t i = 0; i < p.num_places * kSiblings; ++i) p.weights[i] = 0;
  for (int64_t i = 0; i < p.num_rows * kSiblings; ++i) p.dual[i] = 0;
  for (int64_t row = 0; row < p.num_rows; ++row) {
    float square = ridge;
    for (int64_t e = p.begin[row]; e < p.begin[row + 1]; ++e) square += p.values[e] * p.values[e];
    p.diagonal[row] = square;
    p.order[row] = static_cast<int32_t>(row);
  }
  if (p.logistic) {
    solve_logistic(p);
  } else {
    solve_squared_hinge(p);
  }
}

}  // namespace

template <>
const LinearKernels& kernels<LinearKernels, kSet>() {
  static const LinearKernels table{solve_panel};
  return table;
}

}  // namespace xmplug
