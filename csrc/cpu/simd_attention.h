// Multi-label attention for one text and some of its candidates, in the instruction set of the including file.
//
// With X the text's tokens, Q the queries of a tile of candidates and G the gradient of their output:
//
//     S = Q X^T      P = softmax(S)      O = P X                                        forward
//     dP = G X^T     dS = P (dP - sum of P dP)     dQ += dS X     dX += P^T G + dS^T Q    backward
//
// S, P, dP and dS of a tile stay in the cache and are never kept: backward makes S and P again. Tokens that the mask
// leaves out are dropped when a text is packed, so that padding costs nothing.
//
// All products are made of one micro-kernel, in words of 32 bits: a word is one float, or two neighbours along the
// summed dimension in bfloat16, which the processor multiplies and adds as a pair.
#pragma once

#include "attention.h"
#include "simd.h"

namespace xmplug {
namespace {

constexpr int kRows = 6;                           // the micro-kernel's tile: 6 rows of
constexpr int kVectors = kSet >= kAvx512 ? 4 : 2;  // so many vectors, which with the operands just fit the registers
constexpr int kPanel = kVectors * kLanes;
// Candidates that are worked on at a time; multiples of kRows. More in backward, which sums over them.
constexpr int kTile = 96;
constexpr int kBackwardTile = 192;

XMPLUG_INLINE int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct Floats {
  static constexpr int kPerWord = 1;
  static constexpr int64_t kBlock = 128;
  typedef float Element;
  static XMPLUG_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
  static XMPLUG_INLINE Vec words(Vec first, Vec) { return first; }
};

#ifdef __AVX512BF16__
struct Pairs {
  static constexpr int kPerWord = 2;
  static constexpr int64_t kBlock = 4096;  // the factors are rounded far more coarsely
  typedef BFloat16 Element;
  static XMPLUG_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
    return bits_as<Vec>(_mm512_dpbf16_ps(bits_as<__m512>(c), bits_as<__m512bh>(a), bits_as<__m512bh>(b)));
  }
  static XMPLUG_INLINE Vec words(Vec first, Vec second) {
    return bits_as<Vec>(rounded_bits(first) | (rounded_bits(second) << 16));
  }
};
#endif

// A matrix as the right factor of a product: panels of kPanel columns, each with its rows of words one after another.
struct Right {
  float* data;
  int64_t depth;  // rows of words

  float* panel(int64_t vector) const { return data + vector / kVectors * depth * kPanel + vector % kVectors * kLanes; }
};

// A matrix as the left factor, row after row: the word in row m and column k is data[m * stride + k].
struct Left {
  const float* data;
  int64_t stride;

  const float* row(int64_t row) const { return data + row * stride; }
  static XMPLUG_INLINE float word(const float* at, int64_t stride, int m) { return at[m * stride]; }
  static XMPLUG_INLINE int64_t step(int64_t) { return 1; }
};

// The same, column after column: data[k * stride + m].
struct LeftAcross {
  const float* data;
  int64_t stride;

  const float* row(int64_t row) const { return data + row; }
  static XMPLUG_INLINE float word(const float* at, int64_t, int m) { return at[m]; }
  static XMPLUG_INLINE int64_t step(int64_t stride) { return stride; }
};

template <int N>
struct Count {};

// sums[m][n] += `depth` words of kRows rows of a left factor times those of N vectors of columns of a right one; both
// pointers move on.
template <class Words, int N, class Factor>
XMPLUG_INLINE void accumulate(Vec (&sums)[kRows][N], const float*& a, Factor left, const float*& b, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k, a += left.step(left.stride), b += kPanel) {
    Vec columns[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) columns[n] = load(b + n * kLanes);
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      const Vec value = splat(left.word(a, left.stride, m));
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[m][n] = Words::multiply_add(value, columns[n], sums[m][n]);
    }
  }
}

// sums[m][n] += rows [row, row + kRows) of `left` times the N vectors of columns of `right` from `vector` on. Of long
// sums, those of Words::kBlock words are made first and then added up, which keeps the rounding errors small.
template <class Words, int N, class Factor>
XMPLUG_INLINE void multiply(Vec (&sums)[kRows][N], Factor left, int64_t row, Right right, int64_t vector) {
  const float* a = left.row(row);
  const float* b = right.panel(vector);
  int64_t depth = right.depth;
  for (; depth > Words::kBlock; depth -= Words::kBlock) {
    Vec block[kRows][N] = {};
    accumulate<Words>(block, a, left, b, Words::kBlock);
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[m][n] += block[m][n];
    }
  }
  accumulate<Words>(sums, a, left, b, depth);
}

// Calls body(Count<N>, row, vector) for micro-tiles of kRows rows and N vectors that cover the product.
template <class Body>
XMPLUG_INLINE void for_tiles(int64_t rows, int64_t vectors, const Body& body) {
  for (int64_t vector = 0; vector < vectors; vector += kVectors) {
    const int64_t left = vectors - vector;
    for (int64_t row = 0; row < rows; row += kRows) {
      if (left >= kVectors) {
        body(Count<kVectors>{}, row, vector);
      } else if (left == 3) {
        body(Count<kVectors == 4 ? 3 : 1>{}, row, vector);
      } else if (left == 2) {
        body(Count<kVectors == 4 ? 2 : 1>{}, row, vector);
      } else {
        body(Count<1>{}, row, vector);
      }
    }
  }
}

// The first `count` numbers at `from`, zeros behind.
template <class T>
XMPLUG_INLINE Vec load_some(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
  float values[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = to_float(from[i]);
  return load_as<Vec>(values);
}

template <class T>
XMPLUG_INLINE void store_some(T* to, Vec value, int64_t count) {
  if (count >= kLanes) return store_as(to, value);
  T values[kLanes];
  store_as(values, value);
  for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

// Starts to bring N vectors of a row of numbers into the cache, to be there when the sums are.
template <int N, class T>
XMPLUG_INLINE void expect(const T* row) {
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) __builtin_prefetch(row + n * kLanes, 1);
}

// Folds the upper half of the lanes onto the lower one until one is left.
template <class Fold>
XMPLUG_INLINE float over_lanes(Vec value, const Fold& fold) {
  float lanes[kLanes];
  store(lanes, value);
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lanes[i] = fold(lanes[i], lanes[i + half]);
  }
  return lanes[0];
}

XMPLUG_INLINE float sum_of_lanes(Vec value) {
  return over_lanes(value, [](float a, float b) { return a + b; });
}

XMPLUG_INLINE float largest_lane(Vec value) {
  return over_lanes(value, [](float a, float b) { return a > b ? a : b; });
}

// value in the first `count` lanes, `other` in those behind.
XMPLUG_INLINE Vec first_lanes(Vec value, int64_t count, float other) {
  WordVec lane;
  for (uint32_t i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < static_cast<uint32_t>(count) ? value : splat(other);
}

// to[k * step + i] = from[i * stride + k] for words of kLanes rows.
XMPLUG_INLINE void transpose(const float* from, int64_t stride, int64_t words, float* to, int64_t step) {
  for (int64_t k = 0; k < words; ++k) {
    Vec column;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) column[i] = from[i * stride + k];
    store(to + k * step, column);
  }
}

// Words: Floats or Pairs. State, Query: the types of states and queries, float or BFloat16.
template <class Words, class State, class Query>
struct Attention {
  typedef typename Words::Element Element;
  static constexpr int kPer = Words::kPerWord;

  struct Memory {
    int64_t tokens;        // of the text
    int64_t vectors;       // of tokens
    int64_t size_vectors;  // of numbers in a state
    int64_t width;         // words in a state, and between rows of the tile's left factors
    int64_t lanes;         // floats in a row of scores
    int64_t* index;        // (tokens): where in the text each is
    Right columns;         // X^T: summed over the words of a state
    Right rows;            // X: summed over tokens
    float* query;          // (tile, width): Q as left factor
    float* grad;           // (tile, width): G as left factor
    Right query_rows;      // Q and G as right factors: summed over the tile
    Right grad_rows;
    float* scores;    // (tile, lanes): S, then P
    float* d_scores;  // (tile, lanes): dP, then dS
    float* weights;   // P or dS as left factor of X: pairs of tokens
    float* across;    // P, and behind it dS, as left factors of G and Q: pairs of candidates
    float* staged;    // (kLanes, width): some tokens before they are transposed
  };

  // Lays out the memory from its 64-byte aligned start and returns its size in bytes.
  static int64_t lay_out(const AttentionInput& in, bool backward, void* start, Memory& memory) {
    int64_t used = 0;
    const auto take = [&](int64_t words) {
      float* at = static_cast<float*>(start) + (start == nullptr ? 0 : used);
      used += round_up(words, 16);
      return at;
    };
    const int64_t tile = backward ? kBackwardTile : kTile;
    memory.size_vectors = round_up(in.size, kLanes) / kLanes;
    memory.width = round_up(in.size, kPer * kLanes) / kPer + 16;  // 16: no multiple of a page between rows
    memory.lanes = round_up(in.tokens, kLanes) + kLanes;
    const int64_t token_panels = round_up(in.tokens, kPanel) / kPanel;
    const int64_t size_panels = round_up(in.size, kPanel) / kPanel;
    memory.index = reinterpret_cast<int64_t*>(take(2 * in.tokens));
    memory.columns = {take(token_panels * (memory.width - 16) * kPanel), 0};
    memory.rows = {take(size_panels * round_up(in.tokens, kPer) / kPer * kPanel), 0};
    memory.query = take(tile * memory.width);
    memory.scores = take(tile * memory.lanes);
    memory.weights = kPer == 1 ? memory.scores : take(tile * memory.lanes / kPer);
    memory.staged = take(kLanes * memory.width);
    if (backward) {
      memory.grad = take(tile * memory.width);
      memory.query_rows = {take(size_panels * tile / kPer * kPanel), 0};
      memory.grad_rows = {take(size_panels * tile / kPer * kPanel), 0};
      memory.d_scores = take(tile * memory.lanes);
      memory.across = take(2 * (tile / kPer) * memory.lanes);
    }
    return used * 4;
  }

  static Memory memory_at(const AttentionInput& in, bool backward, void* workspace) {
    Memory memory;
    lay_out(in, backward, static_cast<char*>(workspace) + 64, memory);
    return memory;
  }

  static int64_t workspace(const AttentionInput& in, bool backward) {
    Memory memory;
    return 64 + lay_out(in, backward, nullptr, memory);
  }

  // One row of numbers as a left factor: words side by side.
  template <class T>
  static XMPLUG_INLINE void pack_left(const T* from, int64_t count, float* to) {
    auto* elements = reinterpret_cast<Element*>(to);
    for (int64_t i = 0; i < count; i += kLanes) store_as(elements + i, load_some(from + i, count - i));
  }

  // One row of words of a right factor, of one row of numbers or of two; a missing second one is null.
  template <class T>
  static XMPLUG_INLINE void pack_right(const T* first, const T* second, int64_t count, Right to, int64_t row) {
    for (int64_t i = 0, vector = 0; i < count; i += kLanes, ++vector) {
      const Vec a = load_some(first + i, count - i);
      const Vec b = second == nullptr ? Vec{} : load_some(second + i, count - i);
      store(to.panel(vector) + row * kPanel, Words::words(a, b));
    }
  }

  static void load_text(const AttentionInput& in, int64_t text, void* workspace, Memory& memory) {
    auto* header = static_cast<int64_t*>(workspace);  // the text that is packed, counted from 1, and its tokens
    const bool packed = header[0] == text + 1;
    if (!packed) {
      const bool* mask = in.mask + text * in.tokens;
      int64_t tokens = 0;
      for (int64_t t = 0; t < in.tokens; ++t) {
        if (mask[t]) memory.index[tokens++] = t;
      }
      header[0] = text + 1;
      header[1] = tokens;
    }
    memory.tokens = header[1];
    memory.vectors = round_up(memory.tokens, kLanes) / kLanes;
    memory.rows.depth = round_up(memory.tokens, kPer) / kPer;
    memory.columns.depth = round_up(in.size, kPer) / kPer;
    if (packed) return;
    const State* states = static_cast<const State*>(in.states) + text * in.tokens * in.size;
    for (int64_t t = 0; t < memory.tokens; t += kPer) {
      const State* second =
          kPer == 2 && t + 1 < memory.tokens ? states + memory.index[t + 1] * in.size : static_cast<State*>(nullptr);
      pack_right(states + memory.index[t] * in.size, second, in.size, memory.rows, t / kPer);
    }
    for (int64_t vector = 0; vector < memory.vectors; ++vector) {
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t t = vector * kLanes + i;
        float* to = memory.staged + i * memory.width;
        if (t < memory.tokens) {
          pack_left(states + memory.index[t] * in.size, in.size, to);
        } else {
          std::memset(to, 0, static_cast<size_t>(memory.width) * 4);
        }
      }
      transpose(memory.staged, memory.width, memory.columns.depth, memory.columns.panel(vector), kPanel);
    }
  }

  // product[i][t] = left[i] . X[t]
  static void with_tokens(const Memory& memory, const float* left, int64_t count, float* product) {
    const Left tile{left, memory.width};
    for_tiles(count, memory.vectors, [&](auto number, int64_t row, int64_t vector) {
      tile_with_tokens(number, memory, tile, row, vector, product);
    });
  }

  template <int N>
  static XMPLUG_APART void tile_with_tokens(Count<N>, const Memory& memory, Left left, int64_t row, int64_t vector,
                                            float* product) {
    Vec sums[kRows][N] = {};
    multiply<Words>(sums, left, row, memory.columns, vector);
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) store(product + (row + m) * memory.lanes + (vector + n) * kLanes, sums[m][n]);
    }
  }

  // One row of S becomes exp(S - max), with 0 behind the last token; returns 1 / its sum.
  static XMPLUG_INLINE float exponentials(const Memory& memory, float* row) {
    const int64_t last = memory.vectors - 1;
    const int64_t rest = memory.tokens - last * kLanes;
    store(row + last * kLanes, first_lanes(load(row + last * kLanes), rest, -__builtin_inff()));
    Vec largest = load(row);
    for (int64_t v = 1; v <= last; ++v) largest = larger(largest, load(row + v * kLanes));
    const Vec most = splat(largest_lane(largest));
    Vec sum{};
    for (int64_t v = 0; v < last; ++v) {
      const Vec weight = exp(load(row + v * kLanes) - most);
      store(row + v * kLanes, weight);
      sum += weight;
    }
    const Vec weight = first_lanes(exp(load(row + last * kLanes) - most), rest, 0.0f);
    store(row + last * kLanes, weight);
    return 1.0f / sum_of_lanes(sum + weight);
  }

  // Rows of numbers as left factor of X, which is summed over tokens.
  static XMPLUG_INLINE Left over_tokens(const Memory& memory, const float* rows, int64_t count) {
    if (kPer == 1) return {rows, memory.lanes};
    auto* elements = reinterpret_cast<Element*>(memory.weights);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t v = 0; v < memory.vectors; ++v) {
        store_as(elements + i * memory.lanes + v * kLanes, load(rows + i * memory.lanes + v * kLanes));
      }
    }
    return {memory.weights, memory.lanes / kPer};
  }

  // The same rows, transposed, as left factor of what is summed over the tile.
  static XMPLUG_INLINE LeftAcross over_tile(const Memory& memory, const float* rows, int64_t count, int which) {
    if (kPer == 1) return {rows, memory.lanes};
    float* words = memory.across + which * (kBackwardTile / kPer) * memory.lanes;
    for (int64_t i = 0; i < count; i += 2) {
      for (int64_t v = 0; v < memory.vectors; ++v) {
        const float* at = rows + i * memory.lanes + v * kLanes;
        store(words + i / 2 * memory.lanes + v * kLanes,
              Words::words(load(at), i + 1 < count ? load(at + memory.lanes) : Vec{}));
      }
    }
    return {words, memory.lanes};
  }

  static void forward(const AttentionInput& in, int64_t text, int64_t begin, int64_t end, void* out, void* workspace) {
    Memory memory = memory_at(in, false, workspace);
    load_text(in, text, workspace, memory);
    State* views = static_cast<State*>(out) + text * in.width * in.size;
    if (memory.tokens == 0) {
      std::memset(views + begin * in.size, 0, static_cast<size_t>((end - begin) * in.size) * sizeof(State));
      return;
    }
    const int64_t* labels = in.candidates == nullptr ? nullptr : in.candidates + text * in.width;
    for (int64_t first = begin; first < end; first += kTile) {
      const int64_t count = end - first < kTile ? end - first : kTile;
      float scale[kTile];
      for (int64_t i = 0; i < count; ++i) {
        const int64_t label = labels == nullptr ? first + i : labels[first + i];
        scale[i] = label < 0 ? 0.0f : 1.0f;
        pack_left(static_cast<const Query*>(in.queries) + (label < 0 ? 0 : label) * in.size, in.size,
                  memory.query + i * memory.width);
      }
      with_tokens(memory, memory.query, count, memory.scores);
      for (int64_t i = 0; i < count; ++i) scale[i] *= exponentials(memory, memory.scores + i * memory.lanes);
      const Left weights = over_tokens(memory, memory.scores, count);
      for_tiles(count, memory.size_vectors, [&](auto number, int64_t row, int64_t vector) {
        write_views(number, in, memory, weights, row, vector, count, scale, views + first * in.size);
      });
    }
  }

  template <int N>
  static XMPLUG_APART void write_views(Count<N>, const AttentionInput& in, const Memory& memory, Left weights,
                                       int64_t row, int64_t vector, int64_t count, const float* scale, State* views) {
    Vec sums[kRows][N] = {};
    multiply<Words>(sums, weights, row, memory.rows, vector);
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      if (row + m >= count) break;
      // Not a product with 0, which is not 0 for tokens that are not finite.
      const bool there = scale[row + m] != 0;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const int64_t at = (vector + n) * kLanes;
        store_some(views + (row + m) * in.size + at, there ? sums[m][n] * scale[row + m] : Vec{}, in.size - at);
      }
    }
  }

  static void backward(const AttentionInput& in, int64_t text, const Candidate* candidates, int64_t count,
                       const void* grad, float* grad_states, float* grad_queries, void* workspace) {
    Memory memory = memory_at(in, true, workspace);
    load_text(in, text, workspace, memory);
    if (memory.tokens == 0) return;
    const State* grads = static_cast<const State*>(grad) + text * in.width * in.size;
    grad_states += text * in.tokens * in.size;
    while (count > 0) {
      // Tiles of about the same size: a last one of few candidates would cost nearly as much as a full one.
      const int64_t tiles = (count + kBackwardTile - 1) / kBackwardTile;
      const int64_t size = (count + tiles - 1) / tiles;
      backward_tile(in, memory, candidates, size, grads, grad_states, grad_queries);
      candidates += size;
      count -= size;
    }
  }

  static void backward_tile(const AttentionInput& in, Memory& memory, const Candidate* candidates, int64_t count,
                            const State* grads, float* grad_states, float* grad_queries) {
    const auto* queries = static_cast<const Query*>(in.queries);
    memory.query_rows.depth = memory.grad_rows.depth = round_up(count, kPer) / kPer;
    for (int64_t i = 0; i < count; ++i) {
      const Query* query = queries + candidates[i].label * in.size;
      const State* grad = grads + candidates[i].column * in.size;
      pack_left(query, in.size, memory.query + i * memory.width);
      pack_left(grad, in.size, memory.grad + i * memory.width);
      if (i % kPer != 0) continue;
      const bool paired = kPer == 2 && i + 1 < count;
      pack_right(query, paired ? queries + candidates[i + 1].label * in.size : static_cast<const Query*>(nullptr),
                 in.size, memory.query_rows, i / kPer);
      pack_right(grad, paired ? grads + candidates[i + 1].column * in.size : static_cast<const State*>(nullptr),
                 in.size, memory.grad_rows, i / kPer);
    }
    with_tokens(memory, memory.query, count, memory.scores);
    with_tokens(memory, memory.grad, count, memory.d_scores);
    for (int64_t i = 0; i < count; ++i) {
      float* weights = memory.scores + i * memory.lanes;
      float* grad = memory.d_scores + i * memory.lanes;
      const Vec scale = splat(exponentials(memory, weights));
      Vec sum{};
      for (int64_t v = 0; v < memory.vectors; ++v) {
        const Vec weight = load(weights + v * kLanes) * scale;
        store(weights + v * kLanes, weight);
        sum += weight * load(grad + v * kLanes);
      }
      const Vec mean = splat(sum_of_lanes(sum));
      for (int64_t v = 0; v < memory.vectors; ++v) {
        const Vec change = load(weights + v * kLanes) * (load(grad + v * kLanes) - mean);
        store(grad + v * kLanes, change);
      }
    }
    const Left changes = over_tokens(memory, memory.d_scores, count);
    for_tiles(count, memory.size_vectors, [&](auto number, int64_t row, int64_t vector) {
      add_to_queries(number, in, memory, changes, row, vector, candidates, count, grad_queries);
    });
    const LeftAcross weights_across = over_tile(memory, memory.scores, count, 0);
    const LeftAcross changes_across = over_tile(memory, memory.d_scores, count, 1);
    for_tiles(memory.tokens, memory.size_vectors, [&](auto number, int64_t row, int64_t vector) {
      add_to_states(number, in, memory, weights_across, changes_across, row, vector, grad_states);
    });
  }

  template <int N>
  static XMPLUG_APART void add_to_queries(Count<N>, const AttentionInput& in, const Memory& memory, Left changes,
                                          int64_t row, int64_t vector, const Candidate* candidates, int64_t count,
                                          float* grad_queries) {
    for (int m = 0; m < kRows && row + m < count; ++m) {
      expect<N>(grad_queries + candidates[row + m].row * in.size + vector * kLanes);
    }
    Vec sums[kRows][N] = {};
    multiply<Words>(sums, changes, row, memory.rows, vector);
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      if (row + m >= count) break;
      add_rows(sums[m], grad_queries + candidates[row + m].row * in.size, vector, in.size);
    }
  }

  template <int N>
  static XMPLUG_APART void add_to_states(Count<N>, const AttentionInput& in, const Memory& memory, LeftAcross weights,
                                         LeftAcross changes, int64_t row, int64_t vector, float* grad_states) {
    for (int m = 0; m < kRows && row + m < memory.tokens; ++m) {
      expect<N>(grad_states + memory.index[row + m] * in.size + vector * kLanes);
    }
    Vec sums[kRows][N] = {};
    multiply<Words>(sums, weights, row, memory.grad_rows, vector);
    multiply<Words>(sums, changes, row, memory.query_rows, vector);
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      if (row + m >= memory.tokens) break;
      add_rows(sums[m], grad_states + memory.index[row + m] * in.size, vector, in.size);
    }
  }

  template <int N>
  static XMPLUG_INLINE void add_rows(Vec (&sums)[N], float* to, int64_t vector, int64_t size) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const int64_t at = (vector + n) * kLanes;
      store_some(to + at, load_some(to + at, size - at) + sums[n], size - at);
    }
  }
};

// Which of its four forms an input takes. Pairs of bfloat16 are multiplied only where the states are bfloat16: float32
// states ask for float32 arithmetic.
template <class Chosen>
XMPLUG_INLINE auto with_types(const AttentionInput& in, const Chosen& chosen) {
#ifdef __AVX512BF16__
  typedef Pairs BFloat16Words;
#else
  typedef Floats BFloat16Words;
#endif
  if (in.bfloat16_states) {
    if (in.bfloat16_queries) return chosen(Attention<BFloat16Words, BFloat16, BFloat16>{});
    return chosen(Attention<BFloat16Words, BFloat16, float>{});
  }
  if (in.bfloat16_queries) return chosen(Attention<Floats, float, BFloat16>{});
  return chosen(Attention<Floats, float, float>{});
}

int64_t attention_workspace(const AttentionInput& in, bool backward) {
  return with_types(in, [&](auto attention) { return attention.workspace(in, backward); });
}

void attention_forward(const AttentionInput& in, int64_t text, int64_t begin, int64_t end, void* out, void* workspace) {
  with_types(in, [&](auto attention) { attention.forward(in, text, begin, end, out, workspace); });
}

void attention_backward(const AttentionInput& in, int64_t text, const Candidate* candidates, int64_t count,
                        const void* grad, float* grad_states, float* grad_queries, void* workspace) {
  with_types(in, [&](auto attention) {
    attention.backward(in, text, candidates, count, grad, grad_states, grad_queries, workspace);
  });
}

}  // namespace

template <>
const AttentionKernels& kernels<AttentionKernels, kSet>() {
  static const AttentionKernels all = {kTile, attention_workspace, attention_forward, attention_backward};
  return all;
}

}  // namespace xmplug
