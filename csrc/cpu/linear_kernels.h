// The inner loops of linear training, which simd_linear.h compiles for each instruction set, as the driver sees them.
#pragma once

#include <cstdint>

namespace xmplug {

// Siblings that are solved together, one in each lane: every entry of a row then takes one aligned load of the weights
// of all of them, where one sibling alone would take as long for a sixteenth of it.
constexpr int kSiblings = 16;

// Up to kSiblings independent problems on the same rows (CSR with `places` in [0, num_places), values not all 0 in a
// row):
//   min over w of  |w|^2 / 2 + cost * sum over rows of loss(y (w . x))
// where loss(m) = max(0, 1 - m)^2, or log(1 + exp(-m)) where `logistic`.
struct Panel {
  const int64_t* begin;  // (num_rows + 1)
  const int32_t* places;
  const float* values;
  int64_t num_rows, num_places;
  const uint16_t* positive;  // (num_rows): bit l set where y = 1 in lane l, else y = -1
  int lanes;
  float cost, tolerance;
  int passes;  // over the rows, at most
  bool logistic;
  uint64_t seed;    // of the order of the rows in each pass
  float* weights;   // (num_places, kSiblings), aligned to 64 bytes: the result
  float* dual;      // (num_rows, kSiblings), aligned to 64 bytes: scratch
  float* diagonal;  // (num_rows): scratch
  int32_t* order;   // (num_rows): scratch
};

struct LinearKernels {
  void (*solve)(const Panel& panel);
};

}  // namespace xmplug
