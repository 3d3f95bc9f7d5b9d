"""Ranked lists of several taggers made into one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import ConfigError

METHODS = ("mean", "weighted", "fitted", "ranks")
"""Ways to combine: weights equal, given or fitted for the members' scores; equal ones for their ranks."""

_RANK_OFFSET = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""


def rank_scores(labels: np.ndarray) -> np.ndarray:
    """Scores (N,K) float32 that tell nothing but the ranks of labels (N,K), -1 = none.

    (60 + 1) / (60 + rank): reciprocal rank fusion, scaled so that the first label has 1.
    """
    ranks = np.arange(1, labels.shape[1] + 1)
    return np.where(labels >= 0, (_RANK_OFFSET + 1) / (_RANK_OFFSET + ranks), 0).astype(np.float32)


def align(lists: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The labels that stand in any of M lists, and their score in each.

    lists: labels (N,K) integers, -1 = none, and scores (N,K) of each member; K may differ. Returns labels (N,W) int64,
    ascending, then -1; and scores (M,N,W) float64, 0 where a label is not in a member's list.
    """
    labels = np.concatenate([labels for labels, _ in lists], axis=1)
    order = np.argsort(labels, axis=1, kind="stable")
    ascending = np.take_along_axis(labels, order, 1)
    first = np.diff(ascending, axis=1, prepend=-1) != 0  # where a label begins; -1 is none
    columns = np.empty_like(order)
    np.put_along_axis(columns, order, first.cumsum(axis=1) - 1, 1)
    width = max(1, int(first.sum(axis=1).max(initial=0)))
    union = np.full((len(labels), width), -1, np.int64)
    scores = np.zeros((len(lists), *union.shape))
    begin = 0
    for member, (known, score) in enumerate(lists):
        row, place = np.nonzero(known >= 0)
        column = columns[row, begin + place]
        union[row, column], scores[member, row, column] = known[row, place], score[row, place]
        begin += known.shape[1]
    return union, scores


def highest(labels: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k labels of each row with the highest scores, best first, of equal ones the smaller label.

    labels (N,W) and scores (N,W) as `align` orders them. Returns labels (N,k) int64, -1 = none, and scores (N,k)
    float32.
    """
    order = np.argsort(np.where(labels >= 0, -scores, np.inf), axis=1, kind="stable")[:, :k]
    missing = ((0, 0), (0, k - order.shape[1]))
    return (
        np.pad(np.take_along_axis(labels, order, 1), missing, constant_values=-1),
        np.pad(np.take_along_axis(scores, order, 1), missing).astype(np.float32),
    )


def check_weights(weights: Sequence[float], members: int) -> list[float]:
    """The weights of as many members. Raises ConfigError where they are not such."""
    if len(weights) != members or not np.all(np.isfinite(weights)) or min(weights) < 0 or not sum(weights):
        raise ConfigError(f"found weights {list(weights)}; give {members} numbers of 0 or more, not all of them 0")
    return list(weights)


def weighted_mean(scores: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """(N,W) float64 of the members' scores (M,N,W)."""
    return np.tensordot(np.asarray(weights, np.float64), scores, 1) / np.sum(weights)
