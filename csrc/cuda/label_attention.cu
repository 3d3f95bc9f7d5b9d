// Multi-label attention, forward. A block makes the views of 64 labels of one text, or 128 with wgmma: scores of all
// tokens, a softmax, and the weighted sums of the states. The attention weights of these labels and some hundred tokens
// stay in shared memory, in the type of the states; what a device has no room for is done in turns, whose sums meet in
// `partial`.
#include <algorithm>

#include "label_attention.h"

namespace xmplug::cuda {
namespace {

// How many blocks a multiprocessor has shared memory for, in texts of 512 tokens: so many must find registers.
template <class Engine>
__host__ __device__ constexpr int blocks_at_once() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return Engine::kWarpgroups ? 1 : 2;
#else
  return 1;
#endif
}

// What a block knows of its labels. With wgmma it has 3 KiB for it: weights of 512 tokens and the stages of the
// pipeline take the other 224 of the 227 that a block can have.
template <class Engine>
struct Labels {
  static constexpr int kCount = Engine::kTall;
  static constexpr int kMostBlocks = Engine::kWarpgroups ? 2 : 8;  // of tokens, kWide each, in a turn

  int32_t label[kCount];               // -1 = none
  float largest[kCount], sum[kCount];  // of the scores so far; of exp(score - largest)
  float before[kMostBlocks][kCount];   // the largest before each block of this turn
  float of_warps[Engine::kWarpsAcross][kCount];

  // What its views are multiplied by: 1 / sum, or 0 where there is nothing to see. In place of what warps have found.
  __device__ float& scale(int row) { return of_warps[0][row]; }
  // By how much the largest grows in a block of the turn that has `blocks`, and exp(score - largest) shrinks.
  __device__ float shrinks(int row, int block, int blocks) const {
    return expf(before[block][row] - (block + 1 < blocks ? before[block + 1][row] : largest[row]));
  }
};
static_assert(sizeof(Labels<Wgmma<BFloat16>>) == 3 * 1024);

// The places of each text's tokens, in order, and their number. A warp a text.
__global__ void __launch_bounds__(32) pack(const bool* mask, int64_t tokens, int32_t* token, int32_t* lengths) {
  const int64_t text = blockIdx.x;
  const auto lane = static_cast<int>(threadIdx.x);
  int32_t count = 0;
  for (int64_t begin = 0; begin < tokens; begin += 32) {
    const bool there = begin + lane < tokens && mask[text * tokens + begin + lane];
    const unsigned lanes = __ballot_sync(kAllLanes, there);
    if (there) token[text * tokens + count + __popc(lanes & ((1U << lane) - 1U))] = static_cast<int32_t>(begin + lane);
    count += __popc(lanes);
  }
  if (lane == 0) lengths[text] = count;
}

// Writes factor(row) times the sums of a tile that begins at view `first` and column `from`, to `views` there.
template <class Engine, class T, class Factor>
__device__ void write_views(Sums<Engine, Engine::kTall, Engine::kWide>& sums, T* views, const AttentionInput& in,
                            int64_t first, int from, const Factor& factor) {
  const bool pairs = in.size % 2 == 0;  // and then every row begins on a border of two elements
  const auto rows = static_cast<int>(in.width - first < Engine::kTall ? in.width - first : Engine::kTall);
  const int columns = static_cast<int>(in.size) - from;
  sums.each_row([&](int row, const auto& of_row) {
    if (row >= rows) return;
    T* to = views + row * in.size;
    // A factor of 0 is for views of nothing, whose sums may be anything.
    const float by = factor(row);
    of_row([&](int, float& a, float& b) {
      a = by == 0.0F ? 0.0F : a * by;
      b = by == 0.0F ? 0.0F : b * by;
    });
    if (pairs) {
      of_row([&](int column, float& a, float& b) {
        if (column < columns) write_2(to + column, a, b);
      });
    } else {
      of_row([&](int column, float& a, float& b) {
        if (column < columns) to[column] = from_float<T>(a);
        if (column + 1 < columns) to[column + 1] = from_float<T>(b);
      });
    }
  });
}

// Adds factor(row) times what was written there before.
template <class Engine, class Factor>
__device__ void add_partial(Sums<Engine, Engine::kTall, Engine::kWide>& sums, const float* partial,
                            const AttentionInput& in, int64_t first, int from, const Factor& factor) {
  const auto rows = static_cast<int>(in.width - first < Engine::kTall ? in.width - first : Engine::kTall);
  const int columns = static_cast<int>(in.size) - from;
  sums.each_row([&](int row, const auto& of_row) {
    if (row >= rows) return;
    const float* before = partial + row * in.size;
    const float by = factor(row);
    of_row([&](int column, float& a, float& b) {
      if (column < columns) a += before[column] * by;
      if (column + 1 < columns) b += before[column + 1] * by;
    });
  });
}

template <class Engine>
struct AttendMemory {  // of a block of `attend`
  using Queries = Tile<Engine, Engine::kTall, Engine::kDepth>;
  using Tokens = Tile<Engine, Engine::kWide, Engine::kDepth>;
  using Columns = Tile<Engine, Engine::kDepth, Engine::kWide>;  // of the states
  using Weights = Tile<Engine, Engine::kTall, Engine::kWide>;   // of one block of tokens
  using Scores = Pipeline<Engine, Engine::kStages, Queries::kBytes + Tokens::kBytes>;
  static constexpr int kStages = Engine::kStages * (Queries::kBytes + Tokens::kBytes);
  using Views = Pipeline<Engine, kStages / Columns::kBytes, Columns::kBytes>;

  static size_t bytes(int turn_tokens) {
    return kStages + static_cast<size_t>(turn_tokens / Engine::kWide) * Weights::kBytes;
  }
};

template <class Engine, class State, class Query>
__global__ void __launch_bounds__(kTileThreads, blocks_at_once<Engine>())
    attend(const AttentionInput in, State* views, float* log_sums, float* partial, int turn_tokens) {
  if constexpr (is_used_here<Engine, State>()) {
    using Memory = AttendMemory<Engine>;
    constexpr int kDepth = Engine::kDepth, kWide = Engine::kWide, kTall = Engine::kTall;

    const int64_t tiles = parts(in.width, kTall);
    const int64_t text = static_cast<int64_t>(blockIdx.x) / tiles;
    const int64_t first = static_cast<int64_t>(blockIdx.x) % tiles * kTall;
    const int length = in.lengths[text], size = static_cast<int>(in.size);

    __shared__ Labels<Engine> of;
    char* stages = tile_memory();
    const auto weights = [&](int block) {
      return typename Memory::Weights(stages + Memory::kStages + block * Memory::Weights::kBytes);
    };

    const auto thread = static_cast<int>(threadIdx.x);
    const int across = thread / 32 % Engine::kWarpsAcross;
    if (thread < kTall) {
      of.label[thread] = static_cast<int32_t>(label_of(in, text, first + thread));
      of.largest[thread] = -INFINITY;
      of.sum[thread] = of.scale(thread) = 0.0F;
    }
    __syncthreads();
    const LabelRows<Query> query{static_cast<const Query*>(in.queries), of.label, in.size};
    const bool pieces = in_pieces(static_cast<const State*>(in.states), in.size) && in_pieces(query.table, in.size);

    for (int turn = 0; turn == 0 || turn < length; turn += turn_tokens) {
      const int here = length - turn < turn_tokens ? length - turn : turn_tokens, blocks = parts(here, kWide);
      const auto load_scores = [&](char* stage, int block, int i) {
        load_tile(typename Memory::Queries(stage), query, i * kDepth, size, pieces);
        load_tile(typename Memory::Tokens(stage + Memory::Queries::kBytes),
                  token_rows<State>(in, text, length, turn + block * kWide), i * kDepth, size, pieces);
      };
      const auto load_views = [&](char* stage, int from, int i) {
        load_tile(typename Memory::Columns(stage), token_rows<State>(in, text, length, turn + i * kDepth), from, size,
                  pieces);
      };
      const int score_steps = parts(size, kDepth), view_steps = parts(here, kDepth);

      // Scores, and from them weights = exp(score - largest so far). What comes next is loaded meanwhile.
      if (blocks > 0) Memory::Scores::start(stages, score_steps, [&](char* stage, int i) { load_scores(stage, 0, i); });
      for (int block = 0; block < blocks; ++block) {
        Sums<Engine, kTall, kWide> scores;
        Memory::Scores::run(
            stages, 0, score_steps, score_steps, [&](char* stage, int i) { load_scores(stage, block, i); },
            [&](char* stage, int) {
              scores.add_product(depth_across(typename Memory::Queries(stage)), 0,
                                 depth_across(typename Memory::Tokens(stage + Memory::Queries::kBytes)));
            },
            scores);
        if (block + 1 < blocks) {
          Memory::Scores::start(stages, score_steps, [&](char* stage, int i) { load_scores(stage, block + 1, i); });
        } else {
          Memory::Views::start(stages, view_steps, [&](char* stage, int i) { load_views(stage, 0, i); });
        }
        const int tokens = here - block * kWide;
        scores.each([&](int, int column, float& a, float& b) {
          if (column >= tokens) a = -INFINITY;
          if (column + 1 >= tokens) b = -INFINITY;
        });
        scores.reduce_rows(
            -INFINITY, [](float a, float b) { return fmaxf(a, b); },
            [&](int row, float value) { of.of_warps[across][row] = value; });
        __syncthreads();
        if (thread < kTall) {
          const float before = of.largest[thread];
          float now = before;
          for (int warp = 0; warp < Engine::kWarpsAcross; ++warp) now = fmaxf(now, of.of_warps[warp][thread]);
          of.sum[thread] *= expf(before - now);
          of.before[block][thread] = before;
          of.largest[thread] = now;
        }
        __syncthreads();
        const auto weight = weights(block);
        scores.each_row([&](int row, const auto& of_row) {
          const float largest = of.largest[row];
          of_row([&](int column, float& a, float& b) {
            a = exp_for<Engine>(a - largest);
            b = exp_for<Engine>(b - largest);
            write_2(weight.at(row, column), a, b);
          });
        });
        scores.reduce_rows(
            0.0F, [](float a, float b) { return a + b; },
            [&](int row, float value) { of.of_warps[across][row] = value; });
        __syncthreads();
        if (thread < kTall) {
          for (int warp = 0; warp < Engine::kWarpsAcross; ++warp) of.sum[thread] += of.of_warps[warp][thread];
          of.scale(thread) = of.label[thread] < 0 ? 0.0F : 1.0F / of.sum[thread];
        }
      }
      __syncthreads();

      // Sums of the states by these weights, in columns of kWide. Weights of a block are relative to the largest score
      // at its time: what is there shrinks where the next has a larger one.
      const bool begun = turn > 0, ends = turn + turn_tokens >= length;
      for (int from = 0; from < size; from += kWide) {
        constexpr int kSteps = kWide / kDepth;  // of a block
        Sums<Engine, kTall, kWide> view;
        for (int block = 0; block < blocks; ++block) {
          // At the first block too, where nothing is there: under a condition, wgmma would run one after the other.
          view.each_row([&](int row, const auto& of_row) {
            const float factor = of.shrinks(row, block, blocks);
            of_row([&](int, float& a, float& b) {
              a *= factor;
              b *= factor;
            });
          });
          const int end = block + 1 < blocks ? (block + 1) * kSteps : view_steps;
          Memory::Views::run(
              stages, block * kSteps, end, view_steps, [&](char* stage, int i) { load_views(stage, from, i); },
              [&](char* stage, int i) {
                view.add_product(depth_across(weights(block)), i % kSteps * kDepth,
                                 depth_down(typename Memory::Columns(stage)));
              },
              view);
        }
        if (from + kWide < size) {
          Memory::Views::start(stages, view_steps, [&](char* stage, int i) { load_views(stage, from + kWide, i); });
        }
        const auto first_view = (text * in.width + first) * in.size + from;
        if (begun) {
          add_partial(view, partial + first_view, in, first, from,
                      [&](int row) { return expf(of.before[0][row] - of.largest[row]); });
        }
        if (ends) {
          write_views(view, views + first_view, in, first, from, [&](int row) { return of.scale(row); });
        } else {
          write_views(view, partial + first_view, in, first, from, [](int) { return 1.0F; });
        }
      }
      __syncthreads();
    }
    // Where there is nothing to see, weights made again are exp(score - inf) = 0.
    if (thread < kTall && first + thread < in.width) {
      const bool there = of.label[thread] >= 0 && length > 0;
      log_sums[text * in.width + first + thread] = there ? of.largest[thread] + logf(of.sum[thread]) : INFINITY;
    }
  } else {
    __trap();  // compiled for another kind of device than the host took this one for
  }
}

// How many tokens of weights a block has room for: a multiple of kWide.
template <class Engine>
int turn_tokens(const AttentionInput& in) {
  using Memory = AttendMemory<Engine>;
  constexpr int64_t kStatic = parts<int64_t>(sizeof(Labels<Engine>), 1024) * 1024;  // before the border of the tiles
  const int64_t room = shared_bytes_of_a_block() - kStatic - static_cast<int64_t>(Memory::bytes(0));
  const int64_t most = std::min<int64_t>(Labels<Engine>::kMostBlocks, room / Memory::Weights::kBytes);
  return static_cast<int>(std::max<int64_t>(1, std::min(most, parts(in.tokens, Engine::kWide)))) * Engine::kWide;
}

}  // namespace

void pack_tokens(const bool* mask, int64_t batch, int64_t tokens, int32_t* token, int32_t* lengths,
                 cudaStream_t stream) {
  if (batch > 0) launch(pack, static_cast<unsigned>(batch), 32, 0, stream, mask, tokens, token, lengths);
}

bool label_attention_takes_turns(const AttentionInput& in) {
  bool turns = false;
  dispatch(in, [&](auto engine, auto, auto) { turns = in.tokens > turn_tokens<decltype(engine)>(in); });
  return turns;
}

void label_attention(const AttentionInput& in, void* views, float* log_sums, float* partial, cudaStream_t stream) {
  if (in.labels > INT32_MAX) throw std::invalid_argument("label_attention: 2^31 labels or more");
  if (in.batch * in.width == 0) return;
  dispatch(in, [&](auto engine, auto state, auto query) {
    using Engine = decltype(engine);
    using State = decltype(state);
    using Query = decltype(query);
    const int tokens = turn_tokens<Engine>(in);
    launch(attend<Engine, State, Query>, static_cast<unsigned>(in.batch * parts(in.width, Engine::kTall)), kTileThreads,
           AttendMemory<Engine>::bytes(tokens), stream, in, static_cast<State*>(views), log_sums, partial, tokens);
  });
}

}  // namespace xmplug::cuda
