"""ranking_metrics: P, nDCG and PSP at 1, 3, 5 and 10 of 300,000 documents, all at once.

A peer with fewer measures is there all the same; each gets its inputs in its own format, made beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from scipy import sparse

from xmplug import ops

full = pytest.mark.full
DOCUMENTS, LABELS = 300_000, 500_000
KS, DEPTH = (1, 3, 5, 10), 10
INSTALL = "pip install -r bench/requirements.txt"


@lru_cache(maxsize=2)
def inputs(documents: int, labels: int) -> tuple[np.ndarray, sparse.csr_matrix, np.ndarray]:
    """Ten predictions, about five true labels, half of which are predicted; the inverse propensity of labels."""
    random = np.random.default_rng(0)
    # Ten different labels, since the step and 10 * step are far below the number of labels.
    step = random.integers(1, labels // DEPTH, documents)[:, None]
    top = (random.integers(0, labels, documents)[:, None] + step * np.arange(DEPTH)) % labels
    number = random.integers(1, 10, documents)
    hit = random.integers(0, 2, (documents, DEPTH)).astype(bool) & (np.arange(DEPTH) < number[:, None])
    rows = [np.repeat(np.arange(documents), number - hit.sum(axis=1)), np.nonzero(hit)[0]]
    cells = [random.integers(0, labels, len(rows[0])), top[hit]]
    truth = sparse.csr_matrix(
        (np.ones(sum(map(len, rows)), np.float32), (np.concatenate(rows), np.concatenate(cells))), (documents, labels)
    )
    truth.sum_duplicates()
    truth.data[:] = 1
    return top, truth, 1 + 9 * random.random(labels)


def by_numpy(top: np.ndarray, truth: sparse.csr_matrix, weights: np.ndarray) -> dict[str, float]:
    """All documents at once: one binary search finds the hits, the best rankings come from one sort."""
    documents, labels = truth.shape
    number = np.diff(truth.indptr)
    rows = np.repeat(np.arange(documents), number)
    cells = rows * labels + truth.indices  # ascending
    asked = np.arange(documents)[:, None] * labels + top
    place = np.searchsorted(cells, asked).clip(max=len(cells) - 1)
    hits = cells[place] == asked  # (N,10)
    discounts = 1.0 / np.log2(np.arange(DEPTH) + 2.0)
    ideal = np.concatenate([[0.0], discounts.cumsum()])
    of_cells = weights[truth.indices]
    order = np.lexsort((-of_cells, rows))
    rank = np.arange(len(rows)) - np.repeat(truth.indptr[:-1], number)
    gains = np.where(hits, weights[top], 0.0)
    values = {}
    for k in KS:
        values[f"P@{k}"] = hits[:, :k].sum() / k / documents
        values[f"nDCG@{k}"] = (hits[:, :k] @ discounts[:k] / ideal[np.minimum(number, k)]).mean()
        values[f"PSP@{k}"] = gains[:, :k].sum() / of_cells[order][rank < k].sum()
    return values


def by_scipy(top: np.ndarray, truth: sparse.csr_matrix, weights: np.ndarray) -> dict[str, float]:
    """Products of sparse matrices, as the Extreme Classification Repository's scripts have it."""
    documents = len(top)
    starts = np.arange(documents + 1) * DEPTH
    number = np.diff(truth.indptr)
    discounts = 1.0 / np.log2(np.arange(DEPTH) + 2.0)
    ideal = np.concatenate([[0.0], discounts.cumsum()])
    ranks = np.tile(np.arange(1.0, DEPTH + 1), documents)
    predicted = sparse.csr_matrix((ranks, top.ravel(), starts), truth.shape)
    hits = predicted.multiply(truth).tocsr()  # a hit's value is its rank
    rows = np.repeat(np.arange(documents), np.diff(hits.indptr))
    weighted = truth.multiply(weights[None]).tocsr()
    order = np.lexsort((-weighted.data, np.repeat(np.arange(documents), number)))
    rank = np.arange(len(order)) - np.repeat(truth.indptr[:-1], number)
    values = {}
    for k in KS:
        near = hits.data <= k
        values[f"P@{k}"] = near.sum() / k / documents
        discounted = discounts[hits.data[near].astype(int) - 1] / ideal[np.minimum(number, k)][rows[near]]
        values[f"nDCG@{k}"] = discounted.sum() / documents
        values[f"PSP@{k}"] = weights[hits.indices[near]].sum() / weighted.data[order][rank < k].sum()
    return values


@lru_cache(maxsize=1)
def for_pecos(documents: int, labels: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    top, truth, _ = inputs(documents, labels)
    scores, starts = np.tile(np.arange(DEPTH, 0, -1.0), documents), np.arange(documents + 1) * DEPTH
    return truth, sparse.csr_matrix((scores, top.ravel(), starts), truth.shape)


def by_pecos(documents: int, labels: int) -> dict[str, float]:
    """Precision and recall: it has no other measure."""
    smat_util = pytest.importorskip("pecos.utils.smat_util", reason=INSTALL)
    precision = smat_util.Metrics.generate(*for_pecos(documents, labels), topk=DEPTH).prec
    return {f"P@{k}": float(precision[k - 1]) for k in KS}


@lru_cache(maxsize=1)
def for_napkinxc(documents: int, labels: int) -> tuple[list[list[int]], list[list[int]]]:
    top, truth, _ = inputs(documents, labels)
    return [row.tolist() for row in np.split(truth.indices, truth.indptr[1:-1])], top.tolist()


def by_napkinxc(documents: int, labels: int) -> dict[str, float]:
    metrics = pytest.importorskip("napkinxc.metrics", reason=INSTALL)
    ranking, weights = for_napkinxc(documents, labels), inputs(documents, labels)[2]
    found = {
        "P": metrics.precision_at_k(*ranking, k=DEPTH),
        "nDCG": metrics.ndcg_at_k(*ranking, k=DEPTH),
        "PSP": metrics.psprecision_at_k(*ranking, weights, k=DEPTH),
    }
    return {f"{name}@{k}": float(values[k - 1]) for name, values in found.items() for k in KS}


QUICK = ("reference", "numpy", "scipy")
PEERS: dict[str, Callable[[int, int], dict[str, float]]] = {
    "numpy": lambda documents, labels: by_numpy(*inputs(documents, labels)),
    "scipy": lambda documents, labels: by_scipy(*inputs(documents, labels)),
    "PECOS (P and R only)": by_pecos,
    "napkinxc": by_napkinxc,
}


@pytest.mark.parametrize("threads", [None, pytest.param(1, marks=full)], ids=["", "1thread"])
@pytest.mark.parametrize("peer", ["native", "reference", *PEERS])
def test_ranking_metrics(compare: Callable[..., None], threads: int | None, peer: str) -> None:
    top, truth, weights = inputs(DOCUMENTS, LABELS)
    exact = by_numpy(top, truth, weights)

    def check(result: dict[str, float]) -> None:
        assert result.keys() & exact.keys()
        for name in result.keys() & exact.keys():
            assert result[name] == pytest.approx(exact[name], rel=1e-9), name

    compare(
        op="ranking_metrics",
        shape=f"N={DOCUMENTS:,} L={LABELS:,} top {DEPTH}",
        dtype="float64",
        threads=threads,
        peer=peer,
        ours=lambda: ops.ranking_metrics(top, truth.indptr, truth.indices, weights, KS),
        theirs=lambda: PEERS[peer](DOCUMENTS, LABELS),
        check=check,
        moved=8 * (top.size + 2 * truth.nnz + DOCUMENTS),  # a weight for each true label
    )
