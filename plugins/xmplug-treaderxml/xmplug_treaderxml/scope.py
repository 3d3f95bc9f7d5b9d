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
_CHUNK = 10_000
"""Texts whose words are counted at a time; even."""
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
        label_tokens (3,P,W) int32                      the words that are read of each label, 0 behind the end: by any
                                                        text, by training texts of even, and of odd number
        centres, cluster                                of a large index: see NeighbourIndex
    """

    def __init__(
        self,
        config: ScopeConfig,
        arrays: dict[str, np.ndarray],
        documents: list[tuple[str, str]],
        num_labels: int,
        index: NeighbourIndex | None = None,
    ):
        self.config, self.arrays, self.documents, self.num_labels = config, arrays, documents, num_labels
        self.words = torch.from_numpy(arrays["words"].astype(np.float32))
        self.index = index or NeighbourIndex(
            arrays["vectors"], config.exact_up_to, arrays.get("centres"), arrays.get("cluster")
        )
        tokens = arrays["label_tokens"].astype(np.int64)
        self.described = (tokens != tokens[0]).any(axis=(0, 2))  # (P,): labels that are read by the words of texts
        self.label_tokens = torch.from_numpy(tokens.reshape(-1, tokens.shape[2]))  # (3P,W)
        self.label_lengths = (self.label_tokens > 0).sum(dim=1)
        self.own = _csr(arrays, "own")
        # What a training text contributes: its labels and their parents, as far as they have words to read.
        contributed = self.own + self.own @ _csr(arrays, "parents") if config.parents else self.own
        self.contributed = _ones(contributed.multiply((tokens[0] > 0).any(axis=1)))

    @classmethod
    def fit(cls, config: ScopeConfig, corpus: Corpus, encoder: Encoder) -> Scope:
        vectors = encoder.word_vectors()
        if vectors is None:
            raise ConfigError(
                "the label scope looks for like texts by their word vectors, and this encoder has none; "
                "use --encoder core:words or attentionxml:bilstm"
            )
        assert encoder.tokenizer is not None
        # Cosines do not change with the scale, and half precision holds numbers up to 65,504.
        words = (vectors.detach().cpu() / vectors.detach().abs().max().clamp(min=1e-30).cpu()).half()
        labels = corpus.task.labels
        store = TokenStore.of_documents(encoder.tokenizer, corpus.documents, encoder.max_tokens)
        number = distinct(store[place] for place in range(len(store)))
        known = np.flatnonzero(number >= 0)
        first = known[np.unique(number[known], return_index=True)[1]]  # (G,): each distinct text's first document
        notes = [
            f"label scope from {len(first):,} distinct training texts "
            f"({len(known) - len(first):,} copies, {len(number) - len(known):,} without a known word)"
        ]
        # Halved before the search, so that a restored run finds the same neighbours.
        means = text_vectors(words.float(), (store[place] for place in first)).astype(np.float16)
        index = NeighbourIndex(means, config.exact_up_to)
        grouping = csr_matrix((np.ones(len(known), np.int32), (number[known], known)), (len(first), len(number)))
        own = _ones(grouping @ corpus.targets.astype(np.int32))

        parents = _parents(labels)
        if config.parents and not parents.nnz:
            parents = _clusters(corpus)
            clusters = parents.shape[0] - len(labels)
            notes.append(f"no label has a broader one: {clusters:,} clusters of like labels stand in as parents")
        own.resize(len(first), parents.shape[0])
        tokens = _label_tokens(config, encoder.tokenizer, labels, _ones(own + own @ parents), store, first)
        wordless = int((tokens[0, : labels.num_trained, 0] == 0).sum())
        if wordless:
            notes.append(f"{wordless:,} labels have no known word, neither in their name nor in a text")
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
            (document.id, " ".join(document.text.lstrip()[: 2 * _BEGINNING].split())[:_BEGINNING])
            for place, document in enumerate(corpus.documents)
            if place in wanted
        ]
        scope = cls(config, arrays, documents, len(labels), index)
        scope.notes = tuple(notes)
        return scope

    @classmethod
    def restore(cls, config: ScopeConfig, folder: Path, task: Task, encoder: Encoder) -> Scope:
        assert encoder.tokenizer is not None
        try:
            arrays = load_file(folder / "scope.safetensors")
            with open(folder / "documents.jsonl", encoding="utf-8") as file:
                documents = [tuple(json.loads(line)) for line in file]
            _check(arrays, documents, config, len(encoder.tokenizer), len(task.labels))
            return cls(config, arrays, documents, len(task.labels))
        except (OSError, SafetensorError, ValueError, KeyError, IndexError, TypeError) as error:
            raise RunError(
                f"{folder} holds no label scope for this run ({error}); restore it from a copy, or train again"
            ) from error

    def save(self, folder: Path) -> None:
        save_file(self.arrays, folder / "scope.safetensors")
        with open(folder / "documents.jsonl", "w", encoding="utf-8") as file:
            for document in self.documents:
                file.write(json.dumps(document, ensure_ascii=False) + "\n")

    def label_texts(self, batch: Batch) -> LabelTexts:
        nearest = self._nearest(batch)[0]
        votes = _rows(nearest, len(self.documents)) @ self.contributed  # (B,P): how many neighbours contribute a label
        lengths = np.diff(votes.indptr)
        text = np.repeat(np.arange(len(nearest)), lengths)
        read = votes.indices.astype(np.int64)
        if batch.training:
            # A label without a name is read by words of texts: by those of the other half, or its own would tell.
            half = 1 + self.arrays["number"][batch.index.cpu().numpy()] % 2
            read += self.described[read] * half[text] * len(self.described)
        texts, place = np.unique(read, return_inverse=True)
        if not len(texts):
            texts = np.zeros(1, np.int64)  # an encoder reads one text at least
        members = np.full((len(nearest), max(1, lengths.max(initial=0))), -1, np.int64)
        order = np.lexsort((votes.indices, -votes.data, text))  # the labels of most neighbours first
        members[text, np.arange(len(text)) - np.repeat(votes.indptr[:-1], lengths)] = place[order]
        weights = (members >= 0).astype(np.float32)
        if self.config.weights == "votes":
            weights[members >= 0] = votes.data[order]
        chosen = torch.from_numpy(texts)
        width = max(1, int(self.label_lengths[chosen].max()))
        labels = Batch(chosen % len(self.described), self.label_tokens[chosen, :width], self.label_lengths[chosen])
        return LabelTexts(labels, torch.from_numpy(members), torch.from_numpy(weights))

    def neighbours(self, batch: Batch) -> list[list[Neighbour]]:
        nearest, vectors = self._nearest(batch)
        return [
            [self._neighbour(place, float(self.index.vectors[place] @ vector)) for place in row[row >= 0].tolist()]
            for row, vector in zip(nearest, vectors)
        ]

    def _neighbour(self, place: int, cosine: float) -> Neighbour:
        document, beginning = self.documents[place]
        own = set(self.own[place].indices.tolist())
        above = {label for label in self.contributed[place].indices.tolist() if label < self.num_labels} - own
        return Neighbour(document, beginning, cosine, tuple(sorted(own)), tuple(sorted(above)))

    def _nearest(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The nearest training texts of each text, (B,k) int32, -1 = none; and the texts' own vectors (B,D)."""
        if batch.training:
            number = self.arrays["number"][batch.index.cpu().numpy()]
            if not len(self.documents):
                return np.full((len(number), 1), -1, np.int32), np.zeros((len(number), 1), np.float32)
            nearest = np.where(number[:, None] >= 0, self.arrays["nearest"][number], -1)
            return nearest, self.index.vectors[number]
        tokens, lengths = batch.tokens.cpu().numpy(), batch.lengths.cpu().numpy()
        vectors = text_vectors(self.words, (row[:length] for row, length in zip(tokens, lengths)))
        return self.index.search(vectors, self.config.neighbours)[0], vectors


def _check(arrays: dict[str, np.ndarray], documents: list[tuple], config: ScopeConfig, words: int, labels: int) -> None:
    """Raises ValueError for parts that do not belong together, or not to this run."""
    texts, size = len(arrays["vectors"]), arrays["label_tokens"].shape[1]
    shapes = {
        "words": (words, arrays["vectors"].shape[1]),
        "nearest": (texts, config.neighbours),
        "label_tokens": (3, size, config.label_words),
        "own.indptr": (texts + 1,),
        "parents.indptr": (size + 1,),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} is of shape {arrays[name].shape}, expected {shape}")
    limits = {"number": texts, "nearest": texts, "label_tokens": words, "own.indices": size, "parents.indices": size}
    for name, limit in limits.items():
        if arrays[name].min(initial=0) < -1 or arrays[name].max(initial=-1) >= limit:
            raise ValueError(f"{name} has a number that is not below {limit}")
    if size < labels or len(documents) != texts:
        raise ValueError(f"{size} labels and {len(documents)} documents, expected at least {labels}, and {texts}")
    if not all(len(document) == 2 and all(isinstance(part, str) for part in document) for document in documents):
        raise ValueError("each line of documents.jsonl must be an id and the beginning of a text")
    for name in ("own", "parents"):
        _csr(arrays, name).check_format(full_check=True)


def _label_tokens(
    config: ScopeConfig,
    tokenizer: Tokenizer,
    labels: LabelSet,
    belongs: csr_matrix,
    store: TokenStore,
    first: np.ndarray,
) -> np.ndarray:
    """(3,P,W) int32: the first W known words of each label's name; without one, the W heaviest words of its texts.

    belongs (G,P): the texts of each label or cluster, those of its children among them. The heaviest words are those
    with the largest sum of TF-IDF over the texts, a label's representation in Parabel. For training texts of even
    number the sum is over the odd ones, and the other way round: no text adds to words that it then reads.
    """
    width = config.label_words
    tokens = np.zeros((3, belongs.shape[1], width), np.int32)
    for place, name in enumerate(tokenizer.encode(labels.names, 2**31)):
        known = name[name != UNKNOWN][:width]
        tokens[:, place, : len(known)] = known
    wordless = np.flatnonzero((tokens[0, :, 0] == 0) & (belongs.getnnz(axis=0) > 0))
    if len(wordless):
        even, odd = _sums(belongs[:, wordless].astype(np.float32), store, first, len(tokenizer))
        for variant, sums in enumerate((even + odd, odd, even)):
            for label, row in zip(wordless, sums):
                heaviest = row.indices[np.lexsort((row.indices, -row.data))][:width]
                tokens[variant, label, : len(heaviest)] = heaviest
    return tokens


def _sums(belongs: csr_matrix, store: TokenStore, first: np.ndarray, words: int) -> tuple[csr_matrix, csr_matrix]:
    """TF-IDF of the texts of each label (L,V), summed over texts of even number, and of odd number."""
    documents = np.zeros(words, np.int64)
    for place in first:
        documents[np.unique(store[place])] += 1
    idf = np.log(len(first) / np.maximum(documents, 1)).astype(np.float32)
    idf[: UNKNOWN + 1] = 0
    sums = [csr_matrix((belongs.shape[1], words), dtype=np.float32) for _ in range(2)]
    for start in range(0, len(first), _CHUNK):
        texts = [store[place] for place in first[start : start + _CHUNK]]
        ends = np.cumsum([0, *map(len, texts)])
        counts = csr_matrix((np.ones(ends[-1], np.float32), np.concatenate(texts), ends), (len(texts), words))
        counts.sum_duplicates()
        counts.data = 1 + np.log(counts.data)
        weights = counts.multiply(idf).tocsr()
        weights.eliminate_zeros()
        for half in range(2):  # a chunk begins with an even number
            sums[half] = sums[half] + belongs[start + half : start + len(texts) : 2].T @ weights[half::2]
    return csr_matrix(sums[0]), csr_matrix(sums[1])


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
