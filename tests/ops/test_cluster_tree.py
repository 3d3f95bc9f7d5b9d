"""cluster_label_tree: the shape of the tree, and that it finds clusters that are there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from xmplug.errors import KernelError
from xmplug.ops import LabelTree, cluster_label_tree


def _features(labels: int, features: int, seed: int) -> sparse.csr_matrix:
    """Some rows are empty, and some are there twice."""
    rng = np.random.default_rng(seed)
    rows = sparse.random(labels, features, 0.2, "csr", dtype=np.float32, random_state=seed)
    rows = rows[rng.integers(0, labels, labels)]
    return sparse.csr_matrix(sparse.diags(1.0 * (rng.random(labels) > 0.1)) @ rows, dtype=np.float32)


def _check(tree: LabelTree, labels: int, branching: int, max_leaf: int) -> None:
    assert sorted(tree.labels.tolist()) == list(range(labels))
    for depth in range(tree.num_levels - 1):
        below = [child for node in tree.level(depth) for child in tree.children(node)]
        assert below == list(tree.level(depth + 1))
        most = max_leaf if depth == tree.num_levels - 2 else branching
        assert all(1 <= len(tree.children(node)) <= most for node in tree.level(depth))
    assert all(len(tree.children(leaf)) == 0 for leaf in tree.level(-1))
    # No level only repeats the one above.
    sizes = np.diff(tree.level_offsets)[:-1]
    assert (np.diff(sizes) > 0).all()


def _same(a: LabelTree, b: LabelTree) -> bool:
    return all(np.array_equal(array, b.to_arrays()[name]) for name, array in a.to_arrays().items())


@settings(max_examples=80, deadline=None)
@given(
    labels=st.integers(1, 120),
    branching=st.integers(2, 9),
    max_leaf=st.integers(1, 20),
    features=st.integers(1, 30),
    seed=st.integers(0, 2**31),
)
def test_shape(labels: int, branching: int, max_leaf: int, features: int, seed: int) -> None:
    rows = _features(labels, features, seed)
    tree = cluster_label_tree(rows, branching, max_leaf, seed)
    _check(tree, labels, branching, max_leaf)
    assert _same(tree, cluster_label_tree(rows.copy(), branching, max_leaf, seed))


@pytest.mark.parametrize("labels", [1, 2, 100])
def test_few_labels_are_one_cluster(labels: int) -> None:
    tree = cluster_label_tree(_features(labels, 5, 0), 2, 100, 0)
    assert tree.num_levels == 2 and tree.labels.tolist() == list(range(labels))


@pytest.mark.parametrize("branching", [2, 7])
@pytest.mark.parametrize(
    "features",
    [
        sparse.csr_matrix((500, 4)),
        sparse.csr_matrix((500, 0)),
        sparse.csr_matrix(np.ones((500, 3))),
        sparse.identity(500, format="csr"),
        sparse.csr_matrix(np.repeat(np.eye(5), 100, axis=0)),
        sparse.vstack([sparse.csr_matrix((450, 50)), sparse.random(50, 50, 0.1, random_state=0)]).tocsr(),
        sparse.random(500, 2000, 0.002, "csr", random_state=0),
    ],
    ids=["empty", "no features", "identical", "nothing in common", "five kinds", "mostly empty", "little in common"],
)
def test_labels_that_cannot_be_told_apart_do_not_make_a_deep_tree(features: sparse.csr_matrix, branching: int) -> None:
    tree = cluster_label_tree(features, branching, 10, 0)
    _check(tree, 500, branching, 10)
    even = np.ceil(np.log(500 / 10) / np.log(branching)) + 2
    assert tree.num_levels <= even + 3


def test_it_finds_planted_clusters() -> None:
    rng = np.random.default_rng(0)
    cluster = rng.permutation(np.repeat(np.arange(8), [30, 25, 20, 15, 12, 10, 8, 6]))
    rows = np.zeros((len(cluster), 80), np.float32)
    for label, of in enumerate(cluster):
        rows[label, of * 10 + rng.choice(10, 7, replace=False)] = rng.random(7) + 0.5
    rows *= rng.random((len(rows), 1)) * 9 + 1  # only the direction counts
    for seed in range(5):
        tree = cluster_label_tree(sparse.csr_matrix(rows), 16, 30, seed)
        mixed = 0
        for node in tree.level(-2):
            members = cluster[tree.labels[np.array(tree.children(node)) - tree.level(-1).start]]
            mixed += len(members) - np.bincount(members).max()
        assert mixed <= 0.1 * len(cluster)


def test_only_the_direction_of_a_row_counts() -> None:
    rows = _features(90, 20, 3)
    scaled = sparse.csr_matrix(sparse.diags(2.0 ** np.random.default_rng(0).integers(-9, 9, 90)) @ rows)
    assert _same(cluster_label_tree(rows, 4, 5, 1), cluster_label_tree(scaled, 4, 5, 1))


def test_seeds() -> None:
    rows = _features(200, 30, 0)
    trees = [cluster_label_tree(rows, 4, 10, seed) for seed in (0, 0, 1)]
    assert _same(trees[0], trees[1]) and not _same(trees[0], trees[2])


@pytest.mark.parametrize(
    ("shape", "branching", "max_leaf"), [((0, 3), 2, 5), ((4, 3), 1, 5), ((4, 3), 2, 0), ((4, 3), -3, 5)]
)
def test_refused(shape: tuple[int, int], branching: int, max_leaf: int) -> None:
    with pytest.raises(KernelError, match="needs at least 1 label"):
        cluster_label_tree(sparse.csr_matrix(shape), branching, max_leaf, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    rows = sparse.csr_matrix(np.array([[1.0, value], [0, 1]]))
    with pytest.raises(KernelError, match="not finite"):
        cluster_label_tree(rows, 2, 1, 0)
