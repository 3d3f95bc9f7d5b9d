"""What a ranked prediction is worth: the measures of extreme multi-label classification, in one report.

Two rules hold throughout. A document without true labels is left out of every figure, and the number of such
documents is reported. A true label that the model does not know stays in the truth: it cannot be hit, and
it counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isnan, log
from pathlib import PurePath
from typing import Any

import numpy as np
from rich.table import Table
from scipy.sparse import csr_matrix

from xmplug.errors import DataError
from xmplug.ops import ranking_metrics

# a and b of the propensity model: as Jain et al. fitted them on Wikipedia and Amazon, and the means of both
# fits.
PROPENSITY = {"default": (0.55, 1.5), "wikipedia": (0.5, 0.4), "amazon": (0.6, 2.6)}

# Groups of labels by their number of training documents, first to last.
GROUPS = {"head": (100, inf), "torso": (10, 99), "tail": (1, 9)}


def propensity_constants(name: str) -> tuple[float, float]:
    """a and b for the data set of this name, or in the folder of this name.

    They are those of the Extreme Classification Repository: the large Wikipedia and Amazon sets have their
    own, all others the default, Wiki10-31K and AmazonCat-13K among them.
    """
    name = PurePath(name).name.lower()
    if "amazon" in name and "amazoncat" not in name:
        return PROPENSITY["amazon"]
    if "wiki" in name and "wiki10" not in name:
        return PROPENSITY["wikipedia"]
    return PROPENSITY["default"]


def inverse_propensity(counts: np.ndarray, num_documents: int, a: float = 0.55, b: float = 1.5) -> np.ndarray:
    """One over the propensity of each label, (L,) float64, from its training documents `counts` (L,).

    1 / p_l = 1 + C exp(-a log(N_l + b)) with C = (log N - 1)(b + 1)^a (Jain et al., KDD 2016, section 4),
    where N is `num_documents`, the number of training documents. C does not fall below 0, as it would for
    N < 3, since no propensity is above 1. Raises DataError without a training document.
    """
    if num_documents < 1:
        raise DataError(f"propensities need at least one training document; got {num_documents}")
    scale = max(log(num_documents) - 1, 0) * (b + 1) ** a
    return 1 + scale * np.exp(-a * np.log(np.asarray(counts, dtype=np.float64) + b))


@dataclass(frozen=True)
class Group:
    """Labels with `fewest` to `most` training documents: their number, and the documents with a true one."""

    fewest: int
    most: float
    labels: int
    documents: int


@dataclass(frozen=True)
class Report:
    """The figures of one method on one split, and how they were taken.

    values: each figure as a fraction of 1, NaN where there is nothing to measure:
      P@k nDCG@k R@k RP@k PSP@k PSnDCG@k, as `xmplug.ops.ranking_metrics` defines them;
      micro-F1 and macro-F1 of the labels with a score of at least `threshold` among the first `depth` of each
        document; what stands further down is not predicted, which bounds recall. Macro is the mean over the
        labels that are true or predicted somewhere;
      coverage@k: of the distinct true labels, the share that is hit in the first k of at least one document;
      head P@k, head R@k, and the same of torso and tail: the mean, over the documents with true labels of the
        group, of its hits in the first k divided by k, and by the number of the document's true labels in it.
    documents: how many were measured. unlabelled: how many were left out, for want of a true label.
    unknown_labels: how many of the distinct true labels have no training document. They belong to no group.
    """

    values: dict[str, float]
    documents: int
    unlabelled: int
    unknown_labels: int
    ks: tuple[int, ...]
    depth: int
    threshold: float
    propensity: tuple[float, float]
    groups: dict[str, Group]

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows neither NaN nor infinity: None stands for both."""
        report = asdict(self)
        report["values"] = {name: None if isnan(value) else value for name, value in self.values.items()}
        for group in report["groups"].values():
            group["most"] = None if group["most"] == inf else group["most"]
        return report


def evaluate(
    predictions: tuple[np.ndarray, np.ndarray],
    truth: csr_matrix,
    label_counts: np.ndarray,
    num_documents: int,
    *,
    ks: Sequence[int] = (1, 3, 5),
    threshold: float = 0.5,
    propensity: tuple[float, float] = PROPENSITY["default"],
) -> Report:
    """Measure predictions: labels (N,K) integers, best first, -1 = none, and their scores (N,K).

    truth (N, L') CSR: the true labels. label_counts (L,): how many of the `num_documents` training
    documents have each label; L' may be larger, for labels that the model has never heard of. A prediction
    that is there twice counts at its first place; where K is below a k, the rest is missed. Raises
    DataError when these do not belong together.
    """
    top, scores = (np.asarray(part) for part in predictions)
    if top.ndim != 2 or top.shape != scores.shape or len(top) != truth.shape[0]:
        raise DataError(
            "predictions need labels and scores (N,K), one row for each document; "
            f"got {top.shape} and {scores.shape} for {truth.shape[0]} documents"
        )
    truth = csr_matrix(truth, dtype=np.bool_, copy=True)
    truth.eliminate_zeros()
    truth.sum_duplicates()
    labelled = np.diff(truth.indptr) > 0
    truth, scores, top = truth[labelled], scores[labelled], _first_places(top[labelled])

    width = max(truth.shape[1], len(label_counts), int(top.max(initial=-1)) + 1)
    counts = np.zeros(width, dtype=np.int64)
    counts[: len(label_counts)] = label_counts
    weights = inverse_propensity(counts, num_documents, *propensity)
    values = ranking_metrics(top, truth.indptr, truth.indices, weights, ks)

    hits = true_places(top, truth)
    chosen = (top >= 0) & (scores >= threshold)
    values |= _f1(top[chosen], top[chosen & hits], truth.indices, width)
    true_labels = np.unique(truth.indices)
    for k in ks:
        found = np.unique(top[:, :k][hits[:, :k]])
        values[f"coverage@{k}"] = _ratio(len(found), len(true_labels))
    groups = {}
    for name, (fewest, most) in GROUPS.items():
        member = (counts >= fewest) & (counts <= most)  # (width,)
        before = np.concatenate([[0], np.cumsum(member[truth.indices])])
        true = np.diff(before[truth.indptr])  # (N,) true labels of the group
        here = true > 0
        found = (hits & member[top])[here]  # (documents of the group, K)
        groups[name] = Group(fewest, most, int(member.sum()), int(here.sum()))
        for k in ks:
            values[f"{name} P@{k}"] = _ratio(found[:, :k].sum() / k, len(found))
        for k in ks:
            values[f"{name} R@{k}"] = _ratio((found[:, :k].sum(axis=1) / true[here]).sum(), len(found))
    return Report(
        values=values,
        documents=len(top),
        unlabelled=len(labelled) - len(top),
        unknown_labels=int((counts[true_labels] == 0).sum()),
        ks=tuple(ks),
        depth=top.shape[1],
        threshold=threshold,
        propensity=propensity,
        groups=groups,
    )


def true_places(top: np.ndarray, truth: csr_matrix) -> np.ndarray:
    """(N,K) bool: which of the predicted labels `top` (N,K), -1 = none, are true.

    truth (N, L') CSR, indices sorted. By binary search among its cells.
    """
    width = max(truth.shape[1], int(top.max(initial=-1)) + 1)
    rows = np.repeat(np.arange(len(top), dtype=np.int64), np.diff(truth.indptr))
    cells = np.append(rows * width + truth.indices, -1)  # the last one is where a search beyond the end looks
    asked = np.arange(len(top), dtype=np.int64)[:, None] * width + top  # (N,K)
    found: np.ndarray = (top >= 0) & (cells[np.searchsorted(cells[:-1], asked)] == asked)
    return found


def tail_precision(scores: np.ndarray, truth: csr_matrix, ks: Sequence[int] = (1, 10, 20)) -> dict[str, float]:
    """How well labels find their texts, P@K for each K of `ks` (MAACF+, section 4.4, eq. 14): of each label the K texts
    with the highest scores, and of all of them the hits over the sum of max(K, true texts of the label).

    scores (N,M) of N texts for M labels; equal ones go by text. truth (N,M): where not 0, the label is true.
    """
    true = truth.toarray() != 0
    order = np.argsort(-scores, axis=0, kind="stable")  # (N,M)
    hits = np.take_along_axis(true, order, axis=0)
    return {f"P@{k}": _ratio(hits[:k].sum(), np.maximum(true.sum(axis=0), k).sum()) for k in ks}


def brier_score(scores: np.ndarray, hits: np.ndarray) -> float:
    """The mean squared distance of scores from 1 for `hits`, else from 0 (Brier, Monthly Weather Review 1950).

    scores and hits, bool, of one shape. NaN for none. Lower is better; calibration and sharpness both count.
    """
    return float(np.mean((scores.astype(np.float64) - hits) ** 2)) if scores.size else float("nan")


def reliability(scores: np.ndarray, hits: np.ndarray, bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores in bins of equal mass beside the share that is true: what a reliability diagram draws.

    scores and hits, bool, of one shape. Bins end at the quantiles of the scores; equal scores share one, so that there
    may be fewer. Returns, of each bin that is not empty, the mean score, the share of hits and the number of scores.
    """
    flat = scores.ravel().astype(np.float64)
    edges = np.quantile(flat, np.linspace(0, 1, bins + 1)[1:-1]) if len(flat) else np.empty(0)
    place = np.searchsorted(edges, flat)
    count = np.bincount(place, minlength=1)
    sums = np.bincount(place, flat, 1), np.bincount(place, hits.ravel(), 1)
    used = count > 0
    return sums[0][used] / count[used], sums[1][used] / count[used], count[used]


def calibration_error(scores: np.ndarray, hits: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: how far scores are from the share that is true, in the mean over `reliability` bins.

    Guo et al. (ICML 2017), section 2, with bins of equal mass rather than width: scores crowd near 0 and 1. NaN for
    none. It is not 0 for perfect probabilities: some hundredths remain of the noise in each bin where texts are few.
    """
    score, share, count = reliability(scores, hits, bins)
    return _ratio(float(count @ np.abs(score - share)), int(count.sum()))


def popularity(counts: np.ndarray, num_documents: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The baseline that reads no text: the k most frequent labels, and the share of documents with each.

    counts (L,): how many of the `num_documents` training documents have each label. Returns labels (k,)
    int64, ties by smaller label, and shares (k,) float32, filled up with -1 and 0 where fewer than k labels
    have a document.
    """
    counts = np.asarray(counts)
    best = np.argsort(-counts, kind="stable")[:k]
    best = best[counts[best] > 0]
    labels = np.full(k, -1, dtype=np.int64)
    shares = np.zeros(k, dtype=np.float32)
    labels[: len(best)] = best
    shares[: len(best)] = counts[best] / num_documents
    return labels, shares


def table(rows: Mapping[str, Report]) -> Table:
    """The reports side by side, in percent: a line for each measure, a column for each report and k.

    Raises ValueError for reports that were not taken in the same way.
    """
    first = next(iter(rows.values()))
    settings = [(each.ks, each.depth, each.threshold, each.propensity) for each in rows.values()]
    if settings.count(settings[0]) < len(settings):
        raise ValueError(f"reports taken in different ways (ks, depth, threshold, propensity): {settings}")
    shown = Table(caption=_caption(first), caption_justify="left")
    shown.add_column("%")
    for name in rows:
        for place, k in enumerate(first.ks):
            shown.add_column(f"{name if place == 0 else ''}\n@{k}", justify="right")
    families = list(dict.fromkeys(name.partition("@")[0] for name in first.values))
    for family in families:
        at_each_k = family not in first.values  # the others have one value, which stands at the right
        cells = [
            _percent(report.values.get(f"{family}@{k}"))
            if at_each_k
            else _percent(report.values[family] if k == first.ks[-1] else None)
            for report in rows.values()
            for k in first.ks
        ]
        shown.add_row(family, *cells)
    return shown


def _caption(report: Report) -> str:
    bounds = (
        f"{name} {group.fewest}{'+' if group.most == inf else f'-{group.most}'}"
        for name, group in report.groups.items()
    )
    return (
        f"{report.documents} documents. F1: labels with a score of at least {report.threshold:g} "
        f"among the top {report.depth}. Training documents of a label: {', '.join(bounds)}."
    )


def _percent(value: float | None) -> str:
    return "" if value is None else "-" if isnan(value) else f"{100 * value:.2f}"


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _first_places(top: np.ndarray) -> np.ndarray:
    """top (N,K) int64 where whatever is no label, and each label after its first place in a row, is -1."""
    top = np.where(top < 0, -1, top).astype(np.int64)
    for place in range(1, top.shape[1]):
        repeated = (top[:, :place] == top[:, place, None]).any(axis=1)
        top[repeated, place] = -1
    return top


def _f1(predicted: np.ndarray, hit: np.ndarray, true: np.ndarray, width: int) -> dict[str, float]:
    """F1 from the label of each prediction, each hit and each true cell."""
    hits, cells = np.bincount(hit, minlength=width), np.bincount(predicted, minlength=width)
    cells += np.bincount(true, minlength=width)
    present = cells > 0
    return {
        "micro-F1": _ratio(2 * hits.sum(), cells.sum()),
        "macro-F1": _ratio((2 * hits[present] / cells[present]).sum(), present.sum()),
    }
