"""The flat label structure: one level, every label is scored for every text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix
from torch import Tensor

from ..data import Corpus
from ..interfaces import Batch, LabelStructure, Shortlist, Task
from . import FlatConfig


class Flat(LabelStructure):
    num_levels = 1
    beam = 0

    def __init__(self, num_labels: int):
        self.num_labels = num_labels

    @classmethod
    def fit(cls, config: FlatConfig, corpus: Corpus) -> Flat:
        return cls(corpus.task.num_labels)

    @classmethod
    def restore(cls, config: FlatConfig, folder: Path, task: Task) -> Flat:
        return cls(task.num_labels)

    def save(self, folder: Path) -> None:
        """Nothing besides the number of labels, which the run knows."""

    def level_size(self, level: int) -> int:
        return self.num_labels

    def level_targets(self, level: int, labels: csr_matrix) -> csr_matrix:
        return labels

    def shortlist(self, level: int, batch: Batch, nodes: Tensor | None, scores: Tensor | None) -> Shortlist:
        return Shortlist()

    def leaf_labels(self) -> np.ndarray:
        return np.arange(self.num_labels)
