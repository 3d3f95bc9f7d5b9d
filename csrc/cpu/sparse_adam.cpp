#include <cmath>
#include <cstring>

#include "kernels.h"
#include "parallel.h"

namespace xmplug {
namespace {

float to_float(float value) { return value; }

float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

template <class Weight>
Weight rounded(float value);

template <>
float rounded(float value) {
  return value;
}

template <>
BFloat16 rounded(float value) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// A function of its own, so that the compiler believes __restrict and makes vectors of the loop.
template <class Weight>
void step_row(Weight* __restrict weight, float* __restrict exp_avg, float* __restrict exp_avg_sq,
              const float* __restrict grad, int64_t width, float step_size, float keep_avg, float keep_sq, float eps) {
  for (int64_t d = 0; d < width; ++d) {
    const float avg = exp_avg[d] + (grad[d] - exp_avg[d]) * keep_avg;
    const float sq = exp_avg_sq[d] + (grad[d] * grad[d] - exp_avg_sq[d]) * keep_sq;
    exp_avg[d] = avg;
    exp_avg_sq[d] = sq;
    weight[d] = rounded<Weight>(to_float(weight[d]) - step_size * (avg / (std::sqrt(sq) + eps)));
  }
}

}  // namespace

template <class Weight>
bool sparse_adam_step(Weight* weight, int64_t num_rows, int64_t width, const int64_t* rows, int64_t count,
                      const float* grad, float* exp_avg, float* exp_avg_sq, float step_size, float keep_avg,
                      float keep_sq, float eps, int threads) {
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i] <= (i == 0 ? -1 : rows[i - 1]) || rows[i] >= num_rows) return false;
  }
  threads = useful_threads(count, 2.0 * static_cast<double>(width), threads);
  const int64_t chunk = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
  parallel_for(count, chunk, threads, [&](int, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t at = rows[i] * width;
      step_row(weight + at, exp_avg + at, exp_avg_sq + at, grad + i * width, width, step_size, keep_avg, keep_sq, eps);
    }
  });
  return true;
}

template bool sparse_adam_step(float*, int64_t, int64_t, const int64_t*, int64_t, const float*, float*, float*, float,
                               float, float, float, int);
template bool sparse_adam_step(BFloat16*, int64_t, int64_t, const int64_t*, int64_t, const float*, float*, float*,
                               float, float, float, float, int);

}  // namespace xmplug
