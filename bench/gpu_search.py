"""beam_step, tree_beam_search and ranking_metrics on a GPU, beside PyTorch's forms, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
import test_beam_step as steps
import test_tree_beam_search as searches
import torch
from gpu_clock import in_turn
from torch import Tensor

from xmplug import ops

SETS = 4  # of inputs, in turn, so that what the last call left in a cache is not what the next one needs
STEPS = [(256, 1_280, 160), (256, 960, 15), (2_000, 64, 15), (256, 32_768, 160)]
SEARCHES = [
    searches.Case(670_000, 256, 160, "float32"),
    searches.Case(670_000, 256, 15, "float32"),
    searches.Case(670_000, 1, 160, "float32"),
    searches.Case(670_000, 256, 160, "bfloat16"),
    searches.Case(670_000, 2_000, 160, "bfloat16"),
    searches.Case(3_000_000, 256, 160, "bfloat16"),
]
COMPILED = (STEPS[0], SEARCHES[0], SEARCHES[3])  # to compile takes long
RANKINGS = [(300_000, 100, 670_000), (300_000, 10, 670_000)]  # documents, predictions, labels
KS = (1, 3, 5, 10)


def compare(
    operation: str,
    shape: str,
    dtype: str,
    given: list[tuple],
    ours: Callable[..., Any],
    peers: dict[str, Callable[..., Any]],
    moved: float,
) -> list[dict[str, Any]]:
    """A row for each peer. `moved`: the least bytes that must come from memory or caches."""

    def of_each(form: Callable[..., Any]) -> Callable[[], Any]:
        sets = cycle(given)
        return lambda: form(*next(sets))

    rows = []
    for name, peer in peers.items():
        row: dict[str, Any] = {"operation": operation, "shape": shape, "dtype": dtype, "peer": name}
        try:
            ours_ms, peer_ms = in_turn(of_each(ours), of_each(peer))
        except Exception as error:  # of the peer: the other rows are worth having
            rows.append(row | {"note": f"{type(error).__name__}: {error}".splitlines()[0][:80]})
            torch.cuda.empty_cache()
            continue
        note = f"{moved / 1e6:,.0f} MB, {moved / ours_ms / 1e9:.2f} TB/s"
        rows.append(row | {"peer_ms": peer_ms, "ours_ms": ours_ms, "ratio": peer_ms / ours_ms, "note": note})
    return rows


def step_inputs(size: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor, Tensor, int]:
    """Candidates in groups of 8 siblings, as test_beam_step has them."""
    texts, width, k = size
    logits, parents = torch.randn(texts, width, device=device), torch.rand(texts, width // 8, device=device)
    starts = torch.rand(texts, 80_000, device=device).topk(width // 8).indices
    nodes = (starts[..., None] * 8 + torch.arange(8, device=device)).flatten(1)
    return logits, nodes, parents.repeat_interleave(8, dim=1), k


def step_rows() -> list[dict[str, Any]]:
    rows = []
    for size in STEPS:
        texts, width, k = size
        given = [step_inputs(size, "cuda") for _ in range(SETS)]
        peers: dict[str, Callable[..., Any]] = {"torch topk": steps.by_torch}
        if size in COMPILED:
            peers["torch.compile"] = torch.compile(steps.by_torch, dynamic=False)
        moved = texts * (width * 16 + k * 20)
        shape = f"B={texts:,} C={width:,} k={k}"
        rows += compare("beam_step", shape, "float32", given, ops.beam_step, peers, moved)
    return rows


def search_rows(
    cases: list[searches.Case] = SEARCHES, device: str = "cuda", timed: bool = True
) -> list[dict[str, Any]]:
    rows = []
    weights, of = torch.empty(0), None
    for case in cases:
        tree, dtype = searches.tree_of(case.leaves), getattr(torch, case.dtype)
        if of != (case.leaves, case.dtype):
            del weights
            weights = torch.empty(tree.num_nodes, searches.DIMS, dtype=dtype, device=device)
            weights.normal_(std=2 * searches.DIMS**-0.5)
            of = (case.leaves, case.dtype)
        first, offsets = torch.from_numpy(tree.first_child).to(device), tuple(tree.level_offsets.tolist())
        given = [(torch.randn(case.texts, searches.DIMS, device=device).to(dtype),) for _ in range(SETS)]

        def ours(hidden: Tensor, case=case, tree=tree, weights=weights) -> tuple[Tensor, Tensor]:
            return ops.tree_beam_search(hidden, weights, tree, case.beam, searches.BEST)

        def eager(hidden: Tensor, case=case, weights=weights, first=first, offsets=offsets) -> tuple[Tensor, Tensor]:
            return searches.level_by_level(hidden, weights, first, offsets, case.beam)

        def whole(hidden: Tensor, case=case, weights=weights, first=first, offsets=offsets) -> tuple[Tensor, Tensor]:
            return searches.level_by_level(hidden, weights, first, offsets, case.beam, whole_levels=True)

        if case.dtype == "float32":
            torch.testing.assert_close(ours(*given[0])[0], eager(*given[0])[0], rtol=1e-3, atol=1e-6)
        peers = {"torch gather, topk": eager, "torch, whole levels": whole}
        if case in COMPILED:
            peers["torch.compile"] = torch.compile(eager, dynamic=False)
        if not timed:
            continue
        shape = f"leaves={case.leaves:,} B={case.texts:,} beam={case.beam} D={searches.DIMS}"
        rows += compare("tree_beam_search", shape, case.dtype, given, ours, peers, bytes_needed(case, tree))
    return rows


def bytes_needed(case: searches.Case, tree: ops.LabelTree) -> float:
    """Each row of weights that a text needs, once for all texts: estimated for the nodes of a level being equally
    likely."""
    rows, kept = 0.0, 1
    for depth in range(1, tree.num_levels):
        above, below = len(tree.level(depth - 1)), len(tree.level(depth))
        rows += below * (1 - (1 - min(kept, above) / above) ** case.texts)
        kept = min(case.beam, below)
    return rows * searches.DIMS * (4 if case.dtype == "float32" else 2)


def ranking_inputs(documents: int, width: int, labels: int, device: str) -> tuple[Tensor, ...]:
    """Different predictions, and one to nine true labels, ascending, half of which are predicted."""
    rng = np.random.default_rng(0)
    step = rng.integers(1, labels // width, documents)[:, None]
    top = (rng.integers(0, labels, documents)[:, None] + step * np.arange(width)) % labels
    number = rng.integers(1, 10, documents)
    rows = np.repeat(np.arange(documents), number)
    predicted = top[rows, rng.integers(0, min(width, 10), len(rows))]
    cells = np.unique(
        rows * labels + np.where(rng.random(len(rows)) < 0.5, predicted, rng.integers(0, labels, len(rows)))
    )
    indptr = np.searchsorted(cells, np.arange(documents + 1) * labels)
    arrays = (top, indptr, cells % labels, 1 + 9 * rng.random(labels))
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def metrics_by_torch(top: Tensor, indptr: Tensor, indices: Tensor, weights: Tensor) -> dict[str, float]:
    """P, nDCG and PSP of all documents at once: one binary search finds the hits, the best rankings come from one
    sort."""
    (documents, _), labels, depth = top.shape, len(weights), max(KS)
    top, number = top[:, :depth], indptr.diff()
    rows = torch.arange(documents, device=top.device)
    rows_of_cells = rows.repeat_interleave(number, output_size=len(indices))
    cells, asked = rows_of_cells * labels + indices, rows[:, None] * labels + top
    hits = cells[torch.searchsorted(cells, asked).clamp(max=len(cells) - 1)] == asked  # (N,10)
    discounts = 1 / torch.log2(torch.arange(depth, device=top.device, dtype=torch.float64) + 2)
    ideal = discounts.cumsum(0)
    of_cells, order = weights[indices].sort(descending=True)
    order = rows_of_cells[order].argsort(stable=True)
    rank = torch.arange(len(indices), device=top.device) - indptr[:-1].repeat_interleave(
        number, output_size=len(indices)
    )
    gains, best = torch.where(hits, weights[top], 0.0), of_cells[order]
    sums = []
    for k in KS:
        sums.append(hits[:, :k].sum().double() / k / documents)
        dcg = torch.where(hits[:, :k], discounts[:k], 0.0).sum(1)
        sums.append((dcg / ideal[number.clamp(max=k) - 1]).mean())
        sums.append(gains[:, :k].sum() / best[rank < k].sum())
    names = [f"{name}@{k}" for k in KS for name in ("P", "nDCG", "PSP")]
    return dict(zip(names, torch.stack(sums).tolist(), strict=True))


def ranking_rows(
    sizes: list[tuple[int, int, int]] = RANKINGS, device: str = "cuda", timed: bool = True
) -> list[dict[str, Any]]:
    rows = []
    for documents, width, labels in sizes:
        given = ranking_inputs(documents, width, labels, device)

        def ours(*given: Tensor) -> dict[str, float]:
            return ops.ranking_metrics(*given, KS)

        values, expected = ours(*given), metrics_by_torch(*given)
        assert all(abs(values[name] / expected[name] - 1) < 1e-9 for name in expected)
        if not timed:
            continue
        shape = f"N={documents:,} top-{width} L={labels:,}"
        moved = documents * (8 * min(width, max(KS)) + 8) + len(given[2]) * 16
        rows += compare("ranking_metrics", shape, "", [given], ours, {"torch (P, nDCG, PSP)": metrics_by_torch}, moved)
    return rows


def once(device: str = "cuda") -> None:
    """Each operation on small shapes, against the peers."""
    for dtype in (torch.float32, torch.float64):
        for size in ((3, 320, 30), (2, 64, 15), (2, 8_000, 600)):
            logits, nodes, parents, k = step_inputs(size, device)
            given = (logits.to(dtype), nodes, parents.to(dtype), k)
            torch.testing.assert_close(ops.beam_step(*given)[0], steps.by_torch(*given)[0])
    search_rows([searches.Case(1_000, 40, 20, dtype) for dtype in ("float32", "bfloat16")], device, timed=False)
    ranking_rows([(500, 100, 3_000), (40, 10, 300)], device, timed=False)


def rows() -> list[dict[str, Any]]:
    return step_rows() + search_rows() + ranking_rows()
