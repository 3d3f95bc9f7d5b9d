// The inner loops of beam search, which simd_beam.h compiles for each instruction set, as the drivers see them.
//
// A key stands for a score: the bits of the float32, which for scores (never below 0) order as the scores do, or -1
// where there is no node. Arrays of keys and of places that a kernel writes need kSlack places more than it is asked
// for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace xmplug {

constexpr int64_t kSlack = 16;

// What one text wants of a node: its hidden vector, as Product::prepare left it, and where the children's logits go.
struct Visit {
  int64_t node;
  const char* hidden;
  float* logits;
};

// Dot products of hidden vectors and rows of weights, for one pair of types.
struct Product {
  // Bytes of a prepared hidden vector.
  int64_t (*prepared_bytes)(int64_t width);
  void (*prepare)(const char* hidden, int64_t width, char* prepared);
  // visit.logits[offset + r] = hidden . rows[r] for each visit. A product is the same whatever else is asked for.
  // `next` is where rows for a later call are, as many: they are fetched meanwhile.
  void (*logits)(const char* rows, int64_t num_rows, int64_t width, const Visit* visits, int64_t num_visits,
                 int64_t offset, const char* next);
};

// The score that a key other than -1 stands for.
inline float score_of(int32_t key) {
  float score;
  std::memcpy(&score, &key, sizeof score);
  return score;
}

struct BeamKernels {
  // Keys of sigmoid(logit) * parent, or of 0 where that is not above 0; -1 where a node is negative. `nodes` may be
  // null.
  void (*score)(const float* logits, const float* parents, const int64_t* nodes, int64_t width, int32_t* keys);
  // The places, ascending, of the keys from some bound up, and these keys: at least `least` of them, and no more than
  // `most` where the keys are apart; all but the -1 where there are no more. Returns their number. Takes keys as
  // `score` left them.
  int64_t (*select)(const int32_t* keys, int64_t width, int64_t least, int64_t most, int32_t* places, int32_t* chosen);
  // Sorts keys other than -1, greatest first, equal ones as they stood, and their places with them. Takes time in the
  // square of their number where many are equal.
  void (*order)(int32_t* keys, int32_t* places, int64_t size, int32_t* spare_keys, int32_t* spare_places);
  Product products[2][2];  // [weights are bfloat16][hidden vectors are bfloat16], float32 otherwise
};

constexpr int64_t kMostToCount = 2048;  // from about here on a sort that compares is faster where keys are equal

// What is chosen of a row: keys and their places, with room for kSlack more of each.
struct Chosen {
  int32_t *keys, *places, *spare_keys, *spare_places;
  int64_t size;
};

// Sorts what is chosen by key, greatest first, equal ones by place. Places must ascend.
inline void order_chosen(const BeamKernels& kernels, const Chosen& chosen) {
  if (chosen.size <= kMostToCount) {
    kernels.order(chosen.keys, chosen.places, chosen.size, chosen.spare_keys, chosen.spare_places);
    return;
  }
  int32_t *order = chosen.spare_places, *keys = chosen.keys;
  for (int64_t i = 0; i < chosen.size; ++i) order[i] = static_cast<int32_t>(i);
  std::sort(order, order + chosen.size,
            [&](int32_t a, int32_t b) { return keys[a] != keys[b] ? keys[a] > keys[b] : a < b; });
  for (int64_t i = 0; i < chosen.size; ++i) {
    chosen.spare_keys[i] = keys[order[i]];
    order[i] = chosen.places[order[i]];
  }
  std::copy_n(chosen.spare_keys, chosen.size, keys);
  std::copy_n(order, chosen.size, chosen.places);
}

}  // namespace xmplug
