"""The label context of methods that have none."""

from __future__ import annotations

from pathlib import Path

from ..data import Corpus
from ..interfaces import Batch, Encoder, LabelContext, Task
from . import NoContextConfig


class NoContext(LabelContext):
    @classmethod
    def fit(cls, config: NoContextConfig, corpus: Corpus, encoder: Encoder) -> NoContext:
        return cls()

    @classmethod
    def restore(cls, config: NoContextConfig, folder: Path, task: Task, encoder: Encoder) -> NoContext:
        return cls()

    def save(self, folder: Path) -> None:
        """Nothing to keep."""

    def label_texts(self, batch: Batch) -> None:
        """No text is informed by label texts."""
