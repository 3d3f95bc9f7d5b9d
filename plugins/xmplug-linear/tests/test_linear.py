"""The linear recipe from end to end: it learns, resumes, loads, explains itself, and refuses what it cannot do."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from xmplug_linear.fusion import OneVsRest
from xmplug_linear.loss import SquaredHinge

import xmplug
from xmplug.api import resume
from xmplug.cli import main
from xmplug.data.batches import make_batch
from xmplug.evaluation import evaluate_run
from xmplug.inference import Tagger
from xmplug.interfaces import Scores, Shortlist, Targets
from xmplug.metrics import table
from xmplug.training import Listener

TREE = {"label_structure.branching": 3, "label_structure.max_leaf": 4, "label_structure.beam": 4}
FLAT = {"label_structure": "core:flat"}
TEXT = "noise1 word0x1 noise2 word0x2 noise3 word0x3 noise4"


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a tree of three levels."""
    out = tmp_path_factory.mktemp("runs") / "tree"
    xmplug.train("linear", corpus, out, options=TREE)
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def _cli(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["xmplug", *command.split()])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def _files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def _ranking(tagger: Tagger, *texts: str, k: int = 30) -> list[list[tuple[str, float]]]:
    return [[(found.label, found.score) for found in row] for row in tagger.predict(texts, k)]


# It learns -----------------------------------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "tree": TREE,
    "flat": FLAT,
    "unbalanced": TREE | {"label_structure.balanced": False},
    "logistic": TREE | {"loss": "core:bce"},
    "ranked negatives": TREE | {"fusion.ranked_negatives": True},
    "no bias": TREE | {"fusion.bias": 0},
    "n-grams and characters": TREE | {"encoder.ngrams": 2, "encoder.characters": "3,4"},
    "hashing": TREE | {"encoder.hashing": 4096},
    "tree of attentionxml": {"label_structure": "attentionxml:plt", "label_structure.branching": 4},
}


@pytest.mark.parametrize("way", WAYS)
def test_it_learns_a_planted_corpus_and_beats_popularity(way: str, corpus: Path, tmp_path: Path) -> None:
    tagger = xmplug.train("linear", corpus, tmp_path / "run", options=WAYS[way])
    rows = evaluate_run(tmp_path / "run").rows
    assert rows["model"]["P@1"] > 0.8
    assert rows["model"]["nDCG@5"] > 2 * rows["popularity"]["nDCG@5"]
    (found,) = tagger.predict([TEXT])
    assert found[0].label == "label0000" and found[0].score > 0.5
    table(rows)


@pytest.mark.parametrize("preset", ["flat", "pecos", "parabel", "bonsai"])
def test_presets(preset: str, corpus: Path, tmp_path: Path) -> None:
    xmplug.train("linear", corpus, tmp_path / "run", preset=preset)
    assert evaluate_run(tmp_path / "run").rows["model"]["P@1"] > 0.8


def test_what_metrics_say_is_what_evaluating_gives(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["level"] for line in lines] == [1, 2, 3]
    assert evaluate_run(run, split="dev").rows["model"]["nDCG@5"] == pytest.approx(lines[-1]["nDCG@5"], abs=1e-6)
    kept = json.loads((run / "xmplug.json").read_text())["metrics"]["dev"]
    assert kept == lines[-1]


def test_ranked_negatives_add_examples(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts that the level above ranks high for a node, besides those for which it is true."""
    seen: list[tuple[Any, Any, Any]] = []
    solve = OneVsRest.solve

    def spy(self: OneVsRest, features: Any, targets: Any, siblings: Any, examples: Any, *rest: Any) -> None:
        seen.append((targets, siblings, examples))
        solve(self, features, targets, siblings, examples, *rest)

    monkeypatch.setattr(OneVsRest, "solve", spy)
    for name, ranked in {"without": False, "with": True}.items():
        options = TREE | {"fusion.ranked_negatives": ranked, "label_structure.beam": 2}
        xmplug.train("linear", corpus, tmp_path / name, options=options)
    without, ranked_too = seen[:3], seen[3:]
    assert without[0][2].toarray().all() and ranked_too[0][2].toarray().all()
    for level in (1, 2):
        for targets, siblings, examples in (without[level], ranked_too[level]):
            of_group = np.stack([targets[:, low:high].toarray().any(axis=1) for low, high in pairwise(siblings)], 1)
            assert (of_group <= (examples.toarray() != 0)).all()
            if examples is without[level][2]:
                assert (of_group == (examples.toarray() != 0)).all()
            else:
                extra = (examples.toarray() != 0).sum(axis=1) - of_group.sum(axis=1)
                assert extra.max() > 0 and (extra <= 2).all()


def test_dev_documents_are_some_of_dev(corpus: Path, run: Path, tmp_path: Path) -> None:
    xmplug.train("linear", corpus, tmp_path / "run", options=TREE | {"training.dev_documents": 10})
    assert (tmp_path / "run/model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert (tmp_path / "run/metrics.jsonl").read_bytes() != (run / "metrics.jsonl").read_bytes()


# The same numbers ----------------------------------------------------------------------------------------------------


def test_the_same_files_every_time_and_with_any_number_of_threads(corpus: Path, run: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for name, threads in {"a": 1, "b": 2}.items():
            torch.set_num_threads(threads)
            xmplug.train("linear", corpus, tmp_path / name, options=TREE)
            assert _files(tmp_path / name) == _files(run)
    finally:
        torch.set_num_threads(before)


def test_seeds(corpus: Path, tmp_path: Path) -> None:
    options = TREE | {"label_structure.balanced": False}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        xmplug.train("linear", corpus, tmp_path / name, options=options | {"training.seed": seed})
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_a_loaded_run_predicts_as_the_trained_one(corpus: Path, tmp_path: Path) -> None:
    texts = [TEXT, "", "unheard of", "word1x1 word1x2 word4x0"]
    options = TREE | {"encoder.ngrams": 2}
    trained = _ranking(xmplug.train("linear", corpus, tmp_path / "run", options=options), *texts)
    assert _ranking(xmplug.load(tmp_path / "run"), *texts) == trained
    code = (
        "import json, sys, xmplug\n"
        "found = xmplug.load(sys.argv[1]).predict(json.loads(sys.argv[2]), 30)\n"
        "print(json.dumps([[(item.label, item.score) for item in row] for row in found]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), json.dumps(texts)]
    elsewhere = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert [[tuple(item) for item in row] for row in elsewhere] == trained


def test_a_text_gets_the_same_prediction_alone_and_in_company(run: Path) -> None:
    tagger = xmplug.load(run)
    texts = ["word1x1 word1x2", "", "word2x0 noise3 " * 40, "word5x1 word5x3 word9x2", "unheard of", TEXT]
    together = _ranking(tagger, *texts)
    many = _ranking(tagger, *(texts * 60))  # more than one batch
    # The last bit of a sigmoid of PyTorch's depends on its place.
    for found in ([_ranking(tagger, text)[0] for text in texts], *(many[at : at + 6] for at in range(0, 360, 6))):
        for one, other in zip(found, together, strict=True):
            assert [label for label, _ in one] == [label for label, _ in other]
            assert [score for _, score in one] == pytest.approx([score for _, score in other], rel=5e-7)


@pytest.mark.parametrize("texts", [[None], [TEXT, b"bytes"], [3], [["a"]]])
def test_texts_that_are_no_strings(texts: list[Any], run: Path) -> None:
    tagger = xmplug.load(run)
    with pytest.raises(xmplug.XmplugError, match="no string"):
        tagger.predict(texts)
    with pytest.raises(xmplug.XmplugError, match="no string"):
        tagger.explain(texts[-1])


def test_texts_of_any_kind(run: Path) -> None:
    tagger = xmplug.load(run)
    expected = tagger.predict([TEXT, ""])
    for texts in ((TEXT, ""), np.array([TEXT, ""]), (text for text in (TEXT, ""))):
        assert tagger.predict(texts) == expected
    for text in ("\ud800 " + TEXT, "\x00" + TEXT, TEXT + " x" * 100_000):
        assert tagger.predict([text], k=1)[0][0].label == "label0000"
    assert tagger.predict(["y" * 1_000_000]) == tagger.predict([""])
    assert tagger.predict([]) == []


def test_scores_are_probabilities_best_first(run: Path) -> None:
    for row in _ranking(xmplug.load(run), "", TEXT, "unheard of", k=1000):
        scores = [score for _, score in row]
        assert scores == sorted(scores, reverse=True) and len({label for label, _ in row}) == len(row)
        assert all(0 <= score <= 1 for score in scores)


# Stopped, killed, resumed --------------------------------------------------------------------------------------------


class _StopAt(Listener):
    """Stops when something is said of a level, or when it has been measured."""

    def __init__(self, said: str | None = None, measured: int | None = None):
        self.said, self.measured = said, measured

    def message(self, text: str) -> None:
        self.stop = self.stop or (self.said is not None and self.said in text)

    def evaluated(self, record: Mapping[str, Any]) -> None:
        self.stop = self.stop or record["level"] == self.measured


STOPS: dict[str, _StopAt] = {
    "before the first level": _StopAt("solved level by level"),
    "after solving the first": _StopAt("level 1/3"),
    "after measuring the first": _StopAt(measured=1),
    "while ranking": _StopAt("of level 2 on dev"),
    "after measuring the second": _StopAt(measured=2),
}


@pytest.mark.parametrize("ranked_negatives", [False, True])
@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_run_resumes_to_the_same_numbers(
    stop: str, ranked_negatives: bool, corpus: Path, run: Path, tmp_path: Path
) -> None:
    options, usual = TREE | {"fusion.ranked_negatives": ranked_negatives}, run
    if ranked_negatives:
        xmplug.train("linear", corpus, usual := tmp_path / "usual", options=options)
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("linear", corpus, tmp_path / "run", options=options, listener=_StopAt(**vars(STOPS[stop])))
    with pytest.raises(xmplug.RunError, match="train --resume"):
        xmplug.load(tmp_path / "run")
    resume(tmp_path / "run")
    assert _files(tmp_path / "run") == _files(usual)


def test_a_stop_ends_the_solving_of_a_level(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A level of many groups is solved in parts; between them a stop is heard."""
    monkeypatch.setattr("xmplug_linear.fusion._WORK", 1)
    heard: list[str] = []

    class _Count(Listener):
        def message(self, text: str) -> None:
            heard.append(text)

    listener = _Count()
    solve = OneVsRest.solve

    def stopping(self: OneVsRest, features: Any, targets: Any, siblings: Any, examples: Any, *rest: Any) -> None:
        margin, progress = rest
        parts = []

        def count(text: str) -> None:
            parts.append(text)
            listener.stop = len(siblings) > 4 and len(parts) == 3
            progress(text)

        try:
            solve(self, features, targets, siblings, examples, margin, count)
        finally:
            heard.append(f"{len(parts)} parts of {len(siblings) - 1} groups")

    monkeypatch.setattr(OneVsRest, "solve", stopping)
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("linear", corpus, tmp_path / "run", options=TREE, listener=listener)
    assert heard[-1].startswith("3 parts of ") and int(heard[-1].split()[3]) > 3
    monkeypatch.undo()
    resume(tmp_path / "run")


@pytest.mark.parametrize("structure", [{}, {"label_structure": "core:flat"}])
def test_solving_in_parts_gives_a_model_as_good(
    structure: dict[str, str], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the parts are groups, or nodes of one large group."""
    options: dict[str, Any] = (structure or TREE) | {"fusion.tolerance": 1e-4, "fusion.passes": 1000, "fusion.prune": 0}
    monkeypatch.setattr("xmplug_linear.fusion._WORK", 1)
    xmplug.train("linear", corpus, tmp_path / "run", options=options)
    monkeypatch.undo()
    xmplug.train("linear", corpus, tmp_path / "whole", options=options)
    parts, whole = (xmplug.load(tmp_path / name).models[0].levels for name in ("run", "whole"))
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(one.fusion.linear.groups, other.fusion.linear.groups)
        np.testing.assert_allclose(one.fusion.linear.biases, other.fusion.linear.biases, atol=1e-3)
        weights = (level.fusion.linear.to_matrix().toarray() for level in (one, other))
        np.testing.assert_allclose(*weights, atol=1e-3)


@pytest.mark.parametrize("after", [1, 2])
def test_a_run_killed_between_levels_resumes_to_the_same_numbers(
    after: int, corpus: Path, run: Path, tmp_path: Path
) -> None:
    code = f"""
import os, signal, sys, xmplug
from xmplug.training import Listener, Trainer
between = Trainer._checkpoint_between
def killed(self, level):
    between(self, level)
    if level == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
Trainer._checkpoint_between = killed
xmplug.train("linear", {str(corpus)!r}, {str(tmp_path / "run")!r}, options={TREE!r})
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    resume(tmp_path / "run")
    assert _files(tmp_path / "run") == _files(run)
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/level-1.safetensors", "encoder/features.json"])
def test_a_stopped_run_with_a_damaged_file(name: str, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("linear", corpus, tmp_path / "run", options=TREE, listener=_StopAt("of level 2 on dev"))
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(xmplug.RunError, match="restore it from a copy, or train again"):
        resume(tmp_path / "run")


# Explanation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"encoder.hashing": 4096, "loss": "core:bce"}, {"encoder.characters": "3,4"}])
def test_contributions_and_bias_sum_up_to_the_logit(options: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    tagger = xmplug.train("linear", corpus, tmp_path / "run", options=FLAT | {"encoder.ngrams": 2} | options)
    model = tagger.models[0]
    module = model.level(0)
    fusion = module.fusion
    assert isinstance(fusion, OneVsRest)
    batch = make_batch(model.read([TEXT]), np.zeros(1, np.int64))
    nodes = torch.tensor([[5, 0, 17, 29]])
    encoded = module.encoder(batch)
    added = fusion.contributions(encoded, Shortlist(nodes))
    logits = fusion(encoded, Shortlist(nodes)).logits[0].numpy()
    sharpness = 1.0 if "loss" in options else 5.0
    assert float(fusion.sharpness) == sharpness
    bias = sharpness * fusion.linear.biases[nodes[0].numpy()]
    assert added.shape == (4, module.encoder.size)
    np.testing.assert_allclose(added.sum(axis=1).A1 + bias, logits, rtol=1e-5, atol=1e-5)
    score = dict(_ranking(tagger, TEXT)[0])["label0000"]
    place = list(model.structure.leaf_labels()).index(tagger.labels.index("label0000"))
    assert score == pytest.approx(1 / (1 + math.exp(-fusion(encoded, Shortlist()).logits[0, place])), rel=1e-5)
    item = tagger.explain(TEXT, k=1, words=1000)[0]
    assert item.words is not None
    row = fusion.contributions(encoded, Shortlist(torch.tensor([[place]])))
    spans = module.encoder.occurrences(TEXT)
    assert sum(weight for *_, weight in item.words) == pytest.approx(row[:, list(spans)].sum(), rel=1e-5)
    if "encoder.characters" not in options:  # else those of characters are not shown
        assert len(spans) == batch.features.nnz


def test_explanations_point_at_the_words_of_the_label(run: Path, tmp_path: Path) -> None:
    for item in xmplug.load(run).explain(TEXT, k=3):
        assert item.words is not None and item.neighbours is None
        assert all(TEXT[start:end] == word for word, start, end, _ in item.words)
        weights = [weight for *_, weight in item.words]
        assert weights == sorted(weights, reverse=True)
        if item.prediction.label == "label0000":
            assert {word for word, *_ in item.words[:3]} == {"word0x1", "word0x2", "word0x3"}
    assert [item.words for item in xmplug.load(run).explain("", k=2)] == [[], []]


def test_explanations_of_texts_whose_lower_case_is_longer(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"text": f"İİ, ŞEHİR ΟΔΟΣ {at}", "labels": ["city"]} for at in range(20)]
    rows += [{"text": f"other words {at}", "labels": ["none"]} for at in range(20)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tagger = xmplug.train("linear", folder, tmp_path / "run", options=FLAT | {"encoder.ngrams": 2})
    text = "İİİ! the ΟΔΟΣ"
    item = tagger.explain(text, k=1)[0]
    assert item.prediction.label == "city" and item.words is not None
    word, start, end, weight = item.words[0]
    assert word == "ΟΔΟΣ" == text[start:end] and weight > 0


@pytest.mark.parametrize("shape", ["jsonl", "tsv", "text"])
def test_explain_on_the_command_line(
    shape: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_text(f"{TEXT}\n\nword3x1 word3x2\n")
    command = f"predict {run} --input {tmp_path}/in.txt --k 1 --explain --format {shape}"
    assert _cli(command, monkeypatch) == 0
    said = capsys.readouterr().out
    shown = said.split("Label 0")[1].split("Label 3")[0]
    assert all(word in shown for word in ("word0x1", "word0x2", "word0x3")) and "word3" not in shown
    assert max(map(shown.index, ("word0x1", "word0x2", "word0x3"))) < shown.find("noise")
    if shape == "jsonl":
        records = [json.loads(line) for line in said.splitlines()]
        assert [word["word"][:6] for word in records[0]["labels"][0]["words"][:3]] == ["word0x"] * 3


# With other runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another kind, a little trained."""
    out = tmp_path_factory.mktemp("runs") / "other"
    options = {"encoder.vectors": "random", "encoder.vector_size": 16, "encoder.hidden": 16, "encoder.min_count": 1}
    options |= {"fusion.layers": "16", "training.epochs": 2, "training.precision": "float32"}
    xmplug.train("attentionxml", corpus, out, options=options)
    return out


@pytest.mark.parametrize("method", ["mean", "ranks", "fitted"])
def test_an_ensemble_with_a_run_of_another_kind(
    method: str, run: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _cli(f"ensemble {run} {other} --out {tmp_path}/both --method {method}", monkeypatch) == 0
    together, alone = xmplug.load(tmp_path / "both"), [xmplug.load(run), xmplug.load(other)]
    if method == "mean":
        scores = [dict(row) for tagger in alone for row in _ranking(tagger, TEXT)]
        for label, score in _ranking(together, TEXT)[0]:
            assert score == pytest.approx(sum(of.get(label, 0) for of in scores) / 2, abs=1e-6)
    rows = evaluate_run(tmp_path / "both").rows
    assert rows["model"]["nDCG@5"] > rows["popularity"]["nDCG@5"]
    assert together.explain(TEXT, k=1)[0].words


def test_an_ensemble_of_seeds(corpus: Path, tmp_path: Path) -> None:
    options = TREE | {"label_structure.balanced": False}
    together = xmplug.train("linear", corpus, tmp_path / "run", options=options, ensemble=2)
    assert len(together.models) == 2 and together.predict([TEXT])[0][0].label == "label0000"


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibrated(method: str, copy: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _ranking(xmplug.load(copy), TEXT)[0]
    assert _cli(f"calibrate {copy} --method {method} --data {corpus / 'train.jsonl'}", monkeypatch) == 0
    after = _ranking(xmplug.load(copy), TEXT)[0]
    assert [label for label, _ in after] == [label for label, _ in before]
    assert [score for _, score in after] != [score for _, score in before]
    assert all(0 <= score <= 1 for _, score in after)


# On disk and in memory -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="says what is mapped")
def test_loaded_weights_stay_in_their_file(corpus: Path, tmp_path: Path) -> None:
    xmplug.train("linear", corpus, tmp_path / "run", options=TREE)
    tagger = xmplug.load(tmp_path / "run")
    found: list[tuple[int, int]] = []
    private = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            inside = line.endswith(str(tmp_path / "run/model.safetensors"))
            if inside:
                begin, end = first.split("-")
                found.append((int(begin, 16), int(end, 16)))
        elif inside and first in ("Anonymous:", "Private_Dirty:"):
            private += int(line.split()[1])
    assert found and private == 0  # nothing has been written to, which would be a copy
    for level in tagger.models[0].levels:
        fusion = level.fusion
        arrays = {name: getattr(fusion.linear, name).ctypes.data for name in ("groups", "features", "columns")}
        arrays["weights"] = fusion.weights.data_ptr()
        assert fusion.linear.weights.ctypes.data == arrays["weights"]
        assert all(any(begin <= at < end for begin, end in found) for at in arrays.values())


def test_levels_share_one_encoder(run: Path) -> None:
    """Its vocabulary and the training texts' rows would else be there once for each level."""
    levels = xmplug.load(run).models[0].levels
    assert all(level.encoder is levels[0].encoder for level in levels)


def _weights(change: dict[str, torch.Tensor | None]):  # type: ignore[no-untyped-def]
    def damage(copy: Path) -> None:
        weights = load_file(copy / "model.safetensors")
        for name, value in change.items():
            if value is None:
                del weights[name]
            else:
                weights[name] = value
        save_file(weights, copy / "model.safetensors")

    return damage


DAMAGE = {
    "weights missing": _weights({"2.fusion.weights": None}),
    "no such level": _weights({"7.fusion.weights": torch.ones(3)}),
    "too few weights": _weights({"1.fusion.weights": torch.ones(3)}),
    "too few biases": _weights({"1.fusion.biases": torch.ones(3)}),
    "too few columns": _weights({"1.fusion.columns": torch.zeros(3, dtype=torch.int32)}),
    "other groups": _weights({"2.fusion.groups": torch.tensor([0, 4, 9])}),
    "no groups": _weights({"2.fusion.groups": torch.tensor([0])}),
    "groups that fall": _weights({"1.fusion.groups": torch.tensor([0, 5, 3, 8])}),
    "other kind of numbers": _weights({"1.fusion.columns": torch.zeros(3, dtype=torch.int64)}),
    "a matrix": _weights({"1.fusion.biases": torch.ones(8, 1)}),
    "no numbers at all": _weights({"1.fusion.feature_indptr": torch.zeros(0, dtype=torch.int64)}),
    "sharpness that is a row": _weights({"0.fusion.sharpness": torch.ones(2)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_weights_that_do_not_fit(damage: str, copy: Path) -> None:
    DAMAGE[damage](copy)
    with pytest.raises(xmplug.RunError, match="does not fit the run's configuration"):
        xmplug.load(copy)


@pytest.mark.parametrize("options", [TREE | {"encoder.hashing": 50}, TREE | {"label_structure.max_leaf": 9}, FLAT])
def test_weights_of_another_run(options: dict[str, Any], corpus: Path, run: Path, copy: Path, tmp_path: Path) -> None:
    """More features or other nodes: the kernels would read what is not there."""
    xmplug.train("linear", corpus, tmp_path / "run", options=options)
    shutil.copyfile(run / "model.safetensors", tmp_path / "run/model.safetensors")
    with pytest.raises(xmplug.RunError, match="does not fit the run's configuration"):
        xmplug.load(tmp_path / "run")


# Refused -------------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, str]] = {
    "sparse vectors for attention": ("--plugin attentionxml --encoder linear:tfidf", "linear:tfidf gives sparse"),
    "tokens for weights": ("--plugin linear --encoder attentionxml:bilstm", "attentionxml:bilstm gives tokens"),
    "a loss without a margin": ("--plugin linear --loss treaderxml:softmax_logistic", "give --loss core:bce"),
    "characters that are no two lengths": ("--plugin linear --encoder.characters 3", "encoder.characters"),
    "characters upside down": ("--plugin linear --encoder.characters 5,3", "encoder.characters"),
    "characters of no length": ("--plugin linear --encoder.characters 0,3", "encoder.characters"),
    "four words": ("--plugin linear --encoder.ngrams 4", "encoder.ngrams"),
    "one bucket": ("--plugin linear --encoder.hashing 1", "encoder.hashing"),
    "no cost": ("--plugin linear --fusion.cost 0", "fusion.cost"),
    "cost that is no number": ("--plugin linear --fusion.cost nan", "fusion.cost"),
    "cost without bounds": ("--plugin linear --fusion.cost inf", "fusion.cost"),
    "bias without bounds": ("--plugin linear --fusion.bias inf", "fusion.bias"),
    "sharpness without bounds": ("--plugin linear --fusion.sharpness inf", "fusion.sharpness"),
    "prune that is no number": ("--plugin linear --fusion.prune nan", "fusion.prune"),
    "sharpness beyond bounds": ("--plugin linear --fusion.sharpness 1e300", "fusion.sharpness"),
    "passes beyond bounds": ("--plugin linear --fusion.passes 99999999999", "fusion.passes"),
    "no passes": ("--plugin linear --fusion.passes 0", "fusion.passes"),
    "unary tree": ("--plugin linear --label-structure.branching 1", "branching"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_before_anything_is_fitted(
    case: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xmplug_linear.tfidf.Tfidf.fit", None)
    monkeypatch.setattr("xmplug_attentionxml.encoder.BiLSTM.fit", None)
    options, message = REFUSED[case]
    assert _cli(f"train --data {corpus} --out {tmp_path}/out {options}", monkeypatch) > 0
    said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(said) == 1 and said[0].startswith("xmplug: error: ") and message in said[0]
    assert not (tmp_path / "out").exists()


# Odd corpora ---------------------------------------------------------------------------------------------------------


def _corpus(folder: Path, **splits: list[tuple[str, list[str]]]) -> Path:
    folder.mkdir()
    for name, rows in splits.items():
        lines = (json.dumps({"text": text, "labels": labels}) + "\n" for text, labels in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


ODD: dict[str, dict[str, list[tuple[str, list[str]]]]] = {
    "empty texts": {"train": [("", [f"l{at % 7}"]) for at in range(30)]},
    "words of one letter": {"train": [("a b c", [f"l{at % 7}"]) for at in range(30)]},
    "texts that share no word": {"train": [(f"word{at}", [f"l{at % 7}"]) for at in range(30)]},
    "one label": {"train": [(f"some word{at % 3}", ["l0"]) for at in range(30)]},
    "one training text": {"train": [("some words", ["l0", "l1"])], "dev": [("some words", ["l0"])]},
    "one text, many labels": {
        "train": [("some words", [f"l{at}" for at in range(40)])],
        "dev": [("some words", ["l3"])],
    },
    "all labels everywhere": {"train": [(f"some word{at % 4}", ["l0", "l1", "l2"]) for at in range(20)]},
    "texts without labels": {"train": [(f"some word{at % 4}", ["l0"] if at % 4 else []) for at in range(20)]},
    "labels never in dev": {
        "train": [(f"some word{at % 9}", [f"l{at % 9}"]) for at in range(60)],
        "dev": [("some word1", ["l1"])],
    },
    "labels of dev only": {
        "train": [(f"some word{at % 9}", [f"l{at % 9}"]) for at in range(60)],
        "dev": [("some word1", ["l1", "new"])],
    },
    "identical texts": {"train": [("the same text", [f"l{at % 20}"]) for at in range(60)]},
}
STRUCTURES: dict[str, dict[str, Any]] = {
    "flat": FLAT,
    "tree": TREE,
    "unbalanced": TREE | {"label_structure.balanced": False, "fusion.ranked_negatives": True},
    "everything": TREE | {"encoder.ngrams": 3, "encoder.characters": "2,4", "loss": "core:bce"},
    "hashing": TREE | {"encoder.hashing": 64, "encoder.characters": "2,4"},
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("odd", ODD)
def test_odd_corpora(odd: str, structure: str, tmp_path: Path) -> None:
    folder = _corpus(tmp_path / "corpus", **ODD[odd])
    trained = {label for _, labels in ODD[odd]["train"] for label in labels}
    tagger = xmplug.train("linear", folder, tmp_path / "run", options=STRUCTURES[structure])
    texts = ["", "some word1", "the same text", "\U0001f600 ???"]
    for row in _ranking(tagger, *texts, k=100):
        assert 0 < len(row) <= len(trained) and {label for label, _ in row} <= trained
        assert all(0 <= score <= 1 for _, score in row)
    tagger.explain("some word1 of the same text", k=2)
    if odd == "labels never in dev":
        assert tagger.predict(["some word3"])[0][0].label == "l3"


# The loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_candidates", [False, True])
def test_squared_hinge_is_that_of_the_margins(with_candidates: bool) -> None:
    logits = torch.tensor([[2.0, 0.5, -3.0], [-0.5, 1.0, 0.0]])
    nodes = torch.tensor([[4, 1, -1], [0, 2, 3]]) if with_candidates else None
    true = [[1], [0, 3]] if with_candidates else [[1], [0, 2]]
    targets = Targets(torch.tensor([0, 1, 3]), torch.tensor([*true[0], *true[1]]))
    first, second = 9 + 0.25, 2.25 + 4 + 1  # of -3, which is right by more than the margin, nothing
    loss = SquaredHinge()(Scores(logits), Shortlist(nodes), targets)
    assert loss.item() == pytest.approx((first + second) / 2)
