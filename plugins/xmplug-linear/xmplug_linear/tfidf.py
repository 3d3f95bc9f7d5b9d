"""TF-IDF of words, word n-grams and character n-grams, sparse from end to end."""

from __future__ import annotations

import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from scipy.sparse import csr_matrix, hstack, vstack
from sklearn.preprocessing import normalize

import xmplug
from xmplug import ConfigError, RunError, Tagger
from xmplug.data import Corpus, Documents
from xmplug.interfaces import Batch, Encoded, Encoder

from . import TfidfConfig

_WORD = re.compile(r"\w\w+")
_CHUNK = 4096  # texts at a time: of their words, each is looked up once


class Tfidf(Encoder):
    """Rows of unit length: (1 + ln count) * (ln((1 + N) / (1 + documents with the feature)) + 1) of each feature.

    Features are words, behind them word n-grams, behind them character n-grams of single words with their edges. A
    feature is kept when it occurs in `min_count` training texts; of more than `max_features` of a kind, those in most
    texts are. With `hashing` nothing is kept: a feature's number is a hash of its words or characters. Behind
    all stand a deep run's vectors of the texts, where `vectors` names one (XR-Transformer: Zhang et al., 2021).
    """

    tokenizer = None
    max_tokens = 0

    def __init__(
        self,
        config: TfidfConfig,
        words: Sequence[str],
        pairs: np.ndarray,
        pieces: Sequence[str],
        tagger: Tagger | None,
    ):
        """words, pieces: kept words and character n-grams, by number. pairs: kept word n-grams (`_keys`), ascending.
        tagger: whose text vectors stand behind the features."""
        super().__init__()
        self.config, self.tagger = config, tagger
        self.words = {word: place for place, word in enumerate(words)}
        self.pairs = pairs
        self.pieces = {piece: place for place, piece in enumerate(pieces)}
        self.idf = np.ones(0, np.float32)
        self._fitted: tuple[Documents, csr_matrix] | None = None

    @property
    def size(self) -> int:  # type: ignore[override]
        counted = self.config.hashing or len(self.words) + len(self.pairs) + len(self.pieces)
        return counted + (0 if self.tagger is None else self.tagger.vector_size)

    @classmethod
    def fit(cls, config: TfidfConfig, corpus: Corpus) -> Tfidf:
        texts = corpus.documents
        tagger = None if config.vectors is None else load_for(config.vectors, corpus)
        number: defaultdict[str, int] = defaultdict()
        number.default_factory = number.__len__
        flat, ends = [np.zeros(0, np.int32)], [0]
        for text in texts.texts():
            flat.append(np.array([number[word] for word in _words(text)], np.int32))
            ends.append(ends[-1] + len(flat[-1]))
        found = list(number)
        tokens, offsets = np.concatenate(flat), np.array(ends)
        counts = _counts(tokens, offsets, len(found))
        if config.hashing:
            encoder = cls(config, (), np.zeros(0, np.int64), (), tagger)
            rows = encoder._hashed(found, tokens, offsets, counts)
        else:
            kept = _kept(counts, config.min_count, config.max_features)
            place = np.full(len(found), -1)
            place[kept] = np.arange(len(kept))
            keys, of = _keys(place[tokens], offsets, len(kept), config.ngrams)
            pairs, inverse = np.unique(keys, return_inverse=True)
            pair_counts = csr_matrix((np.ones(len(keys), np.float32), (of, inverse)), shape=(len(texts), len(pairs)))
            kept_pairs = _kept(pair_counts, config.min_count, config.max_features)
            pieces = _Pieces(found, config.characters)
            piece_counts = csr_matrix(counts @ pieces.matrix)
            kept_pieces = _kept(piece_counts, config.min_count, config.max_features)
            encoder = cls(
                config,
                [found[word] for word in kept],
                pairs[kept_pairs],
                [pieces.names[piece] for piece in kept_pieces],
                tagger,
            )
            rows = _joined(counts[:, kept], pair_counts[:, kept_pairs], piece_counts[:, kept_pieces])
        documents = np.bincount(rows.indices, minlength=rows.shape[1])
        encoder.idf = (np.log((1 + len(texts)) / (1 + documents)) + 1).astype(np.float32)
        encoder._fitted = texts, encoder._rows(texts, rows)
        return encoder

    @classmethod
    def restore(cls, config: TfidfConfig, folder: Path) -> Tfidf:
        tagger = None if config.vectors is None else xmplug.load(folder / "run")
        try:
            content = json.loads((folder / "features.json").read_text(encoding="utf-8"))
            encoder = cls(config, content["words"], np.array(content["pairs"], np.int64), content["pieces"], tagger)
            encoder.idf = np.load(folder / "idf.npy", allow_pickle=False).astype(np.float32)
            counted = encoder.size - (0 if tagger is None else tagger.vector_size)
            if encoder.idf.shape != (counted,) or not np.isfinite(encoder.idf).all():
                raise ValueError(f"no finite weights for {counted} features")
        except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder} holds no TF-IDF ({error}); restore it from a copy, or train again") from error
        return encoder

    def save(self, folder: Path) -> None:
        content = {"words": list(self.words), "pairs": self.pairs.tolist(), "pieces": list(self.pieces)}
        (folder / "features.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        np.save(folder / "idf.npy", self.idf)
        if self.config.vectors is not None:
            xmplug.copy_run(self.config.vectors, folder / "run")

    def read(self, texts: Documents | Sequence[str]) -> csr_matrix:
        if self._fitted is not None and texts is self._fitted[0]:
            return self._fitted[1]
        rows = [self._rows(chunk, self._read(chunk)) for chunk in chunks(texts)]
        if len(rows) == 1:
            return rows[0]
        return csr_matrix(vstack(rows, format="csr")) if rows else csr_matrix((0, self.size), dtype=np.float32)

    def forward(self, batch: Batch) -> Encoded:
        return Encoded(batch.mask, features=batch.features)

    def occurrences(self, text: str) -> dict[int, tuple[int, int]]:
        """Words and n-grams of words; characters are not shown on their own."""
        words = list(_WORD.finditer(text.lower()))
        # Where each character of the text in lower case is from: of İ there are two.
        origin = [at for at, character in enumerate(text) for _ in character.lower()]
        found: dict[int, tuple[int, int]] = {}
        for length in range(1, self.config.ngrams + 1):
            for at in range(len(words) - length + 1):
                some = words[at : at + length]
                feature = self._number([word.group() for word in some])
                if feature is not None:
                    found.setdefault(feature, (origin[some[0].start()], origin[some[-1].end() - 1] + 1))
        return found

    def _number(self, words: list[str]) -> int | None:
        """The feature of an n-gram of words."""
        if self.config.hashing:
            return int(_mixed([np.array([_hash(word)]) for word in words])[0] % self.config.hashing)
        places = np.array([self.words.get(word, -1) for word in words])
        if len(words) == 1:
            return None if places[0] < 0 else int(places[0])
        keys, _ = _keys(places, np.array([0, len(places)]), len(self.words), len(words), len(words))
        at = np.searchsorted(self.pairs, keys)
        if not len(keys) or at[0] == len(self.pairs) or self.pairs[at[0]] != keys[0]:
            return None
        return len(self.words) + int(at[0])

    def _read(self, texts: list[str]) -> csr_matrix:
        """(len(texts), F) counts."""
        number: defaultdict[str, int] = defaultdict()
        number.default_factory = number.__len__
        flat = [[number[word] for word in _words(text)] for text in texts]
        offsets = np.cumsum([0, *map(len, flat)])
        tokens = np.fromiter((place for row in flat for place in row), np.int32, count=int(offsets[-1]))
        found = list(number)
        if self.config.hashing:
            return self._hashed(found, tokens, offsets, _counts(tokens, offsets, len(found)))
        place = np.array([self.words.get(word, -1) for word in found], np.int64)
        columns = place[tokens]
        ends = np.concatenate([[0], np.cumsum(columns >= 0)])[offsets]
        words = _counts(columns[columns >= 0], ends, len(self.words))
        if self.config.ngrams == 1 and not self.config.characters:
            return words
        keys, of = _keys(place[tokens], offsets, len(self.words), self.config.ngrams)
        at = np.minimum(np.searchsorted(self.pairs, keys), max(len(self.pairs) - 1, 0))
        known = self.pairs[at] == keys if len(self.pairs) else np.zeros(len(keys), bool)
        shape = (len(texts), len(self.pairs))
        pairs = csr_matrix((np.ones(int(known.sum()), np.float32), (of[known], at[known])), shape=shape)
        pieces = _Pieces(found, self.config.characters)
        piece_place = np.array([self.pieces.get(piece, -1) for piece in pieces.names], np.int64)
        piece_counts = csr_matrix(_counts(tokens, offsets, len(found)) @ pieces.matrix)
        return _joined(words, pairs, _selected(piece_counts, piece_place, len(self.pieces)))

    def _hashed(self, found: list[str], tokens: np.ndarray, offsets: np.ndarray, counts: csr_matrix) -> csr_matrix:
        assert self.config.hashing is not None
        hashes = np.array([_hash(word) for word in found], np.int64)
        of_text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        rows, features = [of_text], [_mixed([hashes[tokens]])]
        for length in range(2, self.config.ngrams + 1):
            inside = of_text[length - 1 :] == of_text[: max(len(of_text) - length + 1, 0)]
            parts = [hashes[tokens[at : len(tokens) - length + 1 + at]][inside] for at in range(length)]
            rows.append(of_text[length - 1 :][inside])
            features.append(_mixed(parts))
        columns = np.concatenate(features) % self.config.hashing
        shape = (len(offsets) - 1, self.config.hashing)
        hashed = csr_matrix((np.ones(len(columns), np.float32), (np.concatenate(rows), columns)), shape=shape)
        pieces = _Pieces(found, self.config.characters)
        place = np.array([_hash(f"#{piece}") % self.config.hashing for piece in pieces.names], np.int64)
        return csr_matrix(hashed + _selected(csr_matrix(counts @ pieces.matrix), place, self.config.hashing))

    def _rows(self, texts: Documents | Sequence[str], counts: csr_matrix) -> csr_matrix:
        """(len(texts), F): TF-IDF of the counts, and behind it the dense vectors, both of unit length."""
        rows = self._weighted(counts)
        if self.tagger is None:
            return rows
        vectors = normalize(np.concatenate([self.tagger.text_vectors(chunk) for chunk in chunks(texts)]))
        return normalize(hstack([rows, self.config.vectors_weight * csr_matrix(vectors)], format="csr"), copy=False)

    def _weighted(self, counts: csr_matrix) -> csr_matrix:
        counts.sort_indices()
        values = np.log(counts.data) + 1 if self.config.sublinear else counts.data
        values = values * self.idf[counts.indices]
        lengths = np.diff(counts.indptr)
        squares = np.bincount(np.repeat(np.arange(len(lengths)), lengths), values.astype(np.float64) ** 2, len(lengths))
        values = (values / np.repeat(np.sqrt(squares), lengths)).astype(np.float32)
        return csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)


class _Pieces:
    """Character n-grams of words. names: each once; matrix (words, names): how often each is in a word."""

    def __init__(self, words: list[str], lengths: tuple[int, ...]):
        number: defaultdict[str, int] = defaultdict()
        number.default_factory = number.__len__
        rows, columns = [], []
        for row, word in enumerate(words if lengths else ()):
            edged = f" {word} "
            for length in range(lengths[0], lengths[-1] + 1):
                for at in range(len(edged) - length + 1):
                    rows.append(row)
                    columns.append(number[edged[at : at + length]])
        self.names = list(number)
        shape = (len(words), len(self.names))
        self.matrix = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def load_for(run: str, corpus: Corpus) -> Tagger:
    """A run that takes part in another. Raises ConfigError when it has learned from other texts than that one will:
    from those of dev, maybe, which then tell nothing."""
    tagger = xmplug.load(run)
    if tagger.trained_on - {corpus.documents.fingerprint}:
        raise ConfigError(
            f"the run {run!r} was trained on other texts than these, and may know those of dev; "
            "train it on the same data with the same --dev-fraction"
        )
    return tagger


def chunks(texts: Documents | Iterable[str]) -> Iterator[list[str]]:
    """Some thousand texts at a time."""
    source = texts.texts() if isinstance(texts, Documents) else iter(texts)
    while chunk := list(islice(source, _CHUNK)):
        yield chunk


def _counts(tokens: np.ndarray, offsets: np.ndarray, words: int) -> csr_matrix:
    """(texts, words) float32: how often each word is in each text."""
    # A copy: scipy sorts the columns in place.
    counts = csr_matrix((np.ones(len(tokens), np.float32), tokens.copy(), offsets), shape=(len(offsets) - 1, words))
    counts.sum_duplicates()
    return counts


def _kept(counts: csr_matrix, min_count: int, most: int) -> np.ndarray:
    """Columns, ascending, that occur in `min_count` rows or more, at most `most`: those in most rows."""
    counts.sum_duplicates()
    rows = np.bincount(counts.indices, minlength=counts.shape[1])
    kept = np.flatnonzero(rows >= min_count)
    if len(kept) > most:
        kept = np.sort(kept[np.argsort(-rows[kept], kind="stable")[:most]])
    return kept


def _selected(counts: csr_matrix, place: np.ndarray, size: int) -> csr_matrix:
    """Columns moved to their `place` among `size`; those at -1 are left out, those at one place added."""
    chosen = np.flatnonzero(place >= 0)
    shape = (counts.shape[1], size)
    return csr_matrix(counts @ csr_matrix((np.ones(len(chosen), np.float32), (chosen, place[chosen])), shape=shape))


def _joined(*parts: csr_matrix) -> csr_matrix:
    return csr_matrix(hstack([part for part in parts if part.shape[1]] or parts[:1], format="csr"))


def _keys(
    places: np.ndarray, offsets: np.ndarray, words: int, longest: int, shortest: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """A number for each n-gram of kept words (place >= 0) within one text, and the text it is in. The number has the
    places + 1 as its digits, so that n-grams of different length never meet."""
    of_text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keys, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for length in range(shortest, longest + 1):
        width = len(places) - length + 1
        if width < 1:
            break
        inside = of_text[length - 1 :] == of_text[:width]
        key = np.zeros(width, np.int64)
        for at in range(length):
            part = places[at : at + width]
            inside &= part >= 0
            key = key * (words + 1) + part + 1
        keys.append(key[inside])
        rows.append(of_text[:width][inside])
    return np.concatenate(keys), np.concatenate(rows)


def _hash(text: str) -> int:
    return zlib.crc32(text.encode(errors="replace"))


def _mixed(parts: list[np.ndarray]) -> np.ndarray:
    """One number, not negative, for each n-gram of hashes."""
    mixed = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        mixed = (mixed ^ part.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    return (mixed >> np.uint64(1)).astype(np.int64)
