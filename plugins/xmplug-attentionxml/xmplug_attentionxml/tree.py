"""Shallow and wide probabilistic label tree (AttentionXML sections 2.2 and 2.3)."""

from __future__ import annotations

from pathlib import Path

from xmplug.components.tree import Tree, read_tree
from xmplug.data import Corpus
from xmplug.interfaces import Task
from xmplug.ops import build_label_tree

from . import PLTConfig


class PLT(Tree):
    """The lowest `height` levels of a balanced K-ary tree over the labels, then the labels themselves.

    The paper builds a binary tree by balanced 2-means on the labels' features, down to clusters of at most M labels,
    and compresses it H times by c levels (K = M = 2^c), the last time up to the root. Here each node is split up to K
    ways by the same balanced 2-means, which allows any K and fills clusters better (8,000 labels and M = 8: 1,000
    clusters, where halving gives 1,024); cutting the tree H levels above the labels is the last compression. All labels
    are at the same depth. A tree with fewer than H levels is used as it is: few labels give a flat model.
    """

    @classmethod
    def fit(cls, config: PLTConfig, corpus: Corpus) -> PLT:  # type: ignore[override]
        tree = build_label_tree(corpus.label_features, config.branching, config.branching, corpus.task.seed)
        return cls(tree, config.beam, config.height)

    @classmethod
    def restore(cls, config: PLTConfig, folder: Path, task: Task) -> PLT:  # type: ignore[override]
        return cls(read_tree(folder, task), config.beam, config.height)
