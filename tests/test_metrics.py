from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.sparse import csr_matrix
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, f1_score, ndcg_score, precision_score, recall_score

from xmplug.errors import DataError
from xmplug.metrics import (
    Report,
    brier_score,
    calibration_error,
    evaluate,
    inverse_propensity,
    popularity,
    propensity_constants,
    reliability,
    table,
    true_places,
)


def matrix(truth: list[list[int]], width: int) -> csr_matrix:
    dense = np.zeros((len(truth), width), dtype=bool)
    for row, labels in enumerate(truth):
        dense[row, labels] = True
    return csr_matrix(dense)


def random_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, csr_matrix, np.ndarray]:
    """400 documents, each with true labels, and the full ranking of 30 labels for each."""
    rng = np.random.default_rng(seed)
    dense = rng.random((400, 30)) < np.linspace(0.4, 0.02, 30)
    dense[~dense.any(axis=1), 3] = True
    scores = np.clip(0.6 * dense * rng.random((400, 30)) + 0.5 * rng.random((400, 30)), 0, 1)
    top = np.argsort(-scores, axis=1)
    return top, np.take_along_axis(scores, top, 1).astype(np.float32), csr_matrix(dense), scores


def test_inverse_propensity_by_hand() -> None:
    values = inverse_propensity(np.array([0, 10]), 1000)
    scale = (math.log(1000) - 1) * 2.5**0.55
    assert values.dtype == np.float64
    assert values == pytest.approx([1 + scale / 1.5**0.55, 1 + scale / 11.5**0.55], rel=1e-12)
    other = inverse_propensity(np.array([7]), 100, a=0.6, b=2.6)
    assert other == pytest.approx([1 + (math.log(100) - 1) * 3.6**0.6 / 9.6**0.6], rel=1e-12)


@pytest.mark.parametrize("num_documents", [1, 2, 3])
def test_no_propensity_is_above_one(num_documents: int) -> None:
    assert (inverse_propensity(np.array([0, 1, num_documents]), num_documents) >= 1).all()


def test_propensity_constants_by_data_set() -> None:
    for name in ("Amazon-670K", "LF-AmazonTitles-131K", "some/folder/amazon3m/"):
        assert propensity_constants(name) == (0.6, 2.6)
    for name in ("Wiki-500K", "WikiLSHTC-325K", "LF-WikiSeeAlso-320K"):
        assert propensity_constants(name) == (0.5, 0.4)
    for name in ("debtags", "eurlex57k", "AmazonCat-13K", "Wiki10-31K", "amazon/eurlex"):
        assert propensity_constants(name) == (0.55, 1.5)


def test_propensity_scored_figures_by_hand() -> None:
    # N = 100; labels 0, 1, 2 have 50, 5, 0 training documents. The first document has 0 and 2, the second 1.
    weight = [1 + (math.log(100) - 1) * (2.5 / (count + 1.5)) ** 0.55 for count in (50, 5, 0)]
    top = np.array([[0, 1], [0, 1]])
    scores = np.full((2, 2), 0.9)
    report = evaluate((top, scores), matrix([[0, 2], [1]], 3), np.array([50, 5, 0]), 100, ks=(1, 2))
    assert report["PSP@1"] == pytest.approx(weight[0] / (weight[2] + weight[1]))
    assert report["PSP@2"] == pytest.approx((weight[0] + weight[1]) / (weight[2] + weight[0] + weight[1]))
    second = 1 / math.log2(3)
    both = 1 + second  # the best DCG of the first document, which has two true labels
    achieved = weight[0] / both + weight[1] * second
    best = (weight[2] + weight[0] * second) / both + weight[1]
    assert report["PSnDCG@2"] == pytest.approx(achieved / best)


def test_ranking_agrees_with_scikit_learn_on_full_rankings() -> None:
    top, ranked, truth, scores = random_case()
    dense = truth.toarray()
    report = evaluate((top, ranked), truth, np.full(30, 5), 400, ks=(1, 5, 30))
    for k in (1, 5, 30):
        first = np.zeros_like(dense)
        np.put_along_axis(first, top[:, :k], True, axis=1)
        assert report[f"nDCG@{k}"] == pytest.approx(ndcg_score(dense, scores, k=k), rel=1e-9)
        assert report[f"P@{k}"] == pytest.approx(precision_score(dense, first, average="samples"), rel=1e-9)
        assert report[f"R@{k}"] == pytest.approx(recall_score(dense, first, average="samples"), rel=1e-9)
    assert report["R@30"] == report["coverage@30"] == 1


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_f1_agrees_with_scikit_learn(threshold: float) -> None:
    top, ranked, truth, _ = random_case()
    dense = truth.toarray()
    dense[:, 29] = False  # a label that is never true; predicted only at low thresholds
    predicted = np.zeros_like(dense)
    np.put_along_axis(predicted, top[:, :8], ranked[:, :8] >= threshold, axis=1)
    occurring = (dense | predicted).any(axis=0)
    labelled = dense.any(axis=1)
    report = evaluate((top[:, :8], ranked[:, :8]), csr_matrix(dense), np.full(30, 5), 400, threshold=threshold)
    for average in ("micro", "macro"):
        expected = f1_score(
            dense[labelled][:, occurring], predicted[labelled][:, occurring], average=average, zero_division=0
        )
        assert report[f"{average}-F1"] == pytest.approx(expected, rel=1e-9)
    assert report.depth == 8


def test_documents_without_labels_are_left_out_and_counted() -> None:
    top, ranked, truth, _ = random_case()
    counts = np.arange(30) * 7
    alone = evaluate((top, ranked), truth, counts, 400)
    wide = csr_matrix((800, 30), dtype=bool).tolil()
    wide[::2] = truth
    doubled = evaluate((top.repeat(2, axis=0), ranked.repeat(2, axis=0)), wide.tocsr(), counts, 400)
    assert doubled.values == alone.values
    assert (alone.documents, alone.unlabelled) == (400, 0)
    assert (doubled.documents, doubled.unlabelled) == (400, 400)


def test_unknown_labels_stay_in_the_truth() -> None:
    # The model knows labels 0 and 1; label 2 is known by name only, labels 3 and 4 not at all.
    predictions = np.array([[0, 1], [1, 0]]), np.array([[0.9, 0.8], [0.7, 0.1]])
    report = evaluate(predictions, matrix([[0, 2, 4], [1]], 5), np.array([100, 9, 0]), 200, ks=(1, 2))
    assert report.unknown_labels == 2
    assert report["R@2"] == pytest.approx((1 / 3 + 1) / 2)
    assert report["coverage@2"] == pytest.approx(2 / 4)
    assert report["micro-F1"] == pytest.approx(2 * 2 / (3 + 4))
    assert report["macro-F1"] == pytest.approx((1 + 2 / 3 + 0 + 0) / 4)  # labels 0, 1, 2, 4
    weights = inverse_propensity(np.array([100, 9, 0, 0, 0]), 200)
    assert report["PSP@1"] == pytest.approx((weights[0] + weights[1]) / (weights[2] + weights[1]))
    assert (report["head R@1"], report["tail R@1"]) == (1, 1)


def test_groups_by_hand() -> None:
    counts = np.array([500, 100, 99, 10, 9, 1, 0])  # two labels each of head, torso and tail, and one of none
    truth = matrix([[0, 1, 4], [2], [0, 2, 3, 5]], 7)
    top = np.array([[0, 4, 6], [3, 2, 5], [0, 5, 3]])
    report = evaluate((top, np.ones((3, 3))), truth, counts, 1000, ks=(1, 3))
    assert {name: (group.labels, group.documents) for name, group in report.groups.items()} == {
        "head": (2, 2),
        "torso": (2, 2),
        "tail": (2, 2),
    }
    assert report["head P@1"] == 1
    assert report["head R@1"] == pytest.approx((1 / 2 + 1) / 2)
    assert report["torso P@3"] == pytest.approx((1 + 1) / 3 / 2)
    assert report["torso R@3"] == pytest.approx((1 + 1 / 2) / 2)
    assert report["tail R@1"] == 0
    assert report["tail R@3"] == 1


def test_coverage_counts_each_label_once() -> None:
    top = np.array([[0, 1], [0, 2], [0, 1]])
    report = evaluate((top, np.ones((3, 2))), matrix([[0], [0, 1], [0, 3]], 4), np.ones(4), 10, ks=(1, 2))
    assert report["coverage@1"] == pytest.approx(1 / 3)
    assert report["coverage@2"] == pytest.approx(1 / 3)  # 1 and 2 were predicted, but where they are not true


def by_definition(
    top: list[list[int]], scores: list[list[float]], truth: list[set[int]], counts: list[int], k: int
) -> dict[str, float]:
    """All but the propensity-scored figures, a document and a label at a time."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    first: dict[str, list[float]] = {}
    true_positives: dict[int, int] = {}
    false_positives: dict[int, int] = {}
    false_negatives: dict[int, int] = {}
    hit: set[int] = set()
    groups = {"head": range(100, 10**9), "torso": range(10, 100), "tail": range(1, 10)}
    for labels, row_scores, true in zip(top, scores, truth, strict=True):
        if not true:
            continue
        seen: dict[int, float] = {}  # label -> score, in the order of rank
        ranked = []
        for label, score in zip(labels, row_scores, strict=True):
            ranked.append(label if label >= 0 and label not in seen else None)
            if label >= 0:
                seen.setdefault(label, score)
        found = [label for label in ranked[:k] if label in true]
        hit |= set(found)
        gains = [1 / math.log2(place + 2) for place, label in enumerate(ranked[:k]) if label in true]
        ideal = [1 / math.log2(place + 2) for place in range(min(k, len(true)))]
        figures = {
            "P": len(found) / k,
            "nDCG": sum(gains) / sum(ideal),
            "R": len(found) / len(true),
            "RP": len(found) / min(k, len(true)),
        }
        for name, members in groups.items():
            mine = {label for label in true if label < len(counts) and counts[label] in members}
            if mine:
                figures[f"{name} P"] = len(mine & set(found)) / k
                figures[f"{name} R"] = len(mine & set(found)) / len(mine)
        for name, value in figures.items():
            first.setdefault(name, []).append(value)
        positive = {label for label, score in seen.items() if score >= 0.5}
        for tally, where in [
            (true_positives, positive & true),
            (false_positives, positive - true),
            (false_negatives, true - positive),
        ]:
            for label in where:
                tally[label] = tally.get(label, 0) + 1
    f1s = []
    for label in {*true_positives, *false_positives, *false_negatives}:
        hits = true_positives.get(label, 0)
        wrong = false_positives.get(label, 0) + false_negatives.get(label, 0)
        f1s.append(2 * hits / (2 * hits + wrong))
    hits = sum(true_positives.values())
    wrong = sum(false_positives.values()) + sum(false_negatives.values())
    distinct = set().union(*truth) if truth else set()
    names = ["P", "nDCG", "R", "RP", *(f"{group} {name}" for group in groups for name in "PR")]
    return {
        **{f"{name}@{k}": mean(first.get(name, [])) for name in names},
        f"coverage@{k}": len(hit) / len(distinct) if distinct else math.nan,
        "macro-F1": mean(f1s),
        "micro-F1": 2 * hits / (2 * hits + wrong) if hits + wrong else math.nan,
    }


scored = st.tuples(st.integers(-1, 9), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
documents = st.tuples(st.lists(scored, min_size=4, max_size=4), st.sets(st.integers(0, 11), max_size=6))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(documents, max_size=7),
    counts=st.lists(st.sampled_from([0, 1, 9, 10, 99, 100, 5000]), min_size=10, max_size=10),
    k=st.integers(1, 6),
)
def test_is_its_definition(rows: list[tuple[list[tuple[int, float]], set[int]]], counts: list[int], k: int) -> None:
    top = [[label for label, _ in row] for row, _ in rows]
    scores = [[score for _, score in row] for row, _ in rows]
    truth = [true for _, true in rows]
    predictions = np.array(top, dtype=np.int64).reshape(-1, 4), np.array(scores, np.float32).reshape(-1, 4)
    cells = matrix([sorted(true) for true in truth], 12)
    report = evaluate(predictions, cells, np.array(counts), 6000, ks=(k,))
    for name, value in by_definition(top, scores, truth, counts, k).items():
        assert report[name] == pytest.approx(value, rel=1e-12, nan_ok=True), name


def test_truth_with_explicit_zeros_and_unsorted_repeated_cells_is_read_as_it_is_meant() -> None:
    cells = csr_matrix((np.array([1, 1, 1, 0], np.int8), np.array([2, 0, 2, 1]), np.array([0, 3, 4])), shape=(2, 3))
    report = evaluate((np.array([[2, 1], [1, 0]]), np.ones((2, 2))), cells, np.ones(3), 10, ks=(2,))
    assert (report.documents, report.unlabelled) == (1, 1)
    assert report["R@2"] == 0.5
    assert cells.nnz == 4  # the caller's matrix is as it was


def test_nothing_to_measure_is_not_a_number_and_is_null_in_json() -> None:
    report = evaluate((np.array([[0]]), np.ones((1, 1))), matrix([[]], 2), np.array([3, 0]), 10)
    assert report.documents == 0
    assert all(math.isnan(value) for value in report.values.values())
    written = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert set(written["values"].values()) == {None}
    assert written["groups"]["head"] == {"fewest": 100, "most": None, "labels": 0, "documents": 0}


def test_a_report_survives_json() -> None:
    top, ranked, truth, _ = random_case()
    report = evaluate((top, ranked), truth, np.arange(30) * 7, 400)
    written = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert written["values"] == report.values
    assert written["documents"] == 400


def test_arguments_that_do_not_fit() -> None:
    truth = matrix([[0], [1]], 2)
    good = np.zeros((2, 3), dtype=np.int64)
    for top, scores in [(good, np.ones((2, 2))), (good[:1], np.ones((1, 3))), (good[0], np.ones(3))]:
        with pytest.raises(DataError, match="2 documents"):
            evaluate((top, scores), truth, np.ones(2), 10)
    with pytest.raises(DataError, match="training document"):
        evaluate((good, np.ones((2, 3))), truth, np.ones(2), 0)


def test_popularity() -> None:
    labels, shares = popularity(np.array([5, 0, 8, 5, 1]), 10, 3)
    assert labels.tolist() == [2, 0, 3]
    assert shares.tolist() == pytest.approx([0.8, 0.5, 0.5])
    labels, shares = popularity(np.array([0, 2]), 4, 3)
    assert labels.tolist() == [1, -1, -1]
    assert shares.tolist() == [0.5, 0, 0]


def rendered(rows: dict[str, Report]) -> list[list[str]]:
    console = Console(width=120, file=io.StringIO())
    console.print(table(rows))
    return [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]


def test_table_puts_reports_side_by_side_in_percent() -> None:
    top, ranked, truth, _ = random_case()
    ours = evaluate((top, ranked), truth, np.full(30, 50), 400)
    common, shares = popularity(np.asarray(truth.sum(axis=0)).ravel(), 400, 5)
    base = evaluate((np.tile(common, (400, 1)), np.tile(shares, (400, 1))), truth, np.full(30, 50), 400)
    with pytest.raises(ValueError, match="different ways"):
        table({"popularity": base, "model": ours})  # F1 of the top 5 beside F1 of all labels
    ours = evaluate((top[:, :5], ranked[:, :5]), truth, np.full(30, 50), 400)
    lines = rendered({"popularity": base, "model": ours})
    figures = [f"{100 * report[f'P@{k}']:.2f}" for report in (base, ours) for k in (1, 3, 5)]
    assert ["P", *figures] in lines
    assert ["micro-F1", *(f"{100 * report['micro-F1']:.2f}" for report in (base, ours))] in lines
    assert ["head", "P", *["-"] * 6] in lines  # no label has 100 training documents


def test_true_places() -> None:
    truth = matrix([[0, 2], [], [4]], 5)
    found = true_places(np.array([[2, 1, -1], [0, 1, 2], [9, 4, 0]]), truth)
    assert found.tolist() == [[True, False, False], [False] * 3, [False, True, False]]


def test_brier_and_calibration_error_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((300, 5)).astype(np.float32) ** 3
    hits = rng.random((300, 5)) < scores**0.7
    assert brier_score(scores, hits) == pytest.approx(brier_score_loss(hits.ravel(), scores.ravel()))
    share, mean = calibration_curve(hits.ravel(), scores.ravel().astype(np.float64), n_bins=15, strategy="quantile")
    ours = reliability(scores, hits)
    assert ours[0] == pytest.approx(mean) and ours[1] == pytest.approx(share)
    assert ours[2].tolist() == [100] * 15
    assert calibration_error(scores, hits) == pytest.approx(np.abs(share - mean).mean())


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.1 and 0.2 with no hit, 0.6 and 1 with one; equal scores share a bin in any order."""
    scores, hits = np.array([0.6, 0.1, 1, 0.2]), np.array([True, False, False, False])
    assert calibration_error(scores, hits, bins=2) == pytest.approx((0.15 + 0.3) / 2)
    assert brier_score(scores, hits) == pytest.approx((0.4**2 + 0.1**2 + 1 + 0.2**2) / 4)
    same = np.full(4, 0.25)
    assert calibration_error(same, hits) == calibration_error(same, hits[::-1]) == 0
    assert math.isnan(calibration_error(same[:0], hits[:0])) and math.isnan(brier_score(same[:0], hits[:0]))
