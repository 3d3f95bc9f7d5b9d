"""TF-IDF against scikit-learn on real text, and what scikit-learn does not have: hashing, n-grams beside characters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from xmplug_linear import TfidfConfig
from xmplug_linear.tfidf import Tfidf

from xmplug import RunError
from xmplug.data import Corpus, Document, Documents, LabelSet, load_dataset
from xmplug.interfaces import Task

PATTERN = r"(?u)\b\w\w+\b"
ODD = [
    "",
    "a b c 1 2",
    "again again again and again, Again",
    "İstanbul İSTANBUL istanbul",
    "Straße STRASSE straße große",
    "nai\u0308ve naïve cafe\u0301 café",
    "ΟΔΟΣ οδος ὈΔΥΣΣΕΎΣ",
    "深度学习 と 機械学習 C++ C# don't a_b_c x2 3D",
    "\U0001f600 ??? \u200d\n\t",
    "नमस्ते दुनिया नमस्ते",
]


def _fit(texts: list[str], **options: Any) -> tuple[Tfidf, Documents]:
    documents = Documents.of(Document(str(at), text, ("x",)) for at, text in enumerate(texts))
    task = Task(LabelSet.build([["x"]]), 0)
    targets = csr_matrix(np.ones((len(texts), 1), np.int8))
    return Tfidf.fit(TfidfConfig(**options), Corpus(documents, targets, task)), documents


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], list[str]]:
    """Real texts to fit on, and others."""
    dataset = load_dataset("debtags")
    found = list(islice(dataset.split("test").texts(), 500)) + ODD * 2
    return found, list(islice(dataset.split("dev").texts(), 200)) + ODD


def _same_rows(ours: csr_matrix, theirs: csr_matrix) -> None:
    """Features are in another order, so rows are compared by their inner products and by their sorted values."""
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    np.testing.assert_array_equal(np.diff(ours.indptr), np.diff(theirs.indptr))
    exact = ours.astype(np.float64)
    np.testing.assert_allclose((exact @ exact.T).toarray(), (theirs @ theirs.T).toarray(), atol=1e-6)
    for row in range(ours.shape[0]):
        mine, other = (np.sort(rows.data[rows.indptr[row] : rows.indptr[row + 1]]) for rows in (ours, theirs))
        np.testing.assert_allclose(mine, other, rtol=1e-5)


def _bits(rows: csr_matrix) -> tuple[bytes, ...]:
    return rows.indptr.astype(np.int64).tobytes(), rows.indices.astype(np.int64).tobytes(), rows.data.tobytes()


@pytest.mark.parametrize("ngrams", [1, 2, 3])
@pytest.mark.parametrize("min_count", [1, 3])
def test_words_and_their_ngrams_are_those_of_scikit_learn(
    texts: tuple[list[str], list[str]], ngrams: int, min_count: int
) -> None:
    fitted, new = texts
    encoder, documents = _fit(fitted, ngrams=ngrams, min_count=min_count)
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=min_count, ngram_range=(1, ngrams), token_pattern=PATTERN)
    _same_rows(encoder.read(documents), vectorizer.fit_transform(fitted))
    _same_rows(encoder.read(new), vectorizer.transform(new))


def test_each_word_has_the_weight_that_scikit_learn_gives_it(texts: tuple[list[str], list[str]]) -> None:
    fitted, new = texts
    encoder, _ = _fit(fitted, min_count=2)
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, token_pattern=PATTERN).fit(fitted)
    assert set(encoder.words) == set(vectorizer.vocabulary_)
    order = [vectorizer.vocabulary_[word] for word in encoder.words]
    np.testing.assert_allclose(encoder.read(new).toarray(), vectorizer.transform(new)[:, order].toarray(), atol=1e-7)


def test_counts_as_they_are(texts: tuple[list[str], list[str]]) -> None:
    fitted, new = texts
    encoder, documents = _fit(fitted, sublinear=False)
    vectorizer = TfidfVectorizer(min_df=2, token_pattern=PATTERN)
    _same_rows(encoder.read(documents), vectorizer.fit_transform(fitted))
    _same_rows(encoder.read(new), vectorizer.transform(new))


@pytest.mark.parametrize("lengths", [(3, 4), (1, 3), (3, 6)])
def test_character_ngrams_are_those_of_scikit_learn(
    texts: tuple[list[str], list[str]], lengths: tuple[int, int]
) -> None:
    """char_wb, on the words alone: scikit-learn takes punctuation, and words of one letter, for words too."""
    fitted, new = texts
    encoder, documents = _fit(fitted, characters=lengths, ngrams=2)
    split = TfidfVectorizer(token_pattern=PATTERN).build_analyzer()
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, norm=None, ngram_range=(1, 2), token_pattern=PATTERN)
    characters = TfidfVectorizer(sublinear_tf=True, min_df=2, norm=None, analyzer="char_wb", ngram_range=lengths)
    bare = [[" ".join(split(text)) for text in some] for some in (fitted, new)]
    theirs = normalize(csr_matrix(hstack([words.fit_transform(fitted), characters.fit_transform(bare[0])])))
    _same_rows(encoder.read(documents), theirs)
    theirs = normalize(csr_matrix(hstack([words.transform(new), characters.transform(bare[1])])))
    _same_rows(encoder.read(new), theirs)


def test_a_word_shorter_than_the_characters_asked_for_has_none() -> None:
    encoder, _ = _fit(["ab abcd", "ab abcd"], characters=(5, 6))
    assert list(encoder.pieces) == [" abcd", "abcd ", " abcd "]


def test_of_too_many_features_those_of_most_texts_stay(texts: tuple[list[str], list[str]]) -> None:
    fitted, _ = texts
    encoder, _ = _fit(fitted, max_features=50, ngrams=2, characters=(3, 3))
    everything, documents = _fit(fitted, ngrams=2, characters=(3, 3))
    assert len(encoder.words) == len(encoder.pairs) == len(encoder.pieces) == 50
    split = TfidfVectorizer(token_pattern=PATTERN).build_analyzer()
    in_texts = Counter(word for text in fitted for word in set(split(text)))
    least = min(in_texts[word] for word in encoder.words)
    assert all(word in encoder.words for word, count in in_texts.items() if count > least)
    assert set(encoder.pieces) <= set(everything.pieces)
    assert encoder.size == 150 and encoder.read(documents).shape == (len(fitted), 150)


@pytest.mark.parametrize("hashing", [None, 97])
def test_texts_without_features(hashing: int | None) -> None:
    encoder, _ = _fit(["some words here", "some words there"], ngrams=2, characters=(3, 4), hashing=hashing)
    rows = encoder.read(["", "a b c", "\U0001f600 ?", "some"])
    assert np.diff(rows.indptr)[:3].tolist() == [0, 0, 0] and rows[3].nnz > 0
    assert encoder.read([]).shape == (0, encoder.size)
    if hashing is None:
        assert encoder.read(["unheard"]).nnz == 0


@pytest.mark.parametrize("options", [{}, {"ngrams": 2, "characters": (3, 4)}, {"hashing": 16}])
@pytest.mark.parametrize("fitted", [["", ""], ["a b", "c"], ["one text of its own"], ["this", "that"]])
def test_no_feature_at_all(fitted: list[str], options: dict[str, Any], tmp_path: Path) -> None:
    encoder, documents = _fit(fitted, **options)
    encoder.save(tmp_path)
    again = Tfidf.restore(encoder.config, tmp_path)
    for reader in (encoder, again):
        assert reader.read(documents).shape == (len(fitted), encoder.size)
        assert reader.read(["something else"]).shape == (1, encoder.size)
        assert reader.read([]).shape == (0, encoder.size)
    assert again.occurrences("one text") is not None


@pytest.mark.parametrize("options", [{"ngrams": 3}, {"ngrams": 2, "characters": (3, 5)}])
def test_hashed_rows_are_like_those_of_a_vocabulary(
    texts: tuple[list[str], list[str]], options: dict[str, Any]
) -> None:
    fitted, new = texts
    buckets = 2**23
    hashed, documents = _fit(fitted, hashing=buckets, **options)
    known, same_documents = _fit(fitted, min_count=1, **options)
    rows, expected = hashed.read(documents), known.read(same_documents)
    # As many features share a bucket as by pure chance, and so rows keep their angles but for a few.
    by_chance = buckets * (1 - (1 - 1 / buckets) ** known.size)
    assert len(np.unique(rows.indices)) == pytest.approx(by_chance, abs=4 * known.size / buckets**0.5 + 4)
    apart = np.abs((rows @ rows.T).toarray() - (expected @ expected.T).toarray())
    assert np.quantile(apart, 0.999) < 0.005 and apart.max() < 0.05
    assert _bits(hashed.read([*new, *new])[: len(new)]) == _bits(hashed.read(new))
    for at in (0, 50, len(new) - 1):
        assert _bits(hashed.read([new[at]])) == _bits(hashed.read(new)[at])


def test_few_buckets_keep_the_rows_in_bounds(texts: tuple[list[str], list[str]]) -> None:
    hashed, documents = _fit(texts[0], hashing=7, ngrams=3, characters=(2, 3))
    rows = hashed.read(documents)
    assert rows.shape[1] == 7 and rows.has_canonical_format
    norms = np.sqrt(rows.multiply(rows).sum(axis=1)).A1
    np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-6)


KINDS: list[dict[str, Any]] = [
    {},
    {"ngrams": 3, "min_count": 1, "max_features": 800},
    {"ngrams": 2, "characters": (2, 4)},
    {"hashing": 999, "ngrams": 2, "characters": (3, 3), "sublinear": False},
]


@pytest.mark.parametrize("options", KINDS)
def test_restored_it_gives_the_same_rows_bit_by_bit(
    texts: tuple[list[str], list[str]], options: dict[str, Any], tmp_path: Path
) -> None:
    """A resumed training reads the training texts once more; what it trains on must be what the first one had."""
    fitted, new = texts
    encoder, documents = _fit(fitted, **options)
    encoder.save(tmp_path)
    again = Tfidf.restore(TfidfConfig(**options), tmp_path)
    assert again.size == encoder.size
    assert _bits(again.read(documents)) == _bits(encoder.read(documents))
    assert _bits(again.read(fitted)) == _bits(encoder.read(documents))
    assert _bits(again.read(new)) == _bits(encoder.read(new))


@pytest.mark.parametrize("options", KINDS)
def test_more_texts_than_are_read_at_a_time(
    texts: tuple[list[str], list[str]], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, new = texts
    encoder, documents = _fit(fitted, **options)
    whole, at_once = encoder.read(new), encoder.read(fitted)
    monkeypatch.setattr("xmplug_linear.tfidf._CHUNK", 64)
    assert _bits(encoder.read(new)) == _bits(whole)
    assert _bits(encoder.read(fitted)) == _bits(at_once) == _bits(encoder.read(documents))


def test_texts_on_both_sides_of_4096() -> None:
    many = [f"word{at % 7} word{at % 11} word{at % 5} word{at % 5}" for at in range(4100)]
    encoder, documents = _fit(many, ngrams=2)
    assert _bits(encoder.read(many)) == _bits(encoder.read(documents))
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), token_pattern=PATTERN)
    expected = vectorizer.fit_transform(many)[4090:]
    _same_rows(encoder.read(many)[4090:], expected)


def _without(key: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "features.json").read_text())
        del content[key]
        (folder / "features.json").write_text(json.dumps(content))

    return damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no features": lambda folder: (folder / "features.json").unlink(),
    "no weights": lambda folder: (folder / "idf.npy").unlink(),
    "half the features": lambda folder: (folder / "features.json").write_bytes(
        (folder / "features.json").read_bytes()[:200]
    ),
    "empty features": lambda folder: (folder / "features.json").write_bytes(b""),
    "features that are a list": lambda folder: (folder / "features.json").write_text("[]"),
    "features that are a number": lambda folder: (folder / "features.json").write_text("3"),
    "no words": _without("words"),
    "no pairs": _without("pairs"),
    "words that are a number": lambda folder: (folder / "features.json").write_text(
        '{"words": 3, "pairs": [], "pieces": []}'
    ),
    "words that are no words": lambda folder: (folder / "features.json").write_text(
        '{"words": [[1], {}], "pairs": [], "pieces": []}'
    ),
    "features not in UTF-8": lambda folder: (folder / "features.json").write_bytes(b'{"words": ["\xff"]}'),
    "half the weights": lambda folder: (folder / "idf.npy").write_bytes((folder / "idf.npy").read_bytes()[:200]),
    "half the header": lambda folder: (folder / "idf.npy").write_bytes((folder / "idf.npy").read_bytes()[:20]),
    "empty weights": lambda folder: (folder / "idf.npy").write_bytes(b""),
    "an archive": lambda folder: (folder / "idf.npy").write_bytes(b"PK\x03\x04 and no more"),
    "weights of another size": lambda folder: np.save(folder / "idf.npy", np.ones(3, np.float32)),
    "weights that are a matrix": lambda folder: np.save(
        folder / "idf.npy", np.ones((len(np.load(folder / "idf.npy")), 2))
    ),
    "weights that are text": lambda folder: np.save(folder / "idf.npy", np.array(["a"] * 3)),
    "weights that are not finite": lambda folder: np.save(
        folder / "idf.npy", np.full(len(np.load(folder / "idf.npy")), np.nan)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_told(damage: str, texts: tuple[list[str], list[str]], tmp_path: Path) -> None:
    encoder, _ = _fit(texts[0][:50], ngrams=2)
    encoder.save(tmp_path)
    DAMAGE[damage](tmp_path)
    with pytest.raises(RunError, match="holds no TF-IDF"):
        Tfidf.restore(TfidfConfig(ngrams=2), tmp_path)


# Where n-grams stand -------------------------------------------------------------------------------------------------


def _shown(encoder: Tfidf, text: str) -> dict[int, str]:
    return {feature: text[begin:end] for feature, (begin, end) in encoder.occurrences(text).items()}


@pytest.mark.parametrize("hashing", [None, 2**20])
def test_occurrences_are_the_features_of_the_text(texts: tuple[list[str], list[str]], hashing: int | None) -> None:
    fitted, new = texts
    encoder, _ = _fit(fitted, ngrams=3, hashing=hashing)
    rows = encoder.read([*fitted[-40:], *new])
    for row, text in enumerate([*fitted[-40:], *new]):
        assert sorted(encoder.occurrences(text)) == sorted(rows.indices[rows.indptr[row] : rows.indptr[row + 1]])


@pytest.mark.parametrize("before", ["", "İİİ ", "İstanbul, "])
def test_spans_point_into_the_original_text(before: str) -> None:
    """İ is two characters in lower case, and Σ another one at the end of a word."""
    text = before + "ΟΔΟΣ and the İzmir  STRASSE, izmir"
    encoder, _ = _fit([text, text], ngrams=2)
    found = set(_shown(encoder, text).values())
    assert {"ΟΔΟΣ", "ΟΔΟΣ and", "and", "and the", "STRASSE", "zmir  STRASSE", "izmir"} <= found
    assert len(found) == encoder.size


def test_the_first_of_several_occurrences_is_shown() -> None:
    encoder, _ = _fit(["one two one two", "one two"], ngrams=2)
    assert sorted(encoder.occurrences("two one two One TWO").values()) == [(0, 3), (4, 7), (4, 11)]
