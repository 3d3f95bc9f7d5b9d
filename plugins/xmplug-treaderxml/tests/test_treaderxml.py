"""TReaderXML from end to end: it learns, resumes, mixes with other components, and explains itself."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xmplug_treaderxml.network import DualNetwork
from xmplug_treaderxml.scope import Scope

import xmplug
from xmplug.api import resume
from xmplug.components.words import Words
from xmplug.data import synthetic_dataset
from xmplug.evaluation import evaluate_run
from xmplug.interfaces import Batch, Encoded, LabelTexts, Scores, Shortlist
from xmplug.training import Listener, Progress

QUICK = {
    "encoder.vectors": "random",
    "encoder.vector_size": 48,
    "encoder.min_count": 1,
    "fusion.hidden": 64,
    "training.epochs": 20,
    "training.batch_size": 16,
    "training.learning_rate": 0.01,
    "training.precision": "float32",
}
PLT = {"label_structure": "attentionxml:plt", "label_structure.branching": 4, "label_structure.beam": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XMPLUG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    synthetic_dataset(500, 30, seed=1, folder=folder)
    return folder


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a label tree."""
    out = tmp_path_factory.mktemp("runs") / "plt"
    xmplug.train("treaderxml", corpus, out, options=QUICK | PLT)
    return out


class _StopAt(Listener):
    def __init__(self, level: int, step: int):
        self.level, self.at = level, step

    def step(self, progress: Progress) -> None:
        self.stop = (progress.level, progress.step) == (self.level, self.at)


def test_it_learns_a_planted_corpus_flat_and_along_a_tree(corpus: Path, run: Path, tmp_path: Path) -> None:
    xmplug.train("treaderxml", corpus, tmp_path / "flat", options=QUICK)
    for folder in (tmp_path / "flat", run):
        rows = evaluate_run(folder).rows
        assert rows["model"]["P@1"] > 0.8
        assert rows["model"]["nDCG@5"] > 2 * rows["popularity"]["nDCG@5"]


@pytest.mark.parametrize(
    ("levels", "readings"),
    # Apart, two levels are trained and measured, and the first ranks both splits.
    [("apart", 3), ("together", 1)],
)
def test_training_documents_find_no_copy_of_themselves_at_any_level(
    levels: str, readings: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree ranks the training texts between its levels; there, too, their own labels must not help."""
    seen: list[tuple[bool, int]] = []
    label_texts = Scope.label_texts

    def spy(self: Scope, batch: Batch) -> LabelTexts:
        seen.append((batch.training, len(batch.index)))
        return label_texts(self, batch)

    monkeypatch.setattr(Scope, "label_texts", spy)
    options = QUICK | PLT | {"training.epochs": 1, "training.levels": levels}
    xmplug.train("treaderxml", corpus, tmp_path / "run", options=options)
    assert sum(size for training, size in seen if training) == readings * 400
    assert sum(size for training, size in seen if not training) == readings * 50  # dev


@pytest.mark.parametrize(("level", "step"), [(1, 30), (2, 77)])
def test_a_stopped_run_resumes_to_the_same_numbers(
    run: Path, corpus: Path, tmp_path: Path, level: int, step: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("treaderxml", corpus, tmp_path / "run", options=QUICK | PLT, listener=_StopAt(level, step))
    resume(tmp_path / "run")
    assert (tmp_path / "run/model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_restored_run_predicts_the_same_alone_and_in_company(corpus: Path, tmp_path: Path) -> None:
    trained = xmplug.train("treaderxml", corpus, tmp_path / "run", options=QUICK | {"training.epochs": 2})
    restored = xmplug.load(tmp_path / "run")
    texts = ["word1x1 word1x2", "", "word2x0 noise3 " * 40, "entirely unknown", "word5x1 word5x3 word9x2"]
    assert restored.predict(texts) == trained.predict(texts)
    for text, together in zip(texts, restored.predict(texts)):
        (alone,) = restored.predict([text])
        assert [p.label for p in alone] == [p.label for p in together]
        assert [p.score for p in alone] == pytest.approx([p.score for p in together], abs=1e-5)


def test_the_scope_reaches_the_scores(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other label texts beside it, the same text gets other scores; with none, others again."""
    tagger, text = xmplug.load(run), ["word1x1 word1x2 word7x0"]
    label_texts, scores = Scope.label_texts, {}
    for kind in ("own", "other", "none"):

        def changed(self: Scope, batch: Batch, kind: str = kind) -> LabelTexts:
            found = label_texts(self, batch)
            if kind == "other":
                return replace(found, texts=replace(found.texts, tokens=found.texts.tokens.flip(0)))
            return found if kind == "own" else replace(found, weights=found.weights * 0)

        monkeypatch.setattr(Scope, "label_texts", changed)
        scores[kind] = tuple(label.score for label in tagger.predict(text, k=3)[0])
    assert len(set(scores.values())) == 3


@pytest.mark.parametrize(
    "mix",
    [
        {"label_context": "core:none"},
        {"encoder": "attentionxml:bilstm", "encoder.hidden": 8, "encoder.vectors": "random"},
        {"fusion": "attentionxml:label_attention"},
        {"loss": "treaderxml:softmax_logistic"},
        {"label_context.exact_up_to": 50},
        {"label_context.weights": "equal", "fusion.reading": "full,residual,masked"},
    ],
    ids=lambda mix: "+".join(map(str, mix.values())),
)
def test_components_mix(mix: dict[str, object], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {name: value for name, value in QUICK.items() if name.split(".")[0] not in mix}
    tagger = xmplug.train("treaderxml", corpus, tmp_path / "run", options=quick | mix | {"training.epochs": 1})
    assert len(tagger.predict(["word1x1 word1x2"])[0]) == 5
    if "label_context" in mix or "fusion" in mix:  # nobody reads a scope: no neighbour informed anything
        assert tagger.neighbours("word1x1 word1x2") is None
        assert not list((tmp_path / "run/label_context").iterdir())
    if "label_context" in mix:
        monkeypatch.setattr(Words, "input_vectors", lambda self: None)
        with pytest.raises(xmplug.ConfigError, match="--explain needs words or neighbours"):
            tagger.explain("word1x1 word1x2")


def test_a_run_from_before_there_were_label_contexts_loads(corpus: Path, tmp_path: Path) -> None:
    options = {"label_context": "core:none", "training.epochs": 1}
    before = xmplug.train("attentionxml", corpus, tmp_path / "run", options=options | {"encoder.vectors": "random"})
    manifest = json.loads((tmp_path / "run/xmplug.json").read_text())
    del manifest["config"]["label_context"]
    (tmp_path / "run/xmplug.json").write_text(json.dumps(manifest))
    assert xmplug.load(tmp_path / "run").predict(["word1x1"]) == before.predict(["word1x1"])


def test_a_prediction_is_explained_by_the_training_texts_that_have_its_label(run: Path, corpus: Path) -> None:
    tagger = xmplug.load(run)
    text = json.loads((corpus / "train.jsonl").read_text().splitlines()[0])
    nearest = tagger.neighbours(text["text"])
    assert nearest is not None and len(nearest) == 5
    assert nearest[0].document == text["id"] and nearest[0].similarity == pytest.approx(1, abs=1e-3)
    assert [tagger.labels.ids[label] for label in nearest[0].labels] == text["labels"]
    assert [tagger.labels.names[label] for label in nearest[0].inferred] == sorted(
        {f"Group{int(label[-4:]) // 4:04}" for label in text["labels"]}
    )
    for item in tagger.explain(text["text"], k=3):
        place = tagger.labels.index(item.prediction.label)
        assert item.neighbours == [found for found in nearest if place in found.labels + found.inferred]


def test_words_are_weighed_in_the_logit_that_the_neighbours_inform(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tagger, seen = xmplug.load(run), []
    forward = DualNetwork.forward

    def spy(self: DualNetwork, encoded: Encoded, shortlist: Shortlist, labels: LabelTexts | None = None) -> Scores:
        seen.append(labels is not None)
        return forward(self, encoded, shortlist, labels)

    monkeypatch.setattr(DualNetwork, "forward", spy)
    for item in tagger.explain("noise1 word3x1 word3x2 noise2 word3x0", k=2):
        assert item.words
    assert seen and all(seen)


def test_explained_on_the_command_line(
    run: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from xmplug.cli import main

    text = json.loads((corpus / "train.jsonl").read_text().splitlines()[0])
    shown = {}
    for shape in ("text", "jsonl", "tsv"):
        (corpus / "line").write_text(text["text"] + "\n")
        words = ["xmplug", "predict", str(run), "--input", str(corpus / "line"), "--explain", "--format", shape]
        monkeypatch.setattr(sys, "argv", words)
        with contextlib.suppress(SystemExit):
            main()
        shown[shape] = capsys.readouterr().out
    record = json.loads(shown["jsonl"])
    assert record["neighbours"][0]["document"] == text["id"] and record["neighbours"][0]["labels"] == text["labels"]
    true = next(label for label in record["labels"] if label["label"] == text["labels"][0])
    assert text["id"] in true["neighbours"]
    assert f"like {text['id']} (1.00): {text['text'][:20]}" in shown["text"]
    assert f"from {text['id']}" in shown["text"]
    assert text["id"] in shown["tsv"].splitlines()[0].split("\t")[-1].split(", ")


def test_texts_without_words_and_corpora_without_a_hierarchy(tmp_path: Path) -> None:
    rows = [{"text": "" if at % 7 == 0 else f"word{at % 10} and more", "labels": [f"l{at % 10}"]} for at in range(60)]
    rows += [{"text": "nothing of note", "labels": []}, {"text": "nothing of note", "labels": ["l1"]}]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said: list[str] = []

    class Hears(Listener):
        def message(self, text: str) -> None:
            said.append(text)

    options = QUICK | {"training.epochs": 1}
    tagger = xmplug.train("treaderxml", tmp_path / "corpus", tmp_path / "run", options=options, listener=Hears())
    assert any("clusters of like labels stand in as parents" in line for line in said)
    scores = [label.score for labels in tagger.predict(["", "word3 and more", "???"], k=50) for label in labels]
    assert len(scores) == 30 and np.isfinite(scores).all()
    assert tagger.neighbours("???") == []
