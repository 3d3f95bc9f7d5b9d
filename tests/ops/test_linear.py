"""Linear classifiers: the solver against independent ones and against its equations, scoring against dense products."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from xmplug import ops
from xmplug.errors import KernelError
from xmplug.ops import LinearWeights, linear_scores, native, train_linear

pytestmark = pytest.mark.usefixtures("kernels")


def problem(texts: int, features: int, nodes: int, seed: int = 0) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Texts of random words, and nodes that depend on words."""
    random = np.random.default_rng(seed)
    x = sparse.random(texts, features, 0.2, format="csr", dtype=np.float32, random_state=seed)
    margin = x @ random.normal(size=(features, nodes)) + 0.1 * random.normal(size=(texts, nodes))
    return x, sparse.csr_matrix(margin > np.quantile(margin, 0.7, axis=0))


def everything(texts: int, groups: int = 1) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.ones((texts, groups), np.int8))


def objective(w: np.ndarray, x: np.ndarray, y: np.ndarray, cost: float, loss: str) -> float:
    margin = y * (x @ w)
    losses = np.maximum(0, 1 - margin) ** 2 if loss == "squared_hinge" else np.logaddexp(0, -margin)
    return float(w @ w / 2 + cost * losses.sum())


@pytest.mark.parametrize("cost", [0.3, 1.0, 8.0])
@pytest.mark.parametrize("loss", ["squared_hinge", "logistic"])
def test_weights_are_those_of_scikit_learn(loss: str, cost: float) -> None:
    x, y = problem(60, 15, 18)  # more nodes than are solved together
    found = train_linear(
        x,
        y,
        np.array([0, 18]),
        everything(60),
        loss=loss,
        cost=cost,
        tolerance=1e-4,
        passes=5000,  # type: ignore[arg-type]
    )
    weights = found.to_matrix().toarray()
    for node in (0, 5, 15, 16, 17):
        labels = y[:, node].toarray()[:, 0]
        if loss == "squared_hinge":
            other = LinearSVC(C=cost, loss="squared_hinge", intercept_scaling=1.0, tol=1e-8, max_iter=100_000)
        else:
            other = LogisticRegression(C=cost, solver="liblinear", tol=1e-8, max_iter=100_000)
        other.fit(x.astype(np.float64), labels)
        np.testing.assert_allclose(weights[node], other.coef_[0], atol=2e-3 * np.abs(other.coef_).max())
        np.testing.assert_allclose(found.biases[node], other.intercept_[0], atol=2e-3 * np.abs(other.coef_).max())


@pytest.mark.parametrize("loss", ["squared_hinge", "logistic"])
def test_usual_tolerance_is_near_the_best_objective(loss: str) -> None:
    x, y = problem(200, 40, 20, seed=3)
    groups = np.array([0, 20])
    rough = train_linear(x, y, groups, everything(200), loss=loss)  # type: ignore[arg-type]
    fine = train_linear(x, y, groups, everything(200), loss=loss, tolerance=1e-5, passes=5000)  # type: ignore[arg-type]
    dense = np.hstack([x.toarray(), np.ones((200, 1))]).astype(np.float64)
    for node in range(20):
        labels = np.where(y[:, node].toarray()[:, 0], 1.0, -1.0)
        values = [
            objective(np.append(of.to_matrix()[node].toarray()[0], of.biases[node]), dense, labels, 1.0, loss)
            for of in (rough, fine)
        ]
        assert values[1] <= values[0] * (1 + 1e-6) <= 1.01 * values[1]


@pytest.mark.parametrize("cost", [1.0, 100.0])
def test_siblings_of_all_kinds_are_solved_as_well_as_alone(cost: float) -> None:
    """Easy and hard problems side by side: none may end before its own rows say so. The tolerance bounds the range of
    the projected gradient y (w . x) - 1 + alpha / (2 C), where alpha = 2 C max(0, 1 - y (w . x)) at the optimum; so the
    objective of each is as near to the best one as that of a problem that was solved alone."""
    random = np.random.default_rng(0)
    x = sparse.random(120, 30, 0.3, format="csr", dtype=np.float32, random_state=1)
    dense = np.hstack([x.toarray(), np.ones((120, 1))]).astype(np.float64)
    rare = [random.permutation(120) < count for count in (1, 2, 60, 3, 40, 1, 119, 50)]
    clear = [np.asarray(x[:, word].todense()).ravel() > 0 for word in range(8)]
    y = sparse.csr_matrix(np.stack(rare + clear, axis=1))

    def worst(found: LinearWeights, nodes: range) -> float:
        excess = []
        for place, node in enumerate(nodes):
            labels = np.where(y[:, node].toarray()[:, 0], 1.0, -1.0)
            best = LinearSVC(C=cost, tol=1e-9, max_iter=1_000_000).fit(x.astype(np.float64), labels)
            least = objective(np.append(best.coef_, best.intercept_), dense, labels, cost, "squared_hinge")
            own = np.append(found.to_matrix()[place].toarray()[0], found.biases[place])
            excess.append(objective(own, dense, labels, cost, "squared_hinge") / least - 1)
        return max(excess)

    options: dict[str, Any] = {"cost": cost, "passes": 10_000}
    together = worst(train_linear(x, y, np.array([0, 16]), everything(120), **options), range(16))
    alone = [
        worst(
            train_linear(x, y[:, node : node + 1], np.array([0, 1]), everything(120), **options), range(node, node + 1)
        )
        for node in range(16)
    ]
    assert together <= 1.2 * max(alone) + 1e-6


def test_one_text_by_hand() -> None:
    """min w^2 / 2 + C (1 - x w)^2 is at w = 2 C x / (1 + 2 C x^2); a negative text turns the sign."""
    x = sparse.csr_matrix([[0.5]], dtype=np.float32)
    found = train_linear(
        x, sparse.csr_matrix([[1, 0]]), np.array([0, 2]), everything(1), cost=3.0, bias=0.0, tolerance=1e-6
    )
    np.testing.assert_allclose(found.to_matrix().toarray(), [[3 / 2.5], [-3 / 2.5]], rtol=1e-5)
    assert found.biases.tolist() == [0, 0]


def test_a_group_learns_from_its_own_examples_alone() -> None:
    x, y = problem(50, 12, 6)
    active = sparse.csr_matrix(np.random.default_rng(1).random((50, 3)) < 0.6)
    groups = np.array([0, 1, 4, 6])
    found = train_linear(x, y, groups, active, tolerance=1e-4, passes=2000).to_matrix().toarray()
    for group, (first, last) in enumerate([(0, 1), (1, 4), (4, 6)]):
        rows = np.flatnonzero(active[:, group].toarray())
        own = np.array([0, last - first]), everything(len(rows))
        alone = train_linear(x[rows], y[rows][:, first:last], *own, tolerance=1e-4, passes=2000)
        np.testing.assert_allclose(found[first:last], alone.to_matrix().toarray(), atol=5e-3)


def test_small_weights_are_dropped_and_large_ones_untouched() -> None:
    x, y = problem(60, 30, 5)
    whole = train_linear(x, y, np.array([0, 5]), everything(60)).to_matrix().toarray()
    pruned = train_linear(x, y, np.array([0, 5]), everything(60), prune=0.2).to_matrix().toarray()
    np.testing.assert_array_equal(pruned, np.where(np.abs(whole) >= np.float32(0.2), whole, 0))
    assert (pruned == 0).any() and (pruned != 0).any()


@pytest.mark.usefixtures("restore_threads")
def test_the_number_of_threads_changes_nothing() -> None:
    x, y = problem(300, 80, 200)
    for groups in (np.array([0, 200]), np.arange(0, 201, 5)):
        active = sparse.csr_matrix(np.random.default_rng(0).random((300, len(groups) - 1)) < 0.7)
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            weights = train_linear(x[:60], y[:60], groups, active[:60], passes=3)
            nodes = np.random.default_rng(1).integers(-1, 200, (300, 40))
            found.append((weights.to_matrix().toarray(), weights.biases, linear_scores(x, weights, nodes)))
        for other in found[1:]:
            for one, two in zip(found[0], other):
                np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("loss", ["squared_hinge", "logistic"])
def test_every_instruction_set_finds_the_same(loss: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels == "reference":
        pytest.skip("native only")
    x, y = problem(80, 20, 19)
    best = native.instruction_set()
    found = []
    for name in native.INSTRUCTION_SETS[: best + 1]:
        monkeypatch.setenv("XMPLUG_INSTRUCTION_SET", name)
        found.append(
            train_linear(x, y, np.array([0, 19]), everything(80), loss=loss, tolerance=1e-4, passes=3000)  # type: ignore[arg-type]
        )
    for other in found[1:]:
        np.testing.assert_allclose(other.to_matrix().toarray(), found[0].to_matrix().toarray(), atol=2e-3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.integers(0, 7),
    features=st.integers(1, 40),
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    width=st.integers(0, 30),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_scores_are_dense_products(
    texts: int, features: int, sizes: list[int], width: int, density: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    groups = np.cumsum([0, *sizes])
    matrix = sparse.random(groups[-1], features, density, format="csr", dtype=np.float32, random_state=seed)
    biases = random.normal(size=groups[-1])
    weights = LinearWeights.of_matrix(matrix, biases, groups)
    np.testing.assert_array_equal(weights.to_matrix().toarray(), matrix.toarray())
    x = sparse.random(texts, features, 0.3, format="csr", dtype=np.float32, random_state=seed + 1)
    nodes = random.integers(-1, groups[-1], (texts, width)) if groups[-1] else np.full((texts, width), -1)
    nodes[:, : width // 2].sort(axis=1)  # siblings side by side, twice too, and then anything
    scores = linear_scores(x, weights, nodes)
    exact = (x.astype(np.float64) @ matrix.T.astype(np.float64)).toarray() + weights.biases.astype(np.float64)
    expected = np.zeros(nodes.shape)
    for text in range(texts):
        expected[text] = [exact[text, node] if node >= 0 else 0 for node in nodes[text]]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    whole = linear_scores(x, weights)
    np.testing.assert_allclose(whole, exact if groups[-1] else np.zeros((texts, 0)), atol=1e-5)


def test_a_score_does_not_depend_on_the_other_texts() -> None:
    """Many texts are looked up in a table, few by search: the sums are the same."""
    x, y = problem(200, 500, 64)
    weights = train_linear(x[:50], y[:50], np.arange(0, 65, 8), everything(50, 8), passes=5)
    nodes = np.tile(np.arange(64), (200, 1))
    together = linear_scores(x, weights, nodes)
    alone = np.concatenate([linear_scores(x[row], weights, nodes[row : row + 1]) for row in range(200)])
    np.testing.assert_array_equal(together, alone)


def test_unsorted_and_repeated_features_are_summed() -> None:
    weights = LinearWeights.of_matrix(sparse.csr_matrix([[1.0, 2.0, 4.0]]), np.zeros(1), np.array([0, 1]))
    x = sparse.csr_matrix((np.array([1.0, 3.0, 1.0]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    assert linear_scores(x, weights).tolist() == [[11.0]]


def test_parts_of_a_level_join_and_rows_are_found() -> None:
    x, y = problem(60, 25, 30)
    groups = np.array([0, 4, 4, 13, 30])
    fine: dict[str, Any] = {"tolerance": 1e-4, "passes": 2000}
    whole = train_linear(x, y, groups, everything(60, 4), **fine)
    parts = [
        train_linear(x, y[:, :4], groups[:3], everything(60, 2), **fine),
        train_linear(x, y[:, 4:], groups[2:] - 4, everything(60, 2), **fine),
    ]
    joined = LinearWeights.joined(parts)
    assert joined.groups.tolist() == groups.tolist()
    np.testing.assert_allclose(joined.to_matrix().toarray(), whole.to_matrix().toarray(), atol=5e-3)
    np.testing.assert_array_equal(joined.rows(np.array([29, 0, 5])).toarray(), joined.to_matrix()[[29, 0, 5]].toarray())


def test_no_texts_no_features_and_nodes_that_are_never_true() -> None:
    nothing = train_linear(
        sparse.csr_matrix((0, 3)), sparse.csr_matrix((0, 2)), np.array([0, 2]), sparse.csr_matrix((0, 1))
    )
    assert linear_scores(sparse.csr_matrix((1, 3)), nothing).tolist() == [[0, 0]]
    empty = train_linear(sparse.csr_matrix((4, 3)), sparse.csr_matrix((4, 2)), np.array([0, 2]), everything(4))
    assert not empty.to_matrix().nnz
    assert (empty.biases < 0).all()  # four negative texts, and only the bias to tell them by


def test_wrong_arguments_are_named() -> None:
    x, y = problem(5, 4, 3)
    with pytest.raises(KernelError, match=r"need targets \(5, 3\)"):
        train_linear(x, y[:, :2], np.array([0, 3]), everything(5))
    with pytest.raises(KernelError, match="ascend from 0"):
        train_linear(x, y, np.array([1, 3]), everything(5))
    with pytest.raises(KernelError, match="cost and tolerance"):
        train_linear(x, y, np.array([0, 3]), everything(5), cost=0)
    with pytest.raises(KernelError, match="not finite"):
        train_linear(x * np.nan, y, np.array([0, 3]), everything(5))
    weights = train_linear(x, y, np.array([0, 3]), everything(5))
    with pytest.raises(KernelError, match="features of length 9"):
        linear_scores(sparse.csr_matrix((1, 9)), weights)
    with pytest.raises(KernelError, match="not among the 3"):
        linear_scores(x[:1], weights, np.array([[3]]))
    assert "train_linear" in ops.kernels()


def test_damaged_weights_are_refused_and_not_followed(kernels: str) -> None:
    if kernels == "reference":
        pytest.skip("native only: scipy checks on its own")
    x, y = problem(20, 10, 6)
    whole = train_linear(x, y, np.array([0, 6]), everything(20))
    for name, value in (("columns", 2**30), ("columns", -1), ("feature_indptr", 2**40), ("features", 2**30)):
        damaged = getattr(whole, name).copy()
        damaged[len(damaged) // 2] = value
        with pytest.raises(KernelError, match="damaged") if name != "features" else nullcontext():
            linear_scores(x, replace(whole, **{name: damaged}))
