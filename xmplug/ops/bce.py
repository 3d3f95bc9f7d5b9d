"""Binary cross-entropy of full output layers, without the logits of all labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from xmplug.errors import KernelError
from xmplug.ops import native, reference
from xmplug.ops.operators import operator

_DTYPES = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "half", torch.float64: "double"}
_CPU_DTYPES = (torch.float32, torch.bfloat16)
_GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BUFFER = 64 << 20  # bytes
_BLOCK = 256  # labels: a chunk is whole blocks, so that its rows, and places in the table, start on borders of vectors
_TILE = 2048  # labels that share a sum, as in the kernels


def linear_bce(
    hidden: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    bias: Tensor | None = None,
    *,
    chunk: int | None = None,
) -> Tensor:
    """Binary cross-entropy of a linear layer over all labels: sum over labels, mean over texts.

    hidden (B,D) and weight (L,D), a row per label, float; bias (L,) float; indptr (B + 1,) and indices int64: the true
    labels of each text as a CSR matrix has them, in any order; naming one twice changes nothing.

    With z = hidden weight^T + bias and y = 1 for the true labels, else 0:

        loss = 1/B sum over b and l of softplus(z[b,l]) - y[b,l] z[b,l]

    which is 0 for no texts. Products are made by PyTorch in the type of hidden, under autocast in the type of that, to
    which chunks of weight are converted; the rest is float32, sums of the loss beyond a few labels float64 (for float64
    all of it is float64). The loss is float32 or wider.

    Nothing of size B x L is kept. `chunk` labels at a time, a multiple of 256 (None: as many as fit 64 MiB), the
    logits are made, turned into sigmoid(z) - y in their place, and multiplied into the gradients: the forward pass
    makes the gradients that will be asked for, and keeps them until the backward pass, which only scales them (as in
    Renee, Jain et al., MLSys 2023). There is no second derivative. The gradient of weight is dense; where that is too
    much, `linear_bce_step` trains without it. Results do not depend on the number of threads of the native kernels.

    Raises KernelError for shapes and types that do not fit together, and for true labels that are no CSR matrix of
    labels. On a GPU that would be to wait for the device: there they stop it with a CUDA error.
    """
    _check("linear_bce", hidden, weight, indptr, indices, bias)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    wanted = [
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)
    ]
    columns = max(hidden.shape) if hidden.dtype != weight.dtype else hidden.shape[0]
    loss, *_ = _linear_bce(hidden, weight, bias, indptr, indices, _chunk(chunk, weight, columns, hidden.dtype), wanted)
    return loss


@torch.no_grad()
def linear_bce_step(
    hidden: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    bias: Tensor | None = None,
    *,
    learning_rate: float,
    step: int,
    seed: int = 0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_bce` and one step of gradient descent on weight and bias, in place: (loss, its gradient of hidden).

    For layers whose gradient does not fit: no gradient of weight larger than that of a chunk of labels is ever there.
    The loss and the gradient (B,D), in the type of hidden, are those before the step; what made hidden learns by
    `hidden.backward(gradient)`.

    weight float32 or bfloat16, in the type of hidden or not; bias float32; hidden float32 or bfloat16. weight and bias
    change by -learning_rate times their gradients. There is no other state: with a bfloat16 weight, 2 bytes for each of
    its elements are all that a layer takes. Rounding to the nearest would lose most changes of such a weight, so it is
    rounded up or down at random, on average to the sum (as in ELMO, Zhang et al., ICML 2025). The random bits depend on
    seed, step (the number of this step) and the place in weight alone (Philox, Salmon et al., SC 2011): they are the
    same on each device, and for each chunk.

    Other arguments, and errors, are those of `linear_bce`; autocast changes nothing.
    """
    _check("linear_bce_step", hidden, weight, indptr, indices, bias)
    fits = hidden.dtype in _CPU_DTYPES and weight.dtype in _CPU_DTYPES
    if not fits or (bias is not None and bias.dtype != torch.float32):
        raise KernelError(
            "linear_bce_step needs hidden and weight float32 or bfloat16 and bias float32; got "
            f"{hidden.dtype}, {weight.dtype} and {None if bias is None else bias.dtype}"
        )
    if step < 0 or seed < 0:
        raise KernelError(f"linear_bce_step needs a step and a seed from 0; got {step} and {seed}")
    in_place = hidden.dtype == weight.dtype == torch.float32
    chunk = _chunk(chunk, weight, hidden.shape[0] if in_place else max(hidden.shape), hidden.dtype)
    return _linear_bce_step(hidden, weight, bias, indptr, indices, chunk, learning_rate, seed, step)


def _check(name: str, hidden: Tensor, weight: Tensor, indptr: Tensor, indices: Tensor, bias: Tensor | None) -> None:
    fit = hidden.ndim == 2 and weight.ndim == 2 and hidden.shape[1] == weight.shape[1] and indices.ndim == 1
    fit = fit and indptr.shape == (hidden.shape[0] + 1,) and (bias is None or bias.shape == weight.shape[:1])
    if not fit:
        shape = None if bias is None else tuple(bias.shape)
        raise KernelError(
            f"{name} needs hidden (B,D), weight (L,D), indptr (B+1,), indices (n,) and bias (L,) or None; got "
            f"{tuple(hidden.shape)}, {tuple(weight.shape)}, {tuple(indptr.shape)}, {tuple(indices.shape)} and {shape}"
        )
    floats = [hidden, weight] if bias is None else [hidden, weight, bias]
    if any(tensor.dtype not in _DTYPES for tensor in floats) or not (indptr.dtype == indices.dtype == torch.int64):
        raise KernelError(
            f"{name} needs float hidden, weight and bias and int64 indptr and indices; got "
            + ", ".join(str(tensor.dtype) for tensor in (*floats, indptr, indices))
        )
    if any(tensor.device != hidden.device for tensor in (*floats, indptr, indices)):
        raise KernelError(
            f"{name} needs all tensors on one device; got "
            + ", ".join(str(tensor.device) for tensor in (*floats, indptr, indices))
        )


def _chunk(asked: int | None, weight: Tensor, columns: int, dtype: torch.dtype) -> int:
    """Labels at a time: so many that `columns` numbers for each fit the buffer."""
    if asked is not None and (asked < _BLOCK or asked % _BLOCK):
        raise KernelError(f"linear_bce needs a chunk that is a multiple of {_BLOCK}; got {asked}")
    blocks = asked // _BLOCK if asked else max(1, _BUFFER // (max(1, columns) * dtype.itemsize * _BLOCK))
    chunks = max(1, _parts(weight.shape[0], blocks * _BLOCK))
    return max(1, _parts(weight.shape[0], chunks * _BLOCK)) * _BLOCK  # all about the same


def _parts(whole: int, part: int) -> int:
    return (whole + part - 1) // part


@operator(
    "linear_bce(Tensor hidden, Tensor weight, Tensor? bias, Tensor indptr, Tensor indices, SymInt chunk, bool[] wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
def _linear_bce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indptr: Tensor,
    indices: Tensor,
    chunk: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and the gradients of hidden (float32 or wider), weight and bias, empty where they are not wanted."""
    layer = _Layer(hidden, weight, bias, indptr, indices, chunk)
    _, grad_hidden, grad_weight, grad_bias = _results(hidden, weight, bias, wanted)
    for labels, rows, errors in layer.chunks():
        if wanted[0]:
            layer.add_to_hidden(errors, rows)
        if wanted[1] and rows.dtype == weight.dtype:
            torch.addmm(grad_weight[labels], errors.t(), hidden, beta=0, alpha=layer.scale, out=grad_weight[labels])
        elif wanted[1]:
            grad_weight[labels].copy_(torch.mm(errors.t(), hidden, out=layer.scratch(rows))).mul_(layer.scale)
        if wanted[2]:
            grad_bias[labels] = errors.sum(0, dtype=layer.wide) * layer.scale
    if wanted[0]:
        grad_hidden.copy_(layer.grad_hidden())
    return layer.loss(), grad_hidden, grad_weight, grad_bias


def _results(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = _wide(hidden)
    return (
        hidden.new_empty((), dtype=wide),
        hidden.new_empty(hidden.shape if wanted[0] else 0, dtype=wide),
        weight.new_empty(weight.shape if wanted[1] else 0),
        hidden.new_empty(0) if bias is None or not wanted[2] else bias.new_empty(bias.shape),
    )


@_linear_bce.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indptr: Tensor,
    indices: Tensor,
    chunk: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _results(hidden, weight, bias, wanted)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.wanted, ctx.type_of_hidden = inputs[-1], inputs[0].dtype
    ctx.set_materialize_grads(False)  # no zeros for what is not differentiated: one is as large as weight
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    # Most often the loss is what is differentiated: no second gradient of weight then. On a GPU, to look would be to
    # wait, and what traces looks at subclasses.
    one = type(grad) is Tensor and grad.device.type == "cpu" and grad.item() == 1
    hidden, weight, bias = (
        (saved if one else saved * grad.to(saved.dtype)) if want else None
        for saved, want in zip(ctx.saved_tensors, ctx.wanted, strict=True)
    )
    # Scaled before it is rounded: for float16, the scale is what keeps it from rounding to 0.
    return None if hidden is None else hidden.to(ctx.type_of_hidden), weight, bias, None, None, None, None


_linear_bce.register_autograd(_backward, setup_context=_setup_context)


@operator(
    "linear_bce_step(Tensor hidden, Tensor(a!) weight, Tensor(b!)? bias, Tensor indptr, Tensor indices, SymInt chunk, "
    "float learning_rate, SymInt seed, SymInt step) -> (Tensor, Tensor)"
)
def _linear_bce_step(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indptr: Tensor,
    indices: Tensor,
    chunk: int,
    learning_rate: float,
    seed: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    layer = _Layer(hidden, weight, bias, indptr, indices, chunk)
    rate = learning_rate * layer.scale
    for labels, rows, errors in layer.chunks():
        layer.add_to_hidden(errors, rows)
        if weight.dtype == hidden.dtype == torch.float32:
            rows.addmm_(errors.t(), hidden, alpha=-rate)  # rows is weight itself
        else:
            change = layer.scratch(rows)
            torch.addmm(change, errors.t(), hidden, beta=0, alpha=-rate, out=change)
            if weight.dtype == torch.float32:
                weight[labels] += change
            else:
                _add_rounded(weight[labels], change, labels.start * weight.shape[1], seed, step)
        if bias is not None:
            bias[labels] -= rate * errors.sum(0, dtype=torch.float32)
    torch.autograd.graph.increment_version([weight] if bias is None else [weight, bias])
    return layer.loss(), layer.grad_hidden().to(hidden.dtype)


@_linear_bce_step.register_fake
def _(hidden: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return hidden.new_empty((), dtype=_wide(hidden)), hidden.new_empty(hidden.shape)


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


class _Layer:
    """What one pass over the labels needs and sums up."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, chunk: int
    ):
        # On a GPU, looking would wait for the device, which looks itself.
        if hidden.device.type == "cpu":
            whole = indptr[0] == 0 and indptr[-1] == len(indices) and bool((indptr.diff() >= 0).all())
            if not whole or (len(indices) and not 0 <= indices.min() <= indices.max() < len(weight)):
                raise KernelError(f"linear_bce: indptr and indices are not a CSR matrix of {len(weight)} labels")
        self.wide = _wide(hidden)
        self.hidden, self.weight, self.chunk = hidden, weight, chunk
        self.bias = None if bias is None else bias.to(self.wide).contiguous()
        self.indptr, self.indices = indptr.contiguous(), indices.contiguous()
        self.scale = 1 / max(1, len(hidden))
        self.sums = hidden.new_zeros((len(hidden), _parts(chunk, _TILE)), dtype=torch.float64)
        self.into_hidden = hidden.new_zeros(hidden.shape, dtype=self.wide)
        self._scratch: Tensor | None = None

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Labels, their rows of weight (C,D) in the type of hidden, and sigmoid(z) - y (B,C)."""
        logits = self.hidden.new_empty(len(self.hidden), self.chunk)
        for first in range(0, len(self.weight), self.chunk):
            rows = self.weight[first : first + self.chunk]
            if rows.dtype != self.hidden.dtype:
                rows = self.scratch(rows).copy_(rows)
            errors = torch.mm(self.hidden, rows.t(), out=logits[:, : len(rows)])
            _bce_chunk(errors, self.bias, self.indptr, self.indices, first, len(self.weight), self.sums)
            yield slice(first, first + len(rows)), rows, errors

    def scratch(self, rows: Tensor) -> Tensor:
        """The memory (C,D), in the type of hidden, for a copy of rows and, when that is done with, for what comes
        then."""
        if self._scratch is None:
            self._scratch = self.hidden.new_empty(self.chunk, rows.shape[1])
        return self._scratch[: len(rows)]

    def add_to_hidden(self, errors: Tensor, rows: Tensor) -> None:
        if rows.dtype == self.wide:
            self.into_hidden.addmm_(errors, rows)
        else:
            self.into_hidden += errors @ rows

    def grad_hidden(self) -> Tensor:
        return self.into_hidden * self.scale

    def loss(self) -> Tensor:
        return (self.sums.sum() * self.scale).to(self.wide)


def _bce_chunk(
    logits: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, first: int, num_labels: int, sums: Tensor
) -> None:
    """sigmoid(z) - y in the place of the logits (B,C) of the labels from `first` on; the loss added to sums."""
    gpu = native.gpu(logits) if logits.dtype in _GPU_DTYPES else None
    module = native.cpu() if logits.device.type == "cpu" and logits.dtype in _CPU_DTYPES else None
    arguments = (
        logits.data_ptr(),
        logits.stride(0),
        *logits.shape,
        0 if bias is None else bias[first:].data_ptr(),
        indptr.data_ptr(),
        indices.data_ptr(),
        first,
        sums.data_ptr(),
        sums.shape[1],
    )
    name = f"linear_bce_chunk_{_DTYPES[logits.dtype]}"
    if gpu is not None:
        gpu(name, *arguments, num_labels, len(indices))
    elif module is not None:
        getattr(module, name)(*arguments, native.instruction_set(), native.threads())
    else:
        reference.linear_bce_chunk(logits, bias, indptr, indices, first, sums)


def _add_rounded(weight: Tensor, change: Tensor, position: int, seed: int, step: int) -> None:
    """weight += change, rounded up or down at random; weight: the rows of a table from its element `position` on."""
    whole = weight.is_contiguous() and weight.data_ptr() % 4 == 0  # CUDA takes two at once
    gpu = native.gpu(weight) if whole else None
    module = native.cpu() if whole and weight.device.type == "cpu" else None
    arguments = (weight.data_ptr(), change.data_ptr(), weight.numel(), position, seed, step)
    name = f"add_rounded_{_DTYPES[change.dtype]}"
    if gpu is not None:
        gpu(name, *arguments)
    elif module is not None:
        getattr(module, name)(*arguments, native.instruction_set(), native.threads())
    else:
        reference.add_rounded(weight, change, position, seed, step)
