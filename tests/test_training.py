"""Training end to end: it learns, resumes to the same numbers, and copes with odd corpora."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import xmplug
from xmplug.api import resume
from xmplug.data.batches import training_order
from xmplug.evaluation import evaluate_run
from xmplug.inference import Ranked
from xmplug.interfaces import Scores, Shortlist, Targets
from xmplug.metrics import table
from xmplug.training import Listener, Progress, candidates_for_training

from .conftest import PLT, QUICK, TOGETHER


def _lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("structure", [{}, PLT, PLT | TOGETHER], ids=["flat", "plt", "together"])
def test_it_learns_a_planted_corpus_and_beats_popularity(
    structure: dict[str, object], corpus: Path, tmp_path: Path
) -> None:
    xmplug.train("attentionxml", corpus, tmp_path / "run", options=QUICK | structure)
    rows = evaluate_run(tmp_path / "run").rows
    assert rows["model"]["P@1"] > 0.8
    assert rows["model"]["nDCG@5"] > 2 * rows["popularity"]["nDCG@5"]


@pytest.mark.parametrize("levels", ["apart", "together"])
def test_evaluating_reads_the_weights_that_dev_chose(levels: str, run: Path, together: Path) -> None:
    """The kept weights give on dev what metrics.jsonl says of the best evaluation of the last level."""
    run = run if levels == "apart" else together
    best = max((line for line in _lines(run) if line["level"] == 2), key=lambda line: line["nDCG@5"])
    assert evaluate_run(run, split="dev").rows["model"]["nDCG@5"] == pytest.approx(best["nDCG@5"], abs=1e-6)


class _StopAt(Listener):
    def __init__(self, level: int, step: int):
        self.level, self.at = level, step

    def step(self, progress: Progress) -> None:
        self.stop = (progress.level, progress.step) == (self.level, self.at)


@pytest.mark.parametrize(
    ("levels", "level", "step"),
    [
        ("apart", 1, 3),
        ("apart", 1, 25),
        ("apart", 2, 1),
        ("apart", 2, 77),
        ("together", 2, 3),
        ("together", 2, 25),
        ("together", 2, 177),
    ],
)
def test_a_stopped_run_resumes_to_the_same_numbers(
    run: Path, together: Path, corpus: Path, tmp_path: Path, levels: str, level: int, step: int
) -> None:
    out, options = tmp_path / "run", QUICK | PLT | {"training.levels": levels}
    run = run if levels == "apart" else together
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("attentionxml", corpus, out, options=options, listener=_StopAt(level, step))
    resume(out)
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert _lines(out) == _lines(run)


@pytest.mark.parametrize("levels", ["apart", "together"])
def test_a_killed_run_resumes_to_the_same_numbers(
    run: Path, together: Path, corpus: Path, tmp_path: Path, levels: str
) -> None:
    out = tmp_path / "run"
    run = run if levels == "apart" else together
    options = QUICK | PLT | {"training.checkpoint_every": 4, "training.levels": levels}
    code = f"import xmplug; xmplug.train('attentionxml', {str(corpus)!r}, {str(out)!r}, options={options!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
    wanted = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < wanted:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resume(out)
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert _lines(out) == _lines(run)
    assert not (out / "checkpoints").exists()


def test_an_interrupted_training_cannot_be_loaded(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("attentionxml", corpus, tmp_path / "run", options=QUICK, listener=_StopAt(1, 2))
    with pytest.raises(xmplug.RunError, match="train --resume"):
        xmplug.load(tmp_path / "run")


def test_seeds(corpus: Path, tmp_path: Path) -> None:
    options = QUICK | {"training.epochs": 1}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        xmplug.train("attentionxml", corpus, tmp_path / name, options=options | {"training.seed": seed})
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_an_ensemble_averages_its_members_and_keeps_finished_ones(corpus: Path, tmp_path: Path) -> None:
    options = QUICK | {"training.epochs": 2}
    tagger = xmplug.train("attentionxml", corpus, tmp_path / "run", options=options, ensemble=2)
    members = [xmplug.load(tmp_path / "run" / f"member-{number}") for number in range(2)]
    text = "word0x1 word0x2 word0x3 noise5"
    together = {prediction.label: prediction.score for prediction in tagger.predict([text], k=30)[0]}
    alone = [{p.label: p.score for p in member.predict([text], k=30)[0]} for member in members]
    for label, score in together.items():
        assert score == pytest.approx(sum(scores[label] for scores in alone) / 2, abs=1e-6)
    before = (tmp_path / "run/member-0/model.safetensors").stat().st_mtime_ns
    for figures in ("evaluation-test.json", "calibration.json"):  # of two members: they do not stand in the way
        (tmp_path / "run" / figures).write_text("{}")
    xmplug.train("attentionxml", corpus, tmp_path / "run", options=options, ensemble=3)
    assert not list((tmp_path / "run").glob("*tion*.json"))
    assert (tmp_path / "run/member-0/model.safetensors").stat().st_mtime_ns == before
    assert len(xmplug.load(tmp_path / "run").models) == 3


def test_an_ensemble_does_not_touch_other_runs(run: Path, corpus: Path, tmp_path: Path) -> None:
    before = (run / "xmplug.json").read_bytes()
    with pytest.raises(xmplug.RunError, match="something else than an ensemble"):
        xmplug.train("attentionxml", corpus, run, options=QUICK, ensemble=2)
    assert (run / "xmplug.json").read_bytes() == before
    options = QUICK | {"training.epochs": 1}
    xmplug.train("attentionxml", corpus, tmp_path / "run", options=options, ensemble=2)
    with pytest.raises(xmplug.RunError, match="other options or data"):
        xmplug.train("attentionxml", corpus, tmp_path / "run", options=options | {"encoder.hidden": 9}, ensemble=2)


def test_evaluating_deeper_than_there_are_labels(run: Path) -> None:
    rows = evaluate_run(run, ks=(1, 50)).rows
    assert rows["popularity"]["R@50"] == pytest.approx(1)
    assert rows["model"]["R@1"] < rows["model"]["R@50"] <= 1
    table(rows)


def test_the_loss_of_an_evaluation_is_the_mean_since_the_one_before(corpus: Path, tmp_path: Path) -> None:
    """With a learning rate of nearly 0, each epoch's mean loss is that of the untrained model."""
    options = QUICK | {"training.epochs": 3, "training.learning_rate": 1e-12, "training.swa_start": "none"}
    options |= {"encoder.dropout": 0, "encoder.state_dropout": 0}
    xmplug.train("attentionxml", corpus, tmp_path / "run", options=options)
    losses = [line["loss"] for line in _lines(tmp_path / "run")]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


def test_a_file_is_a_split_as_a_whole(run: Path, corpus: Path) -> None:
    whole = evaluate_run(run, split="test").rows["model"]
    assert evaluate_run(run, next(corpus.glob("test*"))).rows["model"].as_dict() == whole.as_dict()


def test_labels_in_another_order_are_not_resumed(corpus: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("attentionxml", data, tmp_path / "run", options=QUICK, listener=_StopAt(1, 2))
    labels = data / "labels.jsonl"
    labels.write_text("".join(reversed(labels.read_text().splitlines(keepends=True))))
    with pytest.raises(xmplug.RunError, match="the data have changed"):
        resume(tmp_path / "run")


def test_a_run_shorter_than_an_evaluation_is_saved(corpus: Path, tmp_path: Path) -> None:
    options = QUICK | {"training.epochs": 1, "training.batch_size": 4096, "training.checkpoint_every": 10_000}
    tagger = xmplug.train("attentionxml", corpus, tmp_path / "run", options=options)
    assert len(tagger.predict(["anything"])[0]) == 5
    assert len(_lines(tmp_path / "run")) == 1


def test_a_step_in_parts_is_the_step_as_a_whole(corpus: Path, tmp_path: Path) -> None:
    """400 documents in 25 steps of 16, each in parts of 5, 5, 5 and 1."""
    options = QUICK | {"encoder.dropout": 0, "encoder.state_dropout": 0, "training.epochs": 1}
    scores, losses = [], []
    for name, size in (("whole", None), ("parts", 5)):
        run = tmp_path / name
        tagger = xmplug.train("attentionxml", corpus, run, options=options | {"training.micro_batch": size})
        scores.append(tagger.rank(["word3x1 word3x2 noise7"], 30))
        losses.append(_lines(run)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    order = [np.argsort(labels[0]) for labels, _ in scores]
    np.testing.assert_allclose(scores[0][1][0][order[0]], scores[1][1][0][order[1]], rtol=2e-3)


def test_memory_is_that_of_the_texts_that_go_through_at_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**30))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2**30, 2**30))
    options = QUICK | {"training.epochs": 1, "training.batch_size": 100_000}
    with pytest.raises(xmplug.ResourceError, match=r"1\.0 GiB are free; lower training\.batch_size or .*micro_batch"):
        xmplug.train("attentionxml", corpus, tmp_path / "whole", options=options)
    xmplug.train("attentionxml", corpus, tmp_path / "parts", options=options | {"training.micro_batch": 50})


def test_patience_ends_a_training(corpus: Path, tmp_path: Path) -> None:
    options = QUICK | {"training.epochs": 40, "training.patience": 2, "training.swa_start": "none"}
    xmplug.train("attentionxml", corpus, tmp_path / "run", options=options)
    values = [line["nDCG@5"] for line in _lines(tmp_path / "run")]
    assert len(values) < 40 and max(values) == values[-3]


@pytest.mark.parametrize("structure", [{}, PLT], ids=["flat", "plt"])
def test_odd_corpora(structure: dict[str, object], tmp_path: Path) -> None:
    """20 documents, 10 labels, empty texts, a document without labels, a label without documents."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"text": "" if at % 7 == 0 else f"word{at % 10} and more", "labels": [f"l{at % 10}"]} for at in range(19)]
    rows.append({"text": "nothing of note", "labels": []})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = [{"id": f"l{at}", "name": f"label {at}"} for at in range(12)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in names))
    tagger = xmplug.train("attentionxml", folder, tmp_path / "run", options=QUICK | structure | {"training.epochs": 2})
    for predictions in tagger.predict(["", "word3 and more", "\U0001f600 ???"], k=50):
        labels = [prediction.label for prediction in predictions]
        assert 0 < len(labels) == len(set(labels)) <= 10
        assert all(0 <= prediction.score <= 1 for prediction in predictions)
        assert [p.score for p in predictions] == sorted((p.score for p in predictions), reverse=True)


def test_a_text_gets_the_same_prediction_alone_and_in_company(run: Path) -> None:
    tagger = xmplug.load(run)
    texts = ["word1x1 word1x2", "", "word2x0 noise3 " * 40, "word5x1 word5x3 word9x2"]
    for text, together in zip(texts, tagger.predict(texts)):
        (alone,) = tagger.predict([text])
        assert [p.label for p in alone] == [p.label for p in together]
        assert [p.score for p in alone] == pytest.approx([p.score for p in together], abs=1e-5)


def test_a_score_is_the_product_along_the_path(run: Path) -> None:
    """Equation 1: with a beam as wide as the tree, each label's score is that of its leaf times its parent's."""
    from xmplug.data import TokenStore
    from xmplug.inference import rank_labels, rank_stage

    model = xmplug.load(run).models[0]
    model.structure.beam = model.structure.level_size(0)
    encoder = model.level(0).encoder
    store = TokenStore.of_texts(encoder.tokenizer, ["word1x1 word1x2 word4x0"], encoder.max_tokens)
    labels, scores = rank_labels(model, store, 30)
    top = rank_stage(model, range(1), store, None, 100)
    parent = dict(zip(top.nodes[0].tolist(), top.scores[0].tolist()))
    certain = Ranked(top.nodes, np.ones_like(top.scores))
    leaf = rank_stage(model, range(1, 2), store, certain, 100)
    own = dict(zip(model.structure.leaf_labels()[leaf.nodes[0]].tolist(), leaf.scores[0].tolist()))
    eye = csr_matrix(np.eye(30, dtype=np.int8)[:, : model.task.num_labels])
    above = model.structure.level_targets(0, eye).indices
    for label, score in zip(labels[0], scores[0]):
        assert score == pytest.approx(own[label] * parent[above[label]], rel=1e-4)


def test_explanations_point_at_the_words_of_the_label(run: Path) -> None:
    text = "noise1 word0x1 noise2 word0x2 noise3 word0x3 noise4"
    found = {item.prediction.label: item for item in xmplug.load(run).explain(text, k=3)}
    best = max(found.values(), key=lambda item: item.prediction.score)
    word, start, end, _ = best.words[0]
    assert word.startswith("word0") and text[start:end] == word
    assert 0.99 < sum(weight for *_, weight in xmplug.load(run).explain(text, k=1, words=99)[0].words) < 1.01


# Parts ---------------------------------------------------------------------------------------------------------------


def test_candidates_are_the_true_parents_first_then_the_best_predicted() -> None:
    above = Ranked(np.array([[4, 2, 7], [1, 0, -1]], np.int32), np.array([[0.9, 0.5, 0.1], [0.3, 0.2, 0]], np.float32))
    parents = csr_matrix(np.array([[0, 0, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 1, 0, 0]], np.int8))
    nodes, scores = candidates_for_training(above, parents)
    assert nodes.tolist() == [[2, 4, 7, -1], [0, 1, 2, 5]]
    torch.testing.assert_close(scores, torch.tensor([[1, 0.9, 0.1, 0], [1, 1, 1, 1]]))


def test_batches_hold_every_text_once_and_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(0, 500, 3000)
    batches = training_order(lengths, 32, (0, 0, 0))
    assert sorted(np.concatenate(batches)) == list(range(3000))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert lengths.sum() / padded > 0.9
    again, other = training_order(lengths, 32, (0, 0, 0)), training_order(lengths, 32, (0, 0, 1))
    assert all((a == b).all() for a, b in zip(batches, again))
    assert any((a != b).any() for a, b in zip(batches, other) if len(a) == len(b))


@pytest.mark.parametrize("with_candidates", [False, True])
def test_bce_is_pytorchs_summed_over_candidates(with_candidates: bool) -> None:
    from xmplug.components.bce import BCE

    torch.manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.float64) * 20
    nodes = torch.tensor([[8, 1, 3, -1, -1], [0, 2, 4, 6, 8], [5, 6, 7, 1, -1]]) if with_candidates else None
    true = [[1, 4], [], [0, 1]] if nodes is None else [[1, 8, 9], [], [1, 5]]
    ends = [0, len(true[0]), len(true[0]), len(true[0]) + len(true[2])]
    targets = Targets(torch.tensor(ends), torch.tensor([*true[0], *true[2]]))
    dense = torch.zeros(3, 5, dtype=torch.float64)
    for row in range(3):
        for column in range(5):
            dense[row, column] = (column if nodes is None else int(nodes[row, column])) in true[row]
    cells = torch.nn.functional.binary_cross_entropy_with_logits(logits, dense, reduction="none")
    if nodes is not None:
        cells = cells * (nodes >= 0)
    loss = BCE()(Scores(logits), Shortlist(nodes), targets)
    assert loss.item() == pytest.approx(cells.sum().item() / 3, rel=1e-6)
