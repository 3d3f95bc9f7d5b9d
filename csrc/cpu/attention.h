// What the drivers in label_attention.cpp and the kernels in simd_attention.h tell one another.
#pragma once

#include <cstdint>

namespace xmplug {

struct AttentionInput {
  const void* states;         // (batch, tokens, size)
  const bool* mask;           // (batch, tokens), true = token
  const void* queries;        // (labels, size)
  const int64_t* candidates;  // (batch, width), negative = padding; null: candidate c is label c
  int64_t batch, tokens, size, width;
  bool bfloat16_states, bfloat16_queries;  // else float32
};

// A candidate in backward: its column in `candidates`, its label, and where in the gradient its query has its row.
struct Candidate {
  int64_t column, label, row;
};

struct AttentionKernels {
  int64_t tile;  // candidates that are worked on at a time
  // Bytes of memory that one worker needs, 64-byte aligned and at first filled with zeros. It keeps the last text, so
  // that the next call for the same text is cheaper.
  int64_t (*workspace)(const AttentionInput&, bool backward);
  // out (batch, width, size), in the type of the states: fills candidates [begin, end) of `text`.
  void (*forward)(const AttentionInput&, int64_t text, int64_t begin, int64_t end, void* out, void* workspace);
  // grad (batch, width, size), in the type of the states: adds what `count` candidates of `text` give to grad_states
  // (batch, tokens, size) and to the rows of grad_queries (rows, size).
  void (*backward)(const AttentionInput&, int64_t text, const Candidate* candidates, int64_t count, const void* grad,
                   float* grad_states, float* grad_queries, void* workspace);
};

}  // namespace xmplug
