"""The operations that extreme classification spends its time in.

Each has one public function, a PyTorch or numpy reference that is its specification, and a native kernel
where one is built; `kernels()` says which of them run here.
"""

from xmplug.ops.adam import sparse_adam_step
from xmplug.ops.attention import label_attention
from xmplug.ops.bce import linear_bce, linear_bce_step
from xmplug.ops.beam import beam_step, tree_beam_search
from xmplug.ops.linear import LinearWeights, linear_scores, train_linear
from xmplug.ops.native import kernels
from xmplug.ops.ranking import ranking_metrics
from xmplug.ops.tree import LabelTree, build_label_tree, cluster_label_tree

__all__ = [
    "LabelTree",
    "LinearWeights",
    "beam_step",
    "build_label_tree",
    "cluster_label_tree",
    "kernels",
    "label_attention",
    "linear_bce",
    "linear_bce_step",
    "linear_scores",
    "ranking_metrics",
    "sparse_adam_step",
    "train_linear",
    "tree_beam_search",
]
