"""The label scope of a text: teacher knowledge (TReaderXML section 3.2, eq. 1-2 and algorithm 1)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix

from xmplug import ConfigError, RunError
from xmplug.data import UNKNOWN, Corpus, LabelSet, Tokenizer, TokenStore
from xmplug.interfaces import Batch, Encoder, LabelContext, LabelTexts, Neighbour, Task
from xmplug.ops import build_label_tree

from . import ScopeConfig
from .neighbours import NeighbourIndex, distinct, text_vectors

_BEGINNING = 80
"""Characters of a training text that are kept to show it."""
_CLUSTER = 16
"""Most labels in a cluster that stands in as their parent."""


class Scope(LabelContext):
    """SET^nearest: the labels of a text's k nearest training texts and their parents, one level up, each once.

    Training texts of the same words count as one text with the labels of all, so that a text is told nothing by its own
    labels, nor by those of a copy. Its nearest texts are found by the word vectors that the encoder began with: they do
    not change while it trains, and the index is built once.

    arrays, G distinct training texts, P labels and clusters, N training documents:
        words (V,D) float16, vectors (G,D) float16      of the vocabulary; of the distinct texts, unit length
        number (N,) int32                               the distinct text of each document, -1 = none
        nearest (G,k) int32                             the neighbours of each distinct text, -1 = none
        own.*, parents.*                                CSR (G,P): labels of each; CSR (P,P): parents of each label
        label_tokens (P,W) int32                        the words that are read of each label, 0 behind the end
        centres, cluster                                of a large index: see NeighbourIndex
    """

    def __init__(
        self, config: ScopeConfig, arrays: dict[str, np.ndarray], documents: list[tuple[str, str]], num_labels: int
    ):
        self.config, self.arrays, self.documents, self.num_labels = config, arrays, documents, num_labels
        self.words = torch.from_numpy(arrays["words"].astype(np.float32))
        vectors = arrays["vectors"].astype(np.float32)
        self.index = NeighbourIndex(vectors, config.exact_up_to, arrays.get("centres"), arrays.get("cluster"))
        self.label_tokens = torch.from_numpy(arrays["label_tokens"].astype(np.int64))
        self.label_lengths = (self.label_tokens > 0).sum(dim=1)
        self.own, self.parents = _csr(arrays, "own"), _csr(arrays, "parents")
        # What a training text contributes: its labels and their parents, as far as they have words to read.
        contributed = self.own + self.own @ self.parents if config.parents else self.own
        self.contributed = _ones(contributed.multiply(self.label_lengths.numpy() > 0))

    @classmethod
    def fit(cls, config: ScopeConfig, corpus: Corpus, encoder: Encoder) -> Scope:
        vectors = encoder.word_vectors()
        if vectors is None:
            raise ConfigError(
                "the label scope looks for like texts by their word vectors, and this encoder has none; "
                "use --encoder core:words or attentionxml:bilstm"
            )
        words, labels = vectors.detach().cpu().half(), corpus.task.labels
        store = TokenStore.of_documents(encoder.tokenizer, corpus.documents, encoder.max_tokens)
        number = distinct(store[place] for place in range(len(store)))
        _, first = np.unique(number[number >= 0], return_index=True)
        first = np.flatnonzero(number >= 0)[first]  # (G,): the first document of each distinct text
        copies, empty = int((number >= 0).sum()) - len(first), int((number < 0).sum())
        notes = [f"label scope from {len(first):,} distinct training texts ({copies:,} copies, {empty:,} empty texts)"]

        # Halved and read again, so that a restored run finds the same neighbours.
        means = text_vectors(words.float(), (store[place] for place in first)).astype(np.float16)
        index = NeighbourIndex(means.astype(np.float32), config.exact_up_to)
        known = np.flatnonzero(number >= 0)
        grouping = csr_matrix((np.ones(len(known), np.int8), (number[known], known)), (len(first), len(number)))
        own = _ones(grouping @ corpus.targets.astype(np.int8))

        parents = _parents(labels)
        if not parents.nnz:
            parents = _clusters(corpus)
            clusters = parents.shape[0] - len(labels)
            if config.parents:
                notes.append(f"no label has a broader one: {clusters:,} clusters of like labels stand in as parents")
        own.resize(len(first), parents.shape[0])
        tokens = _label_tokens(config, encoder.tokenizer, labels, _ones(own + own @ parents), store, first)
        wordless = int((tokens[: len(labels), 0] == 0).sum())
        if wordless:
            notes.append(f"{wordless:,} labels have neither a known word in their name nor a text; no scope names them")
        arrays = {
            "words": words.numpy(),
            "vectors": means,
            "number": number,
            "nearest": index.among_themselves(config.neighbours),
            "label_tokens": tokens,
            **_arrays(own, "own"),
            **_arrays(parents, "parents"),
        }
        if index.centres is not None and index.cluster is not None:
            arrays |= {"centres": index.centres, "cluster": index.cluster}
        wanted = set(first.tolist())
        documents = [
            (document.id, " ".join(document.text[: 2 * _BEGINNING].split())[:_BEGINNING])
            for place, document in enumerate(corpus.documents)
            if place in wanted
        ]
        scope = cls(config, arrays, documents, len(labels))
        scope.notes = tuple(notes)
        return scope

    @classmethod
    def restore(cls, config: ScopeConfig, folder: Path, task: Task, encoder: Encoder) -> Scope:
        try:
            arrays = load_file(folder / "scope.safetensors")
            with open(folder / "documents.jsonl", encoding="utf-8") as file:
                documents = [tuple(json.loads(line)) for line in file]
            if len(documents) != len(arrays["vectors"]):
                raise RunError(f"{len(documents)} documents for {len(arrays['vectors'])} vectors")
            return cls(config, arrays, documents, len(task.labels))
        except (OSError, SafetensorError, ValueError, KeyError, RunError) as error:
            raise RunError(
                f"{folder} holds no label scope ({error}); restore it from a copy, or train again"
            ) from error

    def save(self, folder: Path) -> None:
        save_file(self.arrays, folder / "scope.safetensors")
        with open(folder / "documents.jsonl", "w", encoding="utf-8") as file:
            for document in self.documents:
                file.write(json.dumps(document, ensure_ascii=False) + "\n")

    def label_texts(self, batch: Batch) -> LabelTexts:
        nearest, _ = self._nearest(batch)
        votes = _rows(nearest, len(self.documents)) @ self.contributed  # (B,P): how many neighbours contribute a label
        labels, place = np.unique(votes.indices, return_inverse=True)
        if not len(labels):
            labels = np.zeros(1, np.int64)  # an encoder reads one text at least
        lengths = np.diff(votes.indptr)
        members = np.full((len(nearest), max(1, lengths.max(initial=0))), -1, np.int64)
        text = np.repeat(np.arange(len(nearest)), lengths)
        order = np.lexsort((votes.indices, -votes.data, text))  # the labels of most neighbours first
        members[text, np.arange(len(text)) - np.repeat(votes.indptr[:-1], lengths)] = place[order]
        weights = np.zeros(members.shape, np.float32)
        weights[members >= 0] = 1
        if self.config.weights == "votes":
            weights[members >= 0] = votes.data[order]
        known = torch.from_numpy(labels.astype(np.int64))
        width = max(1, int(self.label_lengths[known].max()))
        texts = Batch(known, self.label_tokens[known, :width], self.label_lengths[known])
        return LabelTexts(texts, torch.from_numpy(members), torch.from_numpy(weights))

    def neighbours(self, batch: Batch) -> list[list[Neighbour]]:
        nearest, cosines = self._nearest(batch)
        return [
            [self._neighbour(place, cosine) for place, cosine in zip(row[row >= 0].tolist(), similarity.tolist())]
            for row, similarity in zip(nearest, cosines)
        ]

    def _neighbour(self, place: int, cosine: float) -> Neighbour:
        document, beginning = self.documents[place]
        own = set(self.own[place].indices.tolist())
        above = {label for label in self.contributed[place].indices.tolist() if label < self.num_labels} - own
        return Neighbour(document, beginning, cosine, tuple(sorted(own)), tuple(sorted(above)))

    def _nearest(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The nearest training texts of each text: (B,k) int32, -1 = none, and their cosines."""
        tokens, lengths = batch.tokens.cpu().numpy(), batch.lengths.cpu().numpy()
        if batch.training:
            number = self.arrays["number"][batch.index.cpu().numpy()]
            nearest = np.where(number[:, None] >= 0, self.arrays["nearest"][number], -1)
            return nearest, np.einsum(
                "bkd,bd->bk", self.arrays["vectors"][nearest], self.arrays["vectors"][number], dtype=np.float32
            )
        vectors = text_vectors(self.words, (row[:length] for row, length in zip(tokens, lengths)))
        return self.index.search(vectors, self.config.neighbours)


def _label_tokens(
    config: ScopeConfig,
    tokenizer: Tokenizer,
    labels: LabelSet,
    belongs: csr_matrix,
    store: TokenStore,
    first: np.ndarray,
) -> np.ndarray:
    """(P,W) int32: the first W known words of each label's name; without one, its W heaviest words.

    belongs (G,P): the texts of each label or cluster, those of its children among them. The heaviest words are those
    with the largest sum of TF-IDF over the texts, a label's representation in Parabel.
    """
    size, width = belongs.shape[1], config.label_words
    tokens = np.zeros((size, width), np.int32)
    for place, name in enumerate(tokenizer.encode(labels.names, 2**31)):
        known = name[name != UNKNOWN][:width]
        tokens[place, : len(known)] = known
    wordless = np.flatnonzero((tokens[:, 0] == 0) & (belongs.getnnz(axis=0) > 0))
    if len(wordless):
        words = [store[place] for place in first]
        ends = np.cumsum([0, *map(len, words)])
        counts = csr_matrix((np.ones(ends[-1], np.float32), np.concatenate(words), ends), (len(words), len(tokenizer)))
        counts.sum_duplicates()
        counts.data = 1 + np.log(counts.data)
        idf = np.log(len(words) / np.maximum(counts.getnnz(axis=0), 1)).astype(np.float32)
        idf[: UNKNOWN + 1] = 0
        weights = counts.multiply(idf).tocsr()
        sums = csr_matrix(belongs[:, wordless].T.astype(np.float32) @ weights)
        for label, row in zip(wordless, sums):
            heaviest = row.indices[np.lexsort((row.indices, -row.data))]
            heaviest = heaviest[heaviest > UNKNOWN][:width]
            tokens[label, : len(heaviest)] = heaviest
    return tokens


def _parents(labels: LabelSet) -> csr_matrix:
    """(P,P): the labels directly above each label."""
    ends = np.cumsum([0, *map(len, labels.broader)])
    above = np.array([parent for parents in labels.broader for parent in parents], dtype=np.int32)
    return csr_matrix((np.ones(len(above), np.int8), above, ends), (len(labels), len(labels)))


def _clusters(corpus: Corpus) -> csr_matrix:
    """(P,P): clusters of like labels, numbered behind the labels, as the parents of labels that have none."""
    labels = len(corpus.task.labels)
    tree = build_label_tree(corpus.label_features, _CLUSTER, _CLUSTER, corpus.task.seed)
    above = tree.parent[tree.level(-1)]
    cluster = above - above.min() + labels
    size = int(cluster.max()) + 1
    return csr_matrix((np.ones(len(tree.labels), np.int8), (tree.labels, cluster)), (size, size))


def _rows(places: np.ndarray, size: int) -> csr_matrix:
    """(B,size) with a one at each of the places (B,k); -1 = none."""
    there = places >= 0
    ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return csr_matrix((np.ones(ends[-1], np.int32), places[there], ends), (len(places), size))


def _ones(matrix: csr_matrix) -> csr_matrix:
    """The same places, each with a one."""
    matrix = csr_matrix(matrix)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return csr_matrix((np.ones(matrix.nnz, np.int32), matrix.indices, matrix.indptr), matrix.shape)


def _arrays(matrix: csr_matrix, name: str) -> dict[str, np.ndarray]:
    return {
        f"{name}.indices": matrix.indices.astype(np.int32),
        f"{name}.indptr": matrix.indptr.astype(np.int64),
        f"{name}.columns": np.array([matrix.shape[1]]),
    }


def _csr(arrays: dict[str, np.ndarray], name: str) -> csr_matrix:
    indices, indptr = arrays[f"{name}.indices"], arrays[f"{name}.indptr"]
    shape = (len(indptr) - 1, int(arrays[f"{name}.columns"][0]))
    return csr_matrix((np.ones(len(indices), np.int32), indices, indptr), shape)
