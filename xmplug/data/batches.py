"""Batches of texts of like length, so that little is padding."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix

from ..interfaces import Batch, Targets
from .tokens import TokenStore

_POOL = 64
"""Batches' worth of texts that are sorted by length together: large enough to leave little padding, small enough
that the texts of a batch stay a random choice."""


def training_order(lengths: np.ndarray, batch_size: int, seed: tuple[int, ...]) -> list[np.ndarray]:
    """Places of the texts of each batch of one epoch. A pure function of its arguments: a resumed run repeats it."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(shuffled), batch_size * _POOL):
        pool = shuffled[start : start + batch_size * _POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    return [batches[at] for at in rng.permutation(len(batches))]


def inference_order(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Places of the texts of each batch, longest first, so that a lack of memory shows at once."""
    ranked = np.argsort(-lengths, kind="stable")
    return [ranked[at : at + batch_size] for at in range(0, len(ranked), batch_size)]


def make_batch(store: TokenStore, places: np.ndarray, training: bool = False) -> Batch:
    """The texts at `places` as tensors."""
    return Batch(
        torch.from_numpy(np.ascontiguousarray(places, dtype=np.int64)),
        torch.from_numpy(store.padded(places)),
        torch.from_numpy(store.lengths[places]),
        training,
        _rows(store.features, places),
        _rows(store.candidates, places),
    )


def _rows(matrix: csr_matrix | None, places: np.ndarray) -> csr_matrix | None:
    """The rows `places`. Of a single one, no copy: choosing rows takes longer than scoring a text in a small tree."""
    return matrix if matrix is None or matrix.shape[0] == len(places) == 1 else matrix[places]


def make_targets(targets, places: np.ndarray) -> Targets:  # type: ignore[no-untyped-def]
    """The rows `places` of a CSR matrix."""
    rows = targets[places]
    return Targets(torch.from_numpy(rows.indptr.astype(np.int64)), torch.from_numpy(rows.indices.astype(np.int64)))
