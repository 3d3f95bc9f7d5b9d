"""What every operation means, in plain PyTorch and numpy.

These are the specification of the native kernels and run wherever those are not loaded. The public functions
of `xmplug.ops` document the arguments and check them; here they are as the kernels get them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional


def label_attention(states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None) -> Tensor:
    """The weighted sums (B,C,D) of states (B,T,D), one for each candidate (B,C) or for each of the queries
    (L,D)."""
    states, rows, there = _attention_operands(states, mask, queries, candidates)
    views = torch.bmm(_attention(states, mask, rows), states)  # (B,C,D)
    return views if there is None else views.masked_fill(~there[..., None], 0.0)


def label_attention_backward(
    grad: Tensor,
    states: Tensor,
    mask: Tensor,
    queries: Tensor,
    candidates: Tensor | None,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of states (B,T,D) and of the queries (L,D), or of their `rows` (R,), for grad (B,C,D) of the
    views."""
    states, chosen, there = _attention_operands(states, mask, queries, candidates)
    if there is not None:
        grad = grad.masked_fill(~there[..., None], 0.0)
    attention = _attention(states, mask, chosen)  # (B,C,T)
    change = torch.bmm(grad, states.transpose(1, 2))  # (B,C,T)
    change = attention * (change - (attention * change).sum(dim=-1, keepdim=True))
    grad_states = torch.bmm(attention.transpose(1, 2), grad) + change.transpose(1, 2) @ chosen
    grad_states = grad_states.masked_fill(~mask[..., None], 0.0)
    if candidates is None:
        return grad_states, torch.einsum("bct,btd->cd", change, states).to(queries.dtype)
    place = candidates.clamp(min=0) if rows is None else torch.searchsorted(rows, candidates.clamp(min=0))
    grad_queries = queries.new_zeros(len(queries) if rows is None else len(rows), queries.shape[1])
    if there is not None and len(grad_queries):
        added = torch.bmm(change, states).masked_fill(~there[..., None], 0.0).to(queries.dtype)  # (B,C,D)
        grad_queries.index_add_(0, place.clamp(max=len(grad_queries) - 1).flatten(), added.flatten(0, 1))
    return grad_states, grad_queries


def _attention_operands(
    states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """States with zeros where there is no token, the queries (L,D) or (B,C,D) to look with, which of them are
    there (B,C)."""
    states = states.masked_fill(~mask[..., None], 0.0)
    if candidates is None:
        return states, queries.to(states.dtype), None
    return states, queries[candidates.clamp(min=0)].to(states.dtype), candidates >= 0


def _attention(states: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """softmax (B,C,T) over the tokens of states . rows; where there are none, any finite weights."""
    logits = states @ rows.transpose(-1, -2)  # (B,T,C): for rows (L,D), one matrix product for all texts
    outside = mask.any(dim=1, keepdim=True) & ~mask  # (B,T)
    return logits.transpose(1, 2).masked_fill(outside[:, None], float("-inf")).softmax(dim=-1)


def beam_step(logits: Tensor, nodes: Tensor, parent_scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best scores (B,k), their nodes (B,k) and the columns (B,k) of `logits` (B,C) that they came
    from."""
    scores = torch.sigmoid(logits) * parent_scores  # (B,C)
    scores = torch.where(scores > 0, scores, 0.0)  # NaN too becomes 0
    scores = torch.where(nodes < 0, -1.0, scores)  # padding ranks behind every node

    # By node, the best first, so that all but the first of each node are repeats; then by score. Both sorts
    # are stable.
    columns = scores.argsort(dim=1, descending=True, stable=True)  # (B,C)
    columns = columns.gather(1, nodes.gather(1, columns).argsort(dim=1, stable=True))
    ordered_nodes = nodes.gather(1, columns)
    repeats = torch.zeros_like(ordered_nodes, dtype=torch.bool)
    repeats[:, 1:] = ordered_nodes[:, 1:] == ordered_nodes[:, :-1]
    ordered_scores = scores.gather(1, columns).masked_fill(repeats, -1.0)
    best_scores, best = ordered_scores.sort(dim=1, descending=True, stable=True)
    best_scores, best = best_scores[:, :k], best[:, :k]  # (B,min(k,C))

    missing = best_scores < 0
    columns = columns.gather(1, best)
    best_nodes = nodes.gather(1, columns).masked_fill(missing, -1)
    pad = (0, k - best_scores.shape[1])
    return (
        functional.pad(best_scores.masked_fill(missing, 0.0), pad),
        functional.pad(best_nodes, pad, value=-1),
        functional.pad(columns.masked_fill(missing, -1), pad, value=-1),
    )


def tree_beam_search(
    hidden: Tensor,
    weights: Tensor,
    first_child: Tensor,
    level_offsets: Tensor,
    labels: Tensor,
    beam: int,
    k: int,
    step: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, ...]] = beam_step,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best scores (B,k), their leaves (B,k), as nodes of the tree, and their labels (B,k); `step` is
    the beam_step to use."""
    wide = functools.reduce(torch.promote_types, (hidden.dtype, weights.dtype, torch.float32))
    scores = hidden.new_ones((len(hidden), 1), dtype=wide)  # (B,beam)
    nodes = torch.zeros_like(scores, dtype=torch.int64)  # (B,beam)
    offsets, counts = level_offsets.tolist(), first_child.diff()
    for begin, end in pairwise(offsets[:-1]):
        most = int(counts[begin:end].max())
        children = expand_children(nodes, first_child, most)  # (B,beam*most)
        parents = scores.repeat_interleave(most, dim=1)
        logits = torch.einsum("bd,bcd->bc", hidden.to(wide), weights[children.clamp(min=0)].to(wide))
        scores, nodes, _ = step(logits, children, parents, k if end == offsets[-2] else beam)
    return scores, nodes, labels[(nodes - offsets[-2]).clamp(min=0)].masked_fill(nodes < 0, -1)


def expand_children(nodes: Tensor, first_child: Tensor, most: int) -> Tensor:
    """The children (B, K*most) of inner nodes (B,K), each node's in `most` places; -1 where it has fewer or
    is -1."""
    parent = nodes.clamp(min=0)
    begin, end = first_child[parent], first_child[parent + 1]
    children = begin[..., None] + torch.arange(most, device=nodes.device)  # (B,K,most)
    there = (children < end[..., None]) & (nodes >= 0)[..., None]
    return torch.where(there, children, -1).flatten(1)


def ranking_sums(
    top: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    inverse_propensity: np.ndarray | None,
    cutoffs: np.ndarray,
) -> tuple[np.ndarray, int]:
    """Sums over the documents with true labels, and their number.

    The sums (len(cutoffs), 8) are of precision, nDCG, recall, R-precision, propensity-scored hits, the most
    of those that any ranking has, and the same two of propensity-scored DCG; the last four are 0 without
    propensities.
    """
    depth = int(cutoffs[-1])
    num_true = np.diff(indptr)  # (N,)
    documents = np.flatnonzero(num_true)
    num_true, ranks = num_true[documents], np.arange(depth)
    top = np.concatenate([top[documents], np.full((len(documents), depth), -1)], axis=1)[:, :depth]

    # A document and a label as one number, so that all documents are looked up at once.
    stride = max(int(indices.max(initial=0)), int(top.max(initial=0))) + 1
    rows = np.repeat(np.arange(len(documents)), num_true)
    hits = np.isin(top + np.arange(len(documents))[:, None] * stride, indices + rows * stride) & (top >= 0)
    for i in range(1, depth):
        hits[:, i] &= ~(top[:, :i] == top[:, i : i + 1]).any(axis=1)
    discounts = 1.0 / np.log2(ranks + 2.0)
    there = ranks < num_true[:, None]  # (N,depth): in a best ranking, is there a true label at this rank?
    gains = hits.astype(np.float64)
    ideal = (there * discounts).cumsum(axis=1)
    columns = [gains.cumsum(axis=1), (gains * discounts).cumsum(axis=1) / ideal]
    columns += [columns[0] / num_true[:, None], columns[0] / np.minimum(ranks + 1, num_true[:, None])]
    columns[0] = columns[0] / (ranks + 1)
    if inverse_propensity is None:
        columns += [np.zeros_like(gains)] * 4
    else:
        weights = inverse_propensity[indices]
        by_document = np.lexsort((-weights, rows))  # each document's weights in descending order
        best = np.zeros((len(documents), int(num_true.max(initial=0))))
        best[np.arange(best.shape[1]) < num_true[:, None]] = weights[by_document]
        best = np.concatenate([best, np.zeros_like(gains)], axis=1)[:, :depth]
        gains = np.where(hits, inverse_propensity[np.where(hits, top, 0)], 0.0)
        columns += [gains.cumsum(axis=1), best.cumsum(axis=1)]
        columns += [(each * discounts).cumsum(axis=1) / ideal for each in (gains, best)]
    sums = np.stack([column[:, cutoffs - 1].sum(axis=0) for column in columns], axis=1)
    return sums, len(documents)


def inverse_norms(features: sparse.csr_matrix, scale: np.ndarray) -> bool:
    """One over the norm of each row into scale (L,), 0 for a row of zeros; False where a value is not finite."""
    rows = np.repeat(np.arange(len(scale)), np.diff(features.indptr))
    values = features.data.astype(np.float64)
    squared = np.bincount(rows, values * values, len(scale)).astype(np.float64)
    scale[:] = np.divide(1.0, np.sqrt(squared), out=np.zeros_like(squared), where=squared > 0)
    return bool(np.isfinite(squared).all())


def split_segments(
    features: sparse.csr_matrix,
    scale: np.ndarray,
    order: np.ndarray,
    begin: np.ndarray,
    middle: np.ndarray,
    end: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    rounds: int,
) -> None:
    """Balanced spherical 2-means on each segment order[begin:end] of labels, which is in ascending order.

    Afterwards its clusters are order[begin:middle] and order[middle:end], each in ascending order. They start
    from the labels at places `first` and `second` of the segment. scale (L,): one over the norm of each row
    of features, or 0.

    Unit vectors are rounded to 24 bits after the point, and the direction between the centroids to 23: sums
    of members and products with that direction are then exact in float64, in whatever order and by however
    many threads they are made. Squared norms are made of four sums, of every fourth feature.
    """
    for s in range(len(begin)):
        labels = order[begin[s] : end[s]]
        rows = features[labels]
        row_of = np.repeat(np.arange(len(labels)), np.diff(rows.indptr))
        used, column_of = np.unique(rows.indices, return_inverse=True)
        values = np.rint(rows.data.astype(np.float64) * scale[labels][row_of] * 2.0**24) / 2.0**24
        side = np.full(len(labels), -1)
        side[first[s]], side[second[s]] = 0, 1
        for _ in range(rounds):
            centroids = []
            for which in (0, 1):
                members = side[row_of] == which
                total = np.bincount(column_of[members], values[members], len(used) // 4 * 4 + 4)
                squared = (total * total).reshape(-1, 4).cumsum(axis=0)[-1].cumsum()[-1]
                centroids.append(total * (1.0 / np.sqrt(squared) if squared > 0 else 0.0))
            direction = np.rint((centroids[1] - centroids[0]) * 2.0**23) / 2.0**23
            scores = np.bincount(row_of, values * direction[column_of], len(labels))
            now = np.ones(len(labels), dtype=np.int64)
            now[np.lexsort((labels, scores))[: middle[s] - begin[s]]] = 0
            if np.array_equal(now, side):
                break
            side = now
        order[begin[s] : end[s]] = np.concatenate([labels[side == 0], labels[side == 1]])


def sparse_adam_step(
    weight: Tensor,
    rows: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step_size: float,
    keep_avg: float,
    keep_sq: float,
    eps: float,
) -> bool:
    """Adam on the rows `rows` of weight and its moments, in place; nothing, and False, where the rows are out of
    range or do not ascend."""
    if rows.numel() and not (rows[0] >= 0 and rows[-1] < len(weight) and (rows.diff() > 0).all()):
        return False
    avg, sq = exp_avg[rows], exp_avg_sq[rows]  # (R,D)
    avg += (grad - avg) * keep_avg
    sq += (grad * grad - sq) * keep_sq
    exp_avg[rows], exp_avg_sq[rows] = avg, sq
    weight[rows] = (weight[rows].float() - step_size * (avg / (sq.sqrt() + eps))).to(weight.dtype)
    return True


def linear_bce_chunk(
    logits: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, first: int, sums: Tensor
) -> None:
    """sigmoid(z) - y in the place of logits (B,C), for the labels from `first` on; softplus(z) - y z is added to sums
    (B,n)."""
    width = logits.shape[1]
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        z = z + bias[first : first + width]
    texts = torch.repeat_interleave(torch.arange(len(logits), device=logits.device), indptr.diff())
    there = (indices >= first) & (indices < first + width)
    sign = torch.ones_like(z)
    sign[texts[there], indices[there] - first] = -1
    # softplus(z) - y z is softplus(t), and sigmoid(z) - y is sign sigmoid(t): nothing nearly equal is subtracted.
    t = sign * z
    sums[:, 0] -= functional.logsigmoid(-t).sum(dim=1, dtype=torch.float64)
    logits.copy_(sign * torch.sigmoid(t))


def add_rounded(weight: Tensor, change: Tensor, position: int, seed: int, step: int) -> None:
    """weight += change for bfloat16 weights (R,D), rounded up or down at random, on average to the sum in float32.

    16 random bits are added to the float32 sum, then its lower 16 bits are dropped."""
    total = weight.float() + change.float()
    bits = random_bits(position, weight.numel(), seed, step, weight.device).view(weight.shape)
    rounded = (total.view(torch.int32) + bits) >> 16
    rounded = torch.where(total.isnan(), 0x7FC0, rounded)
    weight.copy_(rounded.to(torch.int16).view(torch.bfloat16))


def random_bits(position: int, size: int, seed: int, step: int, device: torch.device) -> Tensor:
    """16 random bits for each element of a table from `position`, a multiple of 256, on; int32.

    They come from Philox4x32-10 with key seed and counter (number, step), two words each, the lower first. In 256
    elements there are 128 words: word l + 32 k is the k-th of number 32 (position / 256) + l, and has the bits for two
    elements, the lower half first.
    """
    low = 0xFFFFFFFF
    begin, end = position // 256 * 32, -(-(position + size) // 256) * 32
    number = torch.arange(begin, end, device=device)
    c0, c1 = number & low, number >> 32
    c2, c3 = torch.full_like(number, step & low), torch.full_like(number, step >> 32)
    k0, k1 = seed & low, seed >> 32
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # their bits are right though int64 overflows
        c0, c2 = (right >> 32 & low) ^ c1 ^ k0, (left >> 32 & low) ^ c3 ^ k1
        c1, c3 = right & low, left & low
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    words = torch.stack([c.view(-1, 32) for c in (c0, c1, c2, c3)], dim=1)  # (blocks,4,32)
    return torch.stack([words & 0xFFFF, words >> 16], dim=-1).flatten()[:size].to(torch.int32)


def train_linear(
    features: sparse.csr_matrix,
    true: sparse.csc_matrix,
    groups: np.ndarray,
    examples: sparse.csc_matrix,
    logistic: bool,
    cost: float,
    bias: float,
    tolerance: float,
    passes: int,
    prune: float,
    seed: int,
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Weights (nodes, F) and biases (nodes,), node by node: algorithm 1 of Hsieh et al. (2008), or algorithm 5 of Yu et
    al. (2011), without shrinking."""
    biases, found = np.zeros(groups[-1]), []
    for group, (first, last) in enumerate(pairwise(groups)):
        texts = examples.indices[examples.indptr[group] : examples.indptr[group + 1]]
        rows = sparse.csr_matrix(sparse.hstack([features[texts], np.full((len(texts), 1), bias)]), dtype=np.float64)
        for node in range(first, last):
            labels = np.where(np.isin(texts, true.indices[true.indptr[node] : true.indptr[node + 1]]), 1.0, -1.0)
            order = np.random.default_rng([seed, group])
            solve = _logistic if logistic else _squared_hinge
            weights = solve(rows, labels, cost, tolerance, passes, order)
            biases[node] = weights[-1] * bias
            found.append(sparse.csr_matrix(np.where(np.abs(weights[:-1]) >= prune, weights[:-1], 0.0)))
    if not found:
        return sparse.csr_matrix((0, features.shape[1])), biases
    return sparse.csr_matrix(sparse.vstack(found)), biases


def _squared_hinge(
    rows: sparse.csr_matrix, labels: np.ndarray, cost: float, tolerance: float, passes: int, order: np.random.Generator
) -> np.ndarray:
    weights, alpha = np.zeros(rows.shape[1]), np.zeros(len(labels))
    diagonal = rows.multiply(rows).sum(axis=1).A1 + 0.5 / cost
    for _ in range(passes):
        projected = np.zeros(len(labels))
        for row in order.permutation(len(labels)):
            at = slice(rows.indptr[row], rows.indptr[row + 1])
            places, values = rows.indices[at], rows.data[at]
            gradient = labels[row] * (weights[places] @ values) - 1 + 0.5 / cost * alpha[row]
            projected[row] = min(gradient, 0.0) if alpha[row] == 0 else gradient
            change = max(alpha[row] - gradient / diagonal[row], 0.0) - alpha[row]
            alpha[row] += change
            weights[places] += change * labels[row] * values
        if not len(labels) or np.ptp(projected) <= tolerance:
            break
    return weights


def _logistic(
    rows: sparse.csr_matrix, labels: np.ndarray, cost: float, tolerance: float, passes: int, order: np.random.Generator
) -> np.ndarray:
    alpha = np.full(len(labels), min(1e-3 * cost, 1e-8))
    weights = rows.T @ (alpha * labels)
    sizes = rows.multiply(rows).sum(axis=1).A1
    for _ in range(passes):
        most = 0.0
        for row in order.permutation(len(labels)):
            at = slice(rows.indptr[row], rows.indptr[row + 1])
            places, values = rows.indices[at], rows.data[at]
            margin = labels[row] * (weights[places] @ values)
            most = max(most, abs(margin + np.log(alpha[row] / (cost - alpha[row]))))
            # The root of an ascending function, between numbers where it is below and above 0.
            low, high = 0.0, cost
            for _ in range(80):
                middle = (low + high) / 2
                slope = sizes[row] * (middle - alpha[row]) + margin + np.log(middle / (cost - middle))
                low, high = (low, middle) if slope > 0 else (middle, high)
            change = np.clip((low + high) / 2, 1e-30, cost * (1 - 1e-7)) - alpha[row]
            alpha[row] += change
            weights[places] += change * labels[row] * values
        if most < tolerance:
            break
    return weights


def linear_scores(
    features: sparse.csr_matrix, weights: sparse.csr_matrix, biases: np.ndarray, nodes: np.ndarray
) -> np.ndarray:
    """w . x + bias of the nodes (B,C) of each text; 0 where there is none."""
    scores = np.zeros(nodes.shape, np.float32)
    for row, wanted in enumerate(nodes):
        there = wanted >= 0
        found = weights[wanted[there]] @ features[row].toarray()[0]
        scores[row, there] = found + biases[wanted[there]]
    return scores
