#include "kernels.h"

namespace xmplug::cuda {
namespace {

constexpr int kThreads = 256;

// A warp for each row, its lanes along the row.
template <class Weight>
__global__ void __launch_bounds__(kThreads)
    adam_rows(Weight* weight, int64_t num_rows, int64_t width, const int64_t* rows, int64_t count, const float* grad,
              float* exp_avg, float* exp_avg_sq, float step_size, float keep_avg, float keep_sq, float eps) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  for (int64_t i = first; i < count; i += warps) {
    check_index(rows[i] >= 0 && rows[i] < num_rows);
    const int64_t row = rows[i] * width;
    for (int64_t column = threadIdx.x % 32; column < width; column += 32) {
      const float g = grad[i * width + column];
      float avg = exp_avg[row + column], sq = exp_avg_sq[row + column];
      // Without fused multiply-adds, as on the CPU: all kernels round as the reference does.
      avg = __fadd_rn(avg, __fmul_rn(__fsub_rn(g, avg), keep_avg));
      sq = __fadd_rn(sq, __fmul_rn(__fsub_rn(__fmul_rn(g, g), sq), keep_sq));
      exp_avg[row + column] = avg;
      exp_avg_sq[row + column] = sq;
      const float change = __fmul_rn(step_size, __fdiv_rn(avg, __fadd_rn(__fsqrt_rn(sq), eps)));
      weight[row + column] = from_float<Weight>(__fsub_rn(to_float(weight[row + column]), change));
    }
  }
}

}  // namespace

template <class Weight>
void sparse_adam_step(Weight* weight, int64_t num_rows, int64_t width, const int64_t* rows, int64_t count,
                      const float* grad, float* exp_avg, float* exp_avg_sq, float step_size, float keep_avg,
                      float keep_sq, float eps, cudaStream_t stream) {
  if (count == 0) return;
  const auto blocks = static_cast<unsigned>(parts(count, kThreads / 32) < 65536 ? parts(count, kThreads / 32) : 65536);
  launch(adam_rows<Weight>, blocks, kThreads, 0, stream, weight, num_rows, width, rows, count, grad, exp_avg,
         exp_avg_sq, step_size, keep_avg, keep_sq, eps);
}

template void sparse_adam_step(float*, int64_t, int64_t, const int64_t*, int64_t, const float*, float*, float*, float,
                               float, float, float, cudaStream_t);
template void sparse_adam_step(BFloat16*, int64_t, int64_t, const int64_t*, int64_t, const float*, float*, float*,
                               float, float, float, float, cudaStream_t);

}  // namespace xmplug::cuda
