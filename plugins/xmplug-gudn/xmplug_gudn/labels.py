"""Label texts that guide training: the labels of a training text in one text (GUDN section 3.5)."""

from __future__ import annotations

import re
from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from torch import Tensor

from xmplug import ConfigError, DataError, RunError
from xmplug.data import Corpus, LabelSet, Tokenizer
from xmplug.interfaces import Batch, Encoder, LabelContext, LabelTexts, Task

from . import OwnLabelsConfig, ReinforcedConfig

_CHUNK = 1024
_WORDS = re.compile(r"[^\W\d_]{3}|^\D*[^\W\d_]\D*$")
"""An id of words serves as a name, as in 'Health insurance' or 'U.S.A.'; 'c_1309' does not."""


class OwnLabels(LabelContext):
    """The label texts of a training text are its own labels, one each, which the encoder does not read."""

    training_only = True

    def __init__(self, own: csr_matrix):
        """own (N,L): the labels of each training text."""
        self.own = own

    @classmethod
    def fit(cls, config: OwnLabelsConfig, corpus: Corpus, encoder: Encoder) -> OwnLabels:
        return cls(_sorted(corpus.targets))

    @classmethod
    def restore(cls, config: OwnLabelsConfig, folder: Path, task: Task, encoder: Encoder) -> OwnLabels:
        return cls(_read(folder, task)[0])

    def save(self, folder: Path) -> None:
        save_file(_arrays(self.own), folder / "labels.safetensors")

    def label_texts(self, batch: Batch) -> LabelTexts:
        own = self.own[batch.index.cpu().numpy()]
        read, place = np.unique(own.indices, return_inverse=True)
        lengths = np.diff(own.indptr)
        members = np.full((len(lengths), max(1, int(lengths.max(initial=0)))), -1, np.int64)
        members[np.arange(members.shape[1]) < lengths[:, None]] = place
        return _label_texts(torch.from_numpy(read.astype(np.int64)), [], members)


class Reinforced(LabelContext):
    """The label text of a training text: the names of its labels, repeated up to `max_tokens`.

    ordered: the sequence of its labels, again and again. shuffled: the sequence, then the same labels in one random
    order after the other. none: the sequence once. Texts with the same labels share one label text.
    """

    training_only = True

    def __init__(self, config: ReinforcedConfig, encoder: Encoder, own: csr_matrix, names: csr_matrix, seed: int):
        """own (N,L): the labels of each training text; names (L,W): row l holds the tokens of label l in its data."""
        assert encoder.tokenizer is not None
        self.config, self.own, self.names, self.seed = config, own, names, seed
        self.first, self.comma, self.last = _signs(encoder.tokenizer)
        self.room = min(config.max_tokens, encoder.max_tokens) - len(self.first) - len(self.last)

    @classmethod
    def fit(cls, config: ReinforcedConfig, corpus: Corpus, encoder: Encoder) -> Reinforced:
        if encoder.tokenizer is None:
            raise ConfigError("label texts are read by the encoder, and this one reads no tokens; use gudn:bert")
        labels, known = corpus.task.labels, corpus.task.num_labels
        _check_names(labels, known, config.ids_as_names)
        # Behind a comma: tokenizers such as RoBERTa's have other pieces at the beginning of a text than within it.
        comma = len(_signs(encoder.tokenizer)[1])
        names = [
            np.asarray(encoding.ids[comma:], np.int32)
            for at in range(0, known, _CHUNK)
            for encoding in encoder.tokenizer.backend.encode_batch_fast(
                [f", {name}" for name in labels.names[at : min(at + _CHUNK, known)]], add_special_tokens=False
            )
        ]
        return cls(config, encoder, _sorted(corpus.targets), _ragged(names), corpus.task.seed)

    @classmethod
    def restore(cls, config: ReinforcedConfig, folder: Path, task: Task, encoder: Encoder) -> Reinforced:
        own, names = _read(folder, task)
        if names is None:
            raise RunError(f"{folder} holds no names of labels; restore it from a copy, or train again")
        return cls(config, encoder, own, names, task.seed)

    def save(self, folder: Path) -> None:
        save_file(_arrays(self.own) | _arrays(self.names, "names."), folder / "labels.safetensors")

    def label_texts(self, batch: Batch) -> LabelTexts | None:
        texts: dict[tuple[int, ...], int] = {}
        members = np.full((len(batch.index), 1), -1, np.int64)
        for row, place in enumerate(batch.index.tolist()):
            own = tuple(self.own.indices[self.own.indptr[place] : self.own.indptr[place + 1]].tolist())
            if own:
                members[row] = texts.setdefault(own, len(texts))
        if not texts:
            return None
        tokens = [self.text(own) for own in texts]
        return _label_texts(torch.arange(len(tokens)), tokens, members)

    def text(self, labels: tuple[int, ...]) -> np.ndarray:
        """(T,) int64 tokens of the label text for these labels; the same for the same labels and seed."""
        order: chain[int] | cycle[int] | tuple[int, ...] = labels
        if self.config.fill == "ordered":
            order = cycle(labels)
        elif self.config.fill == "shuffled":
            random = np.random.default_rng((self.seed, *labels))
            order = chain(labels, chain.from_iterable(iter(lambda: random.permutation(labels).tolist(), None)))
        tokens = chain.from_iterable(
            chain(self.comma if at else (), self._name(label)) for at, label in enumerate(islice(order, self.room + 1))
        )
        return np.array([*self.first, *islice(tokens, max(self.room, 0)), *self.last], np.int64)

    def _name(self, label: int) -> np.ndarray:
        name: np.ndarray = self.names.data[self.names.indptr[label] : self.names.indptr[label + 1]]
        return name


def _label_texts(index: Tensor, tokens: list[np.ndarray], members: np.ndarray) -> LabelTexts:
    lengths = [len(row) for row in tokens] if tokens else [0] * len(index)
    # An encoder that reads texts gets one place at least, also of names in which its tokenizer finds no token.
    block = np.zeros((len(index), max(1, *lengths) if tokens else 0), np.int64)
    for row, text in enumerate(tokens):
        block[row, : len(text)] = text
    texts = Batch(index, torch.from_numpy(block), torch.tensor(lengths, dtype=torch.int64))
    return LabelTexts(texts, torch.from_numpy(members), torch.from_numpy((members >= 0).astype(np.float32)))


def _signs(tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
    """What the tokenizer puts before a text, a comma, and what it puts behind a text."""
    comma = tokenizer.backend.encode(",", add_special_tokens=False).ids
    whole = tokenizer.backend.encode(",").ids
    first = next((at for at in range(len(whole)) if whole[at : at + len(comma)] == comma), len(whole))
    return whole[:first], comma, whole[first + len(comma) :]


def _check_names(labels: LabelSet, known: int, ids_as_names: bool) -> None:
    nameless = [
        id
        for id, name in islice(zip(labels.ids, labels.names), known)
        if not name.strip() or (name == id and not _WORDS.search(id))
    ]
    if nameless and not ids_as_names:
        some = ", ".join(map(repr, nameless[:5])) + (", ..." if len(nameless) > 5 else "")
        raise DataError(
            f"label texts need names, and {len(nameless):,} of {known:,} labels have none: {some}; give a label file "
            "with --labels, or, where the ids are words, --label-context.ids_as_names true"
        )


def _sorted(targets: csr_matrix) -> csr_matrix:
    own = csr_matrix(targets, copy=True)
    own.eliminate_zeros()
    own.sort_indices()
    return own


def _ragged(rows: list[np.ndarray]) -> csr_matrix:
    """Rows of tokens as the data of a CSR matrix, so that a token with the number 0 stays."""
    ends = np.cumsum([0, *map(len, rows)])
    places = np.concatenate([np.arange(len(row)) for row in rows] or [np.arange(0)]).astype(np.int32)
    tokens = np.concatenate(rows or [np.zeros(0, np.int32)])
    return csr_matrix((tokens, places, ends), (len(rows), max(1, *map(len, rows), 1)))


def _arrays(matrix: csr_matrix, name: str = "own.") -> dict[str, np.ndarray]:
    return {
        f"{name}data": matrix.data.astype(np.int32),
        f"{name}indices": matrix.indices.astype(np.int32),
        f"{name}indptr": matrix.indptr.astype(np.int64),
        f"{name}columns": np.array([matrix.shape[1]]),
    }


def _read(folder: Path, task: Task) -> tuple[csr_matrix, csr_matrix | None]:
    """What `save` wrote. Raises RunError when it is missing, damaged or of other labels."""
    path = folder / "labels.safetensors"
    try:
        arrays = load_file(path)
        own, names = (
            csr_matrix(
                tuple(arrays[f"{name}{part}"] for part in ("data", "indices", "indptr")),
                (len(arrays[f"{name}indptr"]) - 1, int(arrays[f"{name}columns"][0])),
            )
            if f"{name}data" in arrays
            else None
            for name in ("own.", "names.")
        )
        if own is None or own.shape[1] != task.num_labels or (names is not None and names.shape[0] != task.num_labels):
            raise ValueError(f"they are not of the run's {task.num_labels} labels")
        return own, names
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{path} holds no labels ({error}); restore it from a copy, or train again") from error
