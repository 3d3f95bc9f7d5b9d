// Texts are searched together, level by level, with two kernels for each level: one multiplies, one selects. Weights
// are read once for several texts that visit a node, which no kernel that keeps to one text could do: so when a text
// selects a node, it is put on the node's list of visitors; and every so many visitors, and every so many children, are
// a tile, which is what a warp multiplies. What is in a tile changes no sum, and where it lies no address that a result
// is written to, so that atomic counters do no harm.
//
// A text's nodes ascend on every level, and so do the children of its nodes, which are its candidates: they need no
// names, their order is that of ties, and none is there twice.
#include <type_traits>

#include "beam.h"
#include "block.h"
#include "kernels.h"

namespace xmplug::cuda {
namespace {

constexpr int kLanes = 32, kWarps = 4;
constexpr int kRows = 8, kVisits = 16;      // of a tile: children, and texts that visit their parent
constexpr int kTogether = 2;                // visits that are multiplied at a time
constexpr int64_t kMostThreads = 512;       // that select for a text
constexpr unsigned kKeysShared = 8 * 1024;  // more candidates of a text than these stay in global memory

// So many texts go through the tree together, or fewer, so that their workspace has about this size.
constexpr int64_t kMostTexts = 1024, kMostBytes = int64_t{1} << 28;

struct Tile {
  int64_t row;      // of the weights: the first child of the tile
  int32_t rows;     // its children
  int32_t child;    // the first one's number among the children of its parent
  int32_t parent;   // its number on its level
  int32_t visitor;  // the first one's number among those of the parent
};

// The nodes of the texts on one level; a visit is a text's place for a node: text * slots + number among its nodes.
struct Beam {
  int32_t* nodes;    // (texts, slots), ascending
  float* scores;     // (texts, slots)
  uint32_t* begin;   // (texts, slots): the first child among the text's candidates
  uint32_t* sizes;   // (texts,)
  uint32_t* widths;  // (texts,): candidates
};

struct Workspace {
  Beam beams[2];         // of the level whose children are scored, and of the next
  uint32_t* keys;        // (texts, width): of the scores of candidates
  uint32_t* counts;      // (inner nodes,): visitors of each
  uint32_t* num_tiles;   // (levels,)
  int32_t* visitors;     // (parents, texts): visits
  Tile* tiles;           // (texts * tiles)
  int64_t texts, slots;  // together; at most for each text
  int64_t width, tiles_of_text, parents, inner;
};

// Lays out the workspace at `memory`, which may be null. Returns its size.
int64_t lay_out(int64_t texts, const TreeLevels& levels, int64_t beam, char* memory, Workspace& to) {
  to.slots = to.width = to.tiles_of_text = to.parents = 1;
  for (int64_t level = 0; level < levels.num_levels - 1; ++level) {
    const int64_t parents = levels.offsets[level + 1] - levels.offsets[level];
    const int64_t children = levels.offsets[level + 2] - levels.offsets[level + 1];
    const int64_t slots = min(beam, parents), most = levels.most_children[level];
    const int64_t width = most < children / slots ? slots * most : children;
    to.slots = max(to.slots, slots);
    to.width = max(to.width, width);
    to.tiles_of_text = max(to.tiles_of_text, min(width, (width + slots * (kRows - 1)) / kRows));
    to.parents = max(to.parents, parents);
  }
  to.inner = levels.offsets[levels.num_levels - 1];
  const auto tile = static_cast<int64_t>(sizeof(Tile));
  const int64_t bytes_of_text = 4 * (6 * to.slots + 4 + to.width + to.parents) + tile * to.tiles_of_text;
  to.texts = max(int64_t{1}, min(min(texts, kMostTexts), kMostBytes / bytes_of_text));

  int64_t used = 0;
  const auto take = [&](auto*& array, int64_t size) {
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(memory + used);
    used += parts(size * static_cast<int64_t>(sizeof(*array)), 128) * 128;
  };
  for (Beam& each : to.beams) {
    take(each.nodes, to.texts * to.slots);
    take(each.scores, to.texts * to.slots);
    take(each.begin, to.texts * to.slots);
    take(each.sizes, to.texts);
    take(each.widths, to.texts);
  }
  take(to.keys, to.texts * to.width);
  take(to.counts, to.inner + levels.num_levels);
  to.num_tiles = to.counts + to.inner;
  take(to.visitors, to.parents * to.texts);
  take(to.tiles, to.texts * to.tiles_of_text);
  return used;
}

// What the kernels know of a level and its children.
struct Level {
  const int64_t* first_child;
  int64_t begin, end;  // its nodes
  int64_t last_child;  // one after the children of all of them
  unsigned most_children;
  int64_t number;
};

__global__ void clear(uint32_t* counts, int64_t size) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < size) counts[i] = 0;
}

// A block puts the text's `size` nodes in `beam` on their lists of visitors, and makes the tiles of those that are the
// first on a list, or the first after a whole tile.
__device__ void visit(const Workspace& work, const Level& level, const Beam& beam, int64_t text, unsigned size) {
  __shared__ unsigned first_tile;
  const int64_t first = text * work.slots;
  unsigned candidates = 0;
  for (unsigned base = 0; base < size; base += blockDim.x) {
    const unsigned i = base + threadIdx.x;
    unsigned children = 0, tiles = 0;
    Tile tile{};
    if (i < size) {
      const int64_t node = beam.nodes[first + i];
      check_index(node >= level.begin && node < level.end);
      tile.row = level.first_child[node];
      const int64_t number = level.first_child[node + 1] - tile.row;
      check_index(tile.row >= level.end && number >= 0 && number <= level.most_children &&
                  tile.row + number <= level.last_child);
      children = static_cast<unsigned>(number);
      tile.parent = static_cast<int32_t>(node - level.begin);
      tile.visitor = static_cast<int32_t>(atomicAdd(&work.counts[node], 1U));
      check_index(tile.visitor < work.texts);
      work.visitors[tile.parent * work.texts + tile.visitor] = static_cast<int32_t>(first + i);
      if (tile.visitor % kVisits == 0) tiles = (children + kRows - 1) / kRows;
    }
    unsigned total;
    const unsigned begin = candidates + sum_before(children, total);
    candidates += total;
    if (i < size) beam.begin[first + i] = begin;
    const unsigned before = sum_before(tiles, total);
    if (threadIdx.x == 0) first_tile = atomicAdd(&work.num_tiles[level.number], total);
    __syncthreads();
    for (unsigned each = 0; each < tiles; ++each) {
      tile.child = static_cast<int32_t>(each) * kRows;
      tile.rows = min(kRows, static_cast<int32_t>(children) - tile.child);
      Tile& to = work.tiles[first_tile + before + each];
      to = tile;
      to.row += tile.child;
    }
  }
  check_index(candidates <= work.width);
  if (threadIdx.x == 0) {
    beam.sizes[text] = size;
    beam.widths[text] = candidates;
  }
}

// All texts at the root, which is certain.
__global__ void start(Workspace work, Level root) {
  const int64_t text = blockIdx.x;
  if (threadIdx.x == 0) {
    work.beams[0].nodes[text * work.slots] = 0;
    work.beams[0].scores[text * work.slots] = 1;
  }
  __syncthreads();
  visit(work, root, work.beams[0], text, 1);
}

// The sums of values[i] over the lanes, i < size, a power of two up to 32: into values[0] of each lane that of one i,
// which `index`, 0 at first, becomes. Every sum is made in the same order, whatever `size` is.
template <int kHalf, int kBit = 1, int size>
__device__ __forceinline__ void sum_over_lanes(float (&values)[size], int& index) {
  if constexpr (kHalf > 0) {
    const bool upper = (threadIdx.x & kBit) != 0;
    index += upper ? kHalf : 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float low = values[i], high = values[i + kHalf];
      values[i] = (upper ? high : low) + __shfl_xor_sync(kAllLanes, upper ? low : high, kBit);
    }
  } else {
    values[0] += __shfl_xor_sync(kAllLanes, values[0], kBit);
  }
  if constexpr (2 * kBit < kLanes) sum_over_lanes<kHalf / 2, 2 * kBit>(values, index);
}

__device__ inline void unpack(uint4 words, float (&values)[4], float) {
  values[0] = __uint_as_float(words.x), values[1] = __uint_as_float(words.y);
  values[2] = __uint_as_float(words.z), values[3] = __uint_as_float(words.w);
}

template <class Narrow>
__device__ void unpack(uint4 words, float (&values)[8], Narrow) {
  const uint32_t each[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = to_float(Narrow{static_cast<uint16_t>(each[i] & 0xffffU)});
    values[2 * i + 1] = to_float(Narrow{static_cast<uint16_t>(each[i] >> 16)});
  }
}

// A part of the rows of a tile, kSize columns: each lane has kValues of a row. With 16 bytes at a time, rows must be
// aligned.
template <class Weight, bool kAligned>
struct Columns {
  static constexpr int kValues = kAligned ? 16 / static_cast<int>(sizeof(Weight)) : 4;
  static constexpr int kSize = kLanes * kValues;
  uint4 words[kRows];

  // The lane's columns of the part that begins with `first`.
  __device__ void load(const Weight* weights, int rows, int64_t first, int64_t width) {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      uint4& to = words[row];
      to = make_uint4(0, 0, 0, 0);
      if (row >= rows) continue;
      const Weight* from = weights + row * width;
      if constexpr (kAligned) {
        const int64_t column = first + lane * kValues;
        if (column < width) to = __ldg(reinterpret_cast<const uint4*>(from + column));
      } else {
        const int64_t column = first + lane;
        if (column < width) to.x = __float_as_uint(to_float(from[column]));
        if (column + kLanes < width) to.y = __float_as_uint(to_float(from[column + kLanes]));
        if (column + 2 * kLanes < width) to.z = __float_as_uint(to_float(from[column + 2 * kLanes]));
        if (column + 3 * kLanes < width) to.w = __float_as_uint(to_float(from[column + 3 * kLanes]));
      }
    }
  }

  __device__ void of_row(int row, float (&values)[kValues]) const {
    if constexpr (kAligned) {
      unpack(words[row], values, Weight{});
    } else {
      unpack(words[row], values, float{});
    }
  }

  __device__ static void of_text(const float* hidden, int64_t first, int64_t width, float (&values)[kValues]) {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll
    for (int i = 0; i < kValues; i += kAligned ? 4 : 1) {
      if constexpr (kAligned) {
        const int64_t column = first + lane * kValues + i;
        const float4 four =
            column < width ? *reinterpret_cast<const float4*>(hidden + column) : make_float4(0, 0, 0, 0);
        values[i] = four.x, values[i + 1] = four.y, values[i + 2] = four.z, values[i + 3] = four.w;
      } else {
        const int64_t column = first + lane + i * kLanes;
        values[i] = column < width ? hidden[column] : 0;
      }
    }
  }
};

// A warp scores a tile's children for the `count` visits at `visits`, at most `kCount`. `part` holds
// the first columns of the children if `loaded`, and on return where there are no others.
template <class Weight, bool kAligned, int kCount>
__device__ void multiply(const TreeSearch<Weight>& search, const Workspace& work, const Beam& beam, const Tile& tile,
                         Columns<Weight, kAligned>& part, bool loaded, const int32_t* visits, int count,
                         const float* hidden) {
  using Part = Columns<Weight, kAligned>;
  const auto slots = static_cast<int32_t>(work.slots);
  int text[kCount];
#pragma unroll
  for (int v = 0; v < kCount; ++v) text[v] = visits[min(v, count - 1)] / slots;
  float sums[kRows * kCount] = {};
  for (int64_t first = 0; first < search.width; first += Part::kSize) {
    if (!loaded) part.load(search.weights + tile.row * search.width, tile.rows, first, search.width);
    loaded = search.width <= Part::kSize;
    float of_text[kCount][Part::kValues];
#pragma unroll
    for (int v = 0; v < kCount; ++v) Part::of_text(hidden + text[v] * search.width, first, search.width, of_text[v]);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float of_row[Part::kValues];
      part.of_row(row, of_row);
#pragma unroll
      for (int v = 0; v < kCount; ++v) {
#pragma unroll
        for (int i = 0; i < Part::kValues; ++i) {
          float& sum = sums[row * kCount + v];
          sum = fmaf(of_row[i], of_text[v][i], sum);
        }
      }
    }
  }
  int index = 0;
  sum_over_lanes<kRows * kCount / 2>(sums, index);
  const float logit = sums[0];
  const int row = index / kCount, v = index % kCount;
  if (static_cast<int>(threadIdx.x) % kLanes < kRows * kCount && row < tile.rows && v < count) {
    const int32_t visit = visits[v];
    work.keys[visit / slots * work.width + beam.begin[visit] + static_cast<unsigned>(tile.child + row)] =
        key_of(score(logit, beam.scores[visit]));
  }
}

// Scores the candidates of all texts: a warp for each tile.
template <class Weight, bool kAligned>
__global__ void __launch_bounds__(kLanes* kWarps, 4)
    score_tiles(TreeSearch<Weight> search, Workspace work, Beam beam, Level level, const float* hidden) {
  const unsigned tiles = work.num_tiles[level.number];
  for (unsigned t = blockIdx.x * kWarps + threadIdx.x / kLanes; t < tiles; t += gridDim.x * kWarps) {
    const Tile tile = work.tiles[t];
    Columns<Weight, kAligned> part;  // is on its way while the visits are looked up
    part.load(search.weights + tile.row * search.width, tile.rows, 0, search.width);
    bool loaded = true;
    const int count = min(kVisits, static_cast<int>(work.counts[level.begin + tile.parent]) - tile.visitor);
    const int32_t* visits = work.visitors + tile.parent * work.texts + tile.visitor;
    for (int v = 0; v < count; v += kTogether) {
      const int now = min(kTogether, count - v);
      if (now == 1) {
        multiply<Weight, kAligned, 1>(search, work, beam, tile, part, loaded, visits + v, now, hidden);
      } else {
        multiply<Weight, kAligned, kTogether>(search, work, beam, tile, part, loaded, visits + v, now, hidden);
      }
      loaded = search.width <= part.kSize;
    }
  }
}

// A text's candidates on a level, and which nodes they are.
struct Candidates {
  const int32_t* parents;
  const uint32_t* begin;
  unsigned num_parents, size;
  const int64_t* first_child;

  __device__ int64_t node(unsigned candidate) const {
    unsigned low = 0, high = num_parents;  // the last parent that begins there or before
    while (high - low > 1) {
      const unsigned middle = (low + high) / 2;
      (begin[middle] <= candidate ? low : high) = middle;
    }
    return first_child[parents[low]] + (candidate - begin[low]);
  }
};

__device__ Candidates candidates_of(const Workspace& work, const Beam& beam, const Level& level, int64_t text) {
  const int64_t first = text * work.slots;
  return {beam.nodes + first, beam.begin + first, beam.sizes[text], beam.widths[text], level.first_child};
}

// The keys of the block's text, where they are soon read.
__device__ const uint32_t* keys_of(const Workspace& work, int64_t text, unsigned size) {
  const uint32_t* keys = work.keys + text * work.width;
  if (size > kKeysShared) return keys;
  auto* shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  for (unsigned i = threadIdx.x; i < size; i += blockDim.x) shared[i] = keys[i];
  __syncthreads();
  return shared;
}

// Keeps the best `wanted` children of each text's nodes, and visits them: a block for each text.
__global__ void __launch_bounds__(kMostThreads)
    keep_best(Workspace work, Beam now, Beam next, Level level, Level below, unsigned wanted) {
  const int64_t text = blockIdx.x, first = text * work.slots;
  const Candidates candidates = candidates_of(work, now, level, text);
  const uint32_t* keys = keys_of(work, text, candidates.size);
  const auto threshold = find_largest<uint32_t>(candidates.size, wanted, [=](unsigned i) { return keys[i]; });
  const unsigned size = list(
      candidates.size, threshold.equal, [&](unsigned i) { return side(keys[i], threshold); },
      [&](unsigned place, unsigned i) {
        next.nodes[first + place] = static_cast<int32_t>(candidates.node(i));
        next.scores[first + place] = score_of(keys[i]);
      });
  visit(work, below, next, text, size);
}

// Orders the best k leaves of each text: a block for each text.
__global__ void __launch_bounds__(kMostThreads)
    answer(Workspace work, Beam now, Level level, const int64_t* labels, int64_t k, float* scores, int64_t* leaves,
           int64_t* best_labels) {
  const int64_t text = blockIdx.x;
  const Candidates candidates = candidates_of(work, now, level, text);
  const uint32_t* keys = keys_of(work, text, candidates.size);
  scores += text * k, leaves += text * k, best_labels += text * k;
  const auto wanted = static_cast<unsigned>(min(k, static_cast<int64_t>(candidates.size)));
  const auto threshold = find_largest<uint32_t>(candidates.size, wanted, [=](unsigned i) { return keys[i]; });
  const unsigned size = list(
      candidates.size, threshold.equal, [&](unsigned i) { return side(keys[i], threshold); },
      [&](unsigned place, unsigned i) { best_labels[place] = i; });  // the places of labels, for now
  const auto write = [&](unsigned place, unsigned candidate) {
    leaves[place] = candidates.node(candidate);
    scores[place] = score_of(keys[candidate]);
  };
  if (size <= kMostToRank) {
    const auto key = [&](unsigned i) { return keys[best_labels[i]]; };
    const auto tie = [&](unsigned i) { return best_labels[i]; };
    rank<uint32_t>(size, key, tie,
                   [&](unsigned place, unsigned i, uint32_t) { write(place, static_cast<unsigned>(best_labels[i])); });
  } else {
    sort(best_labels, size, [&](int64_t a, int64_t b) { return keys[a] != keys[b] ? keys[a] > keys[b] : a < b; });
    for (unsigned i = threadIdx.x; i < size; i += blockDim.x) write(i, static_cast<unsigned>(best_labels[i]));
    __syncthreads();
  }
  for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
    if (i >= size) {
      leaves[i] = -1;
      scores[i] = 0;
    }
    best_labels[i] = i < size ? labels[leaves[i] - level.end] : -1;
  }
}

template <class Weight>
bool aligned(const TreeSearch<Weight>& search) {
  const auto fits = [&](const void* rows, size_t size) {
    return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && static_cast<size_t>(search.width) * size % 16 == 0;
  };
  return fits(search.weights, sizeof(Weight)) && fits(search.hidden, sizeof(float));
}

}  // namespace

int64_t tree_beam_search_workspace(int64_t texts, const TreeLevels& levels, int64_t beam) {
  Workspace work;
  return lay_out(texts, levels, beam, nullptr, work);
}

template <class Weight>
void tree_beam_search(const TreeSearch<Weight>& search, void* workspace, cudaStream_t stream) {
  constexpr int kThreads = kLanes * kWarps;
  constexpr int64_t kMostBlocks = 16384;
  const TreeLevels& levels = search.levels;
  Workspace work;
  lay_out(search.texts, levels, search.beam, static_cast<char*>(workspace), work);
  const auto level_at = [&](int64_t number) {
    return Level{search.first_child,
                 levels.offsets[number],
                 levels.offsets[number + 1],
                 levels.offsets[number + 2],
                 static_cast<unsigned>(levels.most_children[number]),
                 number};
  };
  const auto multiply_level = aligned(search) ? score_tiles<Weight, true> : score_tiles<Weight, false>;
  const int64_t counters = work.inner + levels.num_levels;
  const auto most_blocks = static_cast<unsigned>(min(kMostBlocks, parts(work.texts * work.tiles_of_text, kWarps)));
  const size_t shared = sizeof(uint32_t) * static_cast<size_t>(min(work.width, int64_t{kKeysShared}));
  const auto select_threads = static_cast<unsigned>(min(kMostThreads, parts(work.width, 4 * kLanes) * kLanes));
  const int64_t together = work.texts;
  for (int64_t first = 0; first < search.texts; first += together) {
    const auto texts = static_cast<unsigned>(min(together, search.texts - first));
    launch(clear, static_cast<unsigned>(parts(counters, kThreads)), kThreads, 0, stream, work.counts, counters);
    launch(start, texts, kLanes, 0, stream, work, level_at(0));
    for (int64_t number = 0; number < levels.num_levels - 1; ++number) {
      const Beam &now = work.beams[number % 2], &next = work.beams[(number + 1) % 2];
      const Level level = level_at(number);
      launch(multiply_level, most_blocks, kThreads, 0, stream, search, work, now, level,
             search.hidden + first * search.width);
      if (number < levels.num_levels - 2) {
        const Level below = level_at(number + 1);
        launch(keep_best, texts, select_threads, shared, stream, work, now, next, level, below,
               static_cast<unsigned>(min(search.beam, below.end - below.begin)));
      } else {
        launch(answer, texts, select_threads, shared, stream, work, now, level, search.labels, search.k,
               search.scores + first * search.k, search.leaves + first * search.k,
               search.best_labels + first * search.k);
      }
    }
  }
}

template void tree_beam_search(const TreeSearch<float>&, void*, cudaStream_t);
template void tree_beam_search(const TreeSearch<BFloat16>&, void*, cudaStream_t);
template void tree_beam_search(const TreeSearch<Half>&, void*, cudaStream_t);

}  // namespace xmplug::cuda
