"""linear_bce: a full output layer, its loss and the gradients of the layer and of what it reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from xmplug import ops

full = pytest.mark.full
Layer = tuple[int, int, int, str]  # texts, labels, dimensions, type
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LAYERS = [
    (64, 131_072, 768, "float32"),
    (64, 131_072, 768, "bfloat16"),
    pytest.param((64, 670_091, 256, "bfloat16"), marks=full),
    pytest.param((64, 2_812_281, 256, "bfloat16"), marks=full),
]
LABELS_OF_A_TEXT = 10
RATE = 0.05
QUICK = ("reference", "PyTorch, dense", "torch.compile")


@lru_cache(maxsize=1)
def inputs(layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    texts, labels, dims, dtype = layer
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(texts, dims, generator=random).to(getattr(torch, dtype))
    weight = torch.empty(labels, dims, dtype=getattr(torch, dtype)).normal_(std=dims**-0.5, generator=random)
    indices = torch.randint(labels, (texts * LABELS_OF_A_TEXT,), generator=random)
    return hidden, weight, torch.arange(0, len(indices) + 1, LABELS_OF_A_TEXT), indices


def dense_loss(hidden: Tensor, weight: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    logits = hidden @ weight.t()
    y = torch.zeros_like(logits)
    y[torch.repeat_interleave(torch.arange(len(y)), indptr.diff()), indices] = 1
    return functional.binary_cross_entropy_with_logits(logits, y, reduction="sum") / len(y)


class Gradients:
    """The loss, and the gradients of hidden and weight; with `step`, one of gradient descent on weight."""

    def __init__(self, layer: Layer, loss: Loss, step: bool):
        hidden, weight, *self.true = inputs(layer)
        self.hidden = hidden.clone().requires_grad_()
        self.weight = (weight.clone() if step else weight.detach()).requires_grad_()
        self.loss = loss
        self.optimizer = torch.optim.SGD([self.weight], lr=RATE) if step else None

    def __call__(self) -> tuple[Tensor, Tensor]:
        loss = self.loss(self.hidden, self.weight, *self.true)
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        gradient, self.hidden.grad, self.weight.grad = self.hidden.grad, None, None
        assert gradient is not None
        return loss.detach(), gradient


class Step:
    """That in one call."""

    def __init__(self, layer: Layer):
        self.hidden, weight, *self.true = inputs(layer)
        self.weight, self.step = weight.clone(), 0

    def __call__(self) -> tuple[Tensor, Tensor]:
        self.step += 1
        return ops.linear_bce_step(self.hidden, self.weight, *self.true, learning_rate=RATE, step=self.step)


LOSSES: dict[str, Callable[[], Loss]] = {
    "PyTorch, dense": lambda: dense_loss,
    "torch.compile": lambda: torch.compile(dense_loss),
    "linear_bce": lambda: ops.linear_bce,
}


def call_of(layer: Layer, step: bool, peer: str) -> Callable[[], tuple[Tensor, Tensor]]:
    if step and peer not in LOSSES:
        return Step(layer)
    return Gradients(layer, LOSSES.get(peer, LOSSES["linear_bce"])(), step)


def prepare(case: str, peer: str) -> Callable[[], object]:
    """For machine.peak_memory."""
    os.environ["XMPLUG_KERNELS"] = "reference" if peer == "reference" else "native"
    texts, labels, dims, dtype, step = case.split()
    return call_of((int(texts), int(labels), int(dims), dtype), step == "step", peer)


@lru_cache(maxsize=1)
def exact(layer: Layer) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of hidden, in float64."""
    hidden, weight, indptr, indices = inputs(layer)
    hidden = hidden.double()
    loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(hidden)
    texts = torch.repeat_interleave(torch.arange(len(hidden)), indptr.diff())
    for first in range(0, len(weight), 65_536):
        rows = weight[first : first + 65_536].double()
        logits = hidden @ rows.t()
        loss += functional.softplus(logits).sum()
        errors = logits.sigmoid_()
        there = (indices >= first) & (indices < first + len(rows))
        places = torch.unique(torch.stack([texts[there], indices[there] - first]), dim=1)
        loss -= (hidden[places[0]] * rows[places[1]]).sum()
        errors[places[0], places[1]] -= 1
        gradient += errors @ rows
    return loss / len(hidden), gradient / len(hidden)


@pytest.mark.skipif(not hasattr(ops, "linear_bce"), reason="this xmplug has no linear_bce")
@pytest.mark.parametrize("step", [False, True], ids=["loss", "step"])
@pytest.mark.parametrize("peer", ["native", "reference", *LOSSES])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_linear_bce(compare: Callable[..., None], layer: Layer, peer: str, step: bool) -> None:
    if peer == "linear_bce" and not step:
        pytest.skip("is what the others are held against")
    if peer == "reference" and step:
        pytest.skip("ours and the reference are one call, which would be checked after a step of the other")
    texts, labels, dims, dtype = layer

    def check(result: tuple[Tensor, Tensor]) -> None:
        (loss, gradient), close = exact(layer), 1e-5 if dtype == "float32" else 0.02
        torch.testing.assert_close(result[0].double(), loss, rtol=close, atol=0)
        assert (result[1].double() - gradient).norm() <= close * gradient.norm()

    compare(
        op="linear_bce_step" if step else "linear_bce",
        shape=f"B={texts} L={labels:,} D={dims}",
        peer=peer,
        ours=call_of(layer, step, "native"),
        theirs=call_of(layer, step, peer),
        check=check,
        dtype=dtype,
        flops=6 * texts * labels * dims,
        memory=(__file__, f"{texts} {labels} {dims} {dtype} {'step' if step else 'loss'}"),
    )
