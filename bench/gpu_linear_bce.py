"""linear_bce and sparse_adam_step on a GPU, beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_clock import in_turn
from torch import Tensor
from torch.nn import functional

from xmplug import ops

TEXTS, DIMS, LABELS_OF_A_TEXT = 256, 768, 10
LABELS = 3_000_000
GIB = 2**30


def rows() -> list[dict[str, Any]]:
    """Peaks are those of PyTorch's memory during a call, its inputs included."""
    return [*_loss_rows(), *_step_rows(), *_adam_rows()]


def _loss_rows() -> Iterator[dict[str, Any]]:
    """The loss with all gradients, at a size that dense logits still fit."""
    labels = 670_091
    for dtype in (torch.float32, torch.bfloat16):
        hidden, weight, *true = _layer(labels, dtype)
        weight.requires_grad_()

        def call(loss: Callable[..., Tensor], *arguments: Tensor) -> Callable[[], None]:
            def run() -> None:
                for tensor in arguments[:2]:
                    tensor.grad = None
                loss(*arguments).backward()

            return run

        peers = {"PyTorch, dense": dense_loss, "torch.compile": torch.compile(dense_loss)}
        ours = _measure(call(ops.linear_bce, hidden, weight, *true))
        for peer, loss in peers.items():
            theirs = _measure(call(loss, hidden, weight, *true))
            yield _row("linear_bce", _shape(labels), dtype, peer, theirs, ours)
        weight.grad = None


def _step_rows() -> Iterator[dict[str, Any]]:
    """A step of the whole layer at full size, where nothing dense fits the goal of 12 GiB."""
    hidden, weight, *true = _layer(LABELS, torch.bfloat16)
    numbers = iter(range(1_000_000))

    def ours() -> None:
        ops.linear_bce_step(hidden, weight, *true, learning_rate=0.05, step=next(numbers))

    def products() -> None:
        """The least that any form must compute: the three products, chunk by chunk, of logits that nobody looks at."""
        size = 43_520
        logits, grad = hidden.new_empty(TEXTS, size), hidden.new_empty(size, DIMS)
        with torch.no_grad():
            for first in range(0, LABELS, size):
                part = weight[first : first + size]
                errors = torch.mm(hidden, part.t(), out=logits[:, : len(part)])
                torch.mm(errors, part)
                torch.mm(errors.t(), hidden, out=grad[: len(part)])

    optimizer = torch.optim.SGD([weight.requires_grad_()], lr=0.05)

    def separate() -> None:
        ops.linear_bce(hidden, weight, *true).backward()
        optimizer.step()
        hidden.grad = weight.grad = None

    def dense() -> None:
        dense_loss(hidden, weight, *true).backward()
        optimizer.step()
        hidden.grad = weight.grad = None

    measured = _measure(ours)
    for peer, call in (("products alone", products), ("linear_bce, SGD", separate), ("PyTorch, dense, SGD", dense)):
        try:
            theirs = _measure(call)
        except torch.OutOfMemoryError:
            theirs = None
        hidden.grad = weight.grad = None
        yield _row("linear_bce_step", _shape(LABELS), torch.bfloat16, peer, theirs, measured)


def _adam_rows() -> Iterator[dict[str, Any]]:
    labels, dims, touched = 670_091, 1_024, 100_000
    random = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(labels, dims, device="cuda", generator=random)
    places = torch.randperm(labels, device="cuda", generator=random)[:touched].sort().values
    grad = torch.randn(touched, dims, device="cuda", generator=random)
    moments = torch.zeros_like(weight), torch.zeros_like(weight)
    numbers = iter(range(1, 1_000_000))

    def ours() -> None:
        ops.sparse_adam_step(weight, places, grad, *moments, next(numbers), learning_rate=1e-3)

    parameter = torch.nn.Parameter(weight.clone())
    parameter.grad = torch.sparse_coo_tensor(places[None], grad, weight.shape, is_coalesced=True)
    optimizer = torch.optim.SparseAdam([parameter], lr=1e-3)
    shape = f"L={labels:,} D={dims} rows={touched:,}"
    yield _row("sparse_adam_step", shape, weight.dtype, "SparseAdam", _measure(optimizer.step), _measure(ours))


def dense_loss(hidden: Tensor, weight: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    logits = hidden @ weight.t()
    y = torch.zeros_like(logits)
    y[torch.arange(len(y), device=y.device).repeat_interleave(LABELS_OF_A_TEXT), indices] = 1
    return functional.binary_cross_entropy_with_logits(logits, y, reduction="sum") / len(y)


def _layer(labels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(TEXTS, DIMS, device="cuda", generator=random).to(dtype).requires_grad_()
    weight = torch.empty(labels, DIMS, device="cuda", dtype=dtype).normal_(std=DIMS**-0.5, generator=random)
    indices = torch.randint(labels, (TEXTS * LABELS_OF_A_TEXT,), device="cuda", generator=random)
    return hidden, weight, torch.arange(0, len(indices) + 1, LABELS_OF_A_TEXT, device="cuda"), indices


def _shape(labels: int) -> str:
    return f"B={TEXTS} L={labels:,} D={DIMS}"


def _measure(call: Callable[[], object]) -> tuple[float, int]:
    """Milliseconds of a call, and the bytes that PyTorch held at most."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return in_turn(call, lambda: None, rounds=10)[0], torch.cuda.max_memory_allocated()


def _row(
    operation: str,
    shape: str,
    dtype: torch.dtype,
    peer: str,
    theirs: tuple[float, int] | None,
    ours: tuple[float, int],
) -> dict[str, Any]:
    theirs_peak = "out of memory" if theirs is None else f"{theirs[1] / GIB:.2f} GiB"
    return {
        "operation": operation,
        "shape": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "peer": peer,
        "peer_ms": "" if theirs is None else theirs[0],
        "ours_ms": ours[0],
        "ratio": "" if theirs is None else theirs[0] / ours[0],
        "note": f"peak {ours[1] / GIB:.2f} GiB, the peer's {theirs_peak}",
    }


def once() -> None:
    """Each kernel on a small shape."""
    random = torch.Generator("cuda").manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        hidden = torch.randn(5, 40, device="cuda", generator=random).to(dtype).requires_grad_()
        weight = torch.randn(3_000, 40, device="cuda", generator=random).to(dtype)
        indptr, indices = torch.arange(6, device="cuda"), torch.randint(3_000, (5,), device="cuda", generator=random)
        ops.linear_bce(hidden, weight, indptr, indices, chunk=1_024).backward()
        ops.linear_bce_step(hidden, weight, indptr, indices, learning_rate=0.05, step=1)
    table, moments = torch.zeros(50, 40, device="cuda"), torch.zeros(2, 50, 40, device="cuda")
    places, grad = torch.arange(0, 50, 7, device="cuda"), torch.ones(8, 40, device="cuda")
    ops.sparse_adam_step(table, places, grad, *moments, 1, learning_rate=1e-3)
