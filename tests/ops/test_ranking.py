from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from xmplug import ops
from xmplug.errors import KernelError

pytestmark = pytest.mark.usefixtures("kernels")


def csr(truth: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.cumsum([0, *(len(row) for row in truth)])
    return indptr, np.array([label for row in truth for label in row], dtype=np.int64)


def by_hand(top: list[list[int]], truth: list[list[int]], weights: np.ndarray, k: int) -> dict[str, float]:
    """The definitions, a document at a time."""
    sums = dict.fromkeys(["P", "nDCG", "R", "RP"], 0.0)
    achieved, best, achieved_dcg, best_dcg, documents = 0.0, 0.0, 0.0, 0.0, 0
    for predicted, true in zip(top, truth, strict=True):
        if not true:
            continue
        documents += 1
        firsts = [label if label not in predicted[:rank] else -1 for rank, label in enumerate(predicted)][:k]
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(true))))
        found = [(rank, label) for rank, label in enumerate(firsts) if label in true]
        sums["P"] += len(found) / k
        sums["R"] += len(found) / len(true)
        sums["RP"] += len(found) / min(k, len(true))
        sums["nDCG"] += sum(1 / math.log2(rank + 2) for rank, _ in found) / ideal
        ranked = sorted((weights[label] for label in true), reverse=True)[:k]
        achieved += sum(weights[label] for _, label in found)
        best += sum(ranked)
        achieved_dcg += sum(weights[label] / math.log2(rank + 2) for rank, label in found) / ideal
        best_dcg += sum(weight / math.log2(rank + 2) for rank, weight in enumerate(ranked)) / ideal
    values = {name: value / documents if documents else math.nan for name, value in sums.items()}
    values["PSP"] = achieved / best if best else math.nan
    values["PSnDCG"] = achieved_dcg / best_dcg if best_dcg else math.nan
    return {f"{name}@{k}": value for name, value in values.items()}


def test_known_values() -> None:
    # Hits at ranks 1 and 3 of two documents; the third has no labels and is left out.
    top = np.array([[4, 0, 2], [1, 3, 0], [1, 2, 3]])
    indptr, indices = csr([[2, 4], [0, 5, 6, 7], []])
    values = ops.ranking_metrics(top, indptr, indices, ks=(1, 3))
    assert list(values) == ["P@1", "P@3", "nDCG@1", "nDCG@3", "R@1", "R@3", "RP@1", "RP@3"]
    assert values["P@1"] == 0.5
    assert values["P@3"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert values["R@3"] == pytest.approx((1 + 1 / 4) / 2)
    assert values["RP@3"] == pytest.approx((1 + 1 / 3) / 2)
    first = (1 + 0.5) / (1 + 1 / math.log2(3))
    second = 0.5 / (1 + 1 / math.log2(3) + 0.5)
    assert values["nDCG@3"] == pytest.approx((first + second) / 2)


def test_propensity_scored_values_are_ratios_over_all_documents() -> None:
    weights = np.array([1.0, 8.0, 2.0])
    indptr, indices = csr([[0, 1], [2]])
    values = ops.ranking_metrics(np.array([[0], [2]]), indptr, indices, weights, ks=(1,))
    assert values["PSP@1"] == pytest.approx((1 + 2) / (8 + 2))
    assert values["PSnDCG@1"] == pytest.approx((1 + 2) / (8 + 2))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.lists(st.integers(-1, 9), min_size=4, max_size=4), st.sets(st.integers(0, 12))),
        max_size=6,
    ),
    k=st.integers(1, 7),
)
def test_is_its_definition(rows: list[tuple[list[int], set[int]]], k: int) -> None:
    top, truth = [row[0] for row in rows], [sorted(row[1]) for row in rows]
    weights = np.linspace(3.0, 1.0, 13)
    values = ops.ranking_metrics(np.array(top, dtype=np.int64).reshape(-1, 4), *csr(truth), weights, ks=(k,))
    expected = by_hand(top, truth, weights, k)
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-12, nan_ok=True), name


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    num_true=st.lists(st.integers(0, 300), max_size=5),
    ks=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    width=st.integers(0, 80),
)
def test_hundreds_of_true_labels_in_any_order(seed: int, num_true: list[int], ks: list[int], width: int) -> None:
    rng = np.random.default_rng(seed)
    truth = [rng.permutation(400)[:n].tolist() for n in num_true]
    top = rng.integers(-1, 400, (len(truth), width))  # some twice
    weights = rng.integers(1, 5, 400).astype(np.float64)  # many of them equal
    values = ops.ranking_metrics(top, *csr(truth), weights, ks=ks)
    for k in ks:
        for name, value in by_hand(top.tolist(), truth, weights, k).items():
            assert values[name] == pytest.approx(value, rel=1e-12, nan_ok=True), name


def random_run(documents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    top = np.argsort(rng.random((documents, 40)), axis=1)[:, :10]
    truth = [sorted(rng.choice(60, rng.integers(0, 9), replace=False).tolist()) for _ in range(documents)]
    return top, *csr(truth), 1 + rng.random(60)


def test_agrees_with_scikit_learn() -> None:
    top, indptr, indices, _ = random_run(300)
    dense, scores = np.zeros((300, 60)), np.zeros((300, 60))
    for row in range(300):
        dense[row, indices[indptr[row] : indptr[row + 1]]] = 1
        scores[row, top[row]] = np.arange(10, 0, -1)
    labelled = dense.any(axis=1)
    values = ops.ranking_metrics(top, indptr, indices, ks=(5, 10))
    for k in (5, 10):
        assert values[f"nDCG@{k}"] == pytest.approx(ndcg_score(dense[labelled], scores[labelled], k=k), rel=1e-9)


@pytest.mark.usefixtures("restore_threads")
def test_threads_do_not_matter() -> None:
    run = random_run(20_000)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(ops.ranking_metrics(*run))
    assert results[0] == results[1]


@pytest.mark.parametrize("top_type", [np.int16, np.int32, np.int64])
@pytest.mark.parametrize("label_type", [np.uint8, np.int32, np.int64])
def test_takes_tensors_of_any_integer_type_and_layout(top_type: type, label_type: type) -> None:
    top, indptr, indices, weights = random_run(50)
    expected = ops.ranking_metrics(top, indptr, indices, weights)
    wide = torch.from_numpy(np.repeat(top.astype(top_type), 2, axis=1))[:, ::2]
    labels = torch.from_numpy(indices.astype(label_type))
    values = ops.ranking_metrics(wide, torch.from_numpy(indptr).int(), labels, torch.from_numpy(weights))
    assert values == expected


def test_labels_beyond_32_bits() -> None:
    far = 2**40
    values = ops.ranking_metrics(np.array([[far, 3]]), *csr([[3 + far, far]]), ks=(1, 2))
    assert (values["P@1"], values["P@2"]) == (1.0, 0.5)


def test_a_repeated_prediction_counts_once() -> None:
    values = ops.ranking_metrics(np.array([[3, 3, 3]]), *csr([[3, 5, 6]]), ks=(3,))
    assert values["P@3"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("rows", [0, 3])
def test_without_true_labels_there_is_no_value(rows: int) -> None:
    values = ops.ranking_metrics(np.zeros((rows, 5), dtype=np.int64), *csr([[]] * rows), np.ones(4))
    assert len(values) == 18
    assert all(math.isnan(value) for value in values.values())


def test_arguments_that_do_not_fit() -> None:
    top, (indptr, indices) = np.array([[1, 2]]), csr([[1]])
    for arguments in [
        (top, np.array([0, 1, 1]), indices),
        (top, np.array([0, 2]), indices),
        (top, np.array([1, 1]), indices),
        (np.ones((2, 2), dtype=np.int64), np.array([0, 2, 1]), indices),
        (top, indptr, indices.astype(np.int32), np.ones(1)),
        (top, indptr, np.array([-1])),
        (top, indptr, indices, np.ones(1)),
        (top, indptr, indices, None, ()),
        (top, indptr, indices, None, (0, 1)),
        (top[0], indptr, indices),
    ]:
        with pytest.raises(KernelError):
            ops.ranking_metrics(*arguments)
