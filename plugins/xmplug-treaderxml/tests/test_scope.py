"""The label scope: nearest texts (eq. 1 and 2), their labels and parents (algorithm 1), and what it must not tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from xmplug_treaderxml import ScopeConfig
from xmplug_treaderxml.neighbours import NeighbourIndex, distinct, text_vectors
from xmplug_treaderxml.scope import Scope

from xmplug import ConfigError, RunError
from xmplug.components import WordsConfig
from xmplug.components.words import Words
from xmplug.data import Corpus, Dataset, Document, Documents, Label, Tokenizer, TokenStore
from xmplug.data.batches import make_batch
from xmplug.interfaces import Encoder, Task

# Equations 1 and 2 ---------------------------------------------------------------------------------------------------


def _unit(number: int, size: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(number, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_text_is_the_mean_of_its_known_words() -> None:
    words = torch.randn(10, 5)
    texts = [np.array([3, 1, 7, 3]), np.array([1, 0]), np.array([], dtype=np.int64), np.array([9])]
    vectors = text_vectors(words, texts)
    mean = words[[3, 7, 3]].double().mean(dim=0).numpy()
    np.testing.assert_allclose(vectors[0], mean / np.linalg.norm(mean), rtol=1e-6)
    assert not vectors[1].any() and not vectors[2].any()
    np.testing.assert_allclose(vectors[3], words[9] / words[9].norm(), rtol=1e-6)
    np.testing.assert_array_equal(text_vectors(words, [np.array([7, 3, 3, 1])])[0], vectors[0])


def test_texts_of_the_same_words_are_one() -> None:
    texts = [[5, 6], [7], [6, 5, 1], [], [5, 6, 6], [1], [7]]
    assert distinct(np.array(text, dtype=np.int64) for text in texts).tolist() == [0, 1, 0, -1, 2, -1, 1]


def test_neighbours_are_those_of_a_full_search_in_float64() -> None:
    vectors, queries = _unit(3000), _unit(50, seed=1)
    places, cosines = NeighbourIndex(vectors, 10**6).search(queries, 7)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(cosines, np.take_along_axis(exact, expected, axis=1), atol=1e-7)


def test_neighbours_do_not_depend_on_who_asks_beside_and_ties_go_to_the_first() -> None:
    vectors = np.repeat(_unit(40), 3, axis=0)
    index = NeighbourIndex(vectors, 10**6)
    queries = _unit(64, seed=1)
    together, _ = index.search(queries, 4)
    alone = np.concatenate([index.search(query[None], 4)[0] for query in queries])
    np.testing.assert_array_equal(together, alone)
    assert (together[:, :3] == together[:, :1] + np.arange(3)).all()


def test_missing_neighbours() -> None:
    index = NeighbourIndex(_unit(3), 10**6)
    places, cosines = index.search(np.stack([np.zeros(16, np.float32), _unit(1)[0]]), 5)
    assert places[0].tolist() == [-1] * 5 and cosines[0].tolist() == [0] * 5
    assert sorted(places[1].tolist()) == [-1, -1, 0, 1, 2] and places[1, 0] == 0
    assert index.among_themselves(5).max(axis=1).tolist() == [2, 2, 1]
    assert NeighbourIndex(np.zeros((0, 4), np.float32), 9).search(_unit(2, 4), 3)[0].tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize("exact_up_to", [10**6, 100])
def test_nobody_is_its_own_neighbour(exact_up_to: int) -> None:
    vectors = np.repeat(_unit(400), 2, axis=0)  # each has a twin
    nearest = NeighbourIndex(vectors, exact_up_to).among_themselves(3)
    own = np.arange(800)
    assert not (nearest == own[:, None]).any()
    assert (nearest[:, 0] == (own ^ 1)).all()


def test_a_search_by_clusters_finds_nearly_all_and_is_the_same_when_restored() -> None:
    rng = np.random.default_rng(0)
    vectors = _unit(60)[rng.integers(0, 60, 20_000)] + rng.normal(scale=0.15, size=(20_000, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    queries = vectors[::100]
    exact, _ = NeighbourIndex(vectors, 10**6).search(queries, 5)
    index = NeighbourIndex(vectors, 1000)
    found, cosines = index.search(queries, 5)
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact.tolist(), found.tolist())]) > 0.9
    again, same = NeighbourIndex(vectors, 1000, index.centres, index.cluster).search(queries, 5)
    np.testing.assert_array_equal(found, again)
    np.testing.assert_array_equal(cosines, same)


# Algorithm 1 ---------------------------------------------------------------------------------------------------------

LABELS = [
    Label("cat", "the cat", (), ("animal", "pet")),
    Label("dog", "dog and a very long name", (), ("animal",)),
    Label("rock", "rock", (), ()),
    Label("x1", "x1", (), ()),  # no name but its id, which no text knows
    Label("animal", "animal", (), ("being",)),
    Label("pet", "pet", (), ()),
    Label("being", "being", (), ()),
]
TEXTS = [
    ("a", "the cat sat on the animal pet being", ("cat",)),
    ("b", "cat the on sat animal the pet being", ("cat", "rock")),  # the words of a
    ("c", "dog and a very long name dog", ("dog",)),
    ("d", "the rock sat on the rock", ("rock",)),
    ("e", "the rock lay on the rock", ()),
    ("f", "violet violet ore rock on and a lay", ("x1",)),
    ("g", "", ("dog",)),
]


def _scope(
    texts: Sequence[tuple[str, str, tuple[str, ...]]] = TEXTS,
    labels: Sequence[Label] | None = LABELS,
    **options: object,
) -> tuple[Scope, Words, TokenStore]:
    documents = Documents.of(Document(*text) for text in texts)
    dataset = Dataset("tiny", documents, declared=labels)
    task = Task(dataset.labels, 0)
    corpus = Corpus(documents, documents.targets(dataset.labels)[:, : task.num_labels].tocsr(), task)
    torch.manual_seed(0)
    tokenizer = Tokenizer.words(documents.texts(), 1000, 1)
    vectors = torch.randn(len(tokenizer), 32)
    vectors[0] = 0
    encoder = Words(WordsConfig(), tokenizer, vectors)
    scope = Scope.fit(ScopeConfig(**options), corpus, encoder)  # type: ignore[arg-type]
    return scope, encoder, TokenStore.of_texts(tokenizer, documents.texts(), 100)


def _members(scope: Scope, store: TokenStore, place: int, training: bool) -> list[str]:
    """The labels in the scope of a text, the most contributed first; clusters by number."""
    found = scope.label_texts(make_batch(store, np.array([place]), training))
    ids = [label.id for label in LABELS if label.id in {"cat", "dog", "rock", "x1"}]
    ids += [label.id for label in LABELS if label.id not in ids]
    return [ids[found.texts.index[member]] for member in found.members[0] if member >= 0]


def test_a_scope_is_the_labels_of_the_nearest_texts_and_their_parents_one_level_up() -> None:
    scope, _, store = _scope(neighbours=1)
    assert sorted(_members(scope, store, 2, training=False)) == ["animal", "dog"]
    assert sorted(_members(scope, store, 0, training=False)) == ["animal", "cat", "pet", "rock"]
    alone, _, store = _scope(neighbours=1, parents=False)
    assert sorted(_members(alone, store, 0, training=False)) == ["cat", "rock"]


def test_a_training_text_is_told_nothing_by_its_own_labels_or_by_those_of_a_copy() -> None:
    scope, _, store = _scope(neighbours=3)
    for copy in (0, 1):  # "cat" is known from these two only
        assert "cat" in _members(scope, store, copy, training=False)
        assert "cat" not in _members(scope, store, copy, training=True)
    assert "dog" not in _members(scope, store, 2, training=True)  # g is empty: it is nobody's neighbour
    assert "6 distinct" not in scope.notes[0] and "5 distinct" in scope.notes[0] and "1 copies" in scope.notes[0]


def test_labels_of_more_neighbours_come_first_and_each_once() -> None:
    texts = [("1", "red one", ("rock", "cat")), ("2", "red two", ("rock", "dog")), ("3", "red six", ("rock",))]
    scope, _, store = _scope([*texts, ("q", "red", ("cat",))], neighbours=3)
    members = _members(scope, store, 3, training=True)
    found = scope.label_texts(make_batch(store, np.array([3]), training=True))
    assert found.weights[0].tolist() == sorted(found.weights[0].tolist(), reverse=True) and found.weights[0, 0] == 3
    equal, _, _ = _scope([*texts, ("q", "red", ("cat",))], neighbours=3, weights="equal")
    assert equal.label_texts(make_batch(store, np.array([3]), training=True)).weights.unique().tolist() == [1]
    assert members[0] == "rock" and len(members) == len(set(members)) == len({*members, "cat", "dog", "rock"})


def test_texts_without_a_scope_have_no_members() -> None:
    scope, _, store = _scope(neighbours=1)
    texts = scope.label_texts(make_batch(store, np.array([6, 2])))  # an empty text beside another
    assert (texts.members[0] < 0).all() and (texts.members[1] >= 0).any()
    assert scope.label_texts(make_batch(store, np.array([6]))).members.tolist() == [[-1]]
    unlabelled, _, store = _scope([("e", "stone", ()), ("f", "stone wall", ()), ("g", "word", ("cat",))], neighbours=1)
    assert unlabelled.label_texts(make_batch(store, np.array([0, 1]), training=True)).members.max() == -1


def test_a_label_is_read_by_the_first_known_words_of_its_name_or_by_the_words_of_its_texts() -> None:
    scope, encoder, _ = _scope(label_words=4)
    words = encoder.tokenizer.vocabulary()
    read = [[words[token] for token in row if token] for row in scope.label_tokens[: len(LABELS)].tolist()]
    assert read[0] == ["the", "cat"] and read[1] == ["dog", "and", "a", "very"]
    assert read[3][0] == "violet" and len(read[3]) == 4  # x1: the word that tells its text from others


def test_the_words_of_a_label_without_a_name_never_come_from_the_text_that_reads_them() -> None:
    texts = [(str(at), f"word{at} both{at // 2} common", ("x1",)) for at in range(8)]
    scope, encoder, store = _scope(texts, neighbours=7, label_words=6, parents=False)
    words = encoder.tokenizer.vocabulary()

    def read(place: int, training: bool) -> set[str]:
        found = scope.label_texts(make_batch(store, np.array([place]), training))
        return {words[token] for token in found.texts.tokens[found.members[0, 0]] if token}

    for place in range(8):
        assert f"word{place}" not in read(place, training=True)
        assert {int(word.removeprefix("word")) % 2 for word in read(place, True) if word.startswith("word")} == {
            1 - place % 2
        }
    assert len(read(0, training=False)) == 6


def test_any_number_of_copies_keeps_its_labels() -> None:
    copies = [(str(at), "red stone", ("rock",)) for at in range(256)]
    scope, _, _ = _scope([*copies, ("q", "red cat", ("cat",))])
    assert scope.own.toarray()[:, :2].tolist() == [[0, 1], [1, 0]]  # cat and rock, of the copies and of q


def test_corpora_without_a_known_word() -> None:
    scope, _, store = _scope([("1", "", ("cat",)), ("2", "", ("dog",))])
    for training in (False, True):
        assert scope.label_texts(make_batch(store, np.arange(2), training)).members.tolist() == [[-1], [-1]]
        assert scope.neighbours(make_batch(store, np.arange(2), training)) == [[], []]


def test_without_a_hierarchy_clusters_stand_in_and_the_run_says_so() -> None:
    flat = [Label(label.id, label.name) for label in LABELS]
    scope, _, store = _scope(labels=flat, neighbours=1)
    assert any("clusters of like labels stand in as parents" in note for note in scope.notes)
    found = scope.label_texts(make_batch(store, np.array([2])))
    clusters = [int(label) for label in found.texts.index if label >= len(flat)]
    assert len(clusters) == 1 and scope.label_lengths[clusters[0]] == 4
    (neighbour,) = scope.neighbours(make_batch(store, np.array([2])))[0]
    assert neighbour.inferred == ()  # a cluster has no name to show
    none, _, _ = _scope(labels=flat, parents=False)
    assert not any("clusters" in note for note in none.notes)


def test_explained_by_its_neighbours() -> None:
    scope, _, store = _scope(neighbours=2)
    first, second = scope.neighbours(make_batch(store, np.array([0])))[0]
    assert (first.document, first.similarity) == ("a", pytest.approx(1, abs=1e-3)) and first.similarity < 1 + 1e-5
    assert first.labels == (0, 2) and {4, 5} == set(first.inferred)  # cat and, from its copy, rock; animal, pet
    assert first.similarity > second.similarity and first.beginning.startswith("the cat sat")


@pytest.mark.parametrize("exact_up_to", [100, 0])
def test_saved_and_restored(tmp_path: Path, exact_up_to: int) -> None:
    scope, encoder, store = _scope(neighbours=2, exact_up_to=exact_up_to)
    assert ("cluster" in scope.arrays) == (exact_up_to == 0)
    scope.save(tmp_path)
    task = Task(Dataset("tiny", Documents.of(Document(*text) for text in TEXTS), declared=LABELS).labels, 0)
    again = Scope.restore(ScopeConfig(neighbours=2, exact_up_to=exact_up_to), tmp_path, task, encoder)
    for training in (False, True):
        batch = make_batch(store, np.arange(7), training)
        before, after = scope.label_texts(batch), again.label_texts(batch)
        assert before.members.tolist() == after.members.tolist()
        assert before.weights.tolist() == after.weights.tolist()
        assert before.texts.tokens.tolist() == after.texts.tokens.tolist()
        assert scope.neighbours(batch) == again.neighbours(batch)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "documents.jsonl").write_text('["a", "b"]\n'),
        lambda folder: (folder / "documents.jsonl").write_text("5\n" * 5),
        lambda folder: (folder / "documents.jsonl").write_text('{"id": 1}\n' * 5),
        lambda folder: (folder / "documents.jsonl").unlink(),
        lambda folder: (folder / "scope.safetensors").write_bytes(b"nothing"),
        lambda folder: _cut(folder, "words"),
        lambda folder: _cut(folder, "nearest"),
        lambda folder: _cut(folder, "own.indices"),
        lambda folder: _cut(folder, "label_tokens"),
    ],
)
def test_a_damaged_scope_is_refused(damage: Callable[[Path], object], tmp_path: Path) -> None:
    scope, encoder, _ = _scope(neighbours=2)
    scope.save(tmp_path)
    damage(tmp_path)
    task = Task(Dataset("tiny", Documents.of(Document(*text) for text in TEXTS), declared=LABELS).labels, 0)
    with pytest.raises(RunError, match="holds no label scope"):
        Scope.restore(ScopeConfig(neighbours=2), tmp_path, task, encoder)


def _cut(folder: Path, name: str) -> None:
    arrays = load_file(folder / "scope.safetensors")
    save_file(arrays | {name: np.ascontiguousarray(arrays[name][:-1])}, folder / "scope.safetensors")


def test_a_scope_of_other_options_is_refused(tmp_path: Path) -> None:
    scope, encoder, _ = _scope(neighbours=2)
    scope.save(tmp_path)
    labels = Dataset("tiny", Documents.of(Document(*text) for text in TEXTS), declared=LABELS).labels
    with pytest.raises(RunError, match="nearest is of shape"):
        Scope.restore(ScopeConfig(neighbours=3), tmp_path, Task(labels, 0), encoder)


def test_an_encoder_without_word_vectors_is_refused() -> None:
    class Bare(Encoder):
        fit = restore = save = forward = None  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="this encoder has none; use --encoder core:words"):
        Scope.fit(ScopeConfig(), None, Bare())  # type: ignore[arg-type]
