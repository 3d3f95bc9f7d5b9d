// Sparse linear scores of a tree level: training and scoring. Nodes lie in groups of siblings, and the weights of a
// group lie together, feature by feature, because siblings are scored together ("masked sparse chunk multiplication",
// Etter et al., Accelerating inference for sparse extreme multi-label ranking trees, WWW 2022).
#pragma once

#include <cstdint>
#include <vector>

#include "instruction_sets.h"

namespace xmplug {

struct SparseRows {  // CSR, features ascending in a row
  const int64_t* indptr;
  const int32_t* indices;
  const float* values;
};

struct LinearProblem {
  SparseRows features;  // of all texts
  int64_t num_texts, num_features;
  float bias;             // the value of one more feature that every text has; 0: none
  const int64_t* groups;  // (num_groups + 1): nodes of group g are groups[g] to groups[g + 1]
  int64_t num_groups;
  const int64_t*
      text_indptr;  // (num_groups + 1), from 0: the texts of group g, ascending, on which its nodes are trained
  const int32_t* texts;
  const int64_t* true_indptr;  // (nodes + 1), from 0, the first node being groups[0]: a node's true texts, ascending
  const int32_t* true_texts;
  float cost, tolerance, prune;  // weights nearer to 0 than `prune` are dropped
  int passes;
  bool logistic;
  uint64_t seed;
};

// Weights of some groups. Features of group g, ascending, are features[group_indptr[g] .. group_indptr[g + 1]); feature
// f among all of these has entries feature_indptr[f] .. feature_indptr[f + 1]: columns (place of the node in its
// group), ascending, and weights.
struct LinearWeights {
  std::vector<int64_t> group_indptr{0};
  std::vector<int32_t> features;
  std::vector<int64_t> feature_indptr{0};
  std::vector<int32_t> columns;
  std::vector<float> weights;
  std::vector<float> biases;  // of each node
};

LinearWeights train_linear(const LinearProblem& problem, InstructionSet set, int threads);

struct LinearScores {
  SparseRows features;
  int64_t num_texts, num_features;
  const int64_t* groups;
  int64_t num_groups;
  const int64_t* group_indptr;
  const int32_t* group_features;
  const int64_t* feature_indptr;
  const int32_t* columns;
  const float* weights;
  int64_t num_entries;
  const float* biases;
  const int64_t* nodes;  // (num_texts, width), negative = none
  int64_t width;
  float* scores;  // (num_texts, width): w . x + bias of each node, 0 where there is none
};

// 0; or 1 where a node is not in [0, groups[num_groups]), 2 where a text's feature is not in [0, num_features), 3 where
// the weights that were looked at lie outside of what there is: they may come from a damaged file. `groups` and
// `group_indptr` must be right.
int linear_scores(const LinearScores& in, int threads);

}  // namespace xmplug
