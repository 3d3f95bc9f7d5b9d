// Multi-label attention, backward. With the gradient of the views, G, of one text's candidates, and X the states of its
// tokens, Q the candidates' queries, A = softmax(Q X^T) the attention:
//     dA = G X^T,  dS = A o (dA - the row sums of A o dA),  dX = A^T G + dS^T Q,  dQ = dS X
// A and dS are made of some texts at a time, in the type of the states, in a workspace of a bounded size; then come the
// kernels for dX and dQ. The gradient of a query is a sum over texts: in full form, a block goes
// through the texts itself; with candidates, the parts of each text are written, and added in the order of the texts.
// So nothing is added by two at a time, and results are the same in every run.
#include <algorithm>

#include "label_attention.h"

namespace xmplug::cuda {
namespace {

constexpr int kSquare = 128;  // tokens of a tile
// Columns of a tile of the gradient of the states.
template <class Engine>
constexpr int kStateColumns = Engine::kWarpgroups ? 256 : 128;
// Blocks that a multiprocessor shall have registers for.
template <class Engine>
constexpr int kBlocks = Engine::kTensorCores && !Engine::kWarpgroups ? 2 : 1;
constexpr int64_t kMostLabels = 8192;  // most labels whose A and dS of a text are there at a time, in full form

// What a launch works on: some texts, and some of their candidates, from `first` on; their A and dS.
template <class Element>
struct Wave {
  int64_t text, texts, first, width;
  int64_t tokens;  // columns of A and dS, of which rows are `padded`
  int64_t padded;
  Element* attention;  // (texts, padded, tokens)
  Element* change;     // dS, likewise
};

// Makes dS of dA, in place: a warp for each row. What is subtracted is the mean of dA as it was rounded, by weights A
// as they were rounded, which do not quite sum to 1: so dS sums to 0 as it should, which it would not with the usual G
// o views, and dA may have any mean.
template <class Element>
__global__ void __launch_bounds__(kTileThreads) finish_change(const AttentionInput in, const Wave<Element> wave) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kTileThreads / 32) + threadIdx.x / 32;
  if (row >= wave.texts * wave.padded) return;
  const int length = in.lengths[wave.text + row / wave.padded];
  const Element* attention = wave.attention + row * wave.tokens;
  Element* change = wave.change + row * wave.tokens;
  float sum = 0.0F, weights = 0.0F;
  for (int i = static_cast<int>(threadIdx.x) % 32; i < length; i += 32) {
    sum += to_float(attention[i]) * to_float(change[i]);
    weights += to_float(attention[i]);
  }
  for (int other = 16; other > 0; other /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, other);
    weights += __shfl_xor_sync(kAllLanes, weights, other);
  }
  const float mean = weights > 0.0F ? sum / weights : 0.0F;  // a candidate that is padding has no weight
  for (int i = static_cast<int>(threadIdx.x) % 32; i < length; i += 32) {
    change[i] = from_float<Element>(to_float(attention[i]) * (to_float(change[i]) - mean));
  }
}

template <class Engine>
struct MakeScores {  // what a stage has
  using Labels = Tile<Engine, Engine::kTall, Engine::kDepth>;
  using Tokens = Tile<Engine, kSquare, Engine::kDepth>;
  static constexpr int kStage = 2 * Labels::kBytes + Tokens::kBytes, kBytes = Engine::kStages * kStage;
  using Products = Pipeline<Engine, Engine::kStages, kStage>;
};

// A and dA of kTall candidates and 128 tokens.
template <class Engine, class State, class Query>
__global__ void __launch_bounds__(kTileThreads, kBlocks<Engine>)
    make_scores(const AttentionInput in, const Wave<typename Engine::Element> wave, const State* grad,
                const float* log_sums) {
  if constexpr (is_used_here<Engine, State>()) {
    using Element = typename Engine::Element;
    using Memory = MakeScores<Engine>;
    constexpr int kDepth = Engine::kDepth, kTall = Engine::kTall;
    const auto across = static_cast<int>(wave.tokens / kSquare);
    const int begin = static_cast<int>(blockIdx.x) % across * kSquare;
    const int64_t tile = blockIdx.x / across;
    const int64_t first = tile % (wave.padded / kTall) * kTall, slot = tile / (wave.padded / kTall);
    const int64_t text = wave.text + slot;
    const int length = in.lengths[text], size = static_cast<int>(in.size);
    if (begin >= parts(length, kSquare) * kSquare) return;  // no one reads it

    __shared__ int32_t label[kTall];
    __shared__ float log_sum[kTall];
    const auto thread = static_cast<int>(threadIdx.x);
    if (thread < kTall) {
      const int64_t candidate = wave.first + first + thread;
      const bool there = first + thread < wave.width;
      label[thread] = there ? static_cast<int32_t>(label_of(in, text, candidate)) : -1;
      log_sum[thread] = there ? log_sums[text * in.width + candidate] : INFINITY;
    }
    __syncthreads();
    const LabelRows<Query> query{static_cast<const Query*>(in.queries), label, in.size};
    const State* upstream = grad + (text * in.width + wave.first + first) * in.size;
    const bool pieces = in_pieces(static_cast<const State*>(in.states), in.size) && in_pieces(query.table, in.size) &&
                        in_pieces(grad, in.size);

    Sums<Engine, kTall, kSquare> scores, change;
    Memory::Products::start_and_run(
        tile_memory(), parts(size, kDepth),
        [&](char* stage, int i) {
          load_tile(typename Memory::Labels(stage), query, i * kDepth, size, pieces);
          load_tile(
              typename Memory::Labels(stage + Memory::Labels::kBytes),
              [&](int row) -> const State* { return label[row] < 0 ? nullptr : upstream + row * in.size; }, i* kDepth,
              size, pieces);
          load_tile(typename Memory::Tokens(stage + 2 * Memory::Labels::kBytes),
                    token_rows<State>(in, text, length, begin), i * kDepth, size, pieces);
        },
        [&](char* stage, int) {
          const auto states = depth_across(typename Memory::Tokens(stage + 2 * Memory::Labels::kBytes));
          scores.add_product(depth_across(typename Memory::Labels(stage)), 0, states);
          change.add_product(depth_across(typename Memory::Labels(stage + Memory::Labels::kBytes)), 0, states);
        },
        scores, change);
    const int64_t corner = (slot * wave.padded + first) * wave.tokens + begin;
    const int tokens = length - begin;
    scores.each_row([&](int row, const auto& of_row) {
      Element* to = wave.attention + corner + row * wave.tokens;
      const float by = log_sum[row];
      of_row([&](int column, float& a, float& b) {
        a = column < tokens ? exp_for<Engine>(a - by) : 0.0F;
        b = column + 1 < tokens ? exp_for<Engine>(b - by) : 0.0F;
        write_2(to + column, a, b);
      });
    });
    change.each_row([&](int row, const auto& of_row) {
      Element* to = wave.change + corner + row * wave.tokens;
      of_row([&](int column, float& a, float& b) { write_2(to + column, a, b); });
    });
  } else {
    __trap();
  }
}

template <class Engine>
struct AddStates {
  using Scores = Tile<Engine, Engine::kDepth, kSquare>;
  using Labels = Tile<Engine, Engine::kDepth, kStateColumns<Engine>>;
  static constexpr int kStage = Scores::kBytes + Labels::kBytes, kBytes = Engine::kStages * kStage;
  using Products = Pipeline<Engine, Engine::kStages, kStage>;
};

// dX of 128 tokens and kStateColumns columns: written, or, where the candidates come in several waves, added to `sums`.
template <class Engine, class State, class Query>
__global__ void __launch_bounds__(kTileThreads, kBlocks<Engine>)
    add_states(const AttentionInput in, const Wave<typename Engine::Element> wave, const State* grad,
               State* grad_states, float* sums) {
  if constexpr (is_used_here<Engine, State>()) {
    using Element = typename Engine::Element;
    using Memory = AddStates<Engine>;
    constexpr int kDepth = Engine::kDepth, kColumns = kStateColumns<Engine>;
    const int size = static_cast<int>(in.size), across = parts(size, kColumns);
    const auto down = static_cast<int>(wave.tokens / kSquare);
    const int from = static_cast<int>(blockIdx.x) % across * kColumns;
    const int begin = static_cast<int>(blockIdx.x) / across % down * kSquare;
    const int64_t slot = static_cast<int64_t>(blockIdx.x) / across / down, text = wave.text + slot;
    const int length = in.lengths[text];
    if (begin >= length) return;

    const auto candidates = static_cast<int>(wave.width), steps = parts(candidates, kDepth);
    const State* upstream = grad + (text * in.width + wave.first) * in.size;
    const auto* queries = static_cast<const Query*>(in.queries);
    const bool pieces = in_pieces(grad, in.size) && in_pieces(queries, in.size);
    Sums<Engine, kSquare, kColumns> sum;
    // A^T G, then, in the same pipeline, dS^T Q. A and dS have a multiple of kDepth rows, whose last are not read.
    Memory::Products::start_and_run(
        tile_memory(), 2 * steps,
        [&](char* stage, int i) {
          const bool second = i >= steps;
          const int first = (second ? i - steps : i) * kDepth;
          const int rows = candidates - first < kDepth ? candidates - first : kDepth;
          const Element* left = (second ? wave.change : wave.attention) + (slot * wave.padded + first) * wave.tokens;
          load_tile(typename Memory::Scores(stage), Rows<Element>{left, wave.tokens, rows}, begin,
                    static_cast<int>(wave.tokens), true);
          const typename Memory::Labels labels(stage + Memory::Scores::kBytes);
          const auto label = [&](int row) { return row < rows ? label_of(in, text, wave.first + first + row) : -1; };
          if (second) {
            load_tile(
                labels,
                [&](int row) -> const Query* {
                  const int64_t of_row = label(row);
                  return of_row < 0 ? nullptr : queries + of_row * in.size;
                },
                from, size, pieces);
          } else {
            const State* here = upstream + first * in.size;
            load_tile(
                labels, [&](int row) -> const State* { return label(row) < 0 ? nullptr : here + row * in.size; }, from,
                size, pieces);
          }
        },
        [&](char* stage, int) {
          sum.add_product(depth_down(typename Memory::Scores(stage)), 0,
                          depth_down(typename Memory::Labels(stage + Memory::Scores::kBytes)));
        },
        sum);
    const int32_t* token = in.token + text * in.tokens + begin;
    sum.each([&](int row, int column, float& a, float& b) {
      if (begin + row >= length || from + column >= size) return;
      const int64_t at = (text * in.tokens + token[row]) * in.size + from + column;
      const bool two = from + column + 1 < size;
      if (sums != nullptr) {
        sums[at] += a;
        if (two) sums[at + 1] += b;
      } else {
        grad_states[at] = from_float<State>(a);
        if (two) grad_states[at + 1] = from_float<State>(b);
      }
    });
  } else {
    __trap();
  }
}

template <class Engine>
struct MakeQueries {
  using Scores = Tile<Engine, Engine::kTall, Engine::kDepth>;
  using Tokens = Tile<Engine, Engine::kDepth, Engine::kWide>;
  static constexpr int kStage = Scores::kBytes + Tokens::kBytes, kBytes = Engine::kStages * kStage;
  using Products = Pipeline<Engine, Engine::kStages, kStage>;
};

// dQ of kTall candidates and kWide columns: with candidates, of one text, written to `parts_of_texts` (texts, width,
// size); in full form, of all texts of the wave, added to the gradient (labels, size).
template <class Engine, class State>
__global__ void __launch_bounds__(kTileThreads, kBlocks<Engine>)
    make_queries(const AttentionInput in, const Wave<typename Engine::Element> wave, float* grad_queries,
                 float* parts_of_texts) {
  if constexpr (is_used_here<Engine, State>()) {
    using Element = typename Engine::Element;
    using Memory = MakeQueries<Engine>;
    constexpr int kDepth = Engine::kDepth, kWide = Engine::kWide, kTall = Engine::kTall;
    const int size = static_cast<int>(in.size), across = parts(size, kWide);
    const auto down = static_cast<int>(wave.padded / kTall);
    const int from = static_cast<int>(blockIdx.x) % across * kWide;
    const int first = static_cast<int>(blockIdx.x) / across % down * kTall;
    const int block = static_cast<int>(blockIdx.x) / across / down;
    const bool whole = in.candidates == nullptr;
    Sums<Engine, kTall, kWide> sum;
    // One pipeline for all texts: the steps of a text come after those of the one before, `begin` of them.
    const int end = whole ? static_cast<int>(wave.texts) : block + 1;
    const auto steps_of = [&](int slot) { return parts(in.lengths[wave.text + slot], kDepth); };
    int slot = whole ? 0 : block, begin = 0, steps = steps_of(slot), count = 0;
    for (int each = slot; each < end; ++each) count += steps_of(each);
    Memory::Products::start_and_run(
        tile_memory(), count,
        [&](char* stage, int i) {
          while (i - begin >= steps) {
            begin += steps;
            steps = steps_of(++slot);
          }
          const int token = (i - begin) * kDepth;
          const Element* change = wave.change + (static_cast<int64_t>(slot) * wave.padded + first) * wave.tokens;
          load_tile(
              typename Memory::Scores(stage), [&](int row) { return change + row * wave.tokens; }, token,
              static_cast<int>(wave.tokens), true);
          load_tile(typename Memory::Tokens(stage + Memory::Scores::kBytes),
                    token_rows<State>(in, wave.text + slot, in.lengths[wave.text + slot], token), from, size,
                    in_pieces(static_cast<const State*>(in.states), in.size));
        },
        [&](char* stage, int) {
          sum.add_product(depth_across(typename Memory::Scores(stage)), 0,
                          depth_down(typename Memory::Tokens(stage + Memory::Scores::kBytes)));
        },
        sum);
    const bool adds = in.candidates == nullptr;
    float* to = adds ? grad_queries + (wave.first + first) * in.size
                     : parts_of_texts + (static_cast<int64_t>(block) * wave.width + first) * in.size;
    const auto rows = static_cast<int>(wave.width - first < kTall ? wave.width - first : kTall);
    sum.each([&](int row, int column, float& a, float& b) {
      if (row >= rows || from + column >= size) return;
      float* at = to + row * in.size + from + column;
      at[0] = adds ? at[0] + a : a;
      if (from + column + 1 < size) at[1] = adds ? at[1] + b : b;
    });
  } else {
    __trap();
  }
}

// Adds the parts of each row of the gradient, in the order that they were in before they were sorted by row. A block
// for each part, which has something to do where it is the first of its row.
__global__ void __launch_bounds__(128)
    add_parts(const float* parts_of_texts, const int64_t* sorted_rows, const int64_t* order, int64_t count,
              int64_t num_rows, int64_t size, float* grad_queries) {
  const int64_t begin = blockIdx.x, row = sorted_rows[begin];
  if (row >= num_rows || (begin > 0 && sorted_rows[begin - 1] == row)) return;
  for (int64_t column = threadIdx.x; column < size; column += 128) {
    float sum = grad_queries[row * size + column];
    for (int64_t i = begin; i < count && sorted_rows[i] == row; ++i) sum += parts_of_texts[order[i] * size + column];
    grad_queries[row * size + column] = sum;
  }
}

int64_t aligned(int64_t bytes) { return parts(bytes, 256) * 256; }

}  // namespace

AttentionPlan plan_backward(const AttentionInput& in, int64_t most_bytes) {
  AttentionPlan plan;
  int64_t element = 0;
  int tall = 0;
  dispatch(in, [&](auto engine, auto, auto) {
    element = sizeof(typename decltype(engine)::Element);
    tall = decltype(engine)::kTall;
  });
  plan.candidates = in.candidates == nullptr ? std::min(in.width, kMostLabels) : in.width;
  plan.padded = parts(plan.candidates, tall) * tall;
  plan.tokens = parts(in.tokens, kSquare) * kSquare;
  const int64_t scores = aligned(plan.padded * plan.tokens * element);
  const int64_t of_text = 2 * scores + (in.candidates == nullptr ? 0 : aligned(in.width * in.size * 4));
  plan.texts = std::max<int64_t>(1, std::min(in.batch, most_bytes / std::max<int64_t>(1, of_text)));
  plan.scores_bytes = scores * plan.texts;
  plan.bytes = plan.texts * of_text;
  return plan;
}

void label_attention_backward(const AttentionInput& in, const AttentionPlan& plan, const void* grad,
                              const float* log_sums, const int64_t* sorted_rows, const int64_t* order, int64_t num_rows,
                              char* workspace, void* grad_states, float* state_sums, float* grad_queries,
                              cudaStream_t stream) {
  if (in.batch * in.width == 0 || in.tokens * in.size == 0) return;
  dispatch(in, [&](auto engine, auto state, auto query) {
    using Engine = decltype(engine);
    using State = decltype(state);
    using Query = decltype(query);
    using Element = typename Engine::Element;
    const auto* upstream = static_cast<const State*>(grad);
    Wave<Element> wave;
    wave.attention = reinterpret_cast<Element*>(workspace);
    wave.change = reinterpret_cast<Element*>(workspace + plan.scores_bytes);
    auto* parts_of_texts = reinterpret_cast<float*>(workspace + 2 * plan.scores_bytes);
    wave.tokens = plan.tokens;
    for (wave.text = 0; wave.text < in.batch; wave.text += plan.texts) {
      wave.texts = std::min(plan.texts, in.batch - wave.text);
      for (wave.first = 0; wave.first < in.width; wave.first += plan.candidates) {
        wave.width = std::min(plan.candidates, in.width - wave.first);
        wave.padded = parts(wave.width, Engine::kTall) * Engine::kTall;
        const int64_t tiles = wave.padded / Engine::kTall;
        launch(make_scores<Engine, State, Query>, static_cast<unsigned>(wave.texts * tiles * (wave.tokens / kSquare)),
               kTileThreads, MakeScores<Engine>::kBytes, stream, in, wave, upstream, log_sums);
        launch(finish_change<Element>, static_cast<unsigned>(parts(wave.texts * wave.padded, kTileThreads / 32)),
               kTileThreads, 0, stream, in, wave);
        launch(add_states<Engine, State, Query>,
               static_cast<unsigned>(wave.texts * (wave.tokens / kSquare) * parts(in.size, kStateColumns<Engine>)),
               kTileThreads, AddStates<Engine>::kBytes, stream, in, wave, upstream, static_cast<State*>(grad_states),
               state_sums);
        const int64_t turns = in.candidates == nullptr ? 1 : wave.texts;
        launch(make_queries<Engine, State>, static_cast<unsigned>(turns * tiles * parts(in.size, Engine::kWide)),
               kTileThreads, MakeQueries<Engine>::kBytes, stream, in, wave, grad_queries, parts_of_texts);
      }
      if (in.candidates != nullptr) {
        const int64_t at = wave.text * in.width, count = wave.texts * in.width;
        launch(add_parts, static_cast<unsigned>(count), 128, 0, stream, parts_of_texts, sorted_rows + at, order + at,
               count, num_rows, in.size, grad_queries);
      }
    }
  });
}

}  // namespace xmplug::cuda
