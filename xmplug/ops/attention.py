"""Multi-label attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from xmplug.errors import KernelError
from xmplug.ops import native, reference
from xmplug.ops.operators import operator

_NATIVE_DTYPES = (torch.float32, torch.bfloat16)
_GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of csrc/cuda/label_attention.h
_GPU_WORKSPACE = 64 * 2**20  # bytes that backward has for the attention of some texts at a time


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
    others = {tensor.device for tensor in (mask, queries, candidates) if tensor is not None}
    if others != {states.device}:
        raise KernelError(
            f"label_attention needs all tensors on one device; got states on {states.device}, "
            f"the others on {', '.join(sorted(map(str, others)))}"
        )
    device = states.device.type
    if torch.is_autocast_enabled(device):
        states = states.to(torch.get_autocast_dtype(device))
    return _label_attention(states, mask, queries, candidates, sparse_grad)[0]


@operator(
    "label_attention(Tensor states, Tensor mask, Tensor queries, Tensor? candidates, bool sparse_grad) -> "
    "(Tensor, Tensor)"
)
def _label_attention(
    states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None, sparse_grad: bool
) -> tuple[Tensor, Tensor]:
    """The views, and what a GPU's backward pass needs: the logarithms of the sums of exp(score), (B,C), else (0,0)."""
    # On a GPU, looking would wait for the device, which checks indices itself.
    if candidates is not None and candidates.numel() and candidates.device.type == "cpu":
        largest = int(candidates.max())
        if largest >= len(queries):
            raise KernelError(f"label_attention: candidate {largest} of {len(queries)} labels")
    module, gpu = _native_module(states, queries), _gpu(states, queries)
    views, log_sums = _empty_views(states, queries, candidates, gpu is not None)
    if gpu is not None:
        arrays, tokens = _contiguous(states, mask, _for_gpu(queries, states), candidates), _tokens(gpu, mask)
        on_device = _gpu_input(gpu, arrays, tokens)
        turns = gpu("label_attention_takes_turns", on_device)
        partial = torch.empty_like(views, dtype=torch.float32) if turns else None
        gpu(
            "label_attention",
            on_device,
            views.data_ptr(),
            log_sums.data_ptr(),
            0 if partial is None else partial.data_ptr(),
        )
    elif module is not None:
        arrays = _contiguous(states, mask, queries, candidates)
        module.label_attention(_input(module, *arrays), views.data_ptr(), native.instruction_set(), native.threads())
    else:
        views = reference.label_attention(states, mask, queries, candidates)
    return views, log_sums


def _empty_views(states: Tensor, queries: Tensor, candidates: Tensor | None, on_gpu: bool) -> tuple[Tensor, Tensor]:
    width = len(queries) if candidates is None else candidates.shape[1]
    log_sums = (states.shape[0], width) if on_gpu else (0, 0)
    return states.new_empty(states.shape[0], width, states.shape[2]), states.new_empty(log_sums, dtype=torch.float32)


@_label_attention.register_fake
def _(
    states: Tensor, mask: Tensor, queries: Tensor, candidates: Tensor | None, sparse_grad: bool
) -> tuple[Tensor, Tensor]:
    return _empty_views(states, queries, candidates, _gpu(states, queries) is not None)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.sparse_grad = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    states, mask, queries, candidates, log_sums = ctx.saved_tensors
    if candidates is None or not ctx.sparse_grad:
        grad_states, grad_queries = _label_attention_backward(grad, states, mask, queries, candidates, None, log_sums)
        return grad_states, None, grad_queries, None, None
    rows = torch.unique(candidates[candidates >= 0])  # (R,), ascending
    grad_states, values = _label_attention_backward(grad, states, mask, queries, candidates, rows, log_sums)
    grad_queries = torch.sparse_coo_tensor(rows[None], values, queries.shape, is_coalesced=True, check_invariants=False)
    return grad_states, None, grad_queries, None, None


_label_attention.register_autograd(_backward, setup_context=_setup_context)


@operator(
    "label_attention_backward(Tensor grad, Tensor states, Tensor mask, Tensor queries, Tensor? candidates, "
    "Tensor? rows, Tensor log_sums) -> (Tensor, Tensor)"
)
def _label_attention_backward(
    grad: Tensor,
    states: Tensor,
    mask: Tensor,
    queries: Tensor,
    candidates: Tensor | None,
    rows: Tensor | None,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradients of states (B,T,D) and of the queries' `rows` (R,), ascending, or of all of them (L,D)."""
    gpu = _gpu(states, queries)
    if gpu is not None:
        return _backward_on_gpu(gpu, grad, states, mask, queries, candidates, rows, log_sums)
    module = _native_module(states, queries)
    if module is None:
        return reference.label_attention_backward(grad, states, mask, queries, candidates, rows)
    grad = grad.contiguous()
    arrays = _contiguous(states, mask, queries, candidates)
    grad_states = states.new_empty(states.shape)
    grad_queries = queries.new_empty(_query_rows(queries, rows))
    module.label_attention_backward(
        _input(module, *arrays),
        grad.data_ptr(),
        0 if rows is None else rows.data_ptr(),
        len(grad_queries),
        grad_states.data_ptr(),
        grad_queries.data_ptr(),
        native.instruction_set(),
        native.threads(),
    )
    return grad_states, grad_queries


def _query_rows(queries: Tensor, rows: Tensor | None) -> tuple[int, int]:
    return queries.shape[0] if rows is None else rows.shape[0], queries.shape[1]


def _backward_on_gpu(
    gpu: native.Gpu,
    grad: Tensor,
    states: Tensor,
    mask: Tensor,
    queries: Tensor,
    candidates: Tensor | None,
    rows: Tensor | None,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor]:
    arrays, tokens = _contiguous(states, mask, _for_gpu(queries, states), candidates), _tokens(gpu, mask)
    on_device, grad, candidates = _gpu_input(gpu, arrays, tokens), grad.contiguous(), arrays[3]
    plan = gpu.module.AttentionPlan(on_device, _GPU_WORKSPACE)
    workspace = states.new_empty(plan.bytes, dtype=torch.uint8)
    grad_states = torch.zeros_like(arrays[0])
    # Candidates that come in several parts each add to the gradient of the states.
    state_sums = None if plan.candidates >= log_sums.shape[1] else torch.zeros_like(arrays[0], dtype=torch.float32)
    num_rows, size = _query_rows(queries, rows)
    grad_queries = states.new_zeros((num_rows, size), dtype=torch.float32)
    ordered: tuple[Tensor, ...] = ()
    if candidates is not None and candidates.numel():
        place = candidates if rows is None else torch.searchsorted(rows, candidates)
        place = torch.where(candidates < 0, num_rows, place)
        place = functional.pad(place, (0, 0, 0, -len(place) % plan.texts), value=num_rows)
        ordered = place.view(-1, plan.texts * place.shape[1]).sort(dim=1, stable=True)
    gpu(
        "label_attention_backward",
        on_device,
        plan,
        grad.data_ptr(),
        log_sums.data_ptr(),
        *([tensor.data_ptr() for tensor in ordered] or (0, 0)),
        num_rows,
        workspace.data_ptr(),
        grad_states.data_ptr(),
        0 if state_sums is None else state_sums.data_ptr(),
        grad_queries.data_ptr(),
    )
    return grad_states if state_sums is None else state_sums.to(states.dtype), grad_queries.to(queries.dtype)


@_label_attention_backward.register_fake
def _(
    grad: Tensor,
    states: Tensor,
    mask: Tensor,
    queries: Tensor,
    candidates: Tensor | None,
    rows: Tensor | None,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor]:
    return states.new_empty(states.shape), queries.new_empty(_query_rows(queries, rows))


def _native_module(states: Tensor, queries: Tensor) -> Any:
    """The native module where it has a kernel for these tensors, else None."""
    fits = states.device.type == "cpu" and states.dtype in _NATIVE_DTYPES and queries.dtype in _NATIVE_DTYPES
    return native.cpu() if fits else None


def _gpu(states: Tensor, queries: Tensor) -> native.Gpu | None:
    """The native CUDA kernels where there is one for these tensors, else None."""
    return native.gpu(states) if states.dtype in _GPU_DTYPES and queries.dtype in _GPU_DTYPES else None


def _for_gpu(queries: Tensor, states: Tensor) -> Tensor:
    """Queries of a type that the kernels take: float32 or that of the states, which tensor cores want."""
    return queries if queries.dtype in (states.dtype, torch.float32) else queries.to(states.dtype)


def _tokens(gpu: native.Gpu, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where in each text its tokens are, (B,T), and how many they are, (B,)."""
    mask = mask.contiguous()
    token, lengths = mask.new_empty(mask.shape, dtype=torch.int32), mask.new_empty(len(mask), dtype=torch.int32)
    gpu("pack_tokens", mask.data_ptr(), *mask.shape, token.data_ptr(), lengths.data_ptr())
    return token, lengths


def _gpu_input(
    gpu: native.Gpu, arrays: tuple[Tensor, Tensor, Tensor, Tensor | None], tokens: tuple[Tensor, Tensor]
) -> Any:
    """The arguments as the CUDA kernels take them. They hold addresses: the tensors must outlive the call."""
    states, _, queries, candidates = arrays
    return gpu.module.AttentionInput(
        states.data_ptr(),
        *(tensor.data_ptr() for tensor in tokens),
        queries.data_ptr(),
        0 if candidates is None else candidates.data_ptr(),
        *states.shape,
        len(queries) if candidates is None else candidates.shape[1],
        len(queries),
        _GPU_DTYPES.index(states.dtype),
        _GPU_DTYPES.index(queries.dtype),
        _products(gpu),
    )


def _products(gpu: native.Gpu) -> int:
    """Which instructions multiply matrices of 16-bit numbers there: an index in Products of csrc/cuda/kernels.h."""
    if gpu.capability == (9, 0) and gpu.module.has_wgmma:
        return 2
    return int(gpu.capability >= (8, 0))


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
