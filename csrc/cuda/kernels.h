// CUDA kernels: addresses on the current device and sizes in, work on `stream`; no Python and no PyTorch. All arrays
// are dense and row-major, owned by the caller, and already checked as far as that can be done without waiting for the
// device. Nothing waits for the device, nothing allocates: outputs and workspaces are the caller's. Every function
// means what its reference in xmplug/ops means; errors of a launch are thrown as std::runtime_error.
#pragma once

#include <cstdint>

#include "device.h"

namespace xmplug::cuda {

enum class Type { kFloat32, kBFloat16, kFloat16 };

// The instructions that multiply matrices of 16-bit numbers: plain multiply-adds in float32, on any device; those of
// tensor cores, from compute capability 8.0 on; those of warpgroups, on 9.0 alone.
enum class Products { kFma, kMma, kWgmma };

// The arguments of multi-label attention. Queries have the type of the states, or float32. Below 2^31 labels.
struct AttentionInput {
  const void* states;         // (batch, tokens, size)
  const int32_t* token;       // (batch, tokens): where in its text the first, the second ... token is
  const int32_t* lengths;     // (batch): how many of them there are
  const void* queries;        // (labels, size)
  const int64_t* candidates;  // (batch, width), negative = padding; null = all labels, and width = labels
  int64_t batch, tokens, size, width, labels;
  Type states_type, queries_type;
  Products products;
};

// Of each text of `mask` (batch, tokens), where its tokens are, and how many: the `token` and `lengths` of attention.
void pack_tokens(const bool* mask, int64_t batch, int64_t tokens, int32_t* token, int32_t* lengths,
                 cudaStream_t stream);

// Multi-label attention: views (batch, width, size), in the type of the states, and the logarithms of the sums of
// exp(score) over the tokens (batch, width), infinite where there is nothing to see. Texts of more tokens than a block
// has room for are done in turns, for which it needs `partial` (batch, width, size).
bool label_attention_takes_turns(const AttentionInput& in);
void label_attention(const AttentionInput& in, void* views, float* log_sums, float* partial, cudaStream_t stream);

// How its backward pass goes through texts and candidates: so many at a time that its workspace has about `most_bytes`.
struct AttentionPlan {
  int64_t texts, candidates;  // at a time
  int64_t padded, tokens;     // rows and columns of their attention
  int64_t scores_bytes, bytes;
};
AttentionPlan plan_backward(const AttentionInput& in, int64_t most_bytes);

// The gradients for `grad` (batch, width, size) of the views, in the type of the states. grad_states (batch, tokens,
// size), in that type, is written where there are tokens; or, where it is not null, state_sums, of zeros, added to:
// needed where plan.candidates < width. grad_queries (num_rows, size), of zeros, is added to. With candidates, for each
// group of plan.texts texts, sorted_rows has the rows of the gradient that their candidates belong to, in ascending
// order (num_rows for padding), and `order` where in the group, text by text, each came from.
void label_attention_backward(const AttentionInput& in, const AttentionPlan& plan, const void* grad,
                              const float* log_sums, const int64_t* sorted_rows, const int64_t* order, int64_t num_rows,
                              char* workspace, void* grad_states, float* state_sums, float* grad_queries,
                              cudaStream_t stream);

// One step of lazy Adam on the rows `rows` (ascending, each once, count of them) of weight, exp_avg and exp_avg_sq
// (num_rows, width); see xmplug::sparse_adam_step in csrc/cpu/kernels.h. A row out of range stops with a CUDA error.
template <class Weight>
void sparse_adam_step(Weight* weight, int64_t num_rows, int64_t width, const int64_t* rows, int64_t count,
                      const float* grad, float* exp_avg, float* exp_avg_sq, float step_size, float keep_avg,
                      float keep_sq, float eps, cudaStream_t stream);

// See xmplug::beam_step in csrc/cpu/kernels.h. Equal scores of a node that is in a row more than once: the first column
// of them. `width` must be below 2^31. The workspace is as large as the first function says, and null where that is 0.
template <class Real>
int64_t beam_step_workspace(int64_t rows, int64_t width);
template <class Real>
void beam_step(const Real* logits, const int64_t* nodes, const Real* parents, int64_t rows, int64_t width, int64_t k,
               Real* scores, int64_t* best, int64_t* columns, void* workspace, cudaStream_t stream);

// See xmplug::TreeSearch in csrc/cpu/kernels.h; weights are float32, bfloat16 or float16. Of a tree, the host knows
// where its levels begin, and the largest number of children of a node on each level but the last; nodes below
// 2^31. A node that has more children than that, or children out of range, stops with a CUDA error.
struct TreeLevels {
  const int64_t* offsets;  // (num_levels + 1)
  const int64_t* most_children;
  int64_t num_levels;
};
template <class Weight>
struct TreeSearch {
  const float* hidden;
  const Weight* weights;
  int64_t texts, width;
  const int64_t* first_child;
  const int64_t* labels;
  TreeLevels levels;
  int64_t beam, k;
  float* scores;         // (texts, k)
  int64_t* leaves;       // (texts, k): nodes
  int64_t* best_labels;  // (texts, k)
};
int64_t tree_beam_search_workspace(int64_t texts, const TreeLevels& levels, int64_t beam);
template <class Weight>
void tree_beam_search(const TreeSearch<Weight>& search, void* workspace, cudaStream_t stream);

// See xmplug::ranking_sums in csrc/cpu/kernels.h. `tables`: the cutoffs (num_cutoffs, ascending), the discounts of
// ranks 0 to depth - 1, depth being the last cutoff, and one over the sum of the first 0 to depth of them. Into sums
// (num_cutoffs * 8 + 2), with behind them the number of documents with true labels, and of faults in indptr and
// indices: where there are any, the sums mean nothing. `partial` (blocks, num_cutoffs * 8 + 2) is a workspace; the sums
// are made in an order that depends on `blocks` alone, of which there are from 1 to 65536.
template <class Top, class Label>
void ranking_sums(const Top* top, int64_t rows, int64_t width, const int64_t* indptr, const Label* indices,
                  int64_t num_indices, int64_t num_labels, const double* inverse_propensity, const double* tables,
                  int64_t num_cutoffs, int64_t depth, double* partial, int64_t blocks, double* sums,
                  cudaStream_t stream);

// One chunk of a full output layer; see xmplug::linear_bce_chunk in csrc/cpu/kernels.h. The logits begin on a border of
// 16 bytes and stride is a multiple of 8. indptr and indices that are not a CSR matrix (rows, num_labels) with
// num_indices numbers stop with a CUDA error.
template <class T>
void linear_bce_chunk(T* logits, int64_t stride, int64_t rows, int64_t width, const float* bias, const int64_t* indptr,
                      const int64_t* indices, int64_t first, double* sums, int64_t num_sums, int64_t num_labels,
                      int64_t num_indices, cudaStream_t stream);

// weight += change, rounded up or down at random; see xmplug::add_rounded in csrc/cpu/kernels.h. weight and change
// begin on the border of a pair.
template <class Change>
void add_rounded(BFloat16* weight, const Change* change, int64_t size, int64_t position, uint64_t seed, uint64_t step,
                 cudaStream_t stream);

}  // namespace xmplug::cuda
