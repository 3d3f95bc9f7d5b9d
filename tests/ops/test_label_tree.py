from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from xmplug import ops
from xmplug.errors import KernelError


def random_features(labels: int, features: int, seed: int = 0) -> sparse.csr_matrix:
    x = sparse.random(labels, features, 0.2, "csr", dtype=np.float32, random_state=seed)
    keep = sparse.diags(1.0 * (np.random.default_rng(seed).random(labels) > 0.1))  # some labels without a document
    x = sparse.csr_matrix(keep @ x, dtype=np.float32)
    x.eliminate_zeros()
    return x


def same(a: ops.LabelTree, b: ops.LabelTree) -> bool:
    return all(np.array_equal(array, b.to_arrays()[name]) for name, array in a.to_arrays().items())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=st.integers(1, 120),
    branching=st.integers(2, 9),
    max_leaf=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
@pytest.mark.usefixtures("kernels")
def test_shape(labels: int, branching: int, max_leaf: int, seed: int) -> None:
    tree = ops.build_label_tree(random_features(labels, 15), branching, max_leaf, seed)
    assert sorted(tree.labels.tolist()) == list(range(labels))
    assert tree.level(0) == range(1)
    assert tree.num_levels >= 2
    assert tree.parent[0] == -1
    for depth in range(tree.num_levels - 1):
        below = [child for node in tree.level(depth) for child in tree.children(node)]
        assert below == list(tree.level(depth + 1))
        most = max_leaf if depth == tree.num_levels - 2 else branching
        assert all(1 <= len(tree.children(node)) <= most for node in tree.level(depth))
        assert all(tree.parent[child] == node for node in tree.level(depth) for child in tree.children(node))
    sizes = [len(tree.children(node)) for node in tree.level(-2)]
    assert len(sizes) == -(-labels // max_leaf)
    assert max(sizes) - min(sizes) <= 1
    assert all(len(tree.children(leaf)) == 0 for leaf in tree.level(-1))


@settings(max_examples=25, deadline=None)
@given(
    labels=st.integers(1, 80),
    branching=st.integers(2, 5),
    max_leaf=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    features=st.integers(1, 30),
)
def test_native_tree_is_the_reference_tree(
    labels: int, branching: int, max_leaf: int, seed: int, features: int
) -> None:
    if ops.kernels()["build_label_tree"] != "native cpu":
        pytest.skip(ops.kernels()["build_label_tree"])
    x = random_features(labels, features, seed % 1000)
    native = ops.build_label_tree(x, branching, max_leaf, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XMPLUG_KERNELS", "reference")
        reference = ops.build_label_tree(x, branching, max_leaf, seed)
    assert same(native, reference)


def test_native_tree_of_many_features_is_the_reference_tree() -> None:
    if ops.kernels()["build_label_tree"] != "native cpu":
        pytest.skip(ops.kernels()["build_label_tree"])
    rng = np.random.default_rng(0)
    x = sparse.random(1500, 4001, 0.01, "csr", dtype=np.float32, random_state=rng, data_rvs=rng.standard_normal)
    native = ops.build_label_tree(x, 8, 30, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XMPLUG_KERNELS", "reference")
        reference = ops.build_label_tree(x, 8, 30, seed=0)
    assert same(native, reference)


@pytest.mark.usefixtures("restore_threads")
def test_threads_that_split_one_segment_together_make_the_same_tree() -> None:
    if ops.kernels()["build_label_tree"] != "native cpu":
        pytest.skip(ops.kernels()["build_label_tree"])
    rng = np.random.default_rng(0)
    labels, size = 30_000, 120  # so large that its first splits are shared
    columns = (rng.integers(0, 300, labels)[:, None] * 20 + rng.integers(0, 900, (labels, size))) % 6000
    values = rng.random(labels * size, dtype=np.float32)
    x = sparse.csr_matrix((values, columns.ravel(), np.arange(labels + 1) * size), shape=(labels, 6000))
    trees = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        trees.append(ops.build_label_tree(x, 16, 1000, seed=0))
    assert same(trees[0], trees[1]) and same(trees[0], trees[2])


@pytest.mark.usefixtures("kernels")
def test_finds_clusters_that_are_there() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(8), 10)
    x = np.zeros((80, 80), dtype=np.float32)
    for label, at in enumerate(group):
        x[label, at * 10 : at * 10 + 10] = 1 + rng.random(10)
    shuffle = rng.permutation(80)
    tree = ops.build_label_tree(sparse.csr_matrix(x[shuffle]), branching=8, max_leaf=10, seed=0)
    for cluster in tree.level(-2):
        leaves = [leaf - tree.level(-1).start for leaf in tree.children(cluster)]
        assert len(set(group[shuffle][tree.labels[leaves]])) == 1


@pytest.mark.usefixtures("kernels")
def test_two_clusters_are_those_of_the_definition() -> None:
    # One split, written out: at the end, each label of the left half is nearer to the left centroid than any
    # of the right half is, by the difference of cosines.
    x = random_features(60, 40)
    tree = ops.build_label_tree(x, branching=2, max_leaf=30, seed=3)
    unit = x.toarray().astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-30)
    halves = tree.labels[:30], tree.labels[30:]
    centroids = [unit[half].sum(0) / np.linalg.norm(unit[half].sum(0)) for half in halves]
    nearness = unit @ (centroids[1] - centroids[0])
    assert nearness[halves[0]].max() <= nearness[halves[1]].min() + 1e-12


@pytest.mark.usefixtures("kernels", "restore_threads")
def test_threads_and_layout_do_not_matter_but_the_seed_does() -> None:
    x = random_features(900, 300)
    torch.set_num_threads(1)
    tree = ops.build_label_tree(x, 4, 10, seed=1)
    torch.set_num_threads(2)
    wide = sparse.csr_matrix(
        (x.data.astype(np.float64) * 2, x.indices.astype(np.int64), x.indptr.astype(np.int64)), shape=x.shape
    )
    assert same(tree, ops.build_label_tree(x, 4, 10, seed=1))
    assert same(tree, ops.build_label_tree(wide, 4, 10, seed=1))
    assert not same(tree, ops.build_label_tree(x, 4, 10, seed=2))


@pytest.mark.usefixtures("kernels")
def test_leaves_its_input_alone_and_takes_labels_without_documents() -> None:
    x = sparse.csr_matrix((20, 5), dtype=np.float32)
    tree = ops.build_label_tree(x, 2, 3, seed=0)
    assert tree.labels.tolist() == list(range(20))
    y = random_features(20, 5)
    before = y.copy()
    ops.build_label_tree(y, 2, 3, seed=0)
    assert (y != before).nnz == 0


def test_bad_arguments() -> None:
    x = random_features(5, 5)
    for arguments in [(x[:0], 2, 2), (x, 1, 2), (x, 2, 0)]:
        with pytest.raises(KernelError, match="at least 1 label"):
            ops.build_label_tree(*arguments, seed=0)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(value: float) -> None:
    x = sparse.csr_matrix(np.array([[1.0, 1.0], [value, 1.0]], dtype=np.float32))
    with pytest.raises(KernelError, match="finite"):
        ops.build_label_tree(x, 2, 2, seed=0)


def test_saved_and_loaded(tmp_path) -> None:
    tree = ops.build_label_tree(random_features(30, 10), 3, 4, seed=0)
    np.savez(tmp_path / "tree.npz", **tree.to_arrays())
    with np.load(tmp_path / "tree.npz") as arrays:
        assert same(tree, ops.LabelTree.from_arrays(arrays))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("level_offsets", [0, 2, 4, 10], "level_offsets"),
        ("level_offsets", [0, 1, 5, 10], "first_child"),
        ("first_child", [1, 4, 5, 8, 9], "agree"),
        ("first_child", [1, 4, 4, 8, 10], "ascending"),
        ("labels", [3, 0, 5, 1, 4, 4], "each label once"),
        ("labels", [3, 0, 5, 1, 4], "each label once"),
        ("labels", [3.0, 0, 5, 1, 4, 2], "integers"),
        ("labels", None, "needs the array"),
    ],
)
def test_arrays_that_make_no_tree(name: str, array: list | None, message: str) -> None:
    arrays = {
        "level_offsets": np.array([0, 1, 4, 10]),
        "first_child": np.array([1, 4, 5, 8, 10]),
        "labels": np.array([3, 0, 5, 1, 4, 2]),
    }
    assert ops.LabelTree.from_arrays(arrays).num_nodes == 10
    if array is None:
        del arrays[name]
    else:
        arrays[name] = np.array(array)
    with pytest.raises(KernelError, match=message):
        ops.LabelTree.from_arrays(arrays)
