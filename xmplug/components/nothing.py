"""The label context of methods that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import Corpus
from ..interfaces import Encoder, LabelContext, Task


class NoContext(LabelContext):
    @classmethod
    def fit(cls, config: Any, corpus: Corpus, encoder: Encoder) -> NoContext:
        return cls()

    @classmethod
    def restore(cls, config: Any, folder: Path, task: Task, encoder: Encoder) -> NoContext:
        return cls()

    def save(self, folder: Path) -> None:
        """Nothing to keep."""
