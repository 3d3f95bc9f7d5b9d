"""How well rare labels find their texts, and the scores of labels that no list has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.sparse import csr_matrix

import xmplug
from xmplug.cli.evaluate import command
from xmplug.data import load_dataset
from xmplug.metrics import tail_precision

from .conftest import QUICK, TOGETHER


def test_eq_14_by_hand() -> None:
    # Label 0: true of texts 1 and 3; its best three texts are 3, 0, 1. Label 1: true of text 2; best: 0, 2, 1.
    scores = np.array([[0.5, 0.9], [0.4, 0.2], [0.1, 0.3], [0.8, 0.1]])
    truth = csr_matrix([[0, 0], [1, 0], [0, 1], [1, 0]])
    found = tail_precision(scores, truth, ks=(1, 2, 3, 10))
    assert found == {
        "P@1": 1 / (2 + 1),  # one hit; label 0 has two true texts, of which one can be first
        "P@2": 2 / (2 + 2),
        "P@3": 3 / (3 + 3),
        "P@10": 3 / (10 + 10),
    }


def test_equal_scores_go_by_text() -> None:
    assert tail_precision(np.zeros((3, 1)), csr_matrix([[0], [1], [0]]), ks=(1, 2)) == {"P@1": 0.0, "P@2": 0.5}


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tail")
    tree = {"label_structure": "core:tree", "label_structure.max_leaf": 5, "label_structure.branching": 3}
    whole = {"label_structure.beam": 100}
    short = {**QUICK, "training.epochs": 2}
    xmplug.train("attentionxml", corpus, folder / "flat", options=short)
    xmplug.train("attentionxml", corpus, folder / "apart", options={**short, **tree, **whole})
    xmplug.train("attentionxml", corpus, folder / "together", options={**short, **tree, **whole, **TOGETHER})
    xmplug.train("linear", corpus, folder / "linear")
    return {name: folder / name for name in ("flat", "apart", "together", "linear")}


@pytest.mark.parametrize("name", ["flat", "apart", "together", "linear"])
def test_scores_are_those_of_the_list(runs: dict[str, Path], corpus: Path, name: str) -> None:
    """Where a beam loses nothing, the list of all labels has the score of each."""
    tagger = xmplug.load(runs[name])
    texts = list(load_dataset(str(corpus)).split("test").texts())[:20]
    asked = np.array([7, 0, 19, 3])
    scores = tagger.score(texts, asked)
    labels, expected = tagger.rank(texts, len(tagger.labels))
    for row in range(len(texts)):
        listed = dict(zip(labels[row].tolist(), expected[row].tolist()))
        for column, label in enumerate(asked.tolist()):
            # What a linear model's beam left out has no place in the list.
            if label in listed or name != "linear":
                assert scores[row, column] == pytest.approx(listed[label], rel=1e-4, abs=1e-6)


def test_evaluate_tells(runs: dict[str, Path], corpus: Path) -> None:
    run = runs["flat"]
    done = CliRunner().invoke(command, [str(run), "--tail-labels", "4"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((run / "evaluation-test.json").read_text())["tail"]
    assert all(f"{name} {100 * value:.2f}" in done.output for name, value in found.items())

    dataset = load_dataset(str(corpus))
    test, labels = dataset.split("test"), xmplug.load(run).labels
    truth = test.targets(labels)[:, : labels.num_trained].toarray()
    possible = [label for label in range(labels.num_trained) if truth[:, label].any()]
    rarest = np.array(sorted(possible, key=lambda label: (labels.counts[label], label))[:4])
    scores = xmplug.load(run).score(list(test.texts()), rarest)
    assert found == pytest.approx(tail_precision(scores, csr_matrix(truth[:, rarest])))


def test_ensemble(runs: dict[str, Path], tmp_path: Path) -> None:
    """The weighted mean of its members' scores; none of one that knows ranks alone."""
    members = [str(runs["flat"]), str(runs["linear"])]
    texts, asked = ["some words"], np.array([1, 2])
    xmplug.ensemble(members, tmp_path / "both", method="weighted", weights=[3, 1])
    expected = sum(weight * xmplug.load(member).score(texts, asked) for weight, member in zip((0.75, 0.25), members))
    np.testing.assert_allclose(xmplug.load(tmp_path / "both").score(texts, asked), expected, rtol=1e-5)
    xmplug.ensemble(members, tmp_path / "ranks", method="ranks")
    with pytest.raises(xmplug.ConfigError, match="ensemble by ranks"):
        xmplug.load(tmp_path / "ranks").score(texts, asked)
