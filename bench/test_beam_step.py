"""beam_step: the best of a level's candidates for each text of a batch, at the beams of the papers' data sets."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from xmplug import ops

full = pytest.mark.full
# texts, candidates, kept: AttentionXML on Amazon-670K and Amazon-3M, on Wiki-500K, a tree of 16 children.
SIZES = [(256, 1_280, 160), (256, 960, 15), pytest.param((1_024, 2_560, 160), marks=full)]


@lru_cache(maxsize=1)
def inputs(size: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    texts, width, _ = size
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(texts, width, generator=random)
    parents = torch.rand(texts, width // 8, generator=random).repeat_interleave(8, dim=1)
    starts = torch.stack([torch.randperm(80_000, generator=random)[: width // 8] for _ in range(texts)])
    return logits, (starts[..., None] * 8 + torch.arange(8)).flatten(1), parents


def by_torch(logits: Tensor, nodes: Tensor, parents: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores, places = (torch.sigmoid(logits) * parents).masked_fill(nodes < 0, -1.0).topk(k)
    return scores, nodes.gather(1, places)


compiled = torch.compile(by_torch, dynamic=False)


def by_numpy(logits: Tensor, nodes: Tensor, parents: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = np.where(nodes.numpy() < 0, -1.0, parents.numpy() / (1.0 + np.exp(-logits.numpy())))
    places = np.argpartition(-scores, k, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, places, 1), axis=1)
    places = np.take_along_axis(places, order, 1)
    return np.take_along_axis(scores, places, 1), np.take_along_axis(nodes.numpy(), places, 1)


QUICK = ("reference", "torch topk", "numpy")
PEERS: dict[str, Callable[..., tuple]] = {"torch topk": by_torch, "numpy": by_numpy, "torch.compile": compiled}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("threads", [None, 1], ids=["", "1thread"])
@pytest.mark.parametrize("peer", ["native", "reference", *PEERS])
def test_beam_step(compare: Callable[..., None], size: tuple[int, int, int], threads: int | None, peer: str) -> None:
    (texts, width, k), (logits, nodes, parents) = size, inputs(size)

    def check(result: tuple[Tensor, Tensor]) -> None:
        exact = torch.sigmoid(logits.double()) * parents.double()
        best = exact.topk(k).values
        scores, found = (torch.as_tensor(part) for part in result)
        torch.testing.assert_close(scores.double(), best, rtol=1e-6, atol=1e-7)
        chosen = (nodes[:8, None] == found[:8, :, None]).double()  # (8,k,C): where in the row each came from
        torch.testing.assert_close((chosen @ exact[:8, :, None])[..., 0], best[:8], rtol=1e-6, atol=1e-7)

    compare(
        op="beam_step",
        shape=f"B={texts} C={width:,} k={k}",
        threads=threads,
        peer=peer,
        ours=lambda: ops.beam_step(logits, nodes, parents, k),
        theirs=lambda: PEERS[peer](logits, nodes, parents, k),
        check=check,
        moved=texts * (width * (4 + 8 + 4) + k * (4 + 8)),
    )
