"""train_linear and linear_scores on TF-IDF of the bundled corpus, debtags: 23,330 texts, 593 labels.

train_linear: one group of labels on all texts, squared hinge, cost 1, bias 1, tolerance 0.1, at most 100 passes, no
weight dropped. LIBLINEAR is scikit-learn's LinearSVC, label by label and on one thread alone; that it copies the texts
into its own format for every label is part of its time. PECOS trains a level of one cluster with the same settings.
Each result comes in its own form: the weights of ours are sorted by feature.

linear_scores: a level with more labels than debtags has, as each counts as another one in each tenth of the texts; the
tree has leaves of 30, and a leaf is trained on the texts that have a label in it, with weights below 0.1 dropped. Texts
of the test split ask for all labels of the 20 leaves whose centroids are nearest, or for all labels, which are one
group then (a flat model).

- scipy multiplies with all nodes and then picks those that are asked for. Its weights are there as it wants them.
- PECOS is told what leaves to take through one more feature for each leaf, by which a first level finds them: a level
  alone does not score with the layouts of weights that it searches with. A text has 20 more features for this, about
  half as many again. "PECOS, MLModel" is its one level with the leaves as codes, in the layout that it trains in. All
  of them also sort the scores.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from xmplug import ops

full = pytest.mark.full
INSTALL = "pip install -r bench/requirements.txt"
TOLERANCE, PASSES = 0.1, 100
PARTS, LEAF, ASKED, TEXTS = 10, 30, 20, 256
TRAINING, SCORING = ("LIBLINEAR", "PECOS"), ("scipy", "PECOS, search", "PECOS, hash", "PECOS, MLModel")
QUICK = ("LIBLINEAR", "PECOS", "scipy", "PECOS, search")


@lru_cache(maxsize=1)
def corpus() -> tuple[sparse.csr_matrix, sparse.csr_matrix, sparse.csr_matrix]:
    """TF-IDF of the training texts (N,F), their labels (N,L), and TF-IDF of some texts of the test split."""
    text = pytest.importorskip("sklearn.feature_extraction.text", reason=INSTALL)
    from xmplug.data import load_dataset

    dataset = load_dataset("debtags")
    split, labels = dataset.split("train"), dataset.labels
    targets = split.targets(labels)[:, : labels.num_trained].tocsr().astype(np.float32)
    vectorizer = text.TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=200_000, dtype=np.float32)
    features = vectorizer.fit_transform(split.texts())
    return features, targets, vectorizer.transform(list(dataset.split("test").texts())[:TEXTS])


# ---- train_linear


@lru_cache(maxsize=1)
def problem(labels: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix, sparse.csr_matrix]:
    """So many labels from all over the corpus' list, and every text as an example."""
    features, targets, _ = corpus()
    chosen = np.linspace(0, targets.shape[1] - 1, labels).astype(int)
    return features, targets[:, chosen], sparse.csr_matrix(np.ones((features.shape[0], 1), np.int8))


def signs(labels: int, label: int) -> np.ndarray:
    return np.where(problem(labels)[1][:, label].toarray()[:, 0], 1.0, -1.0)


@lru_cache(maxsize=1)
def in_float64() -> sparse.csr_matrix:
    return corpus()[0].astype(np.float64)  # as LinearSVC wants it


def by_liblinear(labels: int, label: int, tolerance: float, passes: int) -> tuple[np.ndarray, float]:
    svm = pytest.importorskip("sklearn.svm", reason=INSTALL)
    solver = svm.LinearSVC(dual=True, tol=tolerance, max_iter=passes, intercept_scaling=1.0, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label may take all passes
        solver.fit(in_float64(), signs(labels, label))
    return solver.coef_[0], float(solver.intercept_[0])


@lru_cache(maxsize=1)
def for_pecos(labels: int) -> Any:
    base = pytest.importorskip("pecos.xmc.base", reason=INSTALL)
    features, targets, _ = problem(labels)
    return base.MLProblem(features, targets.tocsc(), threads=1)


def train_by_pecos(labels: int, threads: int) -> sparse.csc_matrix:
    """(F+1, labels), the biases last."""
    base = pytest.importorskip("pecos.xmc.base", reason=INSTALL)
    settings = {"Cp": 1.0, "Cn": 1.0, "eps": TOLERANCE, "max_iter": PASSES, "bias": 1.0, "threshold": 0.0}
    solver = "L2R_L2LOSS_SVC_DUAL"
    return base.MLModel.train(for_pecos(labels), solver_type=solver, threads=threads, **settings).W


def train_ours(labels: int) -> ops.LinearWeights:
    features, targets, active = problem(labels)
    return ops.train_linear(features, targets, np.array([0, labels]), active, tolerance=TOLERANCE, passes=PASSES)


def objective(labels: int, label: int, weights: np.ndarray, bias: float) -> float:
    weights = weights.astype(np.float64)
    margins = signs(labels, label) * (in_float64() @ weights + bias)
    return float((weights @ weights + bias**2) / 2 + (np.maximum(0, 1 - margins) ** 2).sum())


@lru_cache(maxsize=2)
def least_objective(labels: int) -> dict[int, float]:
    """Of the label with most texts, and of some others."""
    most = int(problem(labels)[1].sum(axis=0).argmax())
    probes = {most, 0, labels // 3, 2 * labels // 3}
    return {label: objective(labels, label, *by_liblinear(labels, label, 1e-5, 100_000)) for label in sorted(probes)}


def check_training(labels: int, result: Any) -> None:
    for label, least in least_objective(labels).items():
        if isinstance(result, ops.LinearWeights):
            found = result.rows(np.array([label])).toarray()[0], float(result.biases[label])
        elif isinstance(result, list):
            found = result[label]
        else:
            column = result[:, label].toarray()[:, 0]
            found = column[:-1], float(column[-1])
        assert 0.999 * least <= objective(labels, label, *found) <= 1.02 * least, f"label {label}"


@pytest.mark.parametrize("peer", ["native", "reference", *TRAINING])
@pytest.mark.parametrize("threads", [None, 1], ids=["", "1thread"])
@pytest.mark.parametrize("labels", [32, pytest.param(593, marks=full)])
def test_train_linear(compare: Callable[..., None], labels: int, threads: int | None, peer: str) -> None:
    if peer == "LIBLINEAR" and threads != 1:
        pytest.skip("LIBLINEAR has one thread")
    if peer == "reference" and (threads != 1 or labels > 100):
        pytest.skip("the reference has one thread and takes minutes")
    features, targets, _ = problem(labels)
    assert targets.shape[1] == labels
    theirs: dict[str, Callable[[], Any]] = {
        "LIBLINEAR": lambda: [by_liblinear(labels, label, TOLERANCE, PASSES) for label in range(labels)],
        "PECOS": lambda: train_by_pecos(labels, threads or torch.get_num_threads()),
    }
    if peer == "PECOS":
        for_pecos(labels)
    compare(
        op="train_linear",
        shape=f"N={features.shape[0]:,} L={labels} F={features.shape[1]:,}",
        threads=threads,
        peer=peer,
        ours=lambda: train_ours(labels),
        theirs=theirs.get(peer),
        check=lambda result: check_training(labels, result),
        documents=features.shape[0],
    )


# ---- linear_scores


@dataclass(frozen=True)
class Level:
    """weights of the labels in leaf order; leaf_of (labels, leaves) 0 or 1; centroids (leaves,F)."""

    weights: ops.LinearWeights
    leaf_of: sparse.csr_matrix
    centroids: sparse.csr_matrix


@lru_cache(maxsize=1)
def level() -> Level:
    features, targets, _ = corpus()
    cells = targets.tocoo()
    _, label = np.unique(cells.col * PARTS + cells.row % PARTS, return_inverse=True)
    targets = sparse.csr_matrix((cells.data, (cells.row, label)))
    sums = sparse.csr_matrix(targets.T @ features)
    length = np.sqrt(np.asarray(sums.multiply(sums).sum(axis=1)).clip(min=1e-12))
    means = sparse.csr_matrix(sums.multiply(1 / length), dtype=np.float32)
    tree = ops.build_label_tree(means, 16, LEAF, 0)
    leaves = tree.level(-2)
    groups = tree.first_child[leaves.start : leaves.stop + 1] - tree.first_child[leaves.start]
    leaf = np.repeat(np.arange(len(leaves)), np.diff(groups))
    leaf_of = sparse.csr_matrix((np.ones(len(leaf), np.float32), (np.arange(len(leaf)), leaf)))
    targets = sparse.csr_matrix(targets[:, tree.labels])
    weights = ops.train_linear(features, targets, groups, sparse.csr_matrix(targets @ leaf_of), prune=0.1)
    return Level(weights, leaf_of, sparse.csr_matrix(leaf_of.T @ means[tree.labels]))


@dataclass(frozen=True)
class Case:
    texts: int
    asked: int | None  # leaves; None: all labels
    threads: int | None = None

    def __str__(self) -> str:
        asked = f"{self.asked}leaves" if self.asked else "all"
        return f"batch{self.texts}-{asked}{'-1thread' if self.threads else ''}"


def cases() -> list[Any]:
    shapes = [(TEXTS, ASKED), (1, ASKED), (TEXTS, None), (1, None)]
    alone = [pytest.param(Case(*shape, 1), marks=full) for shape in shapes[1:]]
    return [*(Case(*shape) for shape in shapes), Case(*shapes[0], 1), *alone]


@dataclass(frozen=True)
class Asked:
    """What every implementation gets, each in its form."""

    texts: sparse.csr_matrix
    weights: ops.LinearWeights
    transposed: sparse.csr_matrix  # (F, labels)
    leaves: sparse.csr_matrix | None  # (B, leaves) 1 where a text asks for a leaf
    nodes: np.ndarray | None  # (B,C), -1 = none


@lru_cache(maxsize=8)
def asked(texts: int, number: int | None) -> Asked:
    of, queries = level(), corpus()[2][:texts]
    weights, matrix = of.weights, of.weights.to_matrix()
    transposed = sparse.csr_matrix(matrix.T)
    if number is None:
        one_group = ops.LinearWeights.of_matrix(matrix, weights.biases, np.array([0, weights.num_nodes]))
        return Asked(queries, one_group, transposed, None, None)
    near = (queries @ of.centroids.T).toarray()
    leaves = np.sort(np.argsort(-near, axis=1, kind="stable")[:, :number], axis=1)
    groups = weights.groups
    lists = [np.concatenate([np.arange(groups[leaf], groups[leaf + 1]) for leaf in row]) for row in leaves]
    nodes = np.full((texts, max(map(len, lists))), -1)
    for row, found in enumerate(lists):
        nodes[row, : len(found)] = found
    starts = np.arange(texts + 1) * number
    codes = sparse.csr_matrix((np.ones(leaves.size, np.float32), leaves.ravel(), starts), (texts, near.shape[1]))
    return Asked(queries, weights, transposed, codes, nodes)


def by_scipy(of: Asked) -> np.ndarray:
    scores = (of.texts @ of.transposed).toarray()
    scores += of.weights.biases
    if of.nodes is None:
        return scores
    picked = np.take_along_axis(scores, of.nodes.clip(min=0), axis=1)
    picked[of.nodes < 0] = 0
    return picked


def csc(*blocks: Any) -> sparse.csc_matrix:
    """Blocks one above another, as PECOS wants its matrices."""
    found = sparse.csc_matrix(sparse.vstack(blocks), dtype=np.float32)
    found.sort_indices()
    return found


@lru_cache(maxsize=2)
def pecos_model(number: int | None, layout: str | None) -> Any:
    """The level as MLModel where there is no layout, or a model that can only predict."""
    base = pytest.importorskip("pecos.xmc.base", reason=INSTALL)
    of = level()
    weights, biases = asked(1, number).transposed, of.weights.biases[None]
    settings: dict[str, Any] = {"bias": 1.0, "pred_params": {"only_topk": 1, "post_processor": "noop"}}
    if layout is None:
        return base.MLModel(W=csc(weights, biases), C=None if number is None else of.leaf_of.tocsc(), **settings)
    chain = [base.MLModel(W=csc(weights, biases), **settings)]
    if number is not None:
        leaves = of.leaf_of.shape[1]
        no_words = sparse.csr_matrix((weights.shape[0], leaves), dtype=np.float32)
        first = csc(no_words, sparse.identity(leaves), sparse.csr_matrix((1, leaves)))
        second = csc(weights, sparse.csr_matrix((leaves, weights.shape[1])), biases)
        chain = [base.MLModel(W=first, **settings), base.MLModel(W=second, C=of.leaf_of.tocsc(), **settings)]
    with tempfile.TemporaryDirectory() as folder:
        base.HierarchicalMLModel(chain).save(folder)
        return base.HierarchicalMLModel.load(folder, is_predict_only=True, weight_matrix_type=layout)


LAYOUTS = {"PECOS, search": "BINARY_SEARCH_CHUNKED", "PECOS, hash": "HASH_CHUNKED", "PECOS, MLModel": None}


def by_pecos(case: Case, peer: str, threads: int) -> Callable[[], sparse.csr_matrix]:
    of, model = asked(case.texts, case.asked), pecos_model(case.asked, LAYOUTS[peer])
    width = of.weights.num_nodes if of.nodes is None else of.nodes.shape[1]
    threads = min(threads, case.texts)
    if LAYOUTS[peer] is None:
        settings = {"only_topk": width, "post_processor": "noop", "threads": threads}
        return lambda: model.predict(of.texts, csr_codes=of.leaves, **settings)
    texts = of.texts if of.leaves is None else sparse.csr_matrix(sparse.hstack([of.texts, of.leaves]))
    texts.sort_indices()
    return lambda: model.predict(texts, beam_size=case.asked or 1, only_topk=width, threads=threads)


@lru_cache(maxsize=4)
def exact(texts: int, number: int | None) -> np.ndarray:
    of = asked(texts, number)
    scores = (of.texts.astype(np.float64) @ of.transposed.astype(np.float64)).toarray() + of.weights.biases
    return scores if of.nodes is None else np.where(of.nodes < 0, 0, np.take_along_axis(scores, of.nodes, axis=1))


def check_scores(case: Case, result: Any) -> None:
    nodes = asked(case.texts, case.asked).nodes
    if sparse.issparse(result):
        assert result.nnz == (case.texts * result.shape[1] if nodes is None else (nodes >= 0).sum())
        result = result.toarray()
        if nodes is not None:
            result = np.where(nodes < 0, 0, np.take_along_axis(result, nodes, axis=1))
    np.testing.assert_allclose(result, exact(case.texts, case.asked), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("peer", ["native", "reference", *SCORING])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_linear_scores(compare: Callable[..., None], case: Case, peer: str) -> None:
    of = asked(case.texts, case.asked)
    used = (abs(of.texts.sign()) @ abs(of.transposed.sign())).toarray()  # weights that a node's score needs
    if of.nodes is not None:
        used = np.where(of.nodes < 0, 0, np.take_along_axis(used, of.nodes, axis=1))
    theirs = by_pecos(case, peer, case.threads or torch.get_num_threads()) if peer in LAYOUTS else lambda: by_scipy(of)
    groups = f"{of.weights.num_nodes:,} in one group" if of.nodes is None else f"{case.asked} leaves of {LEAF}"
    compare(
        op="linear_scores",
        shape=f"B={case.texts} {groups}, {len(of.weights.weights):,} weights",
        threads=case.threads,
        peer=peer,
        ours=lambda: ops.linear_scores(of.texts, of.weights, of.nodes),
        theirs=theirs,
        check=lambda result: check_scores(case, result),
        moved=8 * float(used.sum()) + (4 if of.nodes is None else 12) * used.size,  # place and weight; node, score
    )
