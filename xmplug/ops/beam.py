"""Beam search in label trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xmplug.errors import KernelError
from xmplug.ops import native, reference
from xmplug.ops.operators import operator
from xmplug.ops.tree import LabelTree

NATIVE_SEARCH = (torch.float32, torch.bfloat16)
GPU_SEARCH = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "half"}
NATIVE_PLACES = 2**31  # of the candidates of a text there must be fewer


def beam_step(logits: Tensor, nodes: Tensor, parent_scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each text's candidate nodes: (scores (B,k), nodes (B,k)), best first.

    logits (B,C) float; nodes (B,C) int64, negative = padding; parent_scores (B,C) float, the probability of
    each candidate's parent. A node's score is sigmoid(logit) * parent score: the probability that all nodes
    from the root to it are relevant (AttentionXML, equation 1). Equal scores are ordered by smaller node. A
    node that is in a row twice is taken once, with its best score. A NaN logit or parent score counts as
    probability 0, so that scores are never NaN. Places without a node get score 0 and node -1.

    Scores have the type that sigmoid(logits) * parent_scores has, and are computed in it, or in float32 if it
    is narrower. Gradients reach logits and parent scores. Raises KernelError for shapes and
    devices that do not fit together.
    """
    if not (logits.ndim == 2 and logits.shape == nodes.shape == parent_scores.shape):
        raise KernelError(
            f"beam_step needs logits, nodes and parent_scores of one shape (B,C); got {tuple(logits.shape)}, "
            f"{tuple(nodes.shape)} and {tuple(parent_scores.shape)}"
        )
    if k < 1 or nodes.dtype != torch.int64:
        raise KernelError(f"beam_step needs k of at least 1 and int64 nodes; got {k} and {nodes.dtype}")
    if not logits.device == nodes.device == parent_scores.device:
        raise KernelError(
            f"beam_step needs logits, nodes and parent_scores on one device; got {logits.device}, {nodes.device} and "
            f"{parent_scores.device}"
        )
    dtype = torch.promote_types(logits.dtype, parent_scores.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    scores, best, _ = _beam_step(logits.to(wide), nodes, parent_scores.to(wide), k)
    return scores.to(dtype), best


@operator("beam_step(Tensor logits, Tensor nodes, Tensor parent_scores, int k) -> (Tensor, Tensor, Tensor)")
def _beam_step(logits: Tensor, nodes: Tensor, parent_scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    module = native.cpu() if logits.device.type == "cpu" else None
    gpu = native.gpu(logits)
    if (module is None and gpu is None) or logits.shape[1] >= NATIVE_PLACES:
        return reference.beam_step(logits, nodes, parent_scores, k)
    logits, nodes, parent_scores = logits.contiguous(), nodes.contiguous(), parent_scores.contiguous()
    scores, best, columns = _empty_beam(logits, nodes, k)
    real = "float" if logits.dtype == torch.float32 else "double"
    inputs = (logits.data_ptr(), nodes.data_ptr(), parent_scores.data_ptr(), *logits.shape, k)
    outputs = (scores.data_ptr(), best.data_ptr(), columns.data_ptr())
    if gpu is not None:
        size = getattr(gpu.module, f"beam_step_workspace_{real}")(*logits.shape)
        workspace = logits.new_empty(size, dtype=torch.uint8)
        gpu(f"beam_step_{real}", *inputs, *outputs, workspace.data_ptr())
    else:
        step = getattr(module, f"beam_step_{real}")
        step(*inputs, *outputs, native.instruction_set(), native.threads())
    return scores, best, columns


def _empty_beam(logits: Tensor, nodes: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (logits.shape[0], k)
    return logits.new_empty(shape), nodes.new_empty(shape), nodes.new_empty(shape)


@_beam_step.register_fake
def _(logits: Tensor, nodes: Tensor, parent_scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_beam(logits, nodes, k)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[2], output[2])


def _backward(ctx: Any, grad_scores: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    logits, parent_scores, columns = ctx.saved_tensors
    chosen = columns.clamp(min=0)  # (B,k)
    grad = grad_scores.masked_fill(columns < 0, 0.0)
    probability = torch.sigmoid(logits.gather(1, chosen)).nan_to_num(0.0)
    parent = parent_scores.gather(1, chosen).nan_to_num(0.0)
    zeros = torch.zeros_like(logits)
    grad_logits = zeros.scatter_add(1, chosen, grad * parent * probability * (1 - probability))
    grad_parents = zeros.scatter_add(1, chosen, grad * probability)
    return grad_logits, None, grad_parents, None


_beam_step.register_autograd(_backward, setup_context=_setup_context)


def tree_beam_search(hidden: Tensor, weights: Tensor, tree: LabelTree, beam: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best labels of each text by beam search from the root: (scores (B,k), labels (B,k)), best first.

    hidden (B,D) float; weights (tree.num_nodes, D) float, of any two types: the logit of a node is hidden .
    weights[node]. The root is certain (its weights are not used); the score of a node is the product of the
    probabilities on its path. Of every level, the `beam` best nodes are kept and their children scored.
    Order, ties (by leaf) and missing places are those of `beam_step`: missing labels are -1 with score 0.
    Sums and scores are float32, or float64 where hidden or weights are. Gradients reach hidden and weights.
    Raises KernelError for shapes that do not fit together.
    """
    # Inner nodes and leaves, counted by shapes alone, which is what torch.compile can see.
    num_nodes = len(tree.first_child) - 1 + len(tree.labels)
    if hidden.ndim != 2 or weights.shape != (num_nodes, hidden.shape[1]):
        raise KernelError(
            f"tree_beam_search needs hidden (B,D) and weights ({num_nodes},D); "
            f"got {tuple(hidden.shape)} and {tuple(weights.shape)}"
        )
    if beam < 1 or k < 1:
        raise KernelError(f"tree_beam_search needs beam and k of at least 1; got {beam} and {k}")
    first_child, labels = _arrays_on(tree, hidden.device)
    level_offsets = torch.from_numpy(tree.level_offsets)
    scores, _, best = _tree_beam_search(
        hidden, weights, first_child, level_offsets, labels, beam, k, list(tree.most_children)
    )
    return scores, best


def _arrays_on(tree: LabelTree, device: torch.device) -> tuple[Tensor, Tensor]:
    """first_child and labels; on a GPU they are kept, since to move them is to wait for it."""
    if device.type == "cpu":
        return torch.from_numpy(tree.first_child), torch.from_numpy(tree.labels)
    if str(device) not in tree.kept:
        with torch.inference_mode(False):  # so that a backward pass can use them too
            arrays = (torch.from_numpy(tree.first_child), torch.from_numpy(tree.labels))
            tree.kept[str(device)] = tuple(array.to(device) for array in arrays)
    return tree.kept[str(device)]


@operator(
    "tree_beam_search(Tensor hidden, Tensor weights, Tensor first_child, Tensor level_offsets, Tensor "
    "labels, int beam, int k, int[] most_children=[]) -> (Tensor, Tensor, Tensor)"
)
def _tree_beam_search(
    hidden: Tensor,
    weights: Tensor,
    first_child: Tensor,
    level_offsets: Tensor,
    labels: Tensor,
    beam: int,
    k: int,
    most_children: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """level_offsets is on the CPU. Without most_children, a GPU runs the reference."""
    gpu = native.gpu(hidden) if most_children and hidden.device == weights.device else None
    if gpu is not None and {hidden.dtype, weights.dtype} <= GPU_SEARCH.keys() and len(weights) < NATIVE_PLACES:
        return _search_on_gpu(gpu, hidden, weights, first_child, level_offsets, labels, beam, k, most_children)
    module = native.cpu()
    on_cpu = hidden.device.type == weights.device.type == "cpu"
    known = hidden.dtype in NATIVE_SEARCH and weights.dtype in NATIVE_SEARCH and len(weights) < NATIVE_PLACES
    if module is None or not (on_cpu and known):
        return reference.tree_beam_search(hidden, weights, first_child, level_offsets, labels, beam, k, _beam_step)
    hidden, weights = hidden.contiguous(), weights.contiguous()
    scores, leaves, best = _empty_answer(hidden, weights, labels, k)
    module.tree_beam_search(
        hidden.data_ptr(),
        weights.data_ptr(),
        hidden.dtype == torch.bfloat16,
        weights.dtype == torch.bfloat16,
        *hidden.shape,
        first_child.data_ptr(),
        level_offsets.data_ptr(),
        labels.data_ptr(),
        len(level_offsets) - 1,
        beam,
        k,
        scores.data_ptr(),
        leaves.data_ptr(),
        best.data_ptr(),
        native.instruction_set(),
        native.threads(),
    )
    return scores, leaves, best


def _search_on_gpu(
    gpu: native.Gpu,
    hidden: Tensor,
    weights: Tensor,
    first_child: Tensor,
    level_offsets: Tensor,
    labels: Tensor,
    beam: int,
    k: int,
    most_children: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weights = hidden.float().contiguous(), weights.contiguous()
    scores, leaves, best = _empty_answer(hidden, weights, labels, k)
    levels = (level_offsets.tolist(), list(most_children))
    size = gpu.module.tree_beam_search_workspace(len(hidden), *levels, beam)
    workspace = hidden.new_empty(size, dtype=torch.uint8)
    gpu(
        f"tree_beam_search_{GPU_SEARCH[weights.dtype]}",
        hidden.data_ptr(),
        weights.data_ptr(),
        *hidden.shape,
        first_child.data_ptr(),
        labels.data_ptr(),
        *levels,
        beam,
        k,
        scores.data_ptr(),
        leaves.data_ptr(),
        best.data_ptr(),
        workspace.data_ptr(),
    )
    return scores, leaves, best


def _wide(hidden: Tensor, weights: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(hidden.dtype, weights.dtype), torch.float32)


def _empty_answer(hidden: Tensor, weights: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (hidden.shape[0], k)
    return hidden.new_empty(shape, dtype=_wide(hidden, weights)), labels.new_empty(shape), labels.new_empty(shape)


@_tree_beam_search.register_fake
def _(
    hidden: Tensor,
    weights: Tensor,
    first_child: Tensor,
    level_offsets: Tensor,
    labels: Tensor,
    beam: int,
    k: int,
    most_children: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_answer(hidden, weights, labels, k)


def _save_search(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weights, first_child, level_offsets, *_ = inputs
    scores, leaves, _best = output
    ctx.save_for_backward(hidden, weights, first_child, scores, leaves)
    ctx.depth = len(level_offsets) - 2


def _search_backward(ctx: Any, grad_scores: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    # A score is the product of the probabilities on the path from the root; it is walked upwards from the
    # leaf.
    hidden, weights, first_child, scores, nodes = ctx.saved_tensors
    wide = hidden.to(scores.dtype)
    grad_hidden, grad_weights = torch.zeros_like(wide), torch.zeros_like(weights)
    grad = torch.where(nodes < 0, 0.0, grad_scores * scores)  # (B,k)
    nodes = nodes.clamp(min=1)
    for _level in range(ctx.depth):
        rows = weights[nodes].to(scores.dtype)  # (B,k,D)
        logits = torch.einsum("bd,bkd->bk", wide, rows)
        grad_logits = grad * torch.sigmoid(-logits)  # d log sigmoid(x) = sigmoid(-x) dx
        grad_hidden += torch.einsum("bk,bkd->bd", grad_logits, rows)
        grad_rows = grad_logits[..., None] * wide[:, None]
        grad_weights.index_add_(0, nodes.flatten(), grad_rows.flatten(0, 1).to(weights.dtype))
        nodes = torch.searchsorted(first_child, nodes, right=True) - 1
    return grad_hidden.to(hidden.dtype), grad_weights, None, None, None, None, None, None


_tree_beam_search.register_autograd(_search_backward, setup_context=_save_search)
