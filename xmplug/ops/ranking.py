"""Ranking metrics of a whole test set."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from xmplug.errors import KernelError
from xmplug.ops import native, reference

Array = torch.Tensor | np.ndarray

# The sums of a GPU are made in an order that depends on nothing but the number of documents.
GPU_BLOCKS, GPU_DOCUMENTS = 1024, 8  # at most; for a block at least


def ranking_metrics(
    top: Array,
    indptr: Array,
    indices: Array,
    inv_propensity: Array | None = None,
    ks: Sequence[int] = (1, 3, 5),
) -> dict[str, float]:
    """P@k, nDCG@k, R@k and RP@k of N documents, and with propensities PSP@k and PSnDCG@k, as fractions of 1.

    top (N,K): each document's predicted labels, best first, as integers; a negative one is no prediction. K
    may be smaller than k: what is not predicted is missed. A label that is predicted twice counts at its
    first place. indptr (N + 1,), indices: the true labels of each document as a CSR matrix has them, each
    once. inv_propensity (number of labels,): one over the propensity of each label, for every true label.

    P@k = hits / k. R@k = hits / true labels. RP@k = hits / min(k, true labels). nDCG@k = DCG@k / the DCG of
    the best ranking, where DCG@k sums 1 / log2(1 + rank) over the hits. These are means over documents. PSP@k
    weights hits by inverse propensity, and is the sum over documents divided by the sum of the best rankings;
    PSnDCG@k is the same ratio of sums of PSDCG@k / sum of 1 / log2(1 + rank) to min(k, true labels) (Jain et
    al., KDD 2016; the Extreme Classification Repository's scripts).

    Documents without true labels are left out. With none left, or no weight in any best ranking, the value is
    NaN. Raises KernelError for shapes that do not fit together.

    Where `top` is on a GPU, so is the work: what is not there is moved, and the result is waited for once. To evaluate
    again and again, keep all there.
    """
    cutoffs = np.unique(np.asarray(ks, dtype=np.int64))
    if len(cutoffs) == 0 or cutoffs[0] < 1:
        raise KernelError(f"ranking_metrics needs at least one k, and each of them above 0; got {tuple(ks)}")
    gpu = native.gpu(top) if isinstance(top, torch.Tensor) else None
    if gpu is None:
        sums, documents = _sums_on_cpu(top, indptr, indices, inv_propensity, cutoffs)
    else:
        sums, documents = _sums_on_gpu(gpu, top, indptr, indices, inv_propensity, cutoffs)

    means = sums[:, :4] / documents if documents else np.full((len(cutoffs), 4), np.nan)
    names = ["P", "nDCG", "R", "RP"]
    if inv_propensity is not None:
        achieved, best = sums[:, 4::2], sums[:, 5::2]
        ratios = np.divide(achieved, best, out=np.full_like(achieved, np.nan), where=best > 0)
        means = np.concatenate([means, ratios], axis=1)
        names += ["PSP", "PSnDCG"]
    row_of = {int(k): row for row, k in enumerate(cutoffs)}
    return {f"{name}@{k}": float(means[row_of[int(k)], column]) for column, name in enumerate(names) for k in ks}


def _sums_on_cpu(
    top: Array, indptr: Array, indices: Array, inv_propensity: Array | None, cutoffs: np.ndarray
) -> tuple[np.ndarray, int]:
    top, indices = _integers(top), _integers(indices)
    indptr = np.ascontiguousarray(_numpy(indptr), dtype=np.int64)
    weights = None if inv_propensity is None else np.ascontiguousarray(_numpy(inv_propensity), dtype=np.float64)
    _check_shapes(top, indptr, indices, weights)
    module = native.cpu()
    if module is None:
        _check(indptr, indices, weights)
        return reference.ranking_sums(top, indptr, indices, weights, cutoffs)
    sums = np.empty((len(cutoffs), 8))
    documents = getattr(module, f"ranking_sums_{top.dtype}_{indices.dtype}")(
        top.ctypes.data,
        *top.shape,
        indptr.ctypes.data,
        indices.ctypes.data,
        len(indices),
        np.iinfo(np.int64).max if weights is None else len(weights),
        0 if weights is None else weights.ctypes.data,
        cutoffs.ctypes.data,
        len(cutoffs),
        sums.ctypes.data,
        native.threads(),
    )
    if documents < 0:
        _check(indptr, indices, weights)
    return sums, documents


def _sums_on_gpu(
    gpu: native.Gpu, top: Array, indptr: Array, indices: Array, inv_propensity: Array | None, cutoffs: np.ndarray
) -> tuple[np.ndarray, int]:
    top, indices, indptr = (_tensor(each, gpu.device) for each in (top, indices, indptr))
    top, indices = (each if each.dtype == torch.int32 else each.long() for each in (top, indices))
    indptr = indptr.long()
    weights = None if inv_propensity is None else _tensor(inv_propensity, gpu.device).double()
    _check_shapes(top, indptr, indices, weights)
    blocks = max(1, min(GPU_BLOCKS, len(top) // GPU_DOCUMENTS))
    tables = _tables(tuple(cutoffs.tolist()), top.device)
    partial = tables.new_empty(blocks + 1, len(cutoffs) * 8 + 2)
    gpu(
        f"ranking_sums_{_name(top)}_{_name(indices)}",
        top.data_ptr(),
        *top.shape,
        indptr.data_ptr(),
        indices.data_ptr(),
        len(indices),
        np.iinfo(np.int64).max if weights is None else len(weights),
        0 if weights is None else weights.data_ptr(),
        tables.data_ptr(),
        len(cutoffs),
        int(cutoffs[-1]),
        partial[1:].data_ptr(),
        blocks,
        partial.data_ptr(),
    )
    *sums, documents, faults = partial[0].tolist()
    if faults:
        _check(_numpy(indptr), _numpy(indices), None if weights is None else _numpy(weights))
    return np.array(sums).reshape(-1, 8), int(documents)


@functools.lru_cache(maxsize=16)
def _tables(cutoffs: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """On a GPU: the cutoffs, the discount of each rank, and one over the sum of the first of them, from none on."""
    discounts = 1.0 / np.log2(np.arange(cutoffs[-1]) + 2.0)
    return torch.from_numpy(np.concatenate([cutoffs, discounts, [0.0], 1.0 / discounts.cumsum()])).to(device)


def _name(array: torch.Tensor) -> str:
    return str(array.dtype).removeprefix("torch.")


def _check_shapes(top: Array, indptr: Array, indices: Array, weights: Array | None) -> None:
    if top.ndim != 2 or tuple(indptr.shape) != (len(top) + 1,) or indices.ndim != 1:
        raise KernelError(
            f"ranking_metrics needs top (N,K), indptr (N+1,) and indices (n,); "
            f"got {tuple(top.shape)}, {tuple(indptr.shape)} and {tuple(indices.shape)}"
        )
    if weights is not None and weights.ndim != 1:
        raise KernelError(f"inv_propensity {tuple(weights.shape)} needs one value per label")


def _check(indptr: np.ndarray, indices: np.ndarray, weights: np.ndarray | None) -> None:
    """Says what is wrong with the true labels. The native kernel looks for itself, on its way, whether anything is."""
    if indptr[0] != 0 or indptr[-1] != len(indices) or np.any(np.diff(indptr) < 0) or np.any(indices < 0):
        raise KernelError("ranking_metrics: indptr and indices are not those of a CSR matrix")
    if weights is not None and indices.max(initial=-1) >= len(weights):
        raise KernelError(
            f"inv_propensity {weights.shape} needs one value per label; there is a true label {indices.max()}"
        )


def _integers(array: Array) -> np.ndarray:
    """In one piece and not copied where they already are int32 or int64, which the kernels read both."""
    array = _numpy(array)
    return np.ascontiguousarray(array, dtype=np.int32 if array.dtype == np.int32 else np.int64)


def _tensor(array: Array, device: torch.device) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array.detach().to(device).contiguous()
    return torch.tensor(np.ascontiguousarray(array), device=device)


def _numpy(array: Array) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
