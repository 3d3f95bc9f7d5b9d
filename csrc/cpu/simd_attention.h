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
    const auto words = [](Vec value) { return __builtin_convertvector(rounded_bits(value), WordVec); };
    return bits_as<Vec>(words(first) | (words(second) << 16));
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

// Starts to bring N vectors of a row of sums into the cache, to be there when what is added to them is.
template <int N>
XMPLUG_INLINE void expect(const float* row) {
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) __builtin_prefetch(row + n * kLanes, 1);
}

// The same for numbers that the next tile will read.
template <int N, class T>
XMPLUG_INLINE void expect_later(Count<N>, const T* row) {
  constexpr int kLine = 64 / (kLanes * static_cast<int>(sizeof(T)));  // vectors in a line of the cache
#pragma GCC unroll 4
  for (int n = 0; n < N; n += kLine) __builtin_prefetch(row + n * kLanes, 0, 2);
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
    float* scores;    // (tile, lanes): S, then exp(S - max)
    float* d_scores;  // (tile, lanes): dP
    // The same memory where words are floats:
    float* weights;         // (tile, lanes / kPer): exp(S - max), in backward dS, as left factor of X
    float* weights_across;  // (tile / kPer, lanes): P as left factor of G
    float* changes_across;  // (tile / kPer, lanes): dS as left factor of Q
    float* staged;          // (kLanes, width): some tokens before they are transposed
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
    memory.staged = take(kLanes * memory.width);
    if (backward) {
      memory.grad = take(tile * memory.width);
      memory.query_rows = {take(size_panels * tile / kPer * kPanel), 0};
      memory.grad_rows = {take(size_panels * tile / kPer * kPanel), 0};
      memory.d_scores = take(tile * memory.lanes);
      memory.weights_across = kPer == 1 ? memory.scores : take(tile / kPer * memory.lanes);
      memory.changes_across = kPer == 1 ? memory.d_scores : take(tile / kPer * memory.lanes);
    }
    memory.weights = kPer == 2 ? take(tile * memory.lanes / kPer) : backward ? memory.d_scores : memory.scores;
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

  // Zeros in place of the rows of a left factor behind the last one, up to the next border of micro-tiles.
  static void clear_behind(const Memory& memory, float* rows, int64_t count) {
    const int64_t words = (round_up(count, kRows) - count) * memory.width;
    std::memset(rows + count * memory.width, 0, static_cast<size_t>(words) * sizeof(float));
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

  // Makes exp(S - max) of one row of S and calls put(vector, numbers) with it, 0 behind the last token; returns 1 / its
  // sum.
  template <class Put>
  static XMPLUG_INLINE float exponentials(const Memory& memory, float* row, const Put& put) {
    const int64_t last = memory.vectors - 1;
    const int64_t rest = memory.tokens - last * kLanes;
    store(row + last * kLanes, first_lanes(load(row + last * kLanes), rest, -__builtin_inff()));
    Vec largest = load(row);
    for (int64_t v = 1; v <= last; ++v) largest = larger(largest, load(row + v * kLanes));
    const Vec most = splat(largest_lane(largest));
    Vec sum{};
    for (int64_t v = 0; v < last; ++v) {
      const Vec weight = exp(load(row + v * kLanes) - most);
      put(v, weight);
      sum += weight;
    }
    const Vec weight = first_lanes(exp(load(row + last * kLanes) - most), rest, 0.0f);
    put(last, weight);
    return 1.0f / sum_of_lanes(sum + weight);
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
    const auto label_of = [&](int64_t candidate) { return labels == nullptr ? candidate : labels[candidate]; };
    const auto query_of = [&](int64_t candidate) {
      const int64_t label = label_of(candidate);
      return static_cast<const Query*>(in.queries) + (label < 0 ? 0 : label) * in.size;
    };
    for (int64_t first = begin; first < end; first += kTile) {
      const int64_t count = end - first < kTile ? end - first : kTile;
      float scale[kTile];
      for (int64_t i = 0; i < count; ++i) {
        scale[i] = label_of(first + i) < 0 ? 0.0f : 1.0f;
        pack_left(query_of(first + i), in.size, memory.query + i * memory.width);
      }
      clear_behind(memory, memory.query, count);
      with_tokens(memory, memory.query, count, memory.scores);
      for (int64_t i = 0; i < count; ++i) {
        Element* weights = reinterpret_cast<Element*>(memory.weights) + i * memory.lanes;
        scale[i] *= exponentials(memory, memory.scores + i * memory.lanes,
                                 [&](int64_t v, Vec weight) { store_as(weights + v * kLanes, weight); });
      }
      const Left weights{memory.weights, memory.lanes / kPer};
      for_tiles(count, memory.size_vectors, [&](auto number, int64_t row, int64_t vector) {
        for (int64_t next = first + kTile + row, i = 0; i < kRows && next + i < end; ++i) {
          expect_later(number, query_of(next + i) + vector * kLanes);
        }
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
                       int64_t ahead, const void* grad, AttentionGradients to, void* workspace) {
    Memory memory = memory_at(in, true, workspace);
    load_text(in, text, workspace, memory);
    const State* grads = static_cast<const State*>(grad) + text * in.width * in.size;
    const bool ends = to.last;
    while (count > 0) {
      // Tiles of about the same size: a last one of few candidates would cost nearly as much as a full one.
      const int64_t tiles = (count + kBackwardTile - 1) / kBackwardTile;
      const int64_t size = (count + tiles - 1) / tiles;
      count -= size;
      to.last = ends && count == 0;
      backward_tile(in, memory, candidates, size, count + ahead, grads, to);
      candidates += size;
      to.first = false;
    }
  }

  static void backward_tile(const AttentionInput& in, Memory& memory, const Candidate* candidates, int64_t count,
                            int64_t ahead, const State* grads, const AttentionGradients& to) {
    const auto query_of = [&](int64_t i) {
      return static_cast<const Query*>(in.queries) + candidates[i].label * in.size;
    };
    const auto grad_of = [&](int64_t i) { return grads + candidates[i].column * in.size; };
    memory.query_rows.depth = memory.grad_rows.depth = round_up(count, kPer) / kPer;
    for (int64_t i = 0; i < count; ++i) {
      pack_left(query_of(i), in.size, memory.query + i * memory.width);
      pack_left(grad_of(i), in.size, memory.grad + i * memory.width);
      if (i % kPer != 0) continue;
      const bool paired = kPer == 2 && i + 1 < count;
      pack_right(query_of(i), paired ? query_of(i + 1) : nullptr, in.size, memory.query_rows, i / kPer);
      pack_right(grad_of(i), paired ? grad_of(i + 1) : nullptr, in.size, memory.grad_rows, i / kPer);
    }
    clear_behind(memory, memory.query, count);
    clear_behind(memory, memory.grad, count);
    with_tokens(memory, memory.query, count, memory.scores);
    with_tokens(memory, memory.grad, count, memory.d_scores);
    for (int64_t i = 0; i < count; i += kPer) finish_scores(memory, i, count);
    const Left changes{memory.weights, memory.lanes / kPer};
    for_tiles(count, memory.size_vectors, [&](auto number, int64_t row, int64_t vector) {
      for (int64_t i = row; i < row + kRows && i < ahead; ++i) {
        expect_later(number, query_of(count + i) + vector * kLanes);
        expect_later(number, grad_of(count + i) + vector * kLanes);
      }
      write_queries(number, in, memory, changes, row, vector, candidates, count, to);
    });
    const LeftAcross weights_across{memory.weights_across, memory.lanes};
    const LeftAcross changes_across{memory.changes_across, memory.lanes};
    for_tiles(memory.tokens, memory.size_vectors, [&](auto number, int64_t row, int64_t vector) {
      write_states(number, in, memory, weights_across, changes_across, row, vector, to);
    });
  }

  // P and dS of the rows of a word from row i on, as left factors.
  static XMPLUG_INLINE void finish_scores(const Memory& memory, int64_t i, int64_t count) {
    Vec scale[kPer] = {}, mean[kPer] = {};
    for (int j = 0; j < kPer; ++j) {
      float* scores = memory.scores + (i + j) * memory.lanes;
      const float* d_scores = memory.d_scores + (i + j) * memory.lanes;
      if (i + j >= count) break;
      Vec sum{};
      scale[j] = splat(exponentials(memory, scores, [&](int64_t v, Vec weight) {
        store(scores + v * kLanes, weight);
        sum += weight * load(d_scores + v * kLanes);
      }));
      mean[j] = splat(sum_of_lanes(sum * scale[j]));
    }
    for (int64_t v = 0; v < memory.vectors; ++v) {
      Vec weights[kPer], changes[kPer];
      for (int j = 0; j < kPer; ++j) {
        const int64_t at = (i + j) * memory.lanes + v * kLanes;
        const bool there = i + j < count;
        weights[j] = there ? load(memory.scores + at) * scale[j] : Vec{};
        changes[j] = there ? weights[j] * (load(memory.d_scores + at) - mean[j]) : Vec{};
        store_as(reinterpret_cast<Element*>(memory.weights) + at, changes[j]);
      }
      const int64_t at = i / kPer * memory.lanes + v * kLanes;
      store(memory.weights_across + at, Words::words(weights[0], weights[kPer - 1]));
      store(memory.changes_across + at, Words::words(changes[0], changes[kPer - 1]));
    }
  }

  template <int N>
  static XMPLUG_APART void write_queries(Count<N>, const AttentionInput& in, const Memory& memory, Left changes,
                                         int64_t row, int64_t vector, const Candidate* candidates, int64_t count,
                                         const AttentionGradients& to) {
    for (int m = 0; m < kRows && row + m < count; ++m) {
      const Candidate& candidate = candidates[row + m];
      if (!candidate.first) expect<N>(to.query_sums + candidate.sum * in.size + vector * kLanes);
    }
    Vec sums[kRows][N] = {};
    multiply<Words>(sums, changes, row, memory.rows, vector);
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      if (row + m >= count) break;
      const Candidate& candidate = candidates[row + m];
      write_part(sums[m], to.query_sums + candidate.sum * in.size,
                 static_cast<Query*>(to.queries) + candidate.row * in.size, candidate.first, candidate.last, vector,
                 in.size);
    }
  }

  template <int N>
  static XMPLUG_APART void write_states(Count<N>, const AttentionInput& in, const Memory& memory, LeftAcross weights,
                                        LeftAcross changes, int64_t row, int64_t vector, const AttentionGradients& to) {
    for (int m = 0; m < kRows && row + m < memory.tokens && !to.first; ++m) {
      expect<N>(to.state_sums + memory.index[row + m] * in.size + vector * kLanes);
    }
    Vec sums[kRows][N] = {};
    multiply<Words>(sums, weights, row, memory.grad_rows, vector);
    multiply<Words>(sums, changes, row, memory.query_rows, vector);
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      if (row + m >= memory.tokens) break;
      const int64_t at = memory.index[row + m] * in.size;
      write_part(sums[m], to.state_sums + at, static_cast<State*>(to.states) + at, to.first, to.last, vector, in.size);
    }
  }

  // Some vectors of a part of a row: to the sum of the parts, or, with the last one, to the result.
  template <int N, class T>
  static XMPLUG_INLINE void write_part(Vec (&part)[N], float* sum, T* result, bool first, bool last, int64_t vector,
                                       int64_t size) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const int64_t at = (vector + n) * kLanes;
      const Vec all = first ? part[n] : load_some(sum + at, size - at) + part[n];
      if (last) {
        store_some(result + at, all, size - at);
      } else {
        store_some(sum + at, all, size - at);
      }
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
                        int64_t ahead, const void* grad, const AttentionGradients& to, void* workspace) {
  with_types(in, [&](auto attention) { attention.backward(in, text, candidates, count, ahead, grad, to, workspace); });
}

}  // namespace

template <>
const AttentionKernels& kernels<AttentionKernels, kSet>() {
  static const AttentionKernels all = {kTile, attention_workspace, attention_forward, attention_backward};
  return all;
}

}  // namespace xmplug
