"""What finished runs become on dev: ensembles with fitted weights, and calibrated scores.

Figures on the very texts that something was fitted on flatter it. So what is reported was cross-fitted: each half of
dev is measured with what the other half gave. What is kept was fitted on both. What the runs bring along has seen all
of dev: a member's calibration, an ensemble's fitted weights; and dev chose the epochs of most methods.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from scipy.sparse import csr_matrix

from .calibration import FILE, RANKS, Calibration
from .calibration import METHODS as CALIBRATION_METHODS
from .combination import METHODS, align, check_weights, highest, weighted_mean
from .data import Documents, LabelSet, load_dataset
from .errors import ConfigError, DataError, RunError, nearest
from .evaluation import rank_texts, split_of, training_source
from .inference import Ensemble, Tagger
from .metrics import brier_score, calibration_error, true_places
from .ops import ranking_metrics
from .plugins import Plugins
from .saving import MANIFEST, copy_run, load_run, save_ensemble, whole_folder, write_json

_FEWEST = 20  # texts to fit anything on
_MEASURED = 5  # ranks that figures are about
_STEPS = 50


def ensemble(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    method: str = "mean",
    weights: Sequence[float] | None = None,
    data: str | Path | None = None,
    data_format: str | None = None,
    plugin_files: Sequence[str] = (),
) -> Ensemble:
    """Make runs on the same labels, ensembles too, one run and return it, ready to predict.

    out: a folder that does not exist yet; it holds all that is needed, as links to the members' files or copies of
    them. method: "mean" of scores; "weighted" by `weights`, one for each run; "fitted", with weights that make nDCG@5
    on dev high, or equal ones where cross-fitting finds those as good; "ranks", reciprocal rank fusion, for scores
    that do not compare. A calibrated member takes part with calibrated scores. data: where dev comes from, for
    "fitted"; else the first run's.

    Raises XmplugError for everything that can be wrong with the arguments, the runs or the disk; then nothing is left.
    """
    if method not in METHODS:
        raise ConfigError(f"no method {method!r} to combine runs; {nearest(method, METHODS)}")
    if len(runs) < 2:
        raise ConfigError(f"an ensemble needs two runs at least; found {len(runs)}")
    if (weights is None) == (method == "weighted"):
        raise ConfigError(
            "weights and the method 'weighted' go together; give both (--method weighted --weights 0.3,0.7) or neither"
        )
    if weights is not None:
        check_weights(weights, len(runs))
    plugins = Plugins().load(tuple(plugin_files))
    folders = [Path(run) for run in runs]
    with whole_folder(Path(out)) as scratch:
        tagger = Ensemble([load_run(run, plugins) for run in folders], weights, by_rank=method == "ranks")
        figures = None
        if method == "fitted":
            documents, name = _dev(folders, data, data_format)
            tagger.weights, figures = _fit_on(tagger, documents, name, runs)
        members = [f"member-{number}" for number in range(len(folders))]
        for folder, member in zip(folders, members):
            copy_run(folder, scratch / member)
        save_ensemble(scratch, members, method, tagger.weights, figures)
    return tagger


def calibrate(
    run: str | Path,
    *,
    method: str = "platt",
    data: str | Path | None = None,
    data_format: str | None = None,
    plugin_files: Sequence[str] = (),
) -> Tagger:
    """Make the scores of a run, or of an ensemble, probabilities as they are on dev; return it, ready to predict.

    The ranking stays. method: "platt", two numbers for each rank; "isotonic", a line for each rank, which needs
    thousands of texts; "none" takes a calibration away. data: where dev comes from, or one file of texts; else from
    what the run was trained on. It is kept in run/calibration.json and applied wherever the run is loaded.

    Raises XmplugError for everything that can be wrong with the arguments, the run or the data.
    """
    if method not in (*CALIBRATION_METHODS, "none"):
        raise ConfigError(f"no method {method!r} to calibrate; {nearest(method, (*CALIBRATION_METHODS, 'none'))}")
    run = Path(run)
    tagger = load_run(run, Plugins().load(tuple(plugin_files)), calibrated=False)
    if method == "none":
        (run / FILE).unlink(missing_ok=True)
        return tagger
    documents, name = _dev([run], data, data_format)
    texts, truth = _labelled(documents, tagger.labels, name)
    top, scores = rank_texts(tagger, texts, RANKS)
    hits = true_places(top, truth)
    kind = cast(Literal["platt", "isotonic"], method)
    after = np.empty_like(scores)
    for here, other in _halves(len(texts)):
        after[here] = Calibration.fit(kind, scores[other], hits[other])(scores[here])
    figures: dict[str, Any] = {"data": name, "documents": len(texts), "ranks": _MEASURED}
    first = top[:, :_MEASURED] >= 0
    for stage, values in {"before": scores, "after": after}.items():
        measured = values[:, :_MEASURED][first], hits[:, :_MEASURED][first]
        figures[stage] = {"Brier": brier_score(*measured), "ECE": calibration_error(*measured)}
    tagger.calibration = Calibration.fit(kind, scores, hits).model_copy(update={"figures": figures})
    write_json(run / FILE, tagger.calibration.model_dump())
    return tagger


def fit_weights(labels: np.ndarray, scores: np.ndarray, truth: csr_matrix) -> np.ndarray:
    """Weights (M,) float64 of the members, not negative, of sum 1, that make nDCG@5 of the weighted mean high.

    labels (N,W) and the members' scores (M,N,W) as `align` gives them, truth (N, L') CSR. Greedy selection with
    replacement (Caruana et al., ICML 2004): 50 times the member is added that helps most; the weights are how often
    each was taken when nDCG@5 was best. Equal weights stay where none are better.
    """
    taken, total = np.zeros(len(scores)), np.zeros(labels.shape)
    weights, reached = np.ones(len(scores)), _ndcg(labels, scores.sum(axis=0), truth)
    for _ in range(_STEPS):
        tried = [_ndcg(labels, total + score, truth) for score in scores]
        member = int(np.argmax(tried))
        taken[member] += 1
        total += scores[member]
        if tried[member] > reached:
            weights, reached = taken.copy(), tried[member]
    return weights / weights.sum()


def _fit_on(
    tagger: Ensemble, documents: Documents, name: str, runs: Sequence[str | Path]
) -> tuple[list[float], dict[str, Any]]:
    """The members' weights, and the figures of members and ensemble.

    Fitted weights are kept where, cross-fitted, they do better than equal ones.
    """
    texts, truth = _labelled(documents, tagger.labels, name)
    lists = tagger.member_lists(texts, _MEASURED)
    labels, scores = align(lists)
    crossed = np.empty((len(texts), _MEASURED), np.int64)
    for here, other in _halves(len(texts)):
        weights = fit_weights(labels[other], scores[:, other], truth[other])
        crossed[here], _ = highest(labels[here], weighted_mean(scores[:, here], weights), _MEASURED)
    equal, _ = highest(labels, scores.sum(axis=0), _MEASURED)
    figures = {"equal weights": _figures(equal, truth), "fitted weights, cross-fitted": _figures(crossed, truth)}
    before, after = (each["nDCG@5"] for each in figures.values())
    # Members that differ by their seeds alone are best weighed alike, and what looks better is noise.
    weights = fit_weights(labels, scores, truth) if after > before else np.full(len(runs), 1 / len(runs))
    rows: list[dict[str, Any]] = [
        {"name": str(run), "weight": weight, **_figures(top, truth)}
        for run, weight, (top, _) in zip(runs, weights.tolist(), lists)
    ]
    rows += [{"name": way, **values} for way, values in figures.items()]
    return weights.tolist(), {"data": name, "documents": len(texts), "rows": rows}


def _figures(top: np.ndarray, truth: csr_matrix) -> dict[str, float]:
    values = ranking_metrics(top, truth.indptr, truth.indices, ks=(1, _MEASURED))
    return {name: values[name] for name in ("P@1", "P@5", "nDCG@5")}


def _ndcg(labels: np.ndarray, scores: np.ndarray, truth: csr_matrix) -> float:
    return ranking_metrics(highest(labels, scores, 5)[0], truth.indptr, truth.indices, ks=(5,))["nDCG@5"]


def _labelled(documents: Documents, labels: LabelSet, name: str) -> tuple[list[str], csr_matrix]:
    """The texts that have true labels, and these (N, L') CSR. Raises DataError where they are too few."""
    truth = documents.targets(labels)
    labelled = np.diff(truth.indptr) > 0
    known = truth[:, : labels.num_trained].getnnz(axis=1) > 0
    if known.sum() < _FEWEST:
        raise DataError(
            f"{known.sum()} texts of {name!r} have labels that the run knows; {_FEWEST} are needed, and hundreds better"
        )
    return [text for text, chosen in zip(documents.texts(), labelled) if chosen], truth[labelled]


def _halves(number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both halves of so many texts, (N,) bool, each with the other. Chance deals them: files are often sorted."""
    half = np.random.default_rng(0).permutation(number) % 2 == 0
    yield from ((half, ~half), (~half, half))


def _dev(runs: Sequence[Path], data: str | Path | None, data_format: str | None) -> tuple[Documents, str]:
    """What to fit on: the dev split of `data`, or the one of the runs' training; and its name.

    Raises RunError when the runs, those inside them too, were not all trained on what is there now: dev would not be
    new to them.
    """
    if data is None:
        manifests = [json.loads(path.read_bytes()) for run in runs for path in run.rglob(MANIFEST)]
        trained_on = {content["data"]["fingerprint"] for content in manifests if "data" in content}
        if trained_on != {load_dataset(**training_source(runs[0])).fingerprint}:
            raise RunError(
                "the runs were trained on different texts, or their corpus has changed, so dev is not new to all of "
                "them; give texts that none of them has seen with --data"
            )
    return split_of(runs[0], data, "dev", data_format)
