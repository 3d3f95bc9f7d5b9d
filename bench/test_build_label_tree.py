"""build_label_tree on label features such as PIFA makes: 50 non-zeros to a label, a hundred labels to a topic.

Every peer gets the same features and makes clusters of at most 100 labels by balanced spherical 2-means (scikit-learn:
bisecting k-means on normalised rows, not balanced). `cosine` in the records says how good the clusters are: the mean
cosine of a label with the centroid of its cluster.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy import sparse

from xmplug import ops

full = pytest.mark.full
BRANCHING, MAX_LEAF = 16, 100
INSTALL = "pip install -r bench/requirements.txt"
# labels and features: quick, as many as PECOS is compared with, as many as a tree must be built for.
SIZES = {"10000": (10_000, 10_000), "100000": (100_000, 100_000), "1000000": (1_000_000, 300_000)}


@lru_cache(maxsize=1)
def features_of(size: str) -> sparse.csr_matrix:
    """Normalised rows. A label draws 40 of the 400 features of its topic, and 10 that any label may have."""
    labels, dims = SIZES[size]
    random = np.random.default_rng(0)
    topic = random.permutation(labels)[:, None] // 100
    columns = np.concatenate(
        [(topic * 97 + random.integers(0, 400, (labels, 40))) % dims, random.integers(0, dims, (labels, 10))], axis=1
    )
    values = random.random((labels, 50), dtype=np.float32) + 0.1
    features = sparse.csr_matrix((values.ravel(), columns.ravel(), np.arange(labels + 1) * 50), (labels, dims))
    features.sum_duplicates()
    norms = np.sqrt(row_squares(features))
    features.data /= np.repeat(norms, np.diff(features.indptr)).astype(np.float32)
    return features


def row_squares(features: sparse.csr_matrix) -> np.ndarray:
    return np.add.reduceat(features.data.astype(np.float64) ** 2, features.indptr[:-1])


def ours(size: str) -> np.ndarray:
    """The cluster of each label, for all of these."""
    tree = ops.build_label_tree(features_of(size), BRANCHING, MAX_LEAF, seed=0)
    found = np.empty(tree.num_labels, np.int64)
    found[tree.labels] = tree.parent[tree.level(-1).start :] - tree.level(-2).start
    return found


def by_pecos(size: str) -> np.ndarray:
    xmc = pytest.importorskip("pecos.xmc", reason=INSTALL)
    chain = xmc.Indexer.gen(
        features_of(size),
        indexer_type="hierarchicalkmeans",
        nr_splits=BRANCHING,
        max_leaf_size=MAX_LEAF,
        threads=torch.get_num_threads(),
    )
    return np.asarray(sparse.csr_matrix(chain[-1]).indices)


def by_napkinxc(size: str) -> np.ndarray:
    """Each label with a document of its own, whose features are the label's."""
    models = pytest.importorskip("napkinxc.models", reason=INSTALL)
    features = features_of(size)
    with tempfile.TemporaryDirectory() as folder:
        model = models.PLT(folder, max_leaves=MAX_LEAF, seed=1, threads=torch.get_num_threads())
        model.build_tree(features, [[label] for label in range(features.shape[0])])
        found = np.empty(features.shape[0], np.int64)
        for parent, _, label in model.get_tree_structure():
            if label >= 0:
                found[label] = parent
    return np.unique(found, return_inverse=True)[1]


def by_sklearn(size: str) -> np.ndarray:
    from sklearn.cluster import BisectingKMeans

    features = features_of(size)
    clusters = -(-features.shape[0] // MAX_LEAF)
    return np.asarray(BisectingKMeans(clusters, random_state=0, max_iter=20).fit_predict(features))


QUICK = ("reference", "PECOS", "napkinxc")
TOO_SLOW = {"100000": ("scikit-learn",), "1000000": ("scikit-learn", "reference", "napkinxc")}
PEERS: dict[str, Callable[[str], np.ndarray]] = {
    "PECOS": by_pecos,
    "napkinxc": by_napkinxc,
    "scikit-learn": by_sklearn,
}


def prepare(size: str, peer: str) -> Callable[[], object]:
    """For machine.peak_memory."""
    os.environ["XMPLUG_KERNELS"] = "reference" if peer == "reference" else "native"
    features_of(size)
    return lambda: PEERS.get(peer, ours)(size)


def cosine(features: sparse.csr_matrix, clusters: np.ndarray) -> float:
    members = sparse.csr_matrix((np.ones(len(clusters)), (clusters, np.arange(len(clusters)))))
    sums = sparse.csr_matrix(members @ features)  # a cluster's sum, whose norm is the sum of its labels' cosines
    return float(np.sqrt(row_squares(sums)).sum() / len(clusters))


@pytest.mark.parametrize("size", ["10000", *(pytest.param(size, marks=full) for size in ("100000", "1000000"))])
@pytest.mark.parametrize("peer", ["native", "reference", *PEERS])
def test_build_label_tree(compare: Callable[..., None], size: str, peer: str) -> None:
    if peer in TOO_SLOW.get(size, ()):
        pytest.skip(f"{peer} would take too long for {size} labels")
    features = features_of(size)
    labels, dims = SIZES[size]
    quality = []

    def check(clusters: np.ndarray) -> None:
        assert len(clusters) == labels
        if peer != "scikit-learn":  # which does not balance
            assert np.bincount(clusters).max() <= MAX_LEAF
        quality.append(cosine(features, clusters))
        assert quality[-1] > 1.2 * cosine(features, np.arange(labels) // MAX_LEAF)

    compare(
        op="build_label_tree",
        shape=f"L={labels:,} F={dims:,}, {features.nnz / labels:.0f} a label",
        peer=peer,
        ours=lambda: ours(size),
        theirs=lambda: PEERS[peer](size),
        check=check,
        # The least there is: every halving reads all features once.
        moved=features.nnz * 8 * np.ceil(np.log2(labels / MAX_LEAF)),
        memory=(__file__, size) if labels >= 100_000 else None,
        cosine=quality,
    )
