"""Word representation layer and bidirectional LSTM (AttentionXML sections 2.4.1 and 2.4.2)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from xmplug import RunError
from xmplug.data import Corpus, Tokenizer
from xmplug.interfaces import Batch, Encoded, Encoder

from . import BiLSTMConfig
from .both import run_both
from .vectors import word_vectors

_UNKNOWN = 1


class Dropout(nn.Module):
    """Dropout from random bytes, of which one 64-bit random number gives eight: drawing a number for each element, as
    PyTorch does, takes as long as an LSTM step on a CPU. The rate is rounded to a multiple of 1/256, and the scale is
    that of the rounded rate."""

    def __init__(self, rate: float):
        super().__init__()
        self.dropped = min(round(256 * rate), 255)

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or not self.dropped:
            return values
        numbers = torch.empty(-(-values.numel() // 8), dtype=torch.int64, device=values.device)
        numbers.random_(-(2**63), None)
        kept = numbers.view(torch.uint8)[: values.numel()].view(values.shape) >= self.dropped
        return values * (kept * (256 / (256 - self.dropped))).to(values.dtype)


class BiLSTM(Encoder):
    """States h_t (B,T,2N) of a bidirectional LSTM with N units per direction over word vectors."""

    def __init__(self, config: BiLSTMConfig, tokenizer: Tokenizer, vectors: Tensor):
        super().__init__()
        self.tokenizer, self.max_tokens, self.size = tokenizer, config.max_tokens, 2 * config.hidden
        # Row-sparse gradients: a step sees a small part of the vocabulary.
        self.embedding = nn.Embedding.from_pretrained(
            vectors, freeze=not config.train_vectors, padding_idx=0, sparse=True
        )
        self.dropout, self.state_dropout = Dropout(config.dropout), Dropout(config.state_dropout)
        self.word_dropout = config.word_dropout
        # Two one-way LSTMs on padded texts, of which one reads each text from its own end, give what a bidirectional
        # LSTM on packed sequences gives: padding stands behind the end and reaches no state that counts. Unlike the
        # packed form they run on fused kernels, 4 to 13 times as fast on a CPU, and side by side.
        self.forward_lstm = nn.LSTM(vectors.shape[1], config.hidden, batch_first=True)
        self.backward_lstm = nn.LSTM(vectors.shape[1], config.hidden, batch_first=True)

    @classmethod
    def fit(cls, config: BiLSTMConfig, corpus: Corpus) -> BiLSTM:
        tokenizer = Tokenizer.words(corpus.documents.texts(), config.max_words, config.min_count)
        return cls(config, tokenizer, word_vectors(config, tokenizer, corpus))

    @classmethod
    def restore(cls, config: BiLSTMConfig, folder: Path) -> BiLSTM:
        tokenizer = Tokenizer.load(folder)
        try:
            size = int((folder / "vector_size").read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{folder / 'vector_size'} is missing or damaged; restore it, or train again") from error
        return cls(config, tokenizer, torch.zeros(len(tokenizer), size))

    def save(self, folder: Path) -> None:
        self.tokenizer.save(folder)
        (folder / "vector_size").write_text(f"{self.embedding.embedding_dim}\n")

    def forward(self, batch: Batch) -> Encoded:
        tokens, mask = batch.tokens, batch.mask  # (B,T)
        if self.training and self.word_dropout:
            dropped = torch.rand(tokens.shape, device=tokens.device) < self.word_dropout
            tokens = tokens.masked_fill(dropped & mask, _UNKNOWN)
        words = self.dropout(self.embedding(tokens))  # (B,T,D)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        # Place t of a text of length n is n-1-t when read from its end; places behind the end stay.
        mirrored = torch.where(mask, batch.lengths[:, None] - 1 - places, places)  # (B,T)
        onward, back = run_both(self.forward_lstm, words, self.backward_lstm, _take(words, mirrored))  # (B,T,N)
        states = torch.cat([onward, _take(back, mirrored)], dim=-1)  # (B,T,2N)
        return Encoded(mask=mask, states=self.state_dropout(states))


def _take(values: Tensor, places: Tensor) -> Tensor:
    """values (B,T,D) at places (B,T) of each text."""
    return values.gather(1, places[:, :, None].expand(-1, -1, values.shape[-1]))
