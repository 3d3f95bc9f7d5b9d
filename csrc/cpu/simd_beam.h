// The inner loops of beam search, in the instruction set of the including file. What they do stands in beam_kernels.h.
#pragma once

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "beam_kernels.h"
#include "simd.h"

namespace xmplug {
namespace {

typedef int32_t IntVec __attribute__((vector_size(kBytes)));

XMPLUG_INLINE int64_t whole_vectors(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

XMPLUG_INLINE IntVec splat(int32_t value) { return IntVec{} + value; }

XMPLUG_INLINE IntVec lane_numbers() {
  IntVec lanes = {};
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

template <int... lane>
struct Lanes {};

template <int size, int... lane>
struct FirstLanes : FirstLanes<size - 1, size - 1, lane...> {};

template <int... lane>
struct FirstLanes<0, lane...> : Lanes<lane...> {};

// Every second group of `parts` lanes of a and b together, from the first or the second group on.
template <int parts, int first, int... lane>
XMPLUG_INLINE Vec every_second(Vec a, Vec b, Lanes<lane...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, (lane / parts * 2 + first) * parts + lane % parts...);
#else
  return __builtin_shuffle(a, b, IntVec{(lane / parts * 2 + first) * parts + lane % parts...});
#endif
}

void score(const float* logits, const float* parents, const int64_t* nodes, int64_t width, int32_t* keys) {
  float last_logits[kLanes] = {}, last_parents[kLanes] = {};
  int64_t last_nodes[kLanes] = {};
  for (int64_t begin = 0; begin < width; begin += kLanes) {
    const float *logit = logits + begin, *parent = parents + begin;
    const int64_t* node = nodes ? nodes + begin : last_nodes;
    if (const int64_t rest = width - begin; rest < kLanes) {
      std::memcpy(last_logits, logit, sizeof(float) * static_cast<size_t>(rest));
      std::memcpy(last_parents, parent, sizeof(float) * static_cast<size_t>(rest));
      if (nodes) std::memcpy(last_nodes, node, sizeof(int64_t) * static_cast<size_t>(rest));
      logit = last_logits, parent = last_parents, node = last_nodes;
    }
    const Vec x = load(logit);
    const Vec probability = load(parent) / (1.0f + exp(-x));
    const Vec known = (probability > 0.0f) & (x > -88.0f) ? probability : Vec{};  // `exp` ends at 88
    const Vec upper = every_second<1, 1>(load_as<Vec>(node), load_as<Vec>(node + kLanes / 2), FirstLanes<kLanes>{});
    const IntVec absent = bits_as<IntVec>(upper) >> 31;
    store(keys + begin, bits_as<IntVec>(known) | absent);
  }
  for (int64_t i = width; i < whole_vectors(width); ++i) keys[i] = -1;
}

// Counts up where `yes` is all ones, which elsewhere is 0: one instruction, whichever of the two it is.
XMPLUG_INLINE IntVec counted(IntVec counts, IntVec yes) {
  if constexpr (kSet >= kAvx512) return yes ? counts + 1 : counts;
  return counts - yes;
}

XMPLUG_INLINE int64_t count_from(const int32_t* keys, int64_t width, int32_t bound) {
  IntVec counts = {};
  for (int64_t i = 0; i < width; i += kLanes) {
    counts = counted(counts, load_as<IntVec>(keys + i) >= splat(bound));
  }
  int64_t count = 0;
  for (int i = 0; i < kLanes; ++i) count += counts[i];
  return count;
}

int64_t select(const int32_t* keys, int64_t width, int64_t least, int64_t most, int32_t* places) {
  const int64_t padded = whole_vectors(width);
  int32_t bound = 0;
  if (count_from(keys, padded, 0) > most) {
    // Bisection: `bound` leaves at least `least`, `above` fewer.
    WordVec smallest = ~WordVec{};  // -1 is the greatest of words
    IntVec greatest = {};
    for (int64_t i = 0; i < padded; i += kLanes) {
      const auto key = load_as<IntVec>(keys + i);
      smallest = bits_as<WordVec>(key) < smallest ? bits_as<WordVec>(key) : smallest;
      greatest = key > greatest ? key : greatest;
    }
    uint32_t low = ~0u;
    int32_t above = 0;
    for (int i = 0; i < kLanes; ++i) {
      low = smallest[i] < low ? smallest[i] : low;
      above = greatest[i] > above ? greatest[i] : above;
    }
    bound = static_cast<int32_t>(low);
    above += 1;
    while (above - bound > 1) {
      const int32_t middle = bound + (above - bound) / 2;
      const int64_t count = count_from(keys, padded, middle);
      (count >= least ? bound : above) = middle;
      if (count >= least && count <= most) break;
    }
  }
  int64_t size = 0;
#ifdef __AVX512F__
  for (int64_t i = 0; i < padded; i += kLanes) {
    const __mmask16 chosen = _mm512_cmpge_epi32_mask(load_as<__m512i>(keys + i), _mm512_set1_epi32(bound));
    const IntVec here = lane_numbers() + static_cast<int32_t>(i);
    store(places + size, _mm512_maskz_compress_epi32(chosen, bits_as<__m512i>(here)));
    size += __builtin_popcount(chosen);
  }
#else
  for (int64_t i = 0; i < width; ++i) {  // no branch that could be foretold wrongly
    places[size] = static_cast<int32_t>(i);
    size += keys[i] >= bound;
  }
#endif
  return size;
}

void rank(int32_t* keys, int64_t size, int32_t* order) {
  const int64_t padded = whole_vectors(size);
  for (int64_t i = size; i < padded; ++i) keys[i] = -1;
  for (int64_t begin = 0; begin < padded; begin += kLanes) {
    const auto own = load_as<IntVec>(keys + begin);
    const int64_t end = begin + kLanes;
    IntVec before = {};
#pragma GCC unroll 8
    for (int64_t j = 0; j < begin; ++j) before = counted(before, splat(keys[j]) >= own);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {  // a key equal to a later one is before it
      before = counted(before, splat(keys[begin + j]) > own + (lane_numbers() > splat(j)));
    }
#pragma GCC unroll 8
    for (int64_t j = end; j < size; ++j) before = counted(before, splat(keys[j]) > own);
    int32_t ranks[kLanes];
    store(ranks, before);
    for (int64_t i = begin; i < (end < size ? end : size); ++i) order[ranks[i - begin]] = static_cast<int32_t>(i);
  }
}

// The sums over the lanes of kLanes vectors at once: `parts` partial sums of each of the first kLanes / parts. The
// order in which a vector's lanes are added does not depend on its place.
template <int parts = 1>
XMPLUG_INLINE Vec sums_of_lanes(const Vec* vectors) {
  if constexpr (parts == kLanes) {
    return vectors[0];
  } else {
    const Vec a = sums_of_lanes<2 * parts>(vectors);
    const Vec b = sums_of_lanes<2 * parts>(vectors + kLanes / (2 * parts));
    return every_second<parts, 0>(a, b, FirstLanes<kLanes>{}) + every_second<parts, 1>(a, b, FirstLanes<kLanes>{});
  }
}

// How a chunk of a row, kBytes of it, meets its part of a hidden vector, kParts vectors.
struct FloatRows {
  using Weight = float;
  static constexpr int kParts = 1;
  static XMPLUG_INLINE Vec add(Vec sum, WordVec chunk, const char* hidden) {
    return sum + bits_as<Vec>(chunk) * load_as<Vec>(hidden);
  }
  static XMPLUG_INLINE void put(char* prepared, int place, float value) {
    std::memcpy(prepared + 4 * place, &value, sizeof value);
  }
};

// A word holds two weights; hidden vectors hold first those that meet lower halves, then those that meet upper ones.
struct BFloat16Rows {
  using Weight = BFloat16;
  static constexpr int kParts = 2;
  static XMPLUG_INLINE Vec add(Vec sum, WordVec chunk, const char* hidden) {
    sum += bits_as<Vec>(chunk << 16) * load_as<Vec>(hidden);
    return sum + bits_as<Vec>(chunk & 0xffff0000u) * load_as<Vec>(hidden + kBytes);
  }
  static XMPLUG_INLINE void put(char* prepared, int place, float value) {
    std::memcpy(prepared + kBytes * (place % 2) + 4 * (place / 2), &value, sizeof value);
  }
};

#ifdef __AVX512BF16__
// Both are bfloat16, and the processor multiplies such.
struct BFloat16Pairs {
  using Weight = BFloat16;
  static constexpr int kParts = 1;
  static XMPLUG_INLINE Vec add(Vec sum, WordVec chunk, const char* hidden) {
    return bits_as<Vec>(_mm512_dpbf16_ps(bits_as<__m512>(sum), bits_as<__m512bh>(chunk), load_as<__m512bh>(hidden)));
  }
  static XMPLUG_INLINE void put(char* prepared, int place, float value) {
    const auto half = static_cast<uint16_t>(rounded_bits(value));
    std::memcpy(prepared + 2 * place, &half, sizeof half);
  }
};
#else
using BFloat16Pairs = BFloat16Rows;
#endif

// Rows fall into chunks of kBytes. Where they do not end with one, a last chunk is made of the last kBytes, in which
// what earlier chunks hold is blanked out.
template <class Rows>
struct Chunks {
  static constexpr int kValues = kBytes / static_cast<int>(sizeof(typename Rows::Weight));
  int64_t row_bytes, whole, rest;

  explicit Chunks(int64_t width)
      : row_bytes(width * static_cast<int64_t>(sizeof(typename Rows::Weight))),
        whole(width / kValues),
        rest(width % kValues * static_cast<int64_t>(sizeof(typename Rows::Weight))) {}

  XMPLUG_INLINE WordVec last(const char* row) const {
    char bytes[kBytes] = {};
    if (!whole) {
      std::memcpy(bytes, row, static_cast<size_t>(rest));
      return load_as<WordVec>(bytes);
    }
    std::memset(bytes + kBytes - rest, 0xff, static_cast<size_t>(rest));
    return load_as<WordVec>(row + row_bytes - kBytes) & load_as<WordVec>(bytes);
  }
};

template <class Rows>
int64_t prepared_bytes(int64_t width) {
  const Chunks<Rows> chunks(width);
  return (chunks.whole + (chunks.rest > 0)) * Rows::kParts * kBytes;
}

template <class Rows, class Hidden>
void prepare(const char* hidden, int64_t width, char* prepared) {
  constexpr int64_t values = Chunks<Rows>::kValues;
  std::memset(prepared, 0, static_cast<size_t>(prepared_bytes<Rows>(width)));
  for (int64_t i = 0; i < width; ++i) {
    const int64_t chunk = i / values;
    const bool last = width >= values && chunk == width / values;
    const auto place = static_cast<int>(last ? i - (width - values) : i % values);
    const float value = to_float(load_as<Hidden>(hidden + i * static_cast<int64_t>(sizeof(Hidden))));
    Rows::put(prepared + chunk * Rows::kParts * kBytes, place, value);
  }
}

constexpr int kSums = kSet >= kAvx512 ? 16 : 8;  // vectors of sums that fit into the registers

// num_rows rows for num_visits visits: few enough for the registers. With `ahead`, the next rows are fetched into the
// second cache meanwhile, in the order in which they lie in memory; the first cache has no room for them.
template <class Rows, int num_rows, int num_visits, bool ahead>
XMPLUG_INLINE void tile(const Chunks<Rows>& chunks, const char* rows, const Visit* visits, int64_t offset,
                        const char* next) {
  static_assert(num_rows * num_visits <= kSums, "too many for the registers");
  constexpr int size = num_rows * num_visits < kLanes ? kLanes : num_rows * num_visits;
  const int64_t step = chunks.row_bytes;
  Vec sums[size] = {};
  for (int64_t i = 0; i < chunks.whole; ++i) {
#pragma GCC unroll 16
    for (int r = 0; r < num_rows; ++r) {
      const auto chunk = load_as<WordVec>(rows + r * step + i * kBytes);
      if (ahead) __builtin_prefetch(next + (i * num_rows + r) * kBytes, 0, 2);
#pragma GCC unroll 2
      for (int v = 0; v < num_visits; ++v) {
        Vec& sum = sums[v * num_rows + r];
        sum = Rows::add(sum, chunk, visits[v].hidden + i * Rows::kParts * kBytes);
      }
    }
  }
  if (chunks.rest) {
#pragma GCC unroll 16
    for (int r = 0; r < num_rows; ++r) {
      const WordVec chunk = chunks.last(rows + r * step);
#pragma GCC unroll 2
      for (int v = 0; v < num_visits; ++v) {
        Vec& sum = sums[v * num_rows + r];
        sum = Rows::add(sum, chunk, visits[v].hidden + chunks.whole * Rows::kParts * kBytes);
      }
    }
  }
  float logits[size];
  for (int i = 0; i < size; i += kLanes) store(logits + i, sums_of_lanes(sums + i));
  for (int v = 0; v < num_visits; ++v) {
    std::memcpy(visits[v].logits + offset, logits + v * num_rows, sizeof(float) * num_rows);
  }
}

template <class Rows, int num_rows, bool ahead>
XMPLUG_INLINE void pair_of_visits(const Chunks<Rows>& chunks, const char* rows, const Visit* visits, int64_t offset,
                                  const char* next) {
  if constexpr (num_rows == kSums) {
    const int64_t half = num_rows / 2, bytes = half * chunks.row_bytes;
    tile<Rows, num_rows / 2, 2, ahead>(chunks, rows, visits, offset, next);
    tile<Rows, num_rows / 2, 2, ahead>(chunks, rows + bytes, visits, offset + half, next + bytes);
  } else {
    tile<Rows, num_rows, 2, ahead>(chunks, rows, visits, offset, next);
  }
}

template <class Rows, int num_rows>
void all_visits(const Chunks<Rows>& chunks, const char* rows, const Visit* visits, int64_t num_visits, int64_t offset,
                const char* next) {
  if (num_visits == 1) {
    tile<Rows, num_rows, 1, true>(chunks, rows, visits, offset, next);
    return;
  }
  pair_of_visits<Rows, num_rows, true>(chunks, rows, visits, offset, next);
  int64_t v = 2;
  for (; v + 1 < num_visits; v += 2) pair_of_visits<Rows, num_rows, false>(chunks, rows, visits + v, offset, next);
  if (v < num_visits) tile<Rows, num_rows, 1, false>(chunks, rows, visits + v, offset, next);
}

template <class Rows, int num_rows = kSums>
void logits(const char* rows, int64_t rows_left, const Chunks<Rows>& chunks, const Visit* visits, int64_t num_visits,
            int64_t offset, const char* next) {
  for (; rows_left >= num_rows; rows_left -= num_rows) {
    all_visits<Rows, num_rows>(chunks, rows, visits, num_visits, offset, next);
    rows += num_rows * chunks.row_bytes, next += num_rows * chunks.row_bytes, offset += num_rows;
  }
  if constexpr (num_rows > 1) {
    if (rows_left) logits<Rows, num_rows / 2>(rows, rows_left, chunks, visits, num_visits, offset, next);
  }
}

template <class Rows>
void all_logits(const char* rows, int64_t num_rows, int64_t width, const Visit* visits, int64_t num_visits,
                int64_t offset, const char* next) {
  logits<Rows>(rows, num_rows, Chunks<Rows>(width), visits, num_visits, offset, next);
}

template <class Rows, class Hidden>
constexpr Product product() {
  return {prepared_bytes<Rows>, prepare<Rows, Hidden>, all_logits<Rows>};
}

constexpr BeamKernels kBeamKernels = {
    score,
    select,
    rank,
    {{product<FloatRows, float>(), product<FloatRows, BFloat16>()},
     {product<BFloat16Rows, float>(), product<BFloat16Pairs, BFloat16>()}},
};

}  // namespace

template <>
const BeamKernels& kernels<BeamKernels, kSet>() {
  return kBeamKernels;
}

}  // namespace xmplug
