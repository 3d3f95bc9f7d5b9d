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
    const Vec known = x > -88.0f ? larger(probability, Vec{}) : Vec{};  // `exp` ends at 88; NaN becomes 0
    const Vec upper = every_second<1, 1>(load_as<Vec>(node), load_as<Vec>(node + kLanes / 2), FirstLanes<kLanes>{});
    const IntVec absent = bits_as<IntVec>(upper) >> 31;
    store(keys + begin, bits_as<IntVec>(known) | absent);
  }
  for (int64_t i = width; i < whole_vectors(width); ++i) keys[i] = -1;
}

// Counts up where a is greater. No difference of keys overflows, and its sign is had sooner than a mask.
XMPLUG_INLINE IntVec count_greater(IntVec counts, IntVec a, IntVec b) {
  if constexpr (kSet >= kAvx512) return counts + bits_as<IntVec>(bits_as<WordVec>(b - a) >> 31);
  return counts - (a > b);
}

XMPLUG_INLINE int64_t count_from(const int32_t* keys, int64_t padded, int32_t bound) {
  int64_t count = 0;
#ifdef __AVX512F__
  for (int64_t i = 0; i < padded; i += kLanes) {
    count += __builtin_popcount(_mm512_cmpge_epi32_mask(load_as<__m512i>(keys + i), _mm512_set1_epi32(bound)));
  }
#else
  IntVec counts = {};
  for (int64_t i = 0; i < padded; i += kLanes) counts -= load_as<IntVec>(keys + i) >= splat(bound);
  for (int i = 0; i < kLanes; ++i) count += counts[i];
#endif
  return count;
}

// A bound that at least `least` of the keys reach, if so many are not -1, and no more than `most` where the keys are
// apart; by bisection.
XMPLUG_INLINE int32_t bound_of(const int32_t* keys, int64_t padded, int64_t least, int64_t most) {
  if (count_from(keys, padded, 0) <= most) return 0;
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
  auto bound = static_cast<int32_t>(low);  // leaves at least `least`, `above` fewer
  above += 1;
  while (above - bound > 1) {
    const int32_t middle = bound + (above - bound) / 2;
    const int64_t count = count_from(keys, padded, middle);
    (count >= least ? bound : above) = middle;
    if (count >= least && count <= most) break;
  }
  return bound;
}

// Moves the keys that are above `low` and at most `high`, and their places, which are their numbers where `places` is
// null, to the front of other arrays or of the same.
XMPLUG_INLINE int64_t move_between(const int32_t* keys, const int32_t* places, int64_t size, int32_t low, int32_t high,
                                   int32_t* to_keys, int32_t* to_places) {
  int64_t moved = 0;
#ifdef __AVX512F__
  // As words, one comparison does for both bounds.
  const __m512i least = _mm512_set1_epi32(low + 1);
  const __m512i width = _mm512_sub_epi32(_mm512_set1_epi32(high), _mm512_set1_epi32(low));
  __m512i here = bits_as<__m512i>(lane_numbers());
  for (int64_t i = 0; i < size; i += kLanes) {
    const auto key = load_as<__m512i>(keys + i);
    const __mmask16 chosen = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(key, least), width);
    const __m512i place = places ? load_as<__m512i>(places + i) : here;
    store(to_keys + moved, _mm512_maskz_compress_epi32(chosen, key));
    store(to_places + moved, _mm512_maskz_compress_epi32(chosen, place));
    moved += __builtin_popcount(chosen);
    here = _mm512_add_epi32(here, _mm512_set1_epi32(kLanes));
  }
#else
  for (int64_t i = 0; i < size; ++i) {  // no branch that could be foretold wrongly
    const int32_t key = keys[i];
    to_keys[moved] = key;
    to_places[moved] = places ? places[i] : static_cast<int32_t>(i);
    moved += (key > low) & (key <= high);
  }
#endif
  store(to_keys + moved, splat(-1));  // whole vectors
  return moved;
}

constexpr int32_t kMostKey = 0x7fffffff;

int64_t select(const int32_t* keys, int64_t width, int64_t least, int64_t most, int32_t* places, int32_t* chosen) {
  const int64_t padded = whole_vectors(width);
  // The keys fall into groups, more of them than are wanted. A bound that enough groups' greatest keys reach is reached
  // by enough keys, and by few more where great keys are spread over the groups: so there is less to search.
  int32_t bound = 0;
  const int64_t groups = whole_vectors(2 * (least < width ? least : width));
  if (2 * groups <= padded) {
    for (int64_t group = 0; group < groups; group += kLanes) {
      auto greatest = load_as<IntVec>(keys + group);
      for (int64_t i = group + groups; i < padded; i += groups) {
        const auto key = load_as<IntVec>(keys + i);
        greatest = key > greatest ? key : greatest;
      }
      store(chosen + group, greatest);
    }
    bound = bound_of(chosen, groups, least, least + least / 8);
  }
  int64_t size = move_between(keys, nullptr, width, bound - 1, kMostKey, chosen, places);
  if (size > most) {
    bound = bound_of(chosen, whole_vectors(size), least, most);
    size = move_between(chosen, places, size, bound - 1, kMostKey, chosen, places);
  }
  return size;
}

// How many of the keys are before each of the kLanes from `begin` on: greater ones, and equal ones that stand earlier.
// What stands in the last vector behind the keys must be less than they are.
XMPLUG_INLINE IntVec ranks(const int32_t* keys, int64_t size, int64_t begin) {
  const auto own = load_as<IntVec>(keys + begin);
  IntVec before = {};
  for (int64_t j = 0; j < begin; j += kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) before = count_greater(before, splat(keys[j + i]), own - 1);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {  // a key equal to a later one is before it
    before = count_greater(before, splat(keys[begin + i]), own + (lane_numbers() > splat(i)));
  }
  for (int64_t j = begin + kLanes; j < size; j += kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) before = count_greater(before, splat(keys[j + i]), own);
  }
  return before;
}

// A sorting network, greatest first, of the numbers in `size` vectors, a power of two. In order they stand in the first
// lanes of all vectors, then in the second lanes, and so on, so that few steps are between lanes. Runs are merged by
// comparing one with the other reversed, and then halves of halves.
XMPLUG_INLINE IntVec greater(IntVec a, IntVec b) { return a > b ? a : b; }
XMPLUG_INLINE IntVec lesser(IntVec a, IntVec b) { return a > b ? b : a; }

template <int bits, int... lane>
XMPLUG_INLINE IntVec flipped(IntVec a, Lanes<lane...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, a, (lane ^ bits)...);
#else
  return __builtin_shuffle(a, IntVec{(lane ^ bits)...});
#endif
}

// In each lane with the bit `upper` the lesser of the two, elsewhere the greater.
template <int upper>
XMPLUG_INLINE IntVec by_lane(IntVec a, IntVec b) {
  return (lane_numbers() & upper) != 0 ? lesser(a, b) : greater(a, b);
}

template <int size, int distance>
XMPLUG_INLINE void merge_vectors(IntVec* vectors) {
  if constexpr (distance > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < size; ++i) {
      if (i & distance) continue;
      const IntVec a = vectors[i], b = vectors[i + distance];
      vectors[i] = greater(a, b);
      vectors[i + distance] = lesser(a, b);
    }
    merge_vectors<size, distance / 2>(vectors);
  }
}

template <int size, int run>
XMPLUG_INLINE void sort_lanes(IntVec* vectors) {
  if constexpr (run <= size) {
#pragma GCC unroll 16
    for (int i = 0; i < size; ++i) {
      if (i & (run / 2)) continue;
      const IntVec a = vectors[i], b = vectors[i ^ (run - 1)];
      vectors[i] = greater(a, b);
      vectors[i ^ (run - 1)] = lesser(a, b);
    }
    merge_vectors<size, run / 4>(vectors);
    sort_lanes<size, run * 2>(vectors);
  }
}

template <int size, int distance>
XMPLUG_INLINE void merge_lanes(IntVec* vectors) {
  if constexpr (distance > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < size; ++i) {
      vectors[i] = by_lane<distance>(vectors[i], flipped<distance>(vectors[i], FirstLanes<kLanes>{}));
    }
    merge_lanes<size, distance / 2>(vectors);
  }
}

template <int size, int run>
XMPLUG_INLINE void sort_across_lanes(IntVec* vectors) {
  if constexpr (run <= kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < (size + 1) / 2; ++i) {
      const IntVec a = vectors[i], b = vectors[size - 1 - i];
      vectors[i] = by_lane<run / 2>(a, flipped<run - 1>(b, FirstLanes<kLanes>{}));
      vectors[size - 1 - i] = by_lane<run / 2>(b, flipped<run - 1>(a, FirstLanes<kLanes>{}));
    }
    merge_lanes<size, run / 4>(vectors);
    merge_vectors<size, size / 2>(vectors);
    sort_across_lanes<size, run * 2>(vectors);
  }
}

constexpr int64_t kMostInNetwork = 256;

// Sorts packed keys through the smallest network that holds them. Returns its number of vectors.
template <int size = 1>
XMPLUG_INLINE int sort_packed(IntVec* packed, int64_t vectors) {
  if constexpr (size * kLanes < kMostInNetwork) {
    if (vectors > size) return sort_packed<2 * size>(packed, vectors);
  }
  for (int64_t i = vectors; i < size; ++i) packed[i] = splat(INT32_MIN);
  IntVec sorted[size];
  std::memcpy(sorted, packed, sizeof sorted);
  sort_lanes<size, 2>(sorted);
  sort_across_lanes<size, 2>(sorted);
  std::memcpy(packed, sorted, sizeof sorted);
  return size;
}

// Moves up to kMostInNetwork keys and their places to other arrays, in order, equal keys as they stood. There may be
// anything behind the keys.
void order_few(const int32_t* keys, const int32_t* places, int64_t size, int32_t* to_keys, int32_t* to_places) {
  const int64_t vectors = whole_vectors(size) / kLanes;
  WordVec smallest = ~WordVec{}, greatest = {};
  for (int64_t i = 0; i < vectors; ++i) {
    const auto inside =
        bits_as<WordVec>(lane_numbers() + static_cast<int32_t>(i * kLanes) < static_cast<int32_t>(size));
    const auto key = load_as<WordVec>(keys + i * kLanes);
    const WordVec key_or_most = key | ~inside, key_or_least = key & inside;
    smallest = key_or_most < smallest ? key_or_most : smallest;
    greatest = key_or_least > greatest ? key_or_least : greatest;
  }
  uint32_t least = ~0u, most = 0;
  for (int i = 0; i < kLanes; ++i) {
    least = smallest[i] < least ? smallest[i] : least;
    most = greatest[i] > most ? greatest[i] : most;
  }
  // The upper 24 bits of what the keys differ in, then where they stand, backwards, for the earlier to be the greater.
  int shift = 0;
  while ((most - least) >> shift >> 24) ++shift;
  IntVec packed[kMostInNetwork / kLanes];
  for (int64_t i = 0; i < vectors; ++i) {
    const IntVec here = lane_numbers() + static_cast<int32_t>(i * kLanes);
    const WordVec upper = (load_as<WordVec>(keys + i * kLanes) - least) >> shift << 8;
    const WordVec word = upper + bits_as<WordVec>(255 - here) + (1u << 31);  // as signed ones in the order of words
    packed[i] = here < static_cast<int32_t>(size) ? bits_as<IntVec>(word) : splat(INT32_MIN);
  }
  const int used = sort_packed(packed, vectors);
  const char* words = reinterpret_cast<const char*>(packed);
  int64_t next = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < used && next < size; ++i, ++next) {
      const uint32_t from = 255 - (load_as<uint32_t>(words + i * kBytes + lane * 4) & 255);
      to_keys[next] = keys[from];
      to_places[next] = places[from];
    }
  }
  int32_t wrong = 0;
  for (int64_t i = 1; i < size; ++i) wrong |= to_keys[i - 1] < to_keys[i];
  if (!wrong) return;
  for (int64_t i = 1; i < size; ++i) {  // those that differ only in what was shifted out
    const int32_t key = to_keys[i], place = to_places[i];
    int64_t j = i;
    for (; j > 0 && to_keys[j - 1] < key; --j) {
      to_keys[j] = to_keys[j - 1];
      to_places[j] = to_places[j - 1];
    }
    to_keys[j] = key;
    to_places[j] = place;
  }
}

constexpr int kSamples = 16;

void order(int32_t* keys, int32_t* places, int64_t size, int32_t* spare_keys, int32_t* spare_places) {
  if (size <= kMostInNetwork) {
    std::memcpy(spare_keys, keys, sizeof(int32_t) * static_cast<size_t>(size));
    std::memcpy(spare_places, places, sizeof(int32_t) * static_cast<size_t>(size));
    order_few(spare_keys, spare_places, size, keys, places);
    return;
  }
  // Into parts, by keys of a sample, from the greatest keys down; then each of them, by counting where it is large.
  const int64_t wanted = size / 128, parts = wanted < 2 ? 1 : wanted < kSamples ? wanted : kSamples;
  int32_t sorted[kSamples];
  if (parts > 1) {
    int32_t sample[kSamples], rank[kSamples];
    for (int i = 0; i < kSamples; ++i) sample[i] = keys[i * size / kSamples];
    for (int i = 0; i < kSamples; i += kLanes) store(rank + i, ranks(sample, kSamples, i));
    for (int i = 0; i < kSamples; ++i) sorted[rank[i]] = sample[i];
  }
  store(keys + size, splat(-1));
  int64_t begins[kSamples + 1] = {};
  int32_t high = kMostKey;
  for (int64_t part = 0; part < parts; ++part) {
    const int32_t low = part + 1 < parts ? sorted[(part + 1) * kSamples / parts] : -1;
    const int64_t begin = begins[part];
    begins[part + 1] = begin + move_between(keys, places, size, low, high, spare_keys + begin, spare_places + begin);
    high = low;
  }
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = begins[part], part_size = begins[part + 1] - begin;
    if (part_size <= kMostInNetwork) {
      order_few(spare_keys + begin, spare_places + begin, part_size, keys + begin, places + begin);
      continue;
    }
    for (int64_t i = 0; i < part_size; i += kLanes) {
      alignas(kBytes) int32_t rank[kLanes];
      store(rank, ranks(spare_keys + begin, part_size, i));
      const int64_t end = i + kLanes < part_size ? i + kLanes : part_size;
      for (int64_t j = i; j < end; ++j) {
        keys[begin + rank[j - i]] = spare_keys[begin + j];
        places[begin + rank[j - i]] = spare_places[begin + j];
      }
    }
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
    order,
    {{product<FloatRows, float>(), product<FloatRows, BFloat16>()},
     {product<BFloat16Rows, float>(), product<BFloat16Pairs, BFloat16>()}},
};

}  // namespace

template <>
const BeamKernels& kernels<BeamKernels, kSet>() {
  return kBeamKernels;
}

}  // namespace xmplug
