"""Which label texts inform the scores of a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix

from xmplug import ConfigError, RunError
from xmplug.data import UNKNOWN, Corpus, Tokenizer, TokenStore
from xmplug.interfaces import Batch, Encoder, LabelContext, LabelTexts, Task

from . import NearestLabelsConfig


class NearestLabels(LabelContext):
    """The names of the labels of the k training texts that have the most words in common with a text.

    To change: `label_texts`, which chooses labels and what each counts. What it may not do is tell a training text its
    own labels. Similarities are held in full, (B,N): with a million training texts an index is needed.
    """

    def __init__(
        self, config: NearestLabelsConfig, words: csr_matrix, labels: csr_matrix, tokenizer: Tokenizer, names: list[str]
    ):
        """words (N,V): 1 where a training text has a word; labels (N,L): where it has a label. names: of all labels."""
        self.config, self.words, self.labels = config, words, labels
        rarity = np.log((1 + len(self)) / (1 + words.getnnz(axis=0))).astype(np.float32)
        rarity[: UNKNOWN + 1] = 0  # padding and the unknown word make no texts alike
        weighted = csr_matrix(words.multiply(rarity))
        lengths = np.sqrt(weighted.multiply(weighted).sum(axis=1)).A1
        self.index = csr_matrix(weighted.multiply(rarity / np.maximum(lengths, 1e-6)[:, None]).T)  # (V,N)
        store = TokenStore.of_texts(tokenizer, names, config.label_words)
        self.names = torch.from_numpy(store.padded(np.arange(len(names))))  # (L,W)
        self.name_lengths = torch.from_numpy(store.lengths.astype(np.int64))

    def __len__(self) -> int:
        return int(self.words.shape[0])

    @classmethod
    def fit(cls, config: NearestLabelsConfig, corpus: Corpus, encoder: Encoder) -> NearestLabels:
        tokenizer = _tokenizer(encoder)
        store = TokenStore.of_documents(tokenizer, corpus.documents, encoder.max_tokens)
        words = _words(np.asarray(store.tokens), store.lengths, len(tokenizer))
        return cls(config, words, corpus.targets.astype(np.float32).tocsr(), tokenizer, corpus.task.labels.names)

    @classmethod
    def restore(cls, config: NearestLabelsConfig, folder: Path, task: Task, encoder: Encoder) -> NearestLabels:
        tokenizer, names, path = _tokenizer(encoder), task.labels.names, folder / "neighbours.safetensors"
        try:
            arrays = load_file(path)
            words = _ones(arrays["words"], arrays["words_end"], len(tokenizer))
            labels = _ones(arrays["labels"], arrays["labels_end"], task.num_labels)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise RunError(f"{path} holds no training texts ({error}); restore it, or train again") from error
        return cls(config, words, labels, tokenizer, names)

    def save(self, folder: Path) -> None:
        words, labels = self.words, self.labels
        arrays = {
            "words": words.indices,
            "words_end": words.indptr,
            "labels": labels.indices,
            "labels_end": labels.indptr,
        }
        save_file(arrays, folder / "neighbours.safetensors")

    def label_texts(self, batch: Batch) -> LabelTexts | None:
        tokens, lengths = batch.tokens.cpu().numpy(), batch.lengths.cpu().numpy()
        words = _words(tokens[batch.mask.cpu().numpy()], lengths, self.words.shape[1])
        alike = (words @ self.index).toarray()  # (B,N)
        if batch.training:
            # None is more like a text than itself and its copies; their labels are what it is to learn.
            own = alike[np.arange(len(alike)), batch.index.cpu().numpy()]
            alike[alike >= own[:, None] * (1 - 1e-5)] = 0
        nearest = np.argsort(-alike, axis=1, kind="stable")[:, : self.config.neighbours]
        kept = np.zeros_like(alike)
        np.put_along_axis(kept, nearest, np.take_along_axis(alike, nearest, axis=1), axis=1)
        votes = csr_matrix(csr_matrix(kept) @ self.labels)  # (B,L): how like the texts are that have a label
        votes.sort_indices()
        if not votes.nnz:
            return None
        labels, places = np.unique(votes.indices, return_inverse=True)
        counts = np.diff(votes.indptr)
        filled = np.arange(counts.max()) < counts[:, None]  # (B,K)
        members, weights = np.full(filled.shape, -1, np.int64), np.zeros(filled.shape, np.float32)
        members[filled], weights[filled] = places, votes.data
        chosen = torch.from_numpy(labels.astype(np.int64))
        names = Batch(chosen, self.names[chosen], self.name_lengths[chosen])
        return LabelTexts(names, torch.from_numpy(members), torch.from_numpy(weights))


def _tokenizer(encoder: Encoder) -> Tokenizer:
    if encoder.tokenizer is None:
        raise ConfigError(
            "the names of labels are read as tokens, and this encoder reads none; use --encoder core:words"
        )
    return encoder.tokenizer


def _words(tokens: np.ndarray, lengths: np.ndarray, size: int) -> csr_matrix:
    """(B,V) float32: 1 where a text has a word. tokens: of all texts, one behind the other."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    words = csr_matrix((np.ones(len(tokens), np.float32), (rows, tokens)), shape=(len(lengths), size))
    words.data[:] = 1  # a word that a text has twice was summed
    return words


def _ones(columns: np.ndarray, ends: np.ndarray, size: int) -> csr_matrix:
    """Rows with a 1 at each of their columns. Raises ValueError where the arrays are not those of such rows."""
    rows = csr_matrix((np.ones(len(columns), np.float32), columns, ends), shape=(len(ends) - 1, size))
    rows.check_format(full_check=True)
    return rows
