// Multi-label attention, forward. A block makes the views of 64 labels of one text: scores of all tokens, a softmax,
// and the weighted sums of the states. The attention weights of 64 labels and some hundred tokens stay in shared
// memory, in the type of the states; what a device has no room for is done in turns, whose sums meet in `partial`.
#include <algorithm>

#include "label_attention.h"

namespace xmplug::cuda {
namespace {

constexpr int kLabels = 64;     // of a block
constexpr int kMostBlocks = 8;  // of tokens, kWide each, in a turn
// How many blocks a multiprocessor has shared memory for, in texts of 512 tokens: so many must find registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int kBlocks = 2;
#else
constexpr int kBlocks = 1;
#endif

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
template <class Sum, class T, class Factor>
__device__ void write_views(Sum& sums, T* views, const AttentionInput& in, int64_t first, int from,
                            const Factor& factor) {
  const bool pairs = in.size % 2 == 0;  // and then every row begins on a border of two elements
  const auto rows = static_cast<int>(in.width - first < kLabels ? in.width - first : kLabels);
  const int columns = static_cast<int>(in.size) - from;
  sums.each([&](int row, int column, float& a, float& b) {
    if (row >= rows || column >= columns) return;
    T* to = views + row * in.size + column;
    // A factor of 0 is for views of nothing, whose sums may be anything.
    const float by = factor(row);
    a = by == 0.0F ? 0.0F : a * by;
    b = by == 0.0F ? 0.0F : b * by;
    if (pairs) {
      write_2(to, a, b);
    } else {
      to[0] = from_float<T>(a);
      if (column + 1 < columns) to[1] = from_float<T>(b);
    }
  });
}

// Adds factor(row) times what was written there before.
template <class Sum, class Factor>
__device__ void add_partial(Sum& sums, const float* partial, const AttentionInput& in, int64_t first, int from,
                            const Factor& factor) {
  const auto rows = static_cast<int>(in.width - first < kLabels ? in.width - first : kLabels);
  const int columns = static_cast<int>(in.size) - from;
  sums.each([&](int row, int column, float& a, float& b) {
    if (row >= rows || column >= columns) return;
    const float by = factor(row);
    a += partial[row * in.size + column] * by;
    if (column + 1 < columns) b += partial[row * in.size + column + 1] * by;
  });
}

template <class Engine, class State, class Query>
__global__ void __launch_bounds__(kTileThreads, kBlocks)
    attend(const AttentionInput in, State* views, float* log_sums, float* partial, int turn_tokens) {
  if constexpr (is_used_here<Engine, State>()) {
    using Element = typename Engine::Element;
    constexpr int kDepth = Engine::kDepth, kWide = Engine::kWide;
    constexpr int kStageBytes = (kLabels + kWide) * kDepth * static_cast<int>(sizeof(Element));

    const int64_t tiles = parts(in.width, kLabels);
    const int64_t text = static_cast<int64_t>(blockIdx.x) / tiles;
    const int64_t first = static_cast<int64_t>(blockIdx.x) % tiles * kLabels;
    const int length = in.lengths[text], size = static_cast<int>(in.size);

    __shared__ int64_t label[kLabels];
    __shared__ float largest[kLabels], sum[kLabels];    // of the scores so far; of exp(score - largest)
    __shared__ float scale[kLabels];                    // of the views: 1 / sum, or 0 where there is nothing to see
    __shared__ float before[kMostBlocks + 1][kLabels];  // the largest before each block of this turn, and after
    __shared__ float of_warps[kWarpsAcross][kLabels];
    auto* weights = reinterpret_cast<Element*>(dynamic_shared());  // (kLabels, turn_tokens)
    char* stages = dynamic_shared() + static_cast<size_t>(kLabels * turn_tokens) * sizeof(Element);

    const auto thread = static_cast<int>(threadIdx.x);
    const int across = thread / 32 % kWarpsAcross;
    if (thread < kLabels) {
      label[thread] = label_of(in, text, first + thread);
      largest[thread] = -INFINITY;
      sum[thread] = scale[thread] = 0.0F;
    }
    __syncthreads();
    const LabelRows<Query> query{static_cast<const Query*>(in.queries), label, in.size};
    const bool pieces = in_pieces(static_cast<const State*>(in.states), in.size) && in_pieces(query.table, in.size);

    for (int turn = 0; turn == 0 || turn < length; turn += turn_tokens) {
      const int blocks = parts(length - turn < turn_tokens ? length - turn : turn_tokens, kWide);
      if (thread < kLabels) before[0][thread] = largest[thread];

      // Scores, and from them weights = exp(score - largest so far).
      for (int block = 0; block < blocks; ++block) {
        const auto token = token_rows<State>(in, text, length, turn + block * kWide);
        Sums<Engine, kLabels, kWide> scores;
        pipeline(
            stages, kStageBytes, parts(size, kDepth),
            [&](char* stage, int i) {
              auto* left = reinterpret_cast<Element*>(stage);
              load_tile<kLabels, kDepth>(left, query, i * kDepth, size, pieces);
              load_tile<kWide, kDepth>(left + kLabels * kDepth, token, i * kDepth, size, pieces);
            },
            [&](char* stage, int) {
              const auto* left = reinterpret_cast<const Element*>(stage);
              scores.add_product(Operand<Element, false>{left, kDepth}, 0,
                                 Operand<Element, false>{left + kLabels * kDepth, kDepth}, kDepth);
            });
        scores.each([&](int, int column, float& a, float& b) {
          if (column >= token.count) a = -INFINITY;
          if (column + 1 >= token.count) b = -INFINITY;
        });
        scores.reduce_rows(
            -INFINITY, [](float a, float b) { return fmaxf(a, b); },
            [&](int row, float value) { of_warps[across][row] = value; });
        __syncthreads();
        if (thread < kLabels) {
          float now = largest[thread];
          for (int warp = 0; warp < kWarpsAcross; ++warp) now = fmaxf(now, of_warps[warp][thread]);
          sum[thread] *= expf(largest[thread] - now);
          largest[thread] = before[block + 1][thread] = now;
        }
        __syncthreads();
        scores.each([&](int row, int column, float& a, float& b) {
          a = expf(a - largest[row]);
          b = expf(b - largest[row]);
          write_2(weights + place<Element>(row, block * kWide + column, turn_tokens), a, b);
        });
        scores.reduce_rows(
            0.0F, [](float a, float b) { return a + b; }, [&](int row, float value) { of_warps[across][row] = value; });
        __syncthreads();
        if (thread < kLabels) {
          for (int warp = 0; warp < kWarpsAcross; ++warp) sum[thread] += of_warps[warp][thread];
          scale[thread] = label[thread] < 0 ? 0.0F : 1.0F / sum[thread];
        }
      }
      __syncthreads();

      // Sums of the states by these weights, in columns of kWide. Weights of a block are relative to the largest score
      // at its time: what is there shrinks where the next has a larger one.
      const bool begun = turn > 0, ends = turn + turn_tokens >= length;
      for (int from = 0; from < size; from += kWide) {
        Sums<Engine, kLabels, kWide> view;
        for (int block = 0; block < blocks; ++block) {
          if (block > 0) {
            view.each([&](int row, int, float& a, float& b) {
              const float factor = expf(before[block][row] - before[block + 1][row]);
              a *= factor;
              b *= factor;
            });
          }
          const int begin = turn + block * kWide;
          const int here = length - begin < kWide ? length - begin : kWide;
          pipeline(
              stages, kStageBytes, parts(here, kDepth),
              [&](char* stage, int i) {
                const auto token = token_rows<State>(in, text, length, begin + i * kDepth);
                load_tile<kDepth, kWide>(reinterpret_cast<Element*>(stage), token, from, size, pieces);
              },
              [&](char* stage, int i) {
                view.add_product(Operand<Element, false>{weights, turn_tokens}, block * kWide + i * kDepth,
                                 Operand<Element, true>{reinterpret_cast<const Element*>(stage), kWide}, kDepth);
              });
        }
        const auto first_view = (text * in.width + first) * in.size + from;
        if (begun) {
          add_partial(view, partial + first_view, in, first, from,
                      [&](int row) { return expf(before[0][row] - largest[row]); });
        }
        if (ends) {
          write_views(view, views + first_view, in, first, from, [&](int row) { return scale[row]; });
        } else {
          write_views(view, partial + first_view, in, first, from, [](int) { return 1.0F; });
        }
      }
      __syncthreads();
    }
    // Where there is nothing to see, weights made again are exp(score - inf) = 0.
    if (thread < kLabels && first + thread < in.width) {
      const bool there = label[thread] >= 0 && length > 0;
      log_sums[text * in.width + first + thread] = there ? largest[thread] + logf(sum[thread]) : INFINITY;
    }
  } else {
    __trap();  // compiled for another kind of device than the host took this one for
  }
}

// How many tokens of weights a block has room for: a multiple of kWide.
template <class Engine>
int turn_tokens(const AttentionInput& in) {
  constexpr int64_t kElement = sizeof(typename Engine::Element);
  constexpr int64_t kStatic = 6 * 1024;  // the arrays of `attend`
  const int64_t room =
      shared_bytes_of_a_block() - kStatic - kStages * (kLabels + Engine::kWide) * Engine::kDepth * kElement;
  const int64_t most = std::min<int64_t>(kMostBlocks, room / (kLabels * kElement) / Engine::kWide);
  return static_cast<int>(std::max<int64_t>(1, std::min(most, parts(in.tokens, Engine::kWide)))) * Engine::kWide;
}

}  // namespace

void pack_tokens(const bool* mask, int64_t batch, int64_t tokens, int32_t* token, int32_t* lengths,
                 cudaStream_t stream) {
  if (batch > 0) launch(pack, static_cast<unsigned>(batch), 32, 0, stream, mask, tokens, token, lengths);
}

bool label_attention_takes_turns(const AttentionInput& in) {
  return in.tokens >
         (in.tensor_cores && in.states_type != Type::kFloat32 ? turn_tokens<Mma<BFloat16>>(in) : turn_tokens<Fma>(in));
}

void label_attention(const AttentionInput& in, void* views, float* log_sums, float* partial, cudaStream_t stream) {
  if (in.batch * in.width == 0) return;
  dispatch(in, [&](auto engine, auto state, auto query) {
    using Engine = decltype(engine);
    using State = decltype(state);
    using Query = decltype(query);
    const int tokens = turn_tokens<Engine>(in);
    const auto shared = static_cast<size_t>(kLabels * tokens + kStages * (kLabels + Engine::kWide) * Engine::kDepth) *
                        sizeof(typename Engine::Element);
    launch(attend<Engine, State, Query>, static_cast<unsigned>(in.batch * parts(in.width, kLabels)), kTileThreads,
           shared, stream, in, static_cast<State*>(views), log_sums, partial, tokens);
  });
}

}  // namespace xmplug::cuda
