"""Ranking metrics of a whole test set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from xmplug.errors import KernelError
from xmplug.ops import native, reference


def ranking_metrics(
    top: torch.Tensor | np.ndarray,
    indptr: torch.Tensor | np.ndarray,
    indices: torch.Tensor | np.ndarray,
    inv_propensity: torch.Tensor | np.ndarray | None = None,
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
    """
    top, indices = _integers(top), _integers(indices)
    indptr = np.ascontiguousarray(_numpy(indptr), dtype=np.int64)
    if top.ndim != 2 or indptr.shape != (len(top) + 1,) or indices.ndim != 1:
        raise KernelError(
            f"ranking_metrics needs top (N,K), indptr (N+1,) and indices (n,); "
            f"got {top.shape}, {indptr.shape} and {indices.shape}"
        )
    cutoffs = np.unique(np.asarray(ks, dtype=np.int64))
    if len(cutoffs) == 0 or cutoffs[0] < 1:
        raise KernelError(f"ranking_metrics needs at least one k, and each of them above 0; got {tuple(ks)}")
    weights = None
    if inv_propensity is not None:
        weights = np.ascontiguousarray(_numpy(inv_propensity), dtype=np.float64)
        if weights.ndim != 1:
            raise KernelError(f"inv_propensity {weights.shape} needs one value per label")
    sums, documents = _ranking_sums(top, indptr, indices, weights, cutoffs)

    means = sums[:, :4] / documents if documents else np.full((len(cutoffs), 4), np.nan)
    names = ["P", "nDCG", "R", "RP"]
    if weights is not None:
        achieved, best = sums[:, 4::2], sums[:, 5::2]
        ratios = np.divide(achieved, best, out=np.full_like(achieved, np.nan), where=best > 0)
        means = np.concatenate([means, ratios], axis=1)
        names += ["PSP", "PSnDCG"]
    row_of = {int(k): row for row, k in enumerate(cutoffs)}
    return {f"{name}@{k}": float(means[row_of[int(k)], column]) for column, name in enumerate(names) for k in ks}


def _ranking_sums(
    top: np.ndarray, indptr: np.ndarray, indices: np.ndarray, weights: np.ndarray | None, cutoffs: np.ndarray
) -> tuple[np.ndarray, int]:
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


def _check(indptr: np.ndarray, indices: np.ndarray, weights: np.ndarray | None) -> None:
    """Says what is wrong with the true labels. The native kernel looks for itself, on its way, whether anything is."""
    if indptr[0] != 0 or indptr[-1] != len(indices) or np.any(np.diff(indptr) < 0) or np.any(indices < 0):
        raise KernelError("ranking_metrics: indptr and indices are not those of a CSR matrix")
    if weights is not None and indices.max(initial=-1) >= len(weights):
        raise KernelError(
            f"inv_propensity {weights.shape} needs one value per label; there is a true label {indices.max()}"
        )


def _integers(array: torch.Tensor | np.ndarray) -> np.ndarray:
    """In one piece and not copied where they already are int32 or int64, which the kernel reads both."""
    array = _numpy(array)
    return np.ascontiguousarray(array, dtype=np.int32 if array.dtype == np.int32 else np.int64)


def _numpy(array: torch.Tensor | np.ndarray) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
