"""Candidates from a run that is already trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

import xmplug
from xmplug import ConfigError, Tagger
from xmplug.components.flat import Flat
from xmplug.data import Corpus, Documents
from xmplug.interfaces import Batch, Shortlist, Task

from . import RunShortlistConfig
from .tfidf import chunks, load_for


class RunShortlist(Flat):
    """One level: the labels that another run, such as a linear one, ranks highest for a text. Training adds the true
    ones. Runs keep a copy of the other run."""

    def __init__(self, config: RunShortlistConfig, tagger: Tagger, task: Task):
        super().__init__(task.num_labels)
        self.config, self.tagger = config, tagger
        known = {label: place for place, label in enumerate(task.labels.ids[: task.num_labels])}
        self.place = np.array([known.get(label, -1) for label in tagger.labels.ids])
        if self.place.max() < 0:
            raise ConfigError(
                f"no label of the run {config.run!r} is among the {task.num_labels} labels of these data; "
                "give a run that was trained on them"
            )

    @classmethod
    def fit(cls, config: RunShortlistConfig, corpus: Corpus) -> RunShortlist:  # type: ignore[override]
        if config.run is None:
            raise ConfigError("a shortlist needs a run to take it from; give --label-structure.run RUN")
        return cls(config, load_for(config.run, corpus), corpus.task)

    @classmethod
    def restore(cls, config: RunShortlistConfig, folder: Path, task: Task) -> RunShortlist:  # type: ignore[override]
        return cls(config, xmplug.load(folder / "run"), task)

    def save(self, folder: Path) -> None:
        assert self.config.run is not None
        xmplug.copy_run(self.config.run, folder / "run")

    def read(self, texts: Documents | Sequence[str]) -> csr_matrix:
        rows, columns, scores, read = [], [], [], 0
        for chunk in chunks(texts):
            labels, score = self.tagger.rank(chunk, self.config.candidates)
            place = np.where(labels >= 0, self.place[labels], -1)
            row, column = np.nonzero(place >= 0)
            rows.append(row + read)
            columns.append(place[row, column])
            scores.append(np.maximum(score[row, column], 1e-9))  # what is stored counts as a candidate
            read += len(chunk)
        if not rows:
            return csr_matrix((0, self.num_labels), dtype=np.float32)
        entries = np.concatenate(scores), (np.concatenate(rows), np.concatenate(columns))
        return csr_matrix(entries, shape=(read, self.num_labels), dtype=np.float32)

    def shortlist(self, level: int, batch: Batch, nodes: Tensor | None, scores: Tensor | None) -> Shortlist:
        assert batch.candidates is not None
        lengths = np.diff(batch.candidates.indptr)
        found = np.full((len(lengths), max(1, int(lengths.max(initial=0)))), -1, np.int64)
        found[np.arange(found.shape[1]) < lengths[:, None]] = batch.candidates.indices
        return Shortlist(torch.from_numpy(found).to(batch.tokens.device))
