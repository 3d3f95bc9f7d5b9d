"""Runs that take part in others: candidates from a run, and a deep run's vectors beside the TF-IDF."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xmplug
from xmplug.api import resume
from xmplug.data import load_dataset, synthetic_dataset
from xmplug.evaluation import evaluate_run
from xmplug.interfaces import Batch
from xmplug.training import Listener

DEEP: dict[str, Any] = {
    "encoder.vectors": "random",
    "encoder.vector_size": 16,
    "encoder.hidden": 8,
    "training.epochs": 3,
    "training.learning_rate": 0.02,
}
TEXT = "noise1 word0x1 noise2 word0x2 noise3 word0x3 noise4"


@pytest.fixture(scope="module")
def linear(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "linear"
    xmplug.train("linear", corpus, out)
    return out


@pytest.fixture(scope="module")
def deep(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "deep"
    xmplug.train("attentionxml", corpus, out, options=DEEP)
    return out


def _shortlist(run: Path, candidates: int) -> dict[str, Any]:
    return {
        "label_structure": "linear:shortlist",
        "label_structure.run": str(run),
        "label_structure.candidates": candidates,
    }


def test_a_deep_run_scores_what_a_linear_one_ranks_high(corpus: Path, linear: Path, tmp_path: Path) -> None:
    tagger = xmplug.train("attentionxml", corpus, tmp_path / "run", options=DEEP | _shortlist(linear, 7))
    texts = [TEXT, "", *load_dataset(corpus).split("test").texts()][:40]
    found, _ = tagger.rank(texts, 20)
    wanted, _ = xmplug.load(linear).rank(texts, 7)
    for own, allowed in zip(found, wanted):
        assert sorted(own[own >= 0]) == sorted(allowed[allowed >= 0])
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "run", moved)  # the linear run goes along
    np.testing.assert_array_equal(xmplug.load(moved).rank(texts, 20)[0], found)
    assert evaluate_run(moved).rows["model"]["P@1"] > 2 * evaluate_run(moved).rows["popularity"]["P@1"]


def test_true_labels_are_candidates_in_training_and_only_there(corpus: Path, linear: Path, tmp_path: Path) -> None:
    from xmplug_linear.shortlist import RunShortlist

    dataset = load_dataset(corpus)
    targets = dataset.split("train").targets(dataset.labels)
    before, texts = RunShortlist.shortlist, [0, 0]

    def watching(self: RunShortlist, level: int, batch: Batch, *rest: Any) -> Any:
        made = before(self, level, batch, *rest)
        assert made.nodes is not None
        for row, nodes in zip(batch.index.tolist(), made.nodes.tolist()):
            true = set(targets[row].indices.tolist()) if batch.training else set()
            candidates = {node for node in nodes if node >= 0}
            assert true <= candidates and len(candidates - true) <= 1
            texts[batch.training] += 1
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunShortlist, "shortlist", watching)
        xmplug.train("attentionxml", corpus, tmp_path / "run", options=DEEP | _shortlist(linear, 1))
    assert min(texts) > 0


def test_text_vectors_are_means_of_the_states(deep: Path, linear: Path) -> None:
    tagger = xmplug.load(deep)
    texts = [TEXT, "", "word3x1 word4x2"]
    vectors = tagger.text_vectors(texts)
    assert vectors.shape == (3, tagger.vector_size) and not vectors[1].any()
    (model,) = tagger.models
    encoder, store = model.level(0).encoder, model.read(texts[:1])
    lengths = torch.from_numpy(store.lengths)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        states = encoder(
            Batch(torch.zeros(1, dtype=torch.int64), torch.from_numpy(store.padded(np.array([0]))), lengths)
        )
        assert states.states is not None
        np.testing.assert_allclose(vectors[0], states.states[0].mean(dim=0).float(), atol=0.02)  # bfloat16 for the one
    with pytest.raises(xmplug.ConfigError, match="sparse vectors"):
        xmplug.load(linear).text_vectors(texts)


def test_dense_vectors_stand_behind_the_words(corpus: Path, deep: Path, tmp_path: Path) -> None:
    options = {"encoder.vectors": str(deep), "encoder.vectors_weight": 0.5}
    tagger = xmplug.train("linear", corpus, tmp_path / "run", options=options)
    (model,) = tagger.models
    texts = [TEXT, "word3x1 word4x2"]
    rows = model.read(texts).features
    assert rows is not None
    size = xmplug.load(deep).vector_size
    dense = rows[:, -size:].toarray()
    expected = xmplug.load(deep).text_vectors(texts)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(rows.toarray(), axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(dense / np.linalg.norm(dense, axis=1, keepdims=True), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(dense, axis=1), 0.5 / np.sqrt(1.25), rtol=1e-5)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    np.testing.assert_array_equal(xmplug.load(tmp_path / "moved").rank(texts, 5)[1], tagger.rank(texts, 5)[1])


class _Stop(Listener):
    def message(self, text: str) -> None:
        self.stop = "solved level by level" in text


def test_stopped_before_its_first_level_it_resumes_with_the_run_inside(
    corpus: Path, deep: Path, tmp_path: Path
) -> None:
    options = {"encoder.vectors": str(deep)}
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("linear", corpus, tmp_path / "run", options=options, listener=_Stop())
    resumed = resume(tmp_path / "run")
    whole = xmplug.train("linear", corpus, tmp_path / "whole", options=options)
    np.testing.assert_array_equal(resumed.rank([TEXT], 5)[1], whole.rank([TEXT], 5)[1])


@pytest.mark.parametrize("slot", ["shortlist", "vectors"])
def test_a_run_that_may_know_dev_takes_no_part(slot: str, deep: Path, tmp_path: Path) -> None:
    synthetic_dataset(300, 10, seed=2, folder=tmp_path / "corpus")
    (tmp_path / "corpus" / "dev.jsonl").unlink(missing_ok=True)
    name, options = ("attentionxml", DEEP) if slot == "vectors" else ("linear", {})
    xmplug.train(name, tmp_path / "corpus", tmp_path / "one", options=options, dev_fraction=0.2)
    given = {"encoder.vectors": str(tmp_path / "one")} if slot == "vectors" else DEEP | _shortlist(tmp_path / "one", 5)
    with pytest.raises(xmplug.ConfigError, match="may know those of dev"):
        xmplug.train(
            "linear" if slot == "vectors" else "attentionxml",
            tmp_path / "corpus",
            tmp_path / "two",
            options=given,
            dev_fraction=0.3,
        )
    assert not (tmp_path / "two").exists()


def test_what_is_fitted_on_dev_asks_for_the_dev_of_the_training(linear: Path, corpus: Path, tmp_path: Path) -> None:
    changed = tmp_path / "corpus"
    shutil.copytree(corpus, changed)
    xmplug.train("linear", changed, tmp_path / "run")
    with open(changed / "train.jsonl", "a", encoding="utf-8") as file:
        file.write('{"text": "one more", "labels": ["label0000"]}\n')
    with pytest.raises(xmplug.RunError, match="corpus has changed"):
        xmplug.calibrate(tmp_path / "run")
    with pytest.raises(xmplug.ConfigError, match="needs a run"):
        xmplug.train("attentionxml", corpus, tmp_path / "x", options=DEEP | {"label_structure": "linear:shortlist"})
