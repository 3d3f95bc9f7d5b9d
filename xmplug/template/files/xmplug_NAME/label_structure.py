"""Which labels to score for a text."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from xmplug.components.tree import Tree
from xmplug.data import Corpus
from xmplug.ops import build_label_tree


class CoOccurrenceTree(Tree):
    """A balanced tree in which labels of the same texts lie together.

    To change: the features in `fit`, by which labels are clustered. Levels, candidates and saving come with `Tree`; a
    structure that is no tree is a subclass of `xmplug.interfaces.LabelStructure`, and `xmplug.components.flat` the
    shortest example.
    """

    @classmethod
    def fit(cls, config: Any, corpus: Corpus) -> CoOccurrenceTree:
        targets = corpus.targets.astype(np.float32)  # (N,L)
        together = csr_matrix(targets.T @ targets)  # (L,L): texts that two labels share
        return cls(build_label_tree(together, config.branching, config.max_leaf, corpus.task.seed), config.beam)
