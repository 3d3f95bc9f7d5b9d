"""tree_beam_search over trees of Amazon's sizes: 16 children to a node, 256 dimensions, the 10 best labels.

PECOS searches its own format of the same tree and the same weights, on dense features, in both layouts that it has.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from xmplug import ops

full = pytest.mark.full
BRANCHING, DIMS, BEST = 16, 256, 10


@dataclass(frozen=True)
class Case:
    leaves: int
    texts: int
    beam: int
    dtype: str
    threads: int | None = None

    def __str__(self) -> str:
        alone = "-1thread" if self.threads else ""
        return f"{self.leaves}-batch{self.texts}-beam{self.beam}-{self.dtype}{alone}"


def cases() -> list[Any]:
    quick = [
        Case(670_000, texts, beam, dtype)
        for dtype in ("float32", "bfloat16")
        for texts, beam in ((256, 160), (1, 160), (256, 15), (1, 15))
    ]
    more = [Case(670_000, 256, 160, "float32", 1), Case(670_000, 1, 160, "float32", 1)]
    more += [Case(3_000_000, texts, beam, "bfloat16") for texts in (256, 1) for beam in (160, 15)]
    return quick + [pytest.param(case, marks=full) for case in more]


@lru_cache(maxsize=1)
def tree_of(leaves: int) -> ops.LabelTree:
    sizes = [leaves]
    while sizes[0] > 1:
        sizes.insert(0, -(-sizes[0] // BRANCHING))
    offsets = np.cumsum([0, *sizes])
    starts = [
        np.arange(n) * below // n + start for (n, below), start in zip(pairwise(sizes), offsets[1:], strict=False)
    ]
    return ops.LabelTree(offsets, np.append(np.concatenate(starts), offsets[-1]), np.arange(leaves))


@lru_cache(maxsize=1)
def weights_of(leaves: int, dtype: str) -> Tensor:
    random = torch.Generator().manual_seed(0)
    weights = torch.empty(tree_of(leaves).num_nodes, DIMS, dtype=getattr(torch, dtype))
    return weights.normal_(std=2 * DIMS**-0.5, generator=random)


@lru_cache(maxsize=4)
def hidden_of(texts: int, dtype: str) -> Tensor:
    return torch.randn(texts, DIMS, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))


@torch.no_grad()
def level_by_level(
    hidden: Tensor, weights: Tensor, first: Tensor, offsets: tuple[int, ...], beam: int, whole_levels: bool = False
) -> tuple[Tensor, Tensor]:
    """Gather the children's weights, multiply, topk. With `whole_levels`, a level that has no more nodes than the texts
    have children in it is scored by one matrix product."""
    texts, device = len(hidden), hidden.device
    nodes = torch.zeros(texts, 1, dtype=torch.int64, device=device)
    scores = torch.ones(texts, 1, device=device)
    for start, stop in pairwise(offsets[1:]):
        begin, end = first[nodes], first[nodes + 1]  # (B,beam)
        children = begin[..., None] + torch.arange(BRANCHING, device=device)  # (B,beam,16)
        missing = (children >= end[..., None]).flatten(1)
        children = children.flatten(1).masked_fill(missing, 0)
        if whole_levels and stop - start <= children.numel():
            every = hidden @ weights[start:stop].T
            logits = every.gather(1, (children - start).clamp(min=0))
        elif texts == 1:
            logits = (weights[children[0]] @ hidden[0])[None]
        else:
            logits = torch.bmm(weights[children], hidden[..., None])[..., 0]  # (B,beam*16)
        probability = torch.sigmoid(logits.float()) * scores.repeat_interleave(BRANCHING, dim=1)
        keep = BEST if stop == offsets[-1] else beam
        scores, places = probability.masked_fill(missing, -1.0).topk(min(keep, stop - start, children.shape[1]))
        nodes = children.gather(1, places)
    return scores, nodes - offsets[-2]


def by_torch(case: Case, whole_levels: bool = False) -> tuple[Tensor, Tensor]:
    tree, hidden, weights = tree_of(case.leaves), hidden_of(case.texts, case.dtype), weights_of(case.leaves, case.dtype)
    first, offsets = torch.from_numpy(tree.first_child), tuple(tree.level_offsets.tolist())
    return level_by_level(hidden, weights, first, offsets, case.beam, whole_levels)


@lru_cache(maxsize=1)
def pecos_model(leaves: int, layout: str) -> Any:
    """The tree and its float32 weights as a model of PECOS, loaded as it recommends for prediction."""
    xmc = pytest.importorskip("pecos.xmc.base", reason="pip install -r bench/requirements.txt")
    pecos_model.cache_clear()
    tree, weights = tree_of(leaves), weights_of(leaves, "float32").numpy()
    chain = []
    for depth in range(1, tree.num_levels):
        level, above = tree.level(depth), tree.level(depth - 1)
        cells = len(level) * DIMS
        columns = np.tile(np.arange(DIMS, dtype=np.uint32), len(level))
        rows = np.ascontiguousarray(weights[level.start : level.stop])
        starts = np.arange(0, cells + 1, DIMS, dtype=np.uint64)
        of_level = sparse.csc_matrix((DIMS, len(level)), dtype=np.float32)
        of_level.data, of_level.indices, of_level.indptr = rows.ravel(), columns, starts
        code = np.asarray(tree.parent[level.start : level.stop] - above.start)
        codes = sparse.csc_matrix((np.ones(len(level), np.float32), (np.arange(len(level)), code)))
        chain.append(xmc.MLModel(W=of_level, C=codes, pred_params={"only_topk": 1, "post_processor": "sigmoid"}))
    with tempfile.TemporaryDirectory() as folder:
        xmc.HierarchicalMLModel(chain).save(folder)
        del chain, of_level, rows, columns
        gc.collect()
        return xmc.HierarchicalMLModel.load(folder, is_predict_only=True, weight_matrix_type=layout)


def by_pecos(case: Case, layout: str, threads: int) -> Any:
    return pecos_model(case.leaves, layout).predict(
        hidden_of(case.texts, "float32").numpy(),
        beam_size=case.beam,
        only_topk=BEST,
        threads=min(threads, case.texts),  # it gives each thread texts of its own; idle ones cost it much
    )


def ours(case: Case) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return ops.tree_beam_search(
            hidden_of(case.texts, case.dtype),
            weights_of(case.leaves, case.dtype),
            tree_of(case.leaves),
            case.beam,
            BEST,
        )


@lru_cache(maxsize=4)
def expected(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The search by its definition in float64, of the first texts: scores and labels."""
    tree, weights = tree_of(case.leaves), weights_of(case.leaves, case.dtype)
    all_scores, all_labels = [], []
    for row in hidden_of(case.texts, case.dtype)[:4].double():
        nodes, scores = np.zeros(1, np.int64), np.ones(1)
        for depth in range(1, tree.num_levels):
            children = np.concatenate([np.asarray(tree.children(int(node))) for node in nodes])
            parents = np.repeat(scores, [len(tree.children(int(node))) for node in nodes])
            found = torch.sigmoid(weights[torch.from_numpy(children)].double() @ row).numpy() * parents
            best = np.lexsort((children, -found))[: BEST if depth == tree.num_levels - 1 else case.beam]
            nodes, scores = children[best], found[best]
        all_scores.append(scores)
        all_labels.append(nodes - tree.level(-1).start)
    return np.stack(all_scores), np.stack(all_labels)


def check(case: Case, result: Any) -> None:
    scores, labels = expected(case)
    if isinstance(result, tuple):
        found_scores, found = (part[: len(labels)].float().numpy() for part in result)
    else:  # PECOS gives a CSR matrix
        rows = [result[row] for row in range(len(labels))]
        order = [np.argsort(-row.data, kind="stable") for row in rows]
        found_scores = np.stack([row.data[best] for row, best in zip(rows, order)])
        found = np.stack([row.indices[best] for row, best in zip(rows, order)])
    tolerance = 1e-4 if case.dtype == "float32" else 0.03
    np.testing.assert_allclose(found_scores, scores, rtol=tolerance)
    overlap = np.mean([len(np.intersect1d(*pair)) / BEST for pair in zip(found.astype(np.int64), labels)])
    assert overlap > (0.97 if case.dtype == "float32" else 0.8), f"{overlap:.0%} of the labels are those of float64"


PECOS = {"PECOS, hash": "HASH_CHUNKED", "PECOS, search": "BINARY_SEARCH_CHUNKED"}
PEERS = ("torch gather, topk", "torch, whole levels", *PECOS)
QUICK = ("torch, whole levels", "PECOS, hash")


@pytest.mark.parametrize("peer", ["native", "reference", *PEERS])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_tree_beam_search(compare: Callable[..., None], case: Case, peer: str) -> None:
    if peer in PECOS and (case.dtype == "bfloat16" or case.leaves > 1_000_000):
        pytest.skip("PECOS has no bfloat16; its format of 3 million leaves takes 12 GB")
    tree, threads = tree_of(case.leaves), case.threads or torch.get_num_threads()
    scored = 0  # nodes for each text, if nothing is shared between texts
    kept = 1
    for depth in range(1, tree.num_levels):
        scored += min(kept * BRANCHING, len(tree.level(depth)))
        kept = min(case.beam, len(tree.level(depth)))
    compare(
        op="tree_beam_search",
        shape=f"leaves={case.leaves:,} B={case.texts} beam={case.beam} D={DIMS}",
        dtype=case.dtype,
        threads=case.threads,
        peer=peer,
        ours=lambda: ours(case),
        theirs=(lambda: by_pecos(case, PECOS[peer], threads))
        if peer in PECOS
        else (lambda: by_torch(case, peer == "torch, whole levels")),
        check=lambda result: check(case, result),
        moved=case.texts * scored * DIMS * weights_of(case.leaves, case.dtype).element_size(),
    )
