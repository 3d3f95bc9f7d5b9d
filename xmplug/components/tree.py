"""Labels as the leaves of a tree, which training and inference walk level by level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from torch import Tensor

from ..data import Corpus
from ..errors import RunError, XmplugError
from ..interfaces import Batch, LabelStructure, Shortlist, Task
from ..ops import LabelTree, build_label_tree, cluster_label_tree
from . import TreeConfig


class Tree(LabelStructure):
    """The levels of a label tree below the root, or only the lowest `height` of those above the labels."""

    def __init__(self, tree: LabelTree, beam: int, height: int | None = None):
        self.tree, self.beam = tree, beam
        offsets = tree.level_offsets
        first = 1 if height is None else max(1, tree.num_levels - 1 - height)  # level 0 is the root
        self._sizes = np.diff(offsets)[first:]
        self.num_levels = len(self._sizes)
        # Where the children of each node begin, level by level, in numbers local to the level below.
        self._children = [
            torch.from_numpy(tree.first_child[offsets[level] : offsets[level + 1] + 1] - offsets[level + 1])
            for level in range(first, tree.num_levels - 1)
        ]

    @classmethod
    def fit(cls, config: TreeConfig, corpus: Corpus) -> Tree:
        build = build_label_tree if config.balanced else cluster_label_tree
        return cls(build(corpus.label_features, config.branching, config.max_leaf, corpus.task.seed), config.beam)

    @classmethod
    def restore(cls, config: TreeConfig, folder: Path, task: Task) -> Tree:
        return cls(read_tree(folder, task), config.beam)

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
        size = torch.where(nodes < 0, 0, end - begin)
        child = begin[:, :, None] + torch.arange(int(size.max()) if size.numel() else 1, device=nodes.device)  # (B,b,K)
        absent = (child >= end[:, :, None]) | (nodes < 0)[:, :, None]
        prior = scores[:, :, None].expand_as(child).masked_fill(absent, 0)
        return Shortlist(child.masked_fill(absent, -1).flatten(1), prior.flatten(1))

    def siblings(self, level: int) -> np.ndarray:
        return super().siblings(level) if level == 0 else self._children[level - 1].numpy()

    def leaf_labels(self) -> np.ndarray:
        return self.tree.labels


def read_tree(folder: Path, task: Task) -> LabelTree:
    """The tree that `Tree.save` wrote. Raises RunError when it is missing, damaged or of other labels."""
    path = folder / "tree.safetensors"
    try:
        tree = LabelTree.from_arrays(load_file(path))
        if tree.num_labels != task.num_labels:
            raise RunError(f"it is for {tree.num_labels} labels, and the run has {task.num_labels}")
        return tree
    except (OSError, SafetensorError, XmplugError) as error:
        raise RunError(f"{path} holds no label tree ({error}); restore it from a copy, or train again") from error
