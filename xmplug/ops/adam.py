"""Adam on a few rows of a large table."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xmplug.errors import KernelError
from xmplug.ops import native, reference
from xmplug.ops.operators import operator


@torch.no_grad()
def sparse_adam_step(
    weight: Tensor,
    rows: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """One step of lazy Adam, in place: the rows that have a gradient are updated, the others are not touched.

    weight (N,D) float32 or bfloat16; rows (R,) int64, ascending, each once; grad (R,D) float32, the gradient of
    these rows; exp_avg and exp_avg_sq (N,D) float32, the moments, 0 at first; step: the number of this step,
    counted from 1.

    Per row, with g its gradient, m and v its moments (Kingma & Ba 2014; the form of torch.optim.SparseAdam):

        m = m + (1 - beta1) (g - m)
        v = v + (1 - beta2) (g^2 - v)
        w = w - learning_rate sqrt(1 - beta2^step) / (1 - beta1^step) m / (sqrt(v) + eps)

    in float32; a bfloat16 weight is rounded to the nearest. Raises KernelError, and changes nothing, for shapes and
    types that do not fit together, and for rows that are out of range or do not ascend. On a GPU that would be to
    wait for the device: there a row out of range stops it with a CUDA error, and the order is not looked at.
    """
    tensors = {"weight": weight, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "rows": rows}
    fit = weight.ndim == 2 and rows.ndim == 1 and weight.shape == exp_avg.shape == exp_avg_sq.shape
    if not fit or grad.shape != (rows.shape[0], weight.shape[1]):
        raise KernelError(
            "sparse_adam_step needs weight, exp_avg and exp_avg_sq (N,D), rows (R,) and grad (R,D); got "
            + ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        )
    fit = weight.dtype in (torch.float32, torch.bfloat16) and rows.dtype == torch.int64
    if not fit or any(tensor.dtype != torch.float32 for tensor in (grad, exp_avg, exp_avg_sq)):
        raise KernelError(
            "sparse_adam_step needs weight float32 or bfloat16, grad, exp_avg and exp_avg_sq float32 and rows int64; "
            "got " + ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        )
    if any(tensor.device != weight.device for tensor in tensors.values()):
        raise KernelError(
            "sparse_adam_step needs all tensors on one device; got "
            + ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        )
    if step < 1:
        raise KernelError(f"sparse_adam_step counts steps from 1; got {step}")
    _sparse_adam_step(weight, rows, grad, exp_avg, exp_avg_sq, step, learning_rate, *betas, eps)


@operator(
    "sparse_adam_step(Tensor(a!) weight, Tensor rows, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) "
    "exp_avg_sq, SymInt step, float learning_rate, float beta1, float beta2, float eps) -> ()"
)
def _sparse_adam_step(
    weight: Tensor,
    rows: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    step_size = learning_rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    factors = (step_size, 1 - beta1, 1 - beta2, eps)
    # What is changed in place cannot be copied to lie in one piece: the reference takes any layout.
    whole = weight.is_contiguous() and exp_avg.is_contiguous() and exp_avg_sq.is_contiguous()
    module = native.cpu() if whole and weight.device.type == "cpu" else None
    gpu = native.gpu(weight) if whole else None
    if module is None and gpu is None:
        done = reference.sparse_adam_step(weight, rows, grad, exp_avg, exp_avg_sq, *factors)
    else:
        rows, grad = rows.contiguous(), grad.contiguous()
        name = "sparse_adam_step_float" if weight.dtype == torch.float32 else "sparse_adam_step_bfloat16"
        arrays = (weight.data_ptr(), *weight.shape, rows.data_ptr(), len(rows), grad.data_ptr())
        moments = (exp_avg.data_ptr(), exp_avg_sq.data_ptr())
        if gpu is not None:
            gpu(name, *arrays, *moments, *factors)
            done = True  # looking at the rows would wait for the device
        else:
            done = getattr(module, name)(*arrays, *moments, *factors, native.threads())
    # So that a backward pass that needs what was here before says so, and does not compute with what is here now.
    torch.autograd.graph.increment_version((weight, exp_avg, exp_avg_sq))
    if not done:
        raise KernelError(
            f"sparse_adam_step needs rows from 0 to {len(weight) - 1}, ascending, each once; "
            "indices and values of a gradient are so after coalesce()"
        )


@_sparse_adam_step.register_fake
def _(*_: object) -> None:
    return None
