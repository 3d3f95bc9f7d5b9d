"""Linear classifiers on sparse features, one for each node of a tree level: training and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from scipy import sparse

from xmplug.errors import KernelError
from xmplug.ops import native, reference

LinearLoss = Literal["squared_hinge", "logistic"]


@dataclass(frozen=True, eq=False)
class LinearWeights:
    """A sparse weight vector and a bias for each node of a level; nodes lie in groups of siblings.

    The weights of a group lie together, feature by feature, so that one pass over a text's features scores all siblings
    ("chunks" of Etter et al., WWW 2022).

    num_features: F, the length of a feature vector
    groups (G+1,) int64: nodes of group g are groups[g] to groups[g + 1]
    group_indptr (G+1,) int64: its features, ascending, are features[group_indptr[g]:group_indptr[g + 1]]
    features (R,) int32
    feature_indptr (R+1,) int64: entries of each of these features
    columns (E,) int32: the place of an entry's node in its group, ascending for a feature
    weights (E,) float32
    biases (nodes,) float32
    """

    num_features: int
    groups: np.ndarray
    group_indptr: np.ndarray
    features: np.ndarray
    feature_indptr: np.ndarray
    columns: np.ndarray
    weights: np.ndarray
    biases: np.ndarray

    @property
    def num_nodes(self) -> int:
        return len(self.biases)

    def check(self, num_nodes: int) -> None:
        """Raises KernelError where the arrays are not those of `num_nodes` nodes. Of large ones, which may be mapped
        from a file, only a few numbers are read."""
        kinds = dict.fromkeys(("features", "columns"), np.int32) | dict.fromkeys(("weights", "biases"), np.float32)
        for field in fields(self)[1:]:
            array = getattr(self, field.name)
            if array.ndim != 1 or array.dtype != kinds.get(field.name, np.int64):
                raise KernelError(f"linear weights cannot have {field.name} of {array.dtype} {array.shape}")
        ends = [(0, num_nodes), (0, len(self.features)), (0, len(self.weights))]
        offsets = [self.groups, self.group_indptr, self.feature_indptr]
        if (
            len(self.biases) != num_nodes
            or len(self.columns) != len(self.weights)
            or len(self.groups) != len(self.group_indptr)
            or len(self.feature_indptr) != len(self.features) + 1
            or len(self.groups) < 2
            or any((array[0], array[-1]) != end for array, end in zip(offsets, ends))
            or any(np.any(np.diff(array) < 0) for array in offsets[:2])
        ):
            raise KernelError(f"the arrays of the linear weights do not agree, or are not those of {num_nodes} nodes")
        # Ascending in a group.
        last = self.features[self.group_indptr[1:][np.diff(self.group_indptr) > 0] - 1]
        if len(last) and last.max() >= self.num_features:
            raise KernelError(f"linear weights of feature {last.max()}; there are {self.num_features}")

    def to_matrix(self) -> sparse.csr_matrix:
        """(nodes, F) CSR: the weights without the biases."""
        group = np.repeat(np.arange(len(self.groups) - 1), np.diff(self.group_indptr))  # of each feature
        per_feature = np.diff(self.feature_indptr)
        rows = np.repeat(self.groups[:-1][group], per_feature) + self.columns
        shape = (self.num_nodes, self.num_features)
        return sparse.csr_matrix((self.weights, (rows, np.repeat(self.features, per_feature))), shape=shape)

    def rows(self, nodes: np.ndarray) -> sparse.csr_matrix:
        """(len(nodes), F) CSR: the weights of some nodes."""
        found = []
        for group, place in zip(np.searchsorted(self.groups, nodes, side="right") - 1, nodes):
            first, last = self.group_indptr[group], self.group_indptr[group + 1]
            entries = slice(self.feature_indptr[first], self.feature_indptr[last])
            own = np.flatnonzero(self.columns[entries] == place - self.groups[group])
            feature = np.searchsorted(self.feature_indptr, own + entries.start, side="right") - 1
            row = (np.zeros(len(own), np.int64), self.features[feature])
            found.append(sparse.csr_matrix((self.weights[entries][own], row), shape=(1, self.num_features)))
        return sparse.csr_matrix(sparse.vstack(found)) if found else sparse.csr_matrix((0, self.num_features))

    @classmethod
    def joined(cls, parts: Sequence[LinearWeights]) -> LinearWeights:
        """The nodes of several levels, one behind another, as one."""

        def offsets(name: str) -> np.ndarray:
            ends = np.cumsum([0, *(getattr(part, name)[-1] for part in parts)])
            return np.concatenate([[0], *(getattr(part, name)[1:] + end for part, end in zip(parts, ends))])

        flat = (np.concatenate([getattr(part, name) for part in parts]) for name in ("columns", "weights", "biases"))
        features = np.concatenate([part.features for part in parts])
        indptr = offsets("group_indptr"), features, offsets("feature_indptr")
        return cls(parts[0].num_features, offsets("groups"), *indptr, *flat)

    @classmethod
    def beside(cls, parts: Sequence[LinearWeights]) -> LinearWeights:
        """The nodes of several levels of one group each, one behind another, as one group."""
        matrix = sparse.csr_matrix(sparse.vstack([part.to_matrix() for part in parts]))
        biases = np.concatenate([part.biases for part in parts])
        return cls.of_matrix(matrix, biases, np.array([0, len(biases)]))

    @classmethod
    def of_matrix(cls, matrix: sparse.csr_matrix, biases: np.ndarray, groups: np.ndarray) -> LinearWeights:
        """The inverse of `to_matrix`."""
        groups = np.ascontiguousarray(groups, dtype=np.int64)
        entries = sparse.coo_matrix(matrix)
        group = np.searchsorted(groups, entries.row, side="right") - 1
        order = np.lexsort((entries.row, entries.col, group))
        group, row, column = group[order], entries.row[order], entries.col[order]
        new = np.ones(len(order), bool)
        new[1:] = (np.diff(group) != 0) | (np.diff(column) != 0)
        starts = np.flatnonzero(new)
        return cls(
            matrix.shape[1],
            groups,
            np.searchsorted(group[starts], np.arange(len(groups))).astype(np.int64),
            column[starts].astype(np.int32),
            np.append(starts, len(order)).astype(np.int64),
            (row - groups[group]).astype(np.int32),
            entries.data[order].astype(np.float32),
            np.ascontiguousarray(biases, dtype=np.float32),
        )


def train_linear(
    features: sparse.csr_matrix,
    targets: sparse.csr_matrix,
    groups: np.ndarray,
    active: sparse.csr_matrix,
    *,
    loss: LinearLoss = "squared_hinge",
    cost: float = 1.0,
    bias: float = 1.0,
    tolerance: float = 0.1,
    passes: int = 100,
    prune: float = 0.0,
    seed: int = 0,
) -> LinearWeights:
    """Train an L2-regularised linear classifier for each node of a level, by dual coordinate descent.

    features (N,F): the texts. targets (N,nodes): not 0 where a node is true. groups (G+1,) int64, ascending: nodes of
    group g are groups[g] to groups[g + 1]. active (N,G): not 0 where a text is an example for the nodes of a group; it
    is a negative one for those of them that are not true.

    Each node n minimises  |w|^2 / 2 + cost * sum over its texts of loss(y (w . x)),  where y is 1 for a true text and
    -1 for another, x has one more feature of the value `bias` (0: none), and loss(m) is max(0, 1 - m)^2 or
    log(1 + exp(-m)). `tolerance` bounds the largest projected gradient of the dual at the end (for the squared hinge,
    the range of them), `passes` the passes over the texts. Weights with |w| < `prune` are dropped. The same seed gives
    the same weights, whatever the number of threads.

    Raises KernelError for shapes that do not agree and for values that are not finite.
    """
    groups = np.ascontiguousarray(groups, dtype=np.int64)
    texts, nodes = features.shape[0], int(groups[-1]) if len(groups) else 0
    if len(groups) < 2 or groups[0] != 0 or np.any(np.diff(groups) < 0):
        raise KernelError("groups of nodes must ascend from 0, with at least one group")
    if targets.shape != (texts, nodes) or active.shape != (texts, len(groups) - 1):
        raise KernelError(
            f"{texts} texts with {nodes} nodes in {len(groups) - 1} groups need targets {(texts, nodes)} and active "
            f"{(texts, len(groups) - 1)}; got {targets.shape} and {active.shape}"
        )
    if not (0 < cost < np.inf and tolerance > 0 and passes >= 1 and prune >= 0 and 0 <= bias < np.inf):
        raise KernelError(
            f"cost and tolerance must be above 0, passes at least 1, prune and bias at least 0, and finite; "
            f"got {cost}, {tolerance}, {passes}, {prune} and {bias}"
        )
    if loss not in ("squared_hinge", "logistic"):
        raise KernelError(f"no loss {loss!r}; there are squared_hinge and logistic")
    rows, indices = _rows(features)
    if not np.isfinite(rows.data.sum(dtype=np.float64)):
        raise KernelError("features hold values that are not finite")
    if len(indices) and not (indices.min() >= 0 and indices.max() < rows.shape[1]):
        raise KernelError(f"features hold a column that is not among the {rows.shape[1]}")
    true, examples = _columns(targets), _columns(active)
    module = native.cpu()
    if module is None:
        weights, biases = reference.train_linear(
            rows, true, groups, examples, loss == "logistic", cost, bias, tolerance, passes, prune, seed
        )
        return LinearWeights.of_matrix(weights, biases, groups)
    indptr = rows.indptr.astype(np.int64)
    arrays = [
        np.ascontiguousarray(array, dtype=kind)
        for array, kind in (
            (examples.indptr, np.int64),
            (examples.indices, np.int32),
            (true.indptr, np.int64),
            (true.indices, np.int32),
        )
    ]
    trained = module.train_linear(
        indptr.ctypes.data,
        indices.ctypes.data,
        rows.data.ctypes.data,
        texts,
        rows.shape[1],
        bias,
        groups.ctypes.data,
        len(groups) - 1,
        *(array.ctypes.data for array in arrays),
        cost,
        tolerance,
        prune,
        passes,
        loss == "logistic",
        seed,
        native.instruction_set(),
        native.threads(),
    )
    num_groups, num_features, num_entries = trained.sizes()
    found = LinearWeights(
        rows.shape[1],
        groups,
        np.empty(num_groups, np.int64),
        np.empty(num_features, np.int32),
        np.empty(num_features + 1, np.int64),
        np.empty(num_entries, np.int32),
        np.empty(num_entries, np.float32),
        np.empty(nodes, np.float32),
    )
    trained.copy(*(getattr(found, field.name).ctypes.data for field in fields(found)[2:]))
    return found


def linear_scores(features: sparse.csr_matrix, weights: LinearWeights, nodes: np.ndarray | None = None) -> np.ndarray:
    """w . x + bias of each text's nodes: (B,C) float32.

    features (B,F) CSR; nodes (B,C) int64, negative = none, whose score is 0; None: every node of the level, in order.

    Nodes of one group that stand side by side are scored together. A score does not depend on the other texts.
    Raises KernelError for shapes that do not agree, and for nodes that are not there.
    """
    if features.shape[1] != weights.num_features:
        raise KernelError(f"features of length {features.shape[1]}; the weights are for {weights.num_features}")
    if nodes is None:
        nodes = np.broadcast_to(np.arange(weights.num_nodes), (features.shape[0], weights.num_nodes))
    if nodes.ndim != 2 or len(nodes) != features.shape[0]:
        raise KernelError(f"{features.shape[0]} texts need nodes (B,C) with a row for each; got {nodes.shape}")
    rows, indices = _rows(features)
    nodes = np.ascontiguousarray(nodes, dtype=np.int64)
    module = native.cpu()
    if module is None:
        if nodes.size and int(nodes.max()) >= weights.num_nodes:
            raise KernelError(f"node {nodes.max()} is not among the {weights.num_nodes} of the weights")
        return reference.linear_scores(rows, weights.to_matrix(), weights.biases, nodes)
    scores = np.empty(nodes.shape, np.float32)
    indptr = rows.indptr.astype(np.int64)
    problem = module.linear_scores(
        indptr.ctypes.data,
        indices.ctypes.data,
        rows.data.ctypes.data,
        rows.shape[0],
        rows.shape[1],
        weights.groups.ctypes.data,
        len(weights.groups) - 1,
        weights.group_indptr.ctypes.data,
        weights.features.ctypes.data,
        weights.feature_indptr.ctypes.data,
        weights.columns.ctypes.data,
        weights.weights.ctypes.data,
        len(weights.weights),
        weights.biases.ctypes.data,
        nodes.ctypes.data,
        nodes.shape[1],
        scores.ctypes.data,
        native.threads(),
    )
    if problem == 1:
        raise KernelError(f"a node is not among the {weights.num_nodes} of the weights")
    if problem == 2:
        raise KernelError(f"a text has a feature that is not among the {rows.shape[1]}")
    if problem:
        raise KernelError("the linear weights are damaged; restore the run's files from a copy, or train again")
    return scores


def _rows(features: sparse.csr_matrix) -> tuple[sparse.csr_matrix, np.ndarray]:
    """As float32 CSR with ascending indices, each once; and these as int32, which scipy keeps as int64 where there are
    2^31 entries."""
    rows = features
    if rows.format != "csr" or rows.dtype != np.float32:
        rows = sparse.csr_matrix(features, dtype=np.float32)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows, np.ascontiguousarray(rows.indices, dtype=np.int32)


def _columns(matrix: sparse.csr_matrix) -> sparse.csc_matrix:
    """As CSC with ascending indices, each once, and no stored zeros."""
    columns = sparse.csc_matrix(matrix)
    columns.sum_duplicates()
    columns.eliminate_zeros()
    return columns
