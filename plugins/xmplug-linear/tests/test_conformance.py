"""The promises that every plugin makes; the shortlist and the loss in a deep method too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xmplug
from xmplug.testing import conformance


def _options(corpus: Path) -> dict[str, Any]:
    """A tree of two levels, and a run to take a shortlist from."""
    run = corpus.with_name(f"run-of-{corpus.name}")
    xmplug.train("linear", corpus, run)
    return {"label_structure.max_leaf": 5, "label_structure.branching": 4, "label_structure.run": str(run)}


def _deep_options(corpus: Path) -> dict[str, Any]:
    """Its loss, with a margin of 1 to go, takes more steps than cross-entropy."""
    small = {"encoder.hidden": 24, "fusion.layers": "32", "training.learning_rate": 0.01, "training.epochs": 30}
    return small | {"label_structure.run": _options(corpus)["label_structure.run"]}


test_conformance = conformance("linear", options=_options)
test_conformance_in_a_deep_method = conformance("linear", recipe="attentionxml", options=_deep_options)
