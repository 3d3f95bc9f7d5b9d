// CPU kernels: pointers and sizes in, no Python and no PyTorch. All arrays are dense and row-major, owned by the
// caller, and already checked. Results do not depend on `threads`.
#pragma once

#include <cstdint>

#include "attention.h"
#include "bfloat16.h"
#include "instruction_sets.h"

namespace xmplug {

// Multi-label attention: out (batch, width, size), in the type of the states, in the instruction set `set`.
void label_attention(const AttentionInput& in, void* out, int set, int threads);

// Its gradients, for grad (batch, width, size) of the output, in the type of the states: grad_states (batch, tokens,
// size), and grad_queries (num_rows, size), which has a row for each of the labels `rows` (ascending), or, where that
// is null, for all.
void label_attention_backward(const AttentionInput& in, const void* grad, const int64_t* rows, int64_t num_rows,
                              void* grad_states, void* grad_queries, int set, int threads);

// The k best of each row's nodes by score = sigmoid(logit) * parent, best first, ties by smaller node. A negative node
// is padding; a node that is there twice is taken once, with its best score. A score that is not above 0, NaN included,
// is 0. `columns` says where in the row each came from. Places without a node get score 0, node -1, column -1.
// For float32, `width` must be below 2^31.
void beam_step(const float* logits, const int64_t* nodes, const float* parents, int64_t rows, int64_t width, int64_t k,
               float* scores, int64_t* best, int64_t* columns, InstructionSet set, int threads);
void beam_step(const double* logits, const int64_t* nodes, const double* parents, int64_t rows, int64_t width,
               int64_t k, double* scores, int64_t* best, int64_t* columns, InstructionSet set, int threads);

// A beam search in a label tree (xmplug.ops.LabelTree): from the root down, of each level the `beam` best nodes by
// score = product of the sigmoids of hidden . weights[node] on the path are kept and their children scored; of the
// leaves the k best, in the order and with the missing places of beam_step. Hidden vectors (texts, width) and weights
// (nodes, width) are float32 or bfloat16, sums float32. A text's result does not depend on the other texts. There
// must be fewer than 2^31 nodes.
struct TreeSearch {
  const char* hidden;
  const char* weights;
  bool hidden_is_bfloat16, weights_are_bfloat16;
  int64_t texts, width;
  const int64_t* first_child;
  const int64_t* level_offsets;
  const int64_t* labels;
  int64_t num_levels, beam, k;
  float* scores;         // (texts, k)
  int64_t* leaves;       // (texts, k): nodes
  int64_t* best_labels;  // (texts, k)
};
void tree_beam_search(const TreeSearch& search, InstructionSet set, int threads);

// Sums over the documents that have true labels, for each of `num_cutoffs` cutoffs (ascending), into
// sums[cutoff][8] = {precision, nDCG, recall, R-precision, propensity-scored hits, their best, propensity-scored DCG,
// its best}; the last four stay 0 where inverse_propensity is null. Returns the number of those documents; -1 where
// indptr (rows + 1) does not ascend from 0 to num_indices, or a true label is not in [0, num_labels).
template <class Top, class Label>
int64_t ranking_sums(const Top* top, int64_t rows, int64_t width, const int64_t* indptr, const Label* indices,
                     int64_t num_indices, int64_t num_labels, const double* inverse_propensity, const int64_t* cutoffs,
                     int64_t num_cutoffs, double* sums, int threads);

// One over the norm of each row of a CSR matrix, 0 for a row of zeros; false where a value is not finite.
bool inverse_norms(const int64_t* indptr, const float* values, int64_t num_rows, double* scale, int threads);

// Balanced spherical 2-means on each segment order[begin[s], end[s]) of labels: afterwards its two clusters are
// order[begin[s], middle[s]) and order[middle[s], end[s]), each in ascending label order, as they must be on entry.
// Clusters start from the two labels at order[begin[s] + first[s]] and order[begin[s] + second[s]]. `scale` holds the
// inverse norms of the labels' features; unit vectors are rounded to 24 bits after the point. num_segments > 0.
void split_segments(const int64_t* indptr, const int32_t* indices, const float* values, const double* scale,
                    int64_t num_features, int64_t* order, const int64_t* begin, const int64_t* middle,
                    const int64_t* end, const int64_t* first, const int64_t* second, int64_t num_segments, int rounds,
                    int threads);

// One step of lazy Adam on the rows `rows` (ascending, each once) of weight, exp_avg and exp_avg_sq (num_rows, width):
//   exp_avg    += (grad - exp_avg) * keep_avg          keep_avg = 1 - beta1
//   exp_avg_sq += (grad * grad - exp_avg_sq) * keep_sq  keep_sq = 1 - beta2
//   weight     -= step_size * (exp_avg / (sqrt(exp_avg_sq) + eps))
// all in float32, the weight rounded where it is narrower. Row i of grad belongs to rows[i]. Touches nothing and
// returns false where the rows are not as they must be.
template <class Weight>
bool sparse_adam_step(Weight* weight, int64_t num_rows, int64_t width, const int64_t* rows, int64_t count,
                      const float* grad, float* exp_avg, float* exp_avg_sq, float step_size, float keep_avg,
                      float keep_sq, float eps, int threads);

// One chunk of a full output layer: z = logits[row][i] + bias[i] of `rows` texts and the `width` labels from `first`
// on, rows `stride` apart, a multiple of 16 that is not below width (what lies between is overwritten). In the place of
// z comes sigmoid(z) - y, where y is 1 for the labels of the text in the CSR matrix indptr, indices (in any order),
// else 0. The loss softplus(z) - y z is added to `sums` (rows, num_sums), with one sum for each 2048 labels. bias may
// be null.
template <class T>
void linear_bce_chunk(T* logits, int64_t stride, int64_t rows, int64_t width, const float* bias, const int64_t* indptr,
                      const int64_t* indices, int64_t first, double* sums, int64_t num_sums, InstructionSet set,
                      int threads);

// weight += change, rounded up or down at random, on average to the sum in float32. The weights lie from `position` on,
// a multiple of 256, in a table; the bits are those of Philox for the seed, the step and the place in the table:
// xmplug.ops.reference.random_bits.
template <class Change>
void add_rounded(BFloat16* weight, const Change* change, int64_t size, int64_t position, uint64_t seed, uint64_t step,
                 InstructionSet set, int threads);

}  // namespace xmplug
