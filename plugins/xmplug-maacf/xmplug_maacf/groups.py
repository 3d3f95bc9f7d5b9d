"""Global nearest label groups: for each label those that occur with it and tell most (MAACF+ section 3.2.1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from torch import Tensor

from xmplug import RunError
from xmplug.data import Corpus
from xmplug.interfaces import Encoder, LabelContext, Task

from . import LabelGroupsConfig

_PAIRS = 20_000_000
"""Pairs of labels that are counted at once: some hundred megabytes, whatever the number of labels."""


class LabelGroups(LabelContext):
    """The score of a label, or of a node of a tree, is informed by the k nearest of its level."""

    def __init__(self, neighbours: int, levels: dict[int, np.ndarray]):
        """levels: of each level the groups (nodes,k) int32, -1 = none."""
        self.k, self.levels = neighbours, levels

    @classmethod
    def fit(cls, config: LabelGroupsConfig, corpus: Corpus, encoder: Encoder) -> LabelGroups:
        return cls(config.neighbours, {})

    @classmethod
    def restore(cls, config: LabelGroupsConfig, folder: Path, task: Task, encoder: Encoder) -> LabelGroups:
        path = folder / "groups.safetensors"
        try:
            arrays = load_file(path)
            return cls(config.neighbours, {int(level): groups for level, groups in arrays.items()})
        except (OSError, SafetensorError, ValueError) as error:
            raise RunError(f"{path} holds no label groups ({error}); restore it from a copy, or train again") from error

    def save(self, folder: Path) -> None:
        save_file({str(level): groups for level, groups in self.levels.items()}, folder / "groups.safetensors")

    def fit_level(self, level: int, targets: csr_matrix) -> None:
        self.levels[level] = nearest_labels(targets, self.k)

    def label_groups(self, level: int) -> Tensor | None:
        return torch.from_numpy(self.levels[level].astype(np.int64)) if self.k else None


def nearest_labels(targets: csr_matrix, k: int) -> np.ndarray:
    """For each label the k others of the largest CF-IDF (eq. 1 to 3), best first.

    targets (N,L): the labels of each document. Returns (L,k) int32, -1 = none: only labels that occur together with a
    label are near it. Equal values are ordered by label. Never more than the pairs that occur are in memory, and of
    these a part at a time.
    """
    documents, labels = targets.shape
    of_document = csr_matrix(targets != 0, dtype=np.int32)
    of_label = of_document.T.tocsr()  # (L,N)
    count = np.diff(of_label.indptr)
    idf = np.log(documents / np.maximum(count, 1))  # eq. 2
    groups = np.full((labels, k), -1, np.int32)
    # So many pairs a label has at most: each document of it, with all of the document's labels.
    pairs = np.concatenate([[0], np.cumsum(of_label @ np.diff(of_document.indptr).astype(np.int64))])
    begin = 0
    while k and begin < labels:
        end = max(begin + 1, int(np.searchsorted(pairs, pairs[begin] + _PAIRS, side="right")) - 1)
        together = (of_label[begin:end] @ of_document).tocoo()  # count(i, j)
        label, near = together.row + begin, together.col
        value = together.data / documents * idf[near]  # eq. 1 and 3
        value[label == near] = -1  # no label is its own neighbour
        order = np.lexsort((near, -value, label))
        label, near, value = label[order], near[order], value[order]
        first = np.searchsorted(label, np.arange(begin, end))
        rank = np.arange(len(label)) - first[label - begin]
        kept = (rank < k) & (value >= 0)
        groups[label[kept], rank[kept]] = near[kept]
        begin = end
    return groups
