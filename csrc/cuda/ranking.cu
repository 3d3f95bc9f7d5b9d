#include "kernels.h"

namespace xmplug::cuda {
namespace {

constexpr int kLanes = 32, kWarps = 8, kThreads = kLanes * kWarps;
constexpr int kMetrics = 8;
constexpr int kTops = 4;  // predictions of a lane at a time
constexpr int64_t kNowhere = INT64_MAX;

template <class Top, class Label>
struct Request {
  const Top* top;
  int64_t rows, width;
  const int64_t* indptr;
  const Label* indices;
  int64_t num_indices, num_labels;
  const double* inverse_propensity;
  const double* cutoffs;        // ascending
  const double* discounts;      // of rank i, counted from 0: 1 / log2(i + 2)
  const double* inverse_ideal;  // one over the sum of the first i discounts
  int64_t num_cutoffs, depth;   // the last cutoff

  __host__ __device__ int64_t columns() const { return num_cutoffs * kMetrics + 2; }

  __device__ bool is_label(int64_t label) const { return label >= 0 && label < num_labels; }

  __device__ double weight(int64_t label) const { return is_label(label) ? inverse_propensity[label] : 0.0; }
};

// A warp's lanes each take one of `count` true labels, and find the rank at which it is first predicted.
template <class Top>
__device__ int64_t find_rank(const Top* top, int64_t reach, int64_t label, int count) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  int64_t rank = kNowhere;
  for (int64_t first = 0; first < reach; first += kLanes * kTops) {
    int64_t tops[kTops];
#pragma unroll
    for (int i = 0; i < kTops; ++i) {
      const int64_t at = first + i * kLanes + lane;
      tops[i] = at < reach ? static_cast<int64_t>(top[at]) : -1;
    }
    for (int each = 0; each < count; ++each) {
      const int64_t wanted = __shfl_sync(kAllLanes, label, each);
#pragma unroll
      for (int i = kTops - 1; i >= 0; --i) {
        if (first + i * kLanes >= reach) continue;
        const unsigned found = __ballot_sync(kAllLanes, tops[i] == wanted);
        // Of a later part only where no earlier one has it.
        if (found != 0 && lane == each && (rank == kNowhere || rank >= first)) {
          rank = first + i * kLanes + __ffs(static_cast<int>(found)) - 1;
        }
      }
    }
  }
  return rank;
}

// How many of a document's `size` true labels weigh more than the one with `number`, or as much and come before it.
template <class Top, class Label>
__device__ int64_t find_place(const Request<Top, Label>& request, const Label* truth, int64_t size, int64_t number,
                              double weight) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  int64_t place = 0;
  for (int64_t first = 0; first < size; first += kLanes) {
    const int count = static_cast<int>(min(int64_t{kLanes}, size - first));
    const double mine = lane < count ? request.weight(truth[first + lane]) : 0.0;
    for (int each = 0; each < count; ++each) {
      const double other = __shfl_sync(kAllLanes, mine, each);
      place += other > weight || (other == weight && first + each < number);
    }
  }
  return place;
}

// A warp for each document, its lanes along the true labels to find them, along the cutoffs to sum. Each block leaves
// its sums in a row of `partial`, with the number of documents and of faults behind them.
template <class Top, class Label>
__global__ void __launch_bounds__(kThreads, 2) add_documents(Request<Top, Label> request, double* partial) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kLanes + lane;
  const auto cutoff = column < request.num_cutoffs ? static_cast<int64_t>(request.cutoffs[column]) : 0;
  const int64_t reach = min(request.depth, request.width);
  double sums[kMetrics] = {};
  unsigned documents = 0, faults = 0;
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    faults += request.indptr[0] != 0 || request.indptr[request.rows] != request.num_indices;
  }
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp; row < request.rows;
       row += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t begin = request.indptr[row], end = request.indptr[row + 1], size = end - begin;
    const bool valid = 0 <= begin && begin <= end && end <= request.num_indices;
    faults += !valid;
    if (!valid || size == 0) continue;
    ++documents;
    const Label* truth = request.indices + begin;
    double hits = 0, dcg = 0, ps_hits = 0, ps_best = 0, ps_dcg = 0, ps_ideal = 0;
    for (int64_t first = 0; first < size; first += kLanes) {
      const int count = static_cast<int>(min(int64_t{kLanes}, size - first));
      const int64_t label = lane < count ? static_cast<int64_t>(truth[first + lane]) : 0;
      faults += lane < count && !request.is_label(label);
      const int64_t rank = find_rank(request.top + row * request.width, reach, label, count);
      double weight = 0;
      int64_t place = kNowhere;
      if (request.inverse_propensity != nullptr) {
        weight = request.weight(label);
        place = find_place(request, truth, size, first + lane, weight);
      }
      for (int each = 0; each < count; ++each) {
        const int64_t rank_of = __shfl_sync(kAllLanes, rank, each), place_of = __shfl_sync(kAllLanes, place, each);
        const double weight_of = __shfl_sync(kAllLanes, weight, each);
        if (rank_of < cutoff) {
          const double discount = request.discounts[rank_of];
          hits += 1;
          dcg += discount;
          ps_hits += weight_of;
          ps_dcg += weight_of * discount;
        }
        if (place_of < cutoff) {
          ps_best += weight_of;
          ps_ideal += weight_of * request.discounts[place_of];
        }
      }
    }
    if (cutoff == 0) continue;
    const int64_t possible = min(cutoff, size);
    const double inverse_ideal = request.inverse_ideal[possible];
    sums[0] += hits / static_cast<double>(cutoff);
    sums[1] += dcg * inverse_ideal;
    sums[2] += hits / static_cast<double>(size);
    sums[3] += hits / static_cast<double>(possible);
    sums[4] += ps_hits;
    sums[5] += ps_best;
    sums[6] += ps_dcg * inverse_ideal;
    sums[7] += ps_ideal * inverse_ideal;
  }

  __shared__ double sums_of[kWarps][kLanes][kMetrics];
  __shared__ unsigned documents_of[kWarps], faults_of[kThreads];
  for (int i = 0; i < kMetrics; ++i) sums_of[warp][lane][i] = sums[i];
  if (lane == 0) documents_of[warp] = documents;
  faults_of[threadIdx.x] = faults;
  __syncthreads();
  double* out = partial + blockIdx.x * request.columns();
  if (const int64_t at = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
      at < request.num_cutoffs * kMetrics) {
    double sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += sums_of[i][threadIdx.x / kMetrics][threadIdx.x % kMetrics];
    out[at] = sum;
  }
  if (blockIdx.y == 0 && threadIdx.x == 0) {
    double all_documents = 0, all_faults = 0;
    for (const unsigned each : documents_of) all_documents += each;
    for (const unsigned each : faults_of) all_faults += each;
    out[request.num_cutoffs * kMetrics] = all_documents;
    out[request.num_cutoffs * kMetrics + 1] = all_faults;
  }
}

// sums[column] of `rows` rows, in an order that depends on nothing else: a block for each column.
__global__ void __launch_bounds__(kThreads) add_rows(const double* partial, int64_t rows, double* sums) {
  __shared__ double shared[kThreads];
  double sum = 0;
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) sum += partial[row * gridDim.x + blockIdx.x];
  shared[threadIdx.x] = sum;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = shared[0];
}

}  // namespace

template <class Top, class Label>
void ranking_sums(const Top* top, int64_t rows, int64_t width, const int64_t* indptr, const Label* indices,
                  int64_t num_indices, int64_t num_labels, const double* inverse_propensity, const double* tables,
                  int64_t num_cutoffs, int64_t depth, double* partial, int64_t blocks, double* sums,
                  cudaStream_t stream) {
  const double* discounts = tables + num_cutoffs;
  const Request<Top, Label> request{top,
                                    rows,
                                    width,
                                    indptr,
                                    indices,
                                    num_indices,
                                    num_labels,
                                    inverse_propensity,
                                    tables,
                                    discounts,
                                    discounts + depth,
                                    num_cutoffs,
                                    depth};
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(parts(num_cutoffs, kLanes)));
  launch(add_documents<Top, Label>, grid, kThreads, 0, stream, request, partial);
  launch(add_rows, static_cast<unsigned>(request.columns()), kThreads, 0, stream, partial, blocks, sums);
}

template void ranking_sums(const int32_t*, int64_t, int64_t, const int64_t*, const int32_t*, int64_t, int64_t,
                           const double*, const double*, int64_t, int64_t, double*, int64_t, double*, cudaStream_t);
template void ranking_sums(const int32_t*, int64_t, int64_t, const int64_t*, const int64_t*, int64_t, int64_t,
                           const double*, const double*, int64_t, int64_t, double*, int64_t, double*, cudaStream_t);
template void ranking_sums(const int64_t*, int64_t, int64_t, const int64_t*, const int32_t*, int64_t, int64_t,
                           const double*, const double*, int64_t, int64_t, double*, int64_t, double*, cudaStream_t);
template void ranking_sums(const int64_t*, int64_t, int64_t, const int64_t*, const int64_t*, int64_t, int64_t,
                           const double*, const double*, int64_t, int64_t, double*, int64_t, double*, cudaStream_t);

}  // namespace xmplug::cuda
