"""GUDN from end to end on a planted corpus: it learns, resumes, sheds its guides, mixes, and explains itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import xmplug
from xmplug.api import resume
from xmplug.evaluation import evaluate_run
from xmplug.training import Listener, Progress

TREE = {"label_structure": "core:tree", "label_structure.max_leaf": 4, "label_structure.beam": 3}
PARTS = ("labels", "shape", "guide", "link")


@pytest.fixture(scope="session")
def quick(bert: Path) -> dict[str, Any]:
    """Options with which the planted corpus is learned in seconds."""
    return {
        "encoder.model": str(bert),
        "encoder.max_tokens": 64,
        "label_context.max_tokens": 16,
        "fusion.size": 48,
        "fusion.hidden": 48,
        "encoder.rate": 1.0,
        "fusion.dropout": 0,
        "training.epochs": 15,
        "training.batch_size": 16,
        "training.learning_rate": 0.01,
        "training.precision": "float32",
    }


@pytest.fixture(scope="module")
def run(corpus: Path, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "flat"
    xmplug.train("gudn", corpus, out, options=quick)
    return out


class _StopAt(Listener):
    def __init__(self, step: int):
        self.at = step

    def step(self, progress: Progress) -> None:
        self.stop = progress.step == self.at


def _names(run: Path) -> set[str]:
    with safe_open(run / "model.safetensors", "pt") as file:
        return set(file.keys())


def _ndcg(run: Path, split: str = "test") -> float:
    return float(evaluate_run(run, split=split).rows["model"]["nDCG@5"])


def test_it_learns(run: Path) -> None:
    assert _ndcg(run) > 0.8


def test_guides_are_gone_from_the_finished_run(run: Path, corpus: Path) -> None:
    assert not any(f"fusion.{part}." in name for name in _names(run) for part in PARTS)
    assert not (run / "label_context").exists() and not (run / "checkpoints").exists()
    tagger = xmplug.load(run)
    before = tagger.rank(["word3x1 word3x2 word3x0 noise7"], 5)
    (run / "checkpoints").mkdir()
    assert np.array_equal(before[0], xmplug.load(run).rank(["word3x1 word3x2 word3x0 noise7"], 5)[0])
    (run / "checkpoints").rmdir()
    assert xmplug.load(run).predict(["word3x1 word3x2 word3x0 noise7"], 1)[0][0].name == "Label 3"


def test_a_saved_run_needs_neither_the_model_folder_nor_a_network(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    xmplug.copy_run(run, moved)
    content = json.loads((moved / "xmplug.json").read_text())
    content["config"]["encoder"]["model"] = "nobody/has-this"
    (moved / "xmplug.json").write_text(json.dumps(content))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    texts = ["word3x1 word3x2 noise7", "word1x0 word1x1 word2x2 word2x3"]
    found, expected = xmplug.load(moved).rank(texts, 5), xmplug.load(run).rank(texts, 5)
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    assert json.loads((moved / "encoder" / "origin.json").read_text())["model"].startswith("/")


@pytest.mark.parametrize(
    ("step", "further", "sparse_from"),
    [
        (7, {}, 100_000),
        (30, {}, 100_000),
        (30, TREE | {"training.levels": "together", "training.micro_batch": 5, "encoder.decay": 0.5}, 100_000),
        (30, TREE | {"training.levels": "together", "training.swa_start": 0.1, "training.swa_every": 3}, 20),
        (30, TREE | {"training.micro_batch": 5}, 20),
    ],
    ids=["early", "late", "together", "together-sparse", "apart-sparse"],
)
def test_a_resumed_training_ends_with_the_same_numbers(
    step: int,
    further: dict[str, Any],
    sparse_from: int,
    corpus: Path,
    quick: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xmplug_gudn.network._SPARSE_FROM", sparse_from)
    options = quick | {"training.epochs": 2, "encoder.dropout": 0.1, "fusion.dropout": 0.2} | further
    xmplug.train("gudn", corpus, tmp_path / "whole", options=options)
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("gudn", corpus, tmp_path / "killed", options=options, listener=_StopAt(step))
    resume(tmp_path / "killed")
    whole, killed = (tmp_path / name / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


def test_a_training_that_lost_its_label_texts_does_not_go_on_without_guides(
    corpus: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("gudn", corpus, tmp_path, options=quick, listener=_StopAt(2))
    shutil.rmtree(tmp_path / "label_context")
    with pytest.raises(xmplug.RunError, match="holds no labels"):
        resume(tmp_path)


@pytest.mark.parametrize("levels", ["apart", "together"])
def test_it_learns_on_a_tree_whose_levels_are_trained(
    levels: str, corpus: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    epochs = 30 if levels == "together" else 15  # as many passes of the encoder
    options = quick | TREE | {"training.levels": levels, "training.epochs": epochs}
    xmplug.train("gudn", corpus, tmp_path / "run", options=options)
    assert _ndcg(tmp_path / "run") > 0.8
    names = _names(tmp_path / "run")
    assert not any(f"fusion.{part}." in name for name in names for part in PARTS)
    encoders = {name.split(".")[0] for name in names if ".encoder." in name}
    assert len(encoders) == (1 if levels == "together" else 2)


@pytest.mark.parametrize(
    "options",
    [
        {"label_context": "core:none"},
        {"label_context": "gudn:own_labels", "fusion.label_input": "multi_hot"},
        {"fusion.guides": "feature"},
        {"fusion.guides": "link"},
        {"label_context.fill": "ordered"},
        {"loss": "core:bce"},
        {"encoder.frozen": 2, "encoder.checkpointing": True, "training.epochs": 8},
        {"training.precision": "bfloat16"},
    ],
)
def test_every_ablation_trains_and_predicts(
    options: dict[str, Any], corpus: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    options = quick | {"training.epochs": 4} | options
    if "label_context" in options:  # whose options are others
        options.pop("label_context.max_tokens")
    tagger = xmplug.train("gudn", corpus, tmp_path / "run", options=options)
    labels, scores = tagger.rank(["word3x1 word3x2 noise7", ""], 5)
    assert labels.shape == (2, 5) and np.isfinite(scores).all() and (np.diff(scores) <= 0).all()
    assert _ndcg(tmp_path / "run", "dev") > 0.3


def test_the_encoder_serves_other_methods(corpus: Path, bert: Path, tmp_path: Path) -> None:
    options = {
        "encoder": "gudn:bert",
        "encoder.model": str(bert),
        "encoder.max_tokens": 64,
        "fusion.layers": "32",
        "training.epochs": 8,
        "training.batch_size": 16,
        "training.learning_rate": 0.01,
        "training.precision": "float32",
    }
    tagger = xmplug.train("attentionxml", corpus, tmp_path / "run", options=options)
    assert _ndcg(tmp_path / "run") > 0.6
    words = tagger.explain("noise1 word3x1 word3x2 word3x0", 1)[0].words
    assert words is not None and words[0][0].startswith("word3")


def test_explanation_names_the_words_that_carry_the_label(run: Path) -> None:
    text = "noise5 word3x1 noise8 word3x0 word7x1 word7x2, noise9 word7x4"
    explained = {item.prediction.name: item.words for item in xmplug.load(run).explain(text, 2, words=3)}
    assert explained.keys() == {"Label 3", "Label 7"}
    for name, words in explained.items():
        assert words is not None and words[0][0].startswith(f"word{name[-1]}x")
        assert all(text[start:end] == word for word, start, end, _ in words)


def test_what_it_needs_is_said(corpus: Path, quick: dict[str, Any], tmp_path: Path) -> None:
    options = {name: value for name, value in quick.items() if not name.startswith("label_context")}
    with pytest.raises(xmplug.ConfigError, match=r"give --label-context gudn:own_labels"):
        xmplug.train("gudn", corpus, tmp_path / "run", options=options | {"fusion.label_input": "multi_hot"})
