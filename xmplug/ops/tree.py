"""Label trees: what they are, and building one by balanced spherical k-means."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from xmplug.errors import KernelError
from xmplug.ops import native, reference

ARRAYS = ("level_offsets", "first_child", "labels")  # of a label tree
ROUNDS = 20  # of assignment in one split, at most; most splits are stable before


@dataclass(frozen=True, eq=False)
class LabelTree:
    """A tree whose leaves are the labels, all at one depth.

    Nodes are numbered level by level from the root, 0, so that a level is a range of nodes and so are the
    children of a node. Level 0 is the root alone, the last level are the leaves.

    level_offsets (num_levels + 1,) int64: level d holds nodes level_offsets[d] to level_offsets[d + 1]
    first_child (inner nodes + 1,) int64: node n has the children first_child[n] to first_child[n + 1]
    labels (num_labels,) int64: the label of each leaf, in leaf order

    most_children: the largest number of children that a node has, of each level but the last
    kept: what operations keep of the tree, for example on a GPU
    """

    level_offsets: np.ndarray
    first_child: np.ndarray
    labels: np.ndarray
    most_children: tuple[int, ...] = field(init=False, repr=False)
    kept: dict[str, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ARRAYS:
            array = np.asarray(getattr(self, name))
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise KernelError(f"a label tree's {name} must be a row of integers; got {array.dtype} {array.shape}")
            array = np.ascontiguousarray(array, dtype=np.int64)
            object.__setattr__(self, name, array)
        self._validate()
        counts = np.maximum.reduceat(np.diff(self.first_child), self.level_offsets[:-2])
        object.__setattr__(self, "most_children", tuple(counts.tolist()))

    def _validate(self) -> None:
        offsets, first, labels = self.level_offsets, self.first_child, self.labels
        if len(offsets) < 3 or offsets[0] != 0 or offsets[1] != 1 or np.any(np.diff(offsets) < 1):
            raise KernelError("a label tree's level_offsets must start with 0, 1 and ascend, with at least two levels")
        inner = offsets[-2]
        if len(first) != inner + 1 or first[0] != 1 or np.any(np.diff(first) < 1):
            raise KernelError(f"a label tree with {inner} inner nodes needs {inner + 1} first_child, ascending from 1")
        if np.any(first[offsets[:-1]] != offsets[1:]):
            raise KernelError("a label tree's first_child does not agree with its level_offsets")
        if len(labels) != offsets[-1] - inner or not np.array_equal(np.sort(labels), np.arange(len(labels))):
            raise KernelError(f"a label tree with {offsets[-1] - inner} leaves must hold each label once")

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    @property
    def num_nodes(self) -> int:
        """All nodes, from the root to the leaves."""
        return int(self.level_offsets[-1])

    @property
    def num_levels(self) -> int:
        """All levels, the root's and the leaves' included; at least 2."""
        return len(self.level_offsets) - 1

    def level(self, depth: int) -> range:
        """The nodes at `depth`, 0 being the root's; negative depths count from the leaves' level."""
        depth = range(self.num_levels)[depth]
        return range(int(self.level_offsets[depth]), int(self.level_offsets[depth + 1]))

    def children(self, node: int) -> range:
        """The children of an inner node; none of a leaf."""
        if not 0 <= node < self.num_nodes:
            raise KernelError(f"node {node} is not in a label tree of {self.num_nodes} nodes")
        if node >= len(self.first_child) - 1:
            return range(0)
        return range(int(self.first_child[node]), int(self.first_child[node + 1]))

    @functools.cached_property
    def parent(self) -> np.ndarray:
        """(num_nodes,) int64: the parent of each node; -1 for the root."""
        inner = np.arange(len(self.first_child) - 1)
        return np.concatenate([[-1], np.repeat(inner, np.diff(self.first_child))])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The three arrays by name, for saving."""
        return {name: getattr(self, name) for name in ARRAYS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> LabelTree:
        """The tree of `to_arrays`; KernelError where the arrays do not make one."""
        missing = [name for name in ARRAYS if name not in arrays]
        if missing:
            raise KernelError(f"a label tree needs the array {missing[0]!r}; there are: {', '.join(sorted(arrays))}")
        return cls(**{name: arrays[name] for name in ARRAYS})


def build_label_tree(features: sparse.csr_matrix, branching: int, max_leaf: int, seed: int) -> LabelTree:
    """A balanced label tree by recursive spherical 2-means on label features (AttentionXML, 2.2; Parabel).

    features (L, F): a row per label, for example the mean of its documents' TF-IDF vectors (PIFA). Only the
    direction of a row counts, to 24 bits after the point. Labels with an empty row are placed too.

    The L labels fall into ceil(L / max_leaf) clusters, which are the lowest inner nodes; levels above are
    made of groups of at most `branching` nodes until one is left, the root. Sizes are as equal as can be:
    they depend on L, `branching` and `max_leaf` alone, and the features decide which label goes where. A
    group is split in two halves again and again; a half takes the labels that are, by cosine, nearer to its
    own centroid than to the other's. Labels of a cluster are in ascending order. The same seed gives the same
    tree, whatever the number of threads.

    Raises KernelError for L = 0, branching < 2, max_leaf < 1, 2**31 features or more, and for features that
    are not finite.
    """
    num_labels = features.shape[0]
    if num_labels < 1 or branching < 2 or max_leaf < 1:
        raise KernelError(
            f"a label tree needs at least 1 label, branching 2 and max_leaf 1; "
            f"got {num_labels}, {branching} and {max_leaf}"
        )
    if features.shape[1] >= 2**31:
        raise KernelError(f"label features of {features.shape[1]} dimensions; there can be 2**31 - 1 at most")
    features = sparse.csr_matrix(features, dtype=np.float32)
    sizes = _level_sizes(num_labels, branching, max_leaf)
    bounds = [np.arange(n + 1) * below // n for n, below in pairwise(sizes)]
    order = np.arange(num_labels)
    random = np.random.default_rng(seed)
    split = _Splitter(features)
    for begin, middle, end in _splits(bounds):
        split(order, begin, middle, end, random.random((2, len(begin))))
    offsets = np.cumsum([0, *sizes])
    first_child = np.concatenate([level[:-1] + start for level, start in zip(bounds, offsets[1:], strict=False)])
    return LabelTree(offsets, np.append(first_child, offsets[-1]), order)


def cluster_label_tree(features: sparse.csr_matrix, branching: int, max_leaf: int, seed: int) -> LabelTree:
    """A shallow label tree by spherical k-means with clusters of any size (Bonsai: Khandagale, Xiao and Babbar, 2020).

    features (L, F): a row per label; empty rows are placed too. A node with more than `max_leaf` labels is split into
    at most `branching` clusters; one with fewer is handed down as it is, so that all labels are at one depth. Where
    k-means finds less than two clusters, the labels are dealt out evenly. The same seed gives the same tree.

    Raises KernelError for L = 0, branching < 2, max_leaf < 1.
    """
    num_labels = features.shape[0]
    if num_labels < 1 or branching < 2 or max_leaf < 1:
        raise KernelError(
            f"a label tree needs at least 1 label, branching 2 and max_leaf 1; "
            f"got {num_labels}, {branching} and {max_leaf}"
        )
    rows = sparse.csr_matrix(features, dtype=np.float32)
    norms = np.sqrt(rows.multiply(rows).sum(axis=1)).A1
    if not np.isfinite(norms).all():
        raise KernelError("label features hold values that are not finite")
    rows = sparse.csr_matrix(sparse.diags((1 / np.maximum(norms, 1e-12)).astype(np.float32)) @ rows)
    random = np.random.default_rng(seed)
    levels = [[np.arange(num_labels)]]
    while max(map(len, levels[-1])) > max_leaf:
        levels.append([])
        for cluster in levels[-2]:
            levels[-1] += _clusters(rows[cluster], cluster, branching, random) if len(cluster) > max_leaf else [cluster]
    levels.append([label[None] for cluster in levels[-1] for label in cluster])
    # Where the labels of each node end says which node above it is under.
    ends = [np.cumsum([len(cluster) for cluster in level]) for level in levels]
    offsets = np.cumsum([0, *map(len, levels)])
    first_child = [
        np.searchsorted(below, np.append(0, above[:-1]), side="right") + start
        for above, below, start in zip(ends, ends[1:], offsets[1:])
    ]
    return LabelTree(offsets, np.append(np.concatenate(first_child), offsets[-1]), np.concatenate(levels[-1]))


def _clusters(
    rows: sparse.csr_matrix, labels: np.ndarray, branching: int, random: np.random.Generator
) -> list[np.ndarray]:
    """The labels in at most `branching` clusters by spherical k-means."""
    used, columns = np.unique(rows.indices, return_inverse=True)
    rows = sparse.csr_matrix((rows.data, columns, rows.indptr), shape=(rows.shape[0], max(1, len(used))))
    count = min(branching, len(labels))
    centroids = rows[np.sort(random.choice(len(labels), count, replace=False))]
    member = np.full(len(labels), -1)
    for _ in range(ROUNDS):
        cosines = rows @ np.ascontiguousarray(centroids.toarray().T)
        nearest = cosines.argmax(axis=1)
        # What is like no centroid is dealt out: all in one cluster, it would be handed down through level after level.
        lost = np.flatnonzero(~cosines.any(axis=1))
        nearest[lost] = np.arange(len(lost)) % count
        if np.array_equal(nearest, member):
            break
        member = nearest
        belongs = sparse.csr_matrix(
            (np.ones(len(labels), np.float32), (member, np.arange(len(labels)))), shape=(count, len(labels))
        )
        centroids = sparse.csr_matrix(belongs @ rows)
        norms = np.sqrt(centroids.multiply(centroids).sum(axis=1)).A1
        centroids = sparse.csr_matrix(sparse.diags((1 / np.maximum(norms, 1e-12)).astype(np.float32)) @ centroids)
    if len(np.unique(member)) < 2:
        member = np.arange(len(labels)) * count // len(labels)
    return [labels[member == cluster] for cluster in np.unique(member)]


def _level_sizes(num_labels: int, branching: int, max_leaf: int) -> list[int]:
    sizes = [num_labels, -(-num_labels // max_leaf)]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // branching))
    return sizes[::-1]


def _splits(bounds: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The splits that make the tree: begin, middle and end in the order of labels, apart in each step."""
    starts = [bounds[-1]]  # of the labels of each node, level by level
    for level in reversed(bounds[:-1]):
        starts.insert(0, starts[0][level])
    for level, start in zip(bounds[:-1], starts[1:], strict=True):
        low, high = level[:-1], level[1:]
        while (wide := high - low > 1).any():
            low, high = low[wide], high[wide]
            middle = (low + high) // 2
            yield start[low], start[middle], start[high]
            low, high = np.stack([low, middle], 1).ravel(), np.stack([middle, high], 1).ravel()


class _Splitter:
    """Splits segments of the order of labels in place, natively where that is loaded."""

    def __init__(self, features: sparse.csr_matrix):
        self.features = features
        self.module = native.cpu()
        self.indptr = np.ascontiguousarray(features.indptr, dtype=np.int64)
        self.indices = np.ascontiguousarray(features.indices, dtype=np.int32)
        self.values = np.ascontiguousarray(features.data)
        self.scale = np.empty(features.shape[0])  # one over the norm of each row, 0 for a row of zeros
        if self.module is None:
            finite = reference.inverse_norms(self.features, self.scale)
        else:
            finite = self.module.inverse_norms(
                self.indptr.ctypes.data,
                self.values.ctypes.data,
                len(self.scale),
                self.scale.ctypes.data,
                native.threads(),
            )
        if not finite:
            raise KernelError("label features hold values that are not finite")

    def __call__(
        self, order: np.ndarray, begin: np.ndarray, middle: np.ndarray, end: np.ndarray, chance: np.ndarray
    ) -> None:
        # Two different labels of each segment, chosen evenly; chance (2, S) is in [0, 1).
        size = end - begin
        first = (chance[0] * size).astype(np.int64)
        second = (first + 1 + (chance[1] * (size - 1)).astype(np.int64)) % size
        if self.module is None:
            reference.split_segments(self.features, self.scale, order, begin, middle, end, first, second, rounds=ROUNDS)
            return
        arrays = [np.ascontiguousarray(array, dtype=np.int64) for array in (begin, middle, end, first, second)]
        self.module.split_segments(
            self.indptr.ctypes.data,
            self.indices.ctypes.data,
            self.values.ctypes.data,
            self.scale.ctypes.data,
            self.features.shape[1],
            order.ctypes.data,
            *(array.ctypes.data for array in arrays),
            len(begin),
            ROUNDS,
            native.threads(),
        )
