"""Word representation layer and bidirectional LSTM (AttentionXML sections 2.4.1 and 2.4.2)."""

from __future__ import annotations

from torch import Tensor, nn

from xmplug.components.lstm import read_both_ways
from xmplug.components.words import Dropout, Words
from xmplug.data import Tokenizer
from xmplug.interfaces import Batch, Encoded

from . import BiLSTMConfig


class BiLSTM(Words):
    """States h_t (B,T,2N) of a bidirectional LSTM with N units per direction over word vectors."""

    def __init__(self, config: BiLSTMConfig, tokenizer: Tokenizer, vectors: Tensor):
        super().__init__(config, tokenizer, vectors)
        self.size = 2 * config.hidden
        self.state_dropout = Dropout(config.state_dropout)
        self.forward_lstm = nn.LSTM(vectors.shape[1], config.hidden, batch_first=True)
        self.backward_lstm = nn.LSTM(vectors.shape[1], config.hidden, batch_first=True)

    def forward(self, batch: Batch) -> Encoded:
        states = read_both_ways(self.forward_lstm, self.backward_lstm, self.words(batch), batch.mask)  # (B,T,2N)
        return Encoded(mask=batch.mask, states=self.state_dropout(states))
