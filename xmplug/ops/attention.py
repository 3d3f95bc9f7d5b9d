"""Multi-label attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xmplug.errors import KernelError
from xmplug.ops import native, reference
from xmplug.ops.operators import operator

_NATIVE_DTYPES = (torch.float32, torch.bfloat16)


def label_attention(
    states: Tensor,
    mask: Tensor,
    queries: Tensor,
    candidates: Tensor | None = None,
    *,
    sparse_grad: bool = False,
) -> Tensor:
    """One view of each text per label, (B,C,D) (AttentionXML, equation 2).

    states (B,T,D) float; mask (B,T) bool, True = token; queries (L,D), a row per label; candidates (B,C)
    int64, the labels to look at for each text, negative = padding; None stands for all L.

    out[b,c] = sum over t of softmax_t(states[b,t] . queries[c] | mask) states[b,t]. Padded candidates and
    texts without a token give exactly 0, with gradient 0; what states hold where there is no token does not
    matter. The result has the type of the states, or under autocast the type of that; bfloat16 is summed in
    float32.

    Nothing of size B x C x T or a copy of the candidates' queries is kept: the backward pass computes the
    attention again. With `sparse_grad` and candidates, the gradient of `queries` is a coalesced sparse tensor
    with rows for the candidates only. Gradients do not depend on the number of threads.

    Raises KernelError for shapes that do not fit together and for candidates that are not labels.
    """
    if states.ndim != 3 or mask.shape != states.shape[:2] or queries.ndim != 2:
        raise KernelError(
            f"label_attention needs states (B,T,D), mask (B,T) and queries (L,D); "
            f"got {tuple(states.shape)}, {tuple(mask.shape)} and {tuple(queries.shape)}"
        )
    if queries.shape[1] != states.shape[2]:
        raise KernelError(f"label_attention: queries of {queries.shape[1]}, states of {states.shape[2]} dimensions")
    if candidates is not None and (candidates.ndim != 2 or len(candidates) != len(states)):
        raise KernelError(f"label_attention: candidates must be ({len(states)},C); got {tuple(candidates.shape)}")
    if mask.dtype != torch.bool or (candidates is not None and candidates.dtype != torch.int64):
        found = None if candidates is None else candidates.dtype
        raise KernelError(f"label_attention needs a bool mask and int64 candidates; got {mask.dtype} and {found}")
    device = states.device.type
    if torch.is_autocast_enabled(device):
        states = states.to(torch.get_autocast_dtype(device))
    return _label_attention(states, mask, queries, candidates, sparse_grad)


@operator("label_attention(Tensor states, Tensor mask, Tensor queries, Tensor? candidates, bool sparse_grad) -> Tensor")
def _label_attention(
    states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None, sparse_grad: bool
) -> Tensor:
    # On a GPU, looking would wait for the device, which checks indices itself.
    if candidates is not None and candidates.numel() and candidates.device.type == "cpu":
        largest = int(candidates.max())
        if largest >= len(queries):
            raise KernelError(f"label_attention: candidate {largest} of {len(queries)} labels")
    module = _native_module(states, queries)
    if module is None:
        return reference.label_attention(states, mask, queries, candidates)
    arrays = _contiguous(states, mask, queries, candidates)
    out = _empty_views(states, queries, candidates)
    module.label_attention(_input(module, *arrays), out.data_ptr(), native.instruction_set(), native.threads())
    return out


def _empty_views(states: Tensor, queries: Tensor, candidates: Tensor | None) -> Tensor:
    width = len(queries) if candidates is None else candidates.shape[1]
    return states.new_empty(states.shape[0], width, states.shape[2])


@_label_attention.register_fake
def _(states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None, sparse_grad: bool) -> Tensor:
    return _empty_views(states, queries, candidates)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.sparse_grad = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    states, mask, queries, candidates = ctx.saved_tensors
    if candidates is None or not ctx.sparse_grad:
        grad_states, grad_queries = _label_attention_backward(grad, states, mask, queries, candidates, None)
        return grad_states, None, grad_queries, None, None
    rows = torch.unique(candidates[candidates >= 0])  # (R,), ascending
    grad_states, values = _label_attention_backward(grad, states, mask, queries, candidates, rows)
    grad_queries = torch.sparse_coo_tensor(rows[None], values, queries.shape, is_coalesced=True, check_invariants=False)
    return grad_states, None, grad_queries, None, None


_label_attention.register_autograd(_backward, setup_context=_setup_context)


@operator(
    "label_attention_backward(Tensor grad, Tensor states, Tensor mask, Tensor queries, Tensor? "
    "candidates, Tensor? rows) -> (Tensor, Tensor)"
)
def _label_attention_backward(
    grad: Tensor, states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of states (B,T,D) and of the queries' `rows` (R,), ascending, or of all of them (L,D)."""
    module = _native_module(states, queries)
    if module is None:
        return reference.label_attention_backward(grad, states, mask, queries, candidates, rows)
    grad = grad.contiguous()
    arrays = _contiguous(states, mask, queries, candidates)
    grad_states = torch.zeros(states.shape, dtype=torch.float32)
    grad_queries = torch.zeros(_query_rows(queries, rows), dtype=torch.float32)
    module.label_attention_backward(
        _input(module, *arrays),
        grad.data_ptr(),
        0 if rows is None else rows.data_ptr(),
        0 if rows is None else len(rows),
        grad_states.data_ptr(),
        grad_queries.data_ptr(),
        native.instruction_set(),
        native.threads(),
    )
    return grad_states.to(states.dtype), grad_queries.to(queries.dtype)


def _query_rows(queries: Tensor, rows: Tensor | None) -> tuple[int, int]:
    return queries.shape[0] if rows is None else rows.shape[0], queries.shape[1]


@_label_attention_backward.register_fake
def _(
    grad: Tensor, states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    return states.new_empty(states.shape), queries.new_empty(_query_rows(queries, rows))


def _native_module(states: Tensor, queries: Tensor) -> Any:
    """The native module where it has a kernel for these tensors, else None."""
    fits = states.device.type == "cpu" and states.dtype in _NATIVE_DTYPES and queries.dtype in _NATIVE_DTYPES
    return native.cpu() if fits else None


def _contiguous(
    states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    return (
        states.contiguous(),
        mask.contiguous(),
        queries.contiguous(),
        None if candidates is None else candidates.contiguous(),
    )


def _input(module: Any, states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None) -> Any:
    """The arguments as the kernels take them. They hold addresses: the tensors must outlive the call."""
    width = len(queries) if candidates is None else candidates.shape[1]
    return module.AttentionInput(
        states.data_ptr(),
        mask.data_ptr(),
        queries.data_ptr(),
        0 if candidates is None else candidates.data_ptr(),
        *states.shape,
        width,
        states.dtype == torch.bfloat16,
        queries.dtype == torch.bfloat16,
    )
