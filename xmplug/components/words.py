"""Words of a text as vectors, each by itself. An encoder that reads them in context begins with these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Corpus, Tokenizer
from ..data.tokens import UNKNOWN
from ..errors import RunError
from ..interfaces import Batch, Encoded, Encoder
from . import WordsConfig
from .vectors import word_vectors


class Dropout(nn.Module):
    """Dropout from random bytes, of which one 64-bit random number gives eight: drawing a number for each element, as
    PyTorch does, takes as long as an LSTM step on a CPU. The rate is rounded to a multiple of 1/256, and the scale is
    that of the rounded rate."""

    def __init__(self, rate: float):
        super().__init__()
        self.p = rate
        self.dropped = min(round(256 * rate), 255)

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or not self.dropped:
            return values
        numbers = torch.empty(-(-values.numel() // 8), dtype=torch.int64, device=values.device)
        numbers.random_(-(2**63), None)
        kept = numbers.view(torch.uint8)[: values.numel()].view(values.shape) >= self.dropped
        return values * (kept * (256 / (256 - self.dropped))).to(values.dtype)


class Words(Encoder):
    """States (B,T,D): the vectors of a text's words."""

    tokenizer: Tokenizer

    def __init__(self, config: WordsConfig, tokenizer: Tokenizer, vectors: Tensor):
        super().__init__()
        self.tokenizer, self.max_tokens, self.size = tokenizer, config.max_tokens, vectors.shape[1]
        # Row-sparse gradients: a step sees a small part of the vocabulary.
        self.embedding = nn.Embedding.from_pretrained(
            vectors, freeze=not config.train_vectors, padding_idx=0, sparse=True
        )
        self.dropout, self.word_dropout = Dropout(config.dropout), config.word_dropout

    @classmethod
    def fit(cls, config: Any, corpus: Corpus) -> Words:
        tokenizer = Tokenizer.words(corpus.documents.texts(), config.max_words, config.min_count)
        return cls(config, tokenizer, word_vectors(config, tokenizer, corpus))

    @classmethod
    def restore(cls, config: Any, folder: Path) -> Words:
        tokenizer = Tokenizer.load(folder)
        try:
            size = int((folder / "vector_size").read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{folder / 'vector_size'} is missing or damaged; restore it, or train again") from error
        return cls(config, tokenizer, torch.zeros(len(tokenizer), size))

    def save(self, folder: Path) -> None:
        self.tokenizer.save(folder)
        (folder / "vector_size").write_text(f"{self.embedding.embedding_dim}\n")

    def input_vectors(self) -> nn.Module:
        return self.embedding

    def word_vectors(self) -> Tensor:
        return self.embedding.weight

    def words(self, batch: Batch) -> Tensor:
        """(B,T,D) vectors of the words, in training with dropout of words and of numbers."""
        tokens = batch.tokens  # (B,T)
        if self.training and self.word_dropout:
            dropped = torch.rand(tokens.shape, device=tokens.device) < self.word_dropout
            tokens = tokens.masked_fill(dropped & batch.mask, UNKNOWN)
        vectors: Tensor = self.dropout(self.embedding(tokens))
        return vectors

    def forward(self, batch: Batch) -> Encoded:
        return Encoded(mask=batch.mask, states=self.words(batch))
