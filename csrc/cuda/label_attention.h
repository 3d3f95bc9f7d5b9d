// What the parts of multi-label attention share.
#pragma once

#include "kernels.h"
#include "tile.h"

namespace xmplug::cuda {

// Rows of a text's matrices, as loads of tiles take them: null where there is nothing.
template <class State>
struct TokenRows {  // the states of token `first` and those after it
  const State* states;
  const int32_t* token;
  int64_t size;
  int count;
  __device__ const State* operator()(int i) const { return i < count ? states + token[i] * size : nullptr; }
};
template <class T>
struct LabelRows {  // rows of a table that `row` says, -1 = none
  const T* table;
  const int32_t* row;
  int64_t size;
  __device__ const T* operator()(int i) const { return row[i] < 0 ? nullptr : table + row[i] * size; }
};
template <class T>
struct Rows {  // rows that lie one after another
  const T* first;
  int64_t size;
  int count;
  __device__ const T* operator()(int i) const { return i < count ? first + i * size : nullptr; }
};

template <class State>
__device__ TokenRows<State> token_rows(const AttentionInput& in, int64_t text, int length, int first) {
  return {static_cast<const State*>(in.states) + text * in.tokens * in.size, in.token + text * in.tokens + first,
          in.size, length - first};
}

// exp(x), for x of at most 0. What becomes a number of 16 bits needs no more than the device's own instruction gives.
template <class Engine>
__device__ float exp_for(float x) {
  return sizeof(typename Engine::Element) == 2 ? __expf(x) : expf(x);
}

// The label of a text's candidate, or -1 for padding.
__device__ inline int64_t label_of(const AttentionInput& in, int64_t text, int64_t candidate) {
  if (in.candidates == nullptr) return candidate < in.width ? candidate : -1;
  if (candidate >= in.width) return -1;
  const int64_t label = in.candidates[text * in.width + candidate];
  check_index(label < in.labels);
  return label < 0 ? -1 : label;
}

// Whether rows of `size` elements that begin at `array` can be read in pieces of 16 bytes.
template <class T>
__host__ __device__ bool in_pieces(const T* array, int64_t size) {
  return reinterpret_cast<uintptr_t>(array) % 16 == 0 && size % 8 == 0;
}

// Calls f(Engine{}, State{}, Query{}) for the types of the input.
template <class F>
void dispatch(const AttentionInput& in, const F& f) {
  const auto queries = [&](auto engine, auto state) {
    if (in.queries_type == Type::kFloat32) {
      f(engine, state, float{});
    } else {
      f(engine, state, state);
    }
  };
  if (in.states_type == Type::kFloat32) {
    f(Fma{}, float{}, float{});
  } else {
    const auto states = [&](auto state) {
      using State = decltype(state);
      switch (in.products) {
        case Products::kFma:
          return queries(Fma{}, state);
        case Products::kMma:
          return queries(Mma<State>{}, state);
        case Products::kWgmma:
          return queries(Wgmma<State>{}, state);
      }
    };
    in.states_type == Type::kBFloat16 ? states(BFloat16{}) : states(Half{});
  }
}

}  // namespace xmplug::cuda
