#include <type_traits>

#include "beam.h"
#include "block.h"
#include "kernels.h"

namespace xmplug::cuda {
namespace {

// What a row needs lies in shared memory up to this size, which every GPU has without being asked, else in a workspace
// for each of so many blocks.
constexpr int64_t kShared = 32 * 1024, kWorkspaces = 512;
constexpr int64_t kMostBlocks = 65536;

template <class Real>
using Key = std::conditional_t<std::is_same_v<Real, float>, uint32_t, uint64_t>;

template <class Real>
__host__ __device__ constexpr int64_t row_bytes(int64_t width) {
  return parts(width * static_cast<int64_t>(sizeof(Key<Real>) + sizeof(uint32_t)), 16) * 16;
}

template <class Real>
struct Step {
  const Real* logits;
  const int64_t* nodes;
  const Real* parents;
  int64_t rows;
  unsigned width;
  int64_t k;
  Real* scores;
  int64_t* best;
  int64_t* columns;
};

// One row: the keys of its columns, 0 for padding, and the columns that are taken.
template <class Real>
struct Row {
  const int64_t* nodes;
  unsigned width, wanted;
  Key<Real>* keys;
  uint32_t* taken;
  Real* scores;
  int64_t* best;
  int64_t* columns;

  // Takes the best, by smaller node where the last of them are equal. Returns their number.
  __device__ unsigned select() const {
    const auto threshold = find_largest<Key<Real>>(width, wanted, [this](unsigned i) { return keys[i]; });
    const auto put = [this](unsigned place, unsigned i) { taken[place] = i; };
    const auto by_key = [&](unsigned i) { return side(keys[i], threshold); };
    if (threshold.equal == 0) return list(width, 0, by_key, put);
    const auto tie = find_largest<uint64_t>(width, threshold.equal, [&](unsigned i) {
      return keys[i] == threshold.key ? ~static_cast<uint64_t>(nodes[i]) : 0;
    });
    const auto by_key_and_node = [&](unsigned i) {
      const int by_score = by_key(i);
      return by_score == 0 ? side(~static_cast<uint64_t>(nodes[i]), tie) : by_score;
    };
    return list(width, tie.equal, by_key_and_node, put);
  }

  // Writes the first `size` that are taken in their order; false where a node is among them twice.
  __device__ bool order(unsigned size) const {
    const auto write = [this](unsigned place, uint32_t column, Key<Real> key) {
      scores[place] = score_of(key);
      best[place] = nodes[column];
      columns[place] = column;
    };
    if (size <= kMostToRank) {
      return !rank<Key<Real>>(
          size, [this](unsigned i) { return keys[taken[i]]; }, [this](unsigned i) { return nodes[taken[i]]; },
          [&](unsigned place, unsigned i, Key<Real> key) { write(place, taken[i], key); });
    }
    sort(taken, size, [this](uint32_t a, uint32_t b) { return nodes[a] < nodes[b]; });
    bool twice = false;
    for (unsigned i = threadIdx.x + 1; i < size; i += blockDim.x) twice |= nodes[taken[i]] == nodes[taken[i - 1]];
    if (__syncthreads_or(twice) != 0) return false;
    sort(taken, size,
         [this](uint32_t a, uint32_t b) { return keys[a] != keys[b] ? keys[a] > keys[b] : nodes[a] < nodes[b]; });
    for (unsigned i = threadIdx.x; i < size; i += blockDim.x) write(i, taken[i], keys[taken[i]]);
    return true;
  }

  // Leaves each node its best key, the first of equal ones.
  __device__ void drop_repeats() const {
    __syncthreads();
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) taken[i] = i;
    sort(taken, width, [this](uint32_t a, uint32_t b) {
      if (nodes[a] != nodes[b]) return nodes[a] < nodes[b];
      return keys[a] != keys[b] ? keys[a] > keys[b] : a < b;
    });
    for (unsigned i = threadIdx.x + 1; i < width; i += blockDim.x) {
      if (nodes[taken[i]] == nodes[taken[i - 1]]) keys[taken[i]] = 0;
    }
    __syncthreads();
  }
};

// A block for each row.
template <class Real>
__global__ void __launch_bounds__(1024, 1) step_rows(Step<Real> step, char* workspace) {
  const unsigned width = step.width;
  char* memory = workspace == nullptr ? dynamic_shared() : workspace + blockIdx.x * row_bytes<Real>(width);
  auto* keys = reinterpret_cast<Key<Real>*>(memory);
  auto* taken = reinterpret_cast<uint32_t*>(keys + width);
  for (int64_t r = blockIdx.x; r < step.rows; r += gridDim.x) {
    const int64_t in = r * width, out = r * step.k;
    const Row<Real> row{step.nodes + in,
                        width,
                        static_cast<unsigned>(min(step.k, static_cast<int64_t>(width))),
                        keys,
                        taken,
                        step.scores + out,
                        step.best + out,
                        step.columns + out};
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
      keys[i] = row.nodes[i] < 0 ? 0 : key_of(score(step.logits[in + i], step.parents[in + i]));
    }
    __syncthreads();
    unsigned size = row.select();
    if (!row.order(size)) {
      // Rare: a node is among the best twice, so that others were pushed out. Start again without repeats.
      row.drop_repeats();
      size = row.select();
      row.order(size);
    }
    for (int64_t i = size + threadIdx.x; i < step.k; i += blockDim.x) {
      row.scores[i] = 0;
      row.best[i] = row.columns[i] = -1;
    }
    __syncthreads();
  }
}

}  // namespace

template <class Real>
int64_t beam_step_workspace(int64_t rows, int64_t width) {
  return row_bytes<Real>(width) <= kShared ? 0 : min(rows, kWorkspaces) * row_bytes<Real>(width);
}

template <class Real>
void beam_step(const Real* logits, const int64_t* nodes, const Real* parents, int64_t rows, int64_t width, int64_t k,
               Real* scores, int64_t* best, int64_t* columns, void* workspace, cudaStream_t stream) {
  if (rows == 0) return;
  const bool shared = beam_step_workspace<Real>(rows, width) == 0;
  const auto blocks = static_cast<unsigned>(min(rows, shared ? kMostBlocks : kWorkspaces));
  const auto threads = static_cast<unsigned>(min(int64_t{1024}, max(int64_t{1}, parts(width, 128)) * 32));
  launch(step_rows<Real>, blocks, threads, shared ? static_cast<size_t>(row_bytes<Real>(width)) : 0, stream,
         Step<Real>{logits, nodes, parents, rows, static_cast<unsigned>(width), k, scores, best, columns},
         shared ? nullptr : static_cast<char*>(workspace));
}

template int64_t beam_step_workspace<float>(int64_t, int64_t);
template int64_t beam_step_workspace<double>(int64_t, int64_t);
template void beam_step(const float*, const int64_t*, const float*, int64_t, int64_t, int64_t, float*, int64_t*,
                        int64_t*, void*, cudaStream_t);
template void beam_step(const double*, const int64_t*, const double*, int64_t, int64_t, int64_t, double*, int64_t*,
                        int64_t*, void*, cudaStream_t);

}  // namespace xmplug::cuda
