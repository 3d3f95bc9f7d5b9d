"""Label reinforcement (section 3.5) by hand, on names whose tokens are known."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from xmplug_gudn import BertConfig, OwnLabelsConfig, ReinforcedConfig
from xmplug_gudn.encoder import Bert
from xmplug_gudn.labels import OwnLabels, Reinforced

from xmplug import DataError, RunError
from xmplug.data import Corpus, Documents, LabelSet, Tokenizer
from xmplug.data.documents import Document
from xmplug.data.labels import Label
from xmplug.interfaces import Batch, Task

NAMES = {"a": "noise1", "b": "noise2 noise3", "c": "noise4"}
OWN = [("a", "b"), ("b",), (), ("a", "b"), ("c", "a", "b")]


@pytest.fixture(scope="module")
def encoder(bert: Path) -> Bert:
    return Bert.fit(BertConfig(model=str(bert), max_tokens=32), None)  # type: ignore[arg-type]


def _corpus(names: dict[str, str] = NAMES, seed: int = 0) -> Corpus:
    documents = Documents.of([Document(str(at), "noise9", own) for at, own in enumerate(OWN)])
    labels = LabelSet.build(OWN, [Label(id, name) for id, name in names.items()])
    return Corpus(documents, documents.targets(labels)[:, : labels.num_trained].tocsr(), Task(labels, seed))


def _batch(*places: int) -> Batch:
    size = len(places)
    return Batch(torch.tensor(places), torch.ones(size, 3, dtype=torch.int64), torch.full((size,), 3), training=True)


def _words(encoder: Bert, tokens: Any) -> str:
    return " ".join(encoder.tokenizer.vocabulary()[token] for token in tokens)


def _fit(encoder: Bert, seed: int = 0, **options: Any) -> Reinforced:
    return Reinforced.fit(ReinforcedConfig(**options), _corpus(seed=seed), encoder)


def test_ordered_labels_are_copied_to_the_end_until_the_room_is_filled(encoder: Bert) -> None:
    text = _fit(encoder, fill="ordered", max_tokens=12).text((0, 1))
    assert _words(encoder, text) == "[CLS] noise1 , noise2 noise3 , noise1 , noise2 noise3 , [SEP]"


def test_without_filling_the_labels_stand_there_once(encoder: Bert) -> None:
    text = _fit(encoder, fill="none", max_tokens=12).text((0, 1, 2))
    assert _words(encoder, text) == "[CLS] noise1 , noise2 noise3 , noise4 [SEP]"


def test_many_labels_are_cut_at_the_room(encoder: Bert) -> None:
    for fill in ("none", "ordered", "shuffled"):
        assert _words(encoder, _fit(encoder, fill=fill, max_tokens=5).text((0, 1, 2))) == "[CLS] noise1 , noise2 [SEP]"


def test_shuffled_labels_come_in_their_order_and_then_in_random_ones(encoder: Bert) -> None:
    labels = _fit(encoder, fill="shuffled", max_tokens=32)
    words = _words(encoder, labels.text((0, 1, 2)))
    assert len(words.split()) == 32
    names = words.removeprefix("[CLS] ").removesuffix(" [SEP]").split(" , ")
    assert names[:3] == ["noise1", "noise2 noise3", "noise4"]
    sets = [names[at : at + 3] for at in range(0, 9, 3)]
    assert all(sorted(part) == sorted(names[:3]) for part in sets[:-1])
    seeds = [_words(encoder, _fit(encoder, seed=seed, max_tokens=32).text((0, 1, 2))) for seed in range(8)]
    assert seeds[0] == words and len(set(seeds)) > 1, "the seed decides, and it alone"


def test_texts_with_the_same_labels_share_one_label_text(encoder: Bert) -> None:
    found = _fit(encoder, max_tokens=16).label_texts(_batch(0, 1, 2, 3, 4))
    assert found is not None
    assert found.members.tolist() == [[0], [1], [-1], [0], [2]]
    assert found.weights.tolist() == [[1], [1], [0], [1], [1]]
    assert found.texts.tokens.shape == (3, 16) and found.texts.lengths.tolist() == [16, 16, 16]


def test_a_batch_without_any_label_has_no_label_text(encoder: Bert) -> None:
    assert _fit(encoder, max_tokens=16).label_texts(_batch(2)) is None


def test_labels_by_number_are_not_read(encoder: Bert) -> None:
    found = OwnLabels.fit(OwnLabelsConfig(), _corpus(), encoder).label_texts(_batch(1, 2, 4))
    assert found.texts.index.tolist() == [0, 1, 2] and found.texts.tokens.shape == (3, 0)
    assert found.members.tolist() == [[1, -1, -1], [-1, -1, -1], [0, 1, 2]]


def test_labels_without_a_name_are_named_in_the_error(encoder: Bert) -> None:
    corpus = _corpus({"a": "noise1", "b": "noise3", "c": ""})
    with pytest.raises(DataError, match=r"1 of 3 labels have none: 'c'; give .*ids_as_names true"):
        Reinforced.fit(ReinforcedConfig(), corpus, encoder)
    Reinforced.fit(ReinforcedConfig(ids_as_names=True), corpus, encoder)


@pytest.mark.parametrize(("id", "reads"), [("Rare birds", True), ("U.S.A.", True), ("c_1309", False), ("42", False)])
def test_without_a_label_file_an_id_that_is_words_is_a_name(encoder: Bert, id: str, reads: bool) -> None:
    labels, documents = LabelSet.build([(id,)]), Documents.of([Document("0", "noise1", (id,))])
    corpus = Corpus(documents, documents.targets(labels), Task(labels, 0))
    with nullcontext() if reads else pytest.raises(DataError, match=f"have none: {id!r}"):
        Reinforced.fit(ReinforcedConfig(), corpus, encoder)


@pytest.mark.parametrize("kind", ["reinforced", "own_labels"])
def test_what_was_saved_comes_back(encoder: Bert, tmp_path: Path, kind: str) -> None:
    corpus = _corpus()
    context = _fit(encoder, max_tokens=16) if kind == "reinforced" else OwnLabels(corpus.targets)
    context.save(tmp_path)
    again: Any = (
        Reinforced.restore(ReinforcedConfig(max_tokens=16), tmp_path, corpus.task, encoder)
        if kind == "reinforced"
        else OwnLabels.restore(OwnLabelsConfig(), tmp_path, corpus.task, encoder)
    )
    first, second = context.label_texts(_batch(4, 2, 0)), again.label_texts(_batch(4, 2, 0))
    assert torch.equal(first.members, second.members) and torch.equal(first.texts.tokens, second.texts.tokens)


def test_damaged_labels_are_refused(encoder: Bert, tmp_path: Path) -> None:
    task = _corpus().task
    with pytest.raises(RunError, match="holds no labels"):
        Reinforced.restore(ReinforcedConfig(), tmp_path, task, encoder)
    OwnLabels(_corpus().targets).save(tmp_path)
    with pytest.raises(RunError, match="no names"):
        Reinforced.restore(ReinforcedConfig(), tmp_path, task, encoder)
    OwnLabels(_corpus().targets[:, :2]).save(tmp_path)
    with pytest.raises(RunError, match="3 labels"):
        OwnLabels.restore(OwnLabelsConfig(), tmp_path, task, encoder)


def test_names_are_read_some_at_a_time(encoder: Bert, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _fit(encoder).names
    monkeypatch.setattr("xmplug_gudn.labels._CHUNK", 2)
    assert (_fit(encoder).names != whole).nnz == 0 and whole.shape[0] == 3


def test_names_in_which_a_tokenizer_finds_no_token_give_a_text_to_read() -> None:
    words = SimpleNamespace(tokenizer=Tokenizer.words(["noise1 noise2"], 10, 1), max_tokens=16)
    corpus = _corpus(dict.fromkeys(NAMES, "!!!"))
    context = Reinforced.fit(ReinforcedConfig(fill="none"), corpus, words)  # type: ignore[arg-type]
    texts = context.label_texts(_batch(0, 1)).texts
    assert texts.tokens.shape == (2, 1) and texts.lengths.tolist() == [0, 0]


def test_label_texts_fit_a_short_encoder(bert: Path) -> None:
    encoder = Bert.fit(BertConfig(model=str(bert), max_tokens=8), None)  # type: ignore[arg-type]
    assert len(_fit(encoder, max_tokens=512).text((0, 1, 2))) == 8
    assert np.array_equal(_fit(encoder).text((0,))[[0, -1]], encoder.tokenizer.encode([""], 8).__next__())
