"""sparse_adam_step: the rows that one step's gradient touches, in the table of a level's queries."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from xmplug import ops

full = pytest.mark.full
# labels, dimensions, touched rows: 32 texts of 1,280 candidates at AttentionXML's sizes.
SIZES = [(100_000, 512, 30_000), pytest.param((670_091, 1_024, 40_000), marks=full)]
RATE = 1e-3
PEERS = ("SparseAdam", "Adam, fused, dense")
QUICK = PEERS


@lru_cache(maxsize=1)
def inputs(size: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    labels, dims, touched = size
    random = torch.Generator().manual_seed(0)
    rows = torch.randperm(labels, generator=random)[:touched].sort().values
    return torch.randn(labels, dims, generator=random), rows, torch.randn(touched, dims, generator=random)


class Ours:
    def __init__(self, size: tuple[int, int, int]):
        before, self.rows, self.grad = inputs(size)
        self.weight = before.clone()
        self.moments = torch.zeros_like(before), torch.zeros_like(before)
        self.step = 0

    def __call__(self) -> Tensor:
        self.step += 1
        ops.sparse_adam_step(self.weight, self.rows, self.grad, *self.moments, self.step, learning_rate=RATE)
        return self.weight


class Torch:
    """SparseAdam, or the fused dense Adam, whose gradient is a table with zeros in all other rows."""

    def __init__(self, size: tuple[int, int, int], dense: bool):
        before, rows, grad = inputs(size)
        self.weight = nn.Parameter(before.clone())
        self.weight.grad = torch.sparse_coo_tensor(rows[None], grad, before.shape, is_coalesced=True)
        if dense:
            self.weight.grad = self.weight.grad.to_dense()
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam([self.weight], lr=RATE, fused=True)
            if dense
            else torch.optim.SparseAdam([self.weight], lr=RATE)
        )

    def __call__(self) -> Tensor:
        self.optimizer.step()
        return self.weight.detach()


@pytest.mark.skipif(not hasattr(ops, "sparse_adam_step"), reason="this xmplug has no sparse_adam_step")
@pytest.mark.parametrize("peer", ["native", "reference", *PEERS])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sparse_adam_step(compare: Callable[..., None], size: tuple[int, int, int], peer: str) -> None:
    (labels, dims, touched), (before, rows, grad) = size, inputs(size)
    probe = torch.arange(0, touched, 1_000)

    def check(weight: Tensor) -> None:
        # The same gradient again and again: every step of Adam is the learning rate, against the sign.
        moved = before[rows[probe]].double() - weight[rows[probe]].double()
        steps = (moved / (RATE * grad[probe].sign())).median().round()
        assert steps >= 1
        torch.testing.assert_close(moved, (steps * RATE * grad[probe].sign()).double(), rtol=0.02, atol=1e-6)
        untouched = torch.ones(labels, dtype=torch.bool).index_fill(0, rows, False).nonzero()[::1_000, 0]
        assert torch.equal(weight[untouched], before[untouched])

    compare(
        op="sparse_adam_step",
        shape=f"L={labels:,} D={dims} rows={touched:,}",
        peer=peer,
        ours=Ours(size),
        theirs=Torch(size, dense=peer != "SparseAdam"),
        check=check,
        moved=4 * touched * dims * 7,  # gradient read; weight and both moments read and written
    )
