"""Measuring a run on a split of a corpus, beside the popularity baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .data import Documents, load_dataset, read_documents
from .errors import DataError, RunError
from .inference import Tagger
from .metrics import Report, evaluate, popularity, propensity_constants, tail_precision
from .plugins import Plugins
from .saving import load_run, read_manifest

_DEPTH = 20
"""Labels ranked for each text at least: F1 counts those above the threshold, and few texts have more."""

_CHUNK = 8192


@dataclass(frozen=True)
class Evaluation:
    """rows: a report by name, the baseline first. notes: what the reader of the figures must know. tail: what
    `tail_precision` gives for the rarest labels, where that was asked for."""

    rows: dict[str, Report]
    notes: list[str]
    tail: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        tail = {} if self.tail is None else {"tail": self.tail}
        return {name: report.as_dict() for name, report in self.rows.items()} | tail | {"notes": self.notes}


def evaluate_run(
    run: str | Path,
    data: str | Path | None = None,
    *,
    split: str = "test",
    ks: Sequence[int] = (1, 3, 5),
    data_format: str | None = None,
    plugin_files: Sequence[str] = (),
    tail_labels: int = 0,
) -> Evaluation:
    """Measure the model in `run` on `split` of `data`; without `data`, of the corpus it was trained on.

    tail_labels: also how well so many of the rarest labels find their texts.
    Labels that the model does not know stay in the truth. Raises DataError when the corpus has no such split, or
    none of its labels is known to the model.
    """
    tagger = load_run(run, Plugins().load(tuple(plugin_files)))
    documents, name = split_of(run, data, split, data_format)
    return evaluate_documents(tagger, documents, name, ks, tail_labels)


def split_of(
    run: str | Path, data: str | Path | None, split: str, data_format: str | None = None
) -> tuple[Documents, str]:
    """A split of `data`, or of what `run` was trained on; and what the data are called. Raises DataError for none."""
    source: dict[str, Any] = training_source(Path(run)) if data is None else {"spec": data, "format": data_format}
    name = str(source["spec"])
    if data is not None and Path(data).is_file():
        documents = Documents.of(read_documents(data, data_format))  # one file is the split, all of it
    else:
        documents = load_dataset(**source).split(split)
    if not len(documents):
        raise DataError(f"data {name!r} have no {split} split; give --split, or add the file {split}.jsonl")
    return documents, name


def evaluate_documents(
    tagger: Tagger, documents: Documents, name: str, ks: Sequence[int], tail_labels: int = 0
) -> Evaluation:
    """Measure `tagger` on documents with known labels. `name` of the corpus decides the propensity constants."""
    labels = tagger.labels
    truth = documents.targets(labels)
    known = truth[:, : labels.num_trained]
    if not known.nnz:
        raise DataError(f"no label of {name!r} is known to the model; is it the corpus for this run?")
    k = max(*ks, _DEPTH)
    settings: dict[str, Any] = {"ks": tuple(ks), "propensity": propensity_constants(name)}
    top, scores = rank_texts(tagger, documents.texts(), k)
    # A model with fewer than k labels gives shorter lists; the baseline's are filled up too.
    missing = ((0, 0), (0, k - top.shape[1]))
    predictions = np.pad(top, missing, constant_values=-1), np.pad(scores, missing)
    common, share = popularity(labels.counts[: labels.num_trained], labels.num_documents, k)
    baseline = (np.tile(common, (len(documents), 1)), np.tile(share, (len(documents), 1)))
    rows = {
        "popularity": evaluate(baseline, truth, labels.counts, labels.num_documents, **settings),
        "model": evaluate(predictions, truth, labels.counts, labels.num_documents, **settings),
    }
    notes = []
    unlabelled = int((np.diff(truth.indptr) == 0).sum())
    if unlabelled:
        notes.append(f"{unlabelled} of {len(documents)} documents have no true label and are left out")
    unknown = len(np.unique(truth.indices[truth.indices >= labels.num_trained]))
    if unknown:
        notes.append(f"{unknown} labels of this split have no training document; they count as missed")
    tail = None
    if tail_labels:
        # Labels without a true text here could not be hit; of equally rare ones the first.
        there = np.asarray(known.sum(axis=0)).ravel() > 0
        rarest = np.argsort(labels.counts[: labels.num_trained], kind="stable")
        rarest = rarest[there[rarest]][:tail_labels]
        tail = tail_precision(score_texts(tagger, documents.texts(), rarest), known[:, rarest])
        counts = labels.counts[rarest]
        notes.append(
            f"rarest labels: the {len(rarest)} with the fewest training documents, {counts.min()} to {counts.max()} "
            "each, of those that are true here; the hits among the K texts with the highest scores for each, over the "
            "sum of the larger of K and its true texts"
        )
    return Evaluation(rows, notes, tail)


def training_source(run: Path) -> dict[str, Any]:
    """The arguments of `load_dataset` that gave the data of a run, or of an ensemble's first member."""
    content = read_manifest(run)
    if "members" in content:
        return training_source(run / content["members"][0])
    source = content["data"].get("source", {})
    if (
        not isinstance(source, dict)
        or "spec" not in source
        or source.keys() - {"spec", "format", "labels", "dev_fraction"}
    ):
        raise RunError(f"{str(run)!r} does not say which data it was trained on; give --data")
    return source


def rank_texts(tagger: Tagger, texts: Iterable[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """`Tagger.rank` for any number of texts, some thousand at a time."""
    source = iter(texts)
    chunks = []
    while chunk := list(islice(source, _CHUNK)):
        chunks.append(tagger.rank(chunk, k))
    return np.concatenate([top for top, _ in chunks]), np.concatenate([scores for _, scores in chunks])


def score_texts(tagger: Tagger, texts: Iterable[str], labels: np.ndarray) -> np.ndarray:
    """`Tagger.score` for any number of texts, some thousand at a time."""
    source = iter(texts)
    chunks = []
    while chunk := list(islice(source, _CHUNK)):
        chunks.append(tagger.score(chunk, labels))
    return np.concatenate(chunks)
