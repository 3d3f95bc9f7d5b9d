"""Global nearest label groups, eq. 1 to 3, by hand and by another way to count."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import xmplug_maacf.groups as groups_module
from scipy.sparse import csr_matrix, random_array
from xmplug_maacf import LabelGroupsConfig
from xmplug_maacf.groups import LabelGroups, nearest_labels

from xmplug import RunError


def _cf_idf(dense: np.ndarray) -> np.ndarray:
    """Eq. 1 to 3 as they are printed, for every pair of labels; (L,L)."""
    documents, labels = dense.shape
    values = np.zeros((labels, labels))
    for i in range(labels):
        for j in range(labels):
            together = sum(1 for row in dense if row[i] and row[j])
            count = sum(1 for row in dense if row[j])
            values[i, j] = together / documents * math.log(documents / count) if together else -1
    return values


def test_by_hand() -> None:
    # Label 0 is in every document: it tells nothing (IDF 0), and comes last. Label 3 is in none with another.
    targets = csr_matrix(
        [
            [1, 1, 1, 0, 0],
            [1, 1, 0, 0, 1],
            [1, 1, 1, 0, 0],
            [1, 0, 1, 0, 1],
        ]
    )
    # CF-IDF of label 1: with 2 it is 2/4 log(4/3), with 4 it is 1/4 log(4/2): 0.144 and 0.173.
    assert nearest_labels(targets, 3).tolist() == [
        [4, 1, 2],  # 2/4 log 2 = 0.347; 3/4 log(4/3) = 0.216 of both others: ties by label
        [4, 2, 0],
        [4, 1, 0],
        [-1, -1, -1],
        [1, 2, 0],  # 1/4 log(4/3) of both
    ]


def test_equals_the_equations_whatever_is_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = random_array((60, 25), density=0.15, rng=np.random.default_rng(3)).toarray() > 0
    values = _cf_idf(dense)
    whole = nearest_labels(csr_matrix(dense), 4)
    for label, near in enumerate(whole):
        others = [other for other in range(25) if other != label and values[label, other] >= 0]
        # Values that differ by rounding alone count as equal: then the smaller label goes first.
        best = sorted(others, key=lambda other: (-round(values[label, other], 12), other))[:4]
        assert near.tolist() == best + [-1] * (4 - len(best))
    monkeypatch.setattr(groups_module, "_PAIRS", 7)
    assert np.array_equal(nearest_labels(csr_matrix(dense), 4), whole)


def test_stored_zeros_and_counts_are_no_labels() -> None:
    targets = csr_matrix(([2, 1, 0, 1], ([0, 0, 0, 1], [0, 1, 2, 2])), shape=(2, 3))
    assert nearest_labels(targets, 1).tolist() == [[1], [0], [-1]]


def test_no_group_at_all() -> None:
    assert nearest_labels(csr_matrix((5, 0)), 2).shape == (0, 2)
    assert nearest_labels(csr_matrix(np.ones((3, 4))), 0).shape == (4, 0)
    context = LabelGroups.fit(LabelGroupsConfig(neighbours=0), None, None)  # type: ignore[arg-type]
    context.fit_level(0, csr_matrix(np.ones((3, 4))))
    assert context.label_groups(0) is None


def test_saved_and_restored(tmp_path: Path) -> None:
    config = LabelGroupsConfig(neighbours=2)
    context = LabelGroups.fit(config, None, None)  # type: ignore[arg-type]
    context.fit_level(0, csr_matrix(np.eye(3)))
    context.fit_level(1, csr_matrix(np.ones((2, 4))))
    context.save(tmp_path)
    again = LabelGroups.restore(config, tmp_path, None, None)  # type: ignore[arg-type]
    for level in (0, 1):
        found, kept = again.label_groups(level), context.label_groups(level)
        assert found is not None
        assert kept is not None
        assert torch.equal(found, kept)
        assert found.dtype == torch.int64
    with pytest.raises(RunError, match="holds no label groups"):
        LabelGroups.restore(config, tmp_path / "none", None, None)  # type: ignore[arg-type]
