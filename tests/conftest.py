"""Small corpora and models that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

import xmplug
from xmplug.data import synthetic_dataset

QUICK = {
    "encoder.vectors": "random",
    "encoder.vector_size": 24,
    "encoder.hidden": 24,
    "encoder.min_count": 1,
    "fusion.layers": "32",
    "training.epochs": 10,
    "training.batch_size": 16,
    "training.learning_rate": 0.02,
    "training.precision": "float32",
}
"""Options with which AttentionXML learns the synthetic corpus in seconds."""

PLT = {"label_structure": "attentionxml:plt", "label_structure.branching": 4, "label_structure.beam": 4}

TOGETHER = {"training.levels": "together"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests leave nothing in the user's cache."""
    monkeypatch.setenv("XMPLUG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, dev and test of 500 documents and 30 labels."""
    folder = tmp_path_factory.mktemp("corpus")
    synthetic_dataset(500, 30, seed=1, folder=folder)
    return folder


@pytest.fixture(scope="session")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a label tree."""
    out = tmp_path_factory.mktemp("runs") / "plt"
    xmplug.train("attentionxml", corpus, out, options=QUICK | PLT)
    return out


@pytest.fixture(scope="session")
def together(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a label tree whose levels were trained together."""
    out = tmp_path_factory.mktemp("runs") / "together"
    xmplug.train("attentionxml", corpus, out, options=QUICK | PLT | TOGETHER)
    return out
