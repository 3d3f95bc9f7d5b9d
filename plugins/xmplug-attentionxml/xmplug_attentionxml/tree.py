"""Shallow and wide probabilistic label tree (AttentionXML sections 2.2 and 2.3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from torch import Tensor

from xmplug import RunError, XmplugError
from xmplug.data import Corpus
from xmplug.interfaces import Batch, LabelStructure, Shortlist, Task
from xmplug.ops import LabelTree, build_label_tree

from . import PLTConfig


class PLT(LabelStructure):
    """The lowest `height` levels of a balanced K-ary tree over the labels, then the labels themselves.

    The paper builds a binary tree by balanced 2-means on the labels' features, down to clusters of at most M labels,
    and compresses it H times by c levels (K = M = 2^c), the last time up to the root. Here each node is split up to K
    ways by the same balanced 2-means, which allows any K and fills clusters better (8,000 labels and M = 8: 1,000
    clusters, where halving gives 1,024); cutting the tree H levels above the labels is the last compression. All labels
    are at the same depth. A tree with fewer than H levels is used as it is: few labels give a flat model.
    """

    def __init__(self, config: PLTConfig, tree: LabelTree):
        self.tree, self.beam = tree, config.beam
        offsets = tree.level_offsets
        first = max(1, tree.num_levels - 1 - config.height)  # level 0 is the root
        self._sizes = np.diff(offsets)[first:]
        self.num_levels = len(self._sizes)
        # Where the children of each node begin, level by level, in numbers local to the level below.
        self._children = [
            torch.from_numpy(tree.first_child[offsets[level] : offsets[level + 1] + 1] - offsets[level + 1])
            for level in range(first, tree.num_levels - 1)
        ]

    @classmethod
    def fit(cls, config: PLTConfig, corpus: Corpus) -> PLT:
        features = corpus.label_features
        return cls(config, build_label_tree(features, config.branching, config.branching, corpus.task.seed))

    @classmethod
    def restore(cls, config: PLTConfig, folder: Path, task: Task) -> PLT:
        path = folder / "tree.safetensors"
        try:
            tree = LabelTree.from_arrays(load_file(path))
            if tree.num_labels != task.num_labels:
                raise RunError(f"it is for {tree.num_labels} labels, and the run has {task.num_labels}")
            return cls(config, tree)
        except (OSError, SafetensorError, XmplugError) as error:
            raise RunError(f"{path} holds no label tree ({error}); restore it from a copy, or train again") from error

    def save(self, folder: Path) -> None:
        save_file(self.tree.to_arrays(), folder / "tree.safetensors")

    def level_size(self, level: int) -> int:
        return int(self._sizes[level])

    def level_targets(self, level: int, labels: csr_matrix) -> csr_matrix:
        labels = labels.tocsr(copy=True)
        labels.prune()
        # Row by row, a label becomes its leaf, and the leaf the ancestor that its number falls under.
        node_of = np.empty(self.tree.num_labels, np.int64)
        node_of[self.tree.labels] = np.arange(self.tree.num_labels)
        for children in reversed(self._children[level:]):
            node_of = np.searchsorted(children.numpy(), node_of, side="right") - 1
        shape = (labels.shape[0], self.level_size(level))
        nodes = csr_matrix((np.ones(labels.nnz, np.int8), node_of[labels.indices], labels.indptr), shape=shape)
        nodes.sum_duplicates()
        nodes.data[:] = 1
        return nodes

    def shortlist(self, level: int, batch: Batch, nodes: Tensor | None, scores: Tensor | None) -> Shortlist:
        if level == 0 or nodes is None or scores is None:
            return Shortlist()
        first = self._children[level - 1].to(nodes.device)
        known = nodes.clamp(min=0)  # (B,b)
        begin, end = first[known], first[known + 1]
        child = begin[:, :, None] + torch.arange(int(first.diff().max()), device=nodes.device)  # (B,b,K)
        absent = (child >= end[:, :, None]) | (nodes < 0)[:, :, None]
        prior = scores[:, :, None].expand_as(child).masked_fill(absent, 0)
        return Shortlist(child.masked_fill(absent, -1).flatten(1), prior.flatten(1))

    def leaf_labels(self) -> np.ndarray:
        return self.tree.labels
