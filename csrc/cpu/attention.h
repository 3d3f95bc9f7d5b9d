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

// A candidate in backward. The gradient of a query is a sum over texts, and its row in the gradient of the queries
// comes in parts: the first is written, the others are added, and the last is where the result is rounded to its type.
struct Candidate {
  int64_t column;  // in `candidates`
  int64_t label;
  int64_t row;  // in the gradient
  int64_t sum;  // in the sums, where there is more than this part
  bool first, last;
};

// Where backward writes. The gradient of a text's states is a sum over labels, and comes in parts likewise.
struct AttentionGradients {
  void* states;       // (tokens, size) of the text, in the type of the states
  float* state_sums;  // (tokens, size); the same memory where they are float32
  bool first, last;
  void* queries;      // (rows, size), in the type of the queries
  float* query_sums;  // (sums, size); the same memory where they are float32
};

struct AttentionKernels {
  int64_t tile;  // candidates that are worked on at a time
  // Bytes of memory that one worker needs, 64-byte aligned, the first 64 of them zeros at first. It keeps the last
  // text, so that the next call for the same text is cheaper.
  int64_t (*workspace)(const AttentionInput&, bool backward);
  // out (batch, width, size), in the type of the states: fills candidates [begin, end) of `text`.
  void (*forward)(const AttentionInput&, int64_t text, int64_t begin, int64_t end, void* out, void* workspace);
  // grad (batch, width, size), in the type of the states: writes the parts of `count` candidates of `text`. It has
  // tokens, and `ahead` more candidates that come next lie behind.
  void (*backward)(const AttentionInput&, int64_t text, const Candidate* candidates, int64_t count, int64_t ahead,
                   const void* grad, const AttentionGradients&, void* workspace);
};

}  // namespace xmplug
