"""A text as vectors."""

from __future__ import annotations

from torch import Tensor, nn

from xmplug.components.words import Words
from xmplug.data import Tokenizer
from xmplug.interfaces import Batch, Encoded

from . import MeanWordsConfig


class MeanWords(Words):
    """States (B,T,H): tanh(norm(W x)) of each word's vector x; pooled (B,1,H): their mean over the text.

    To change: the layers in `__init__` and what `forward` makes of `self.words(batch)`, the word vectors (B,T,D).
    Vocabulary, word vectors, dropout of words and saving come with `Words`; an encoder with a tokenizer of its own is a
    subclass of `xmplug.interfaces.Encoder`. Whatever is added, `batch.mask` decides what counts in a mean or a softmax.
    """

    num_pooled = 1

    def __init__(self, config: MeanWordsConfig, tokenizer: Tokenizer, vectors: Tensor):
        super().__init__(config, tokenizer, vectors)
        # With the norm, states begin alike for word vectors of any scale, and small: an attention over large ones would
        # begin with sharp choices. A bias before it would make all words begin as nearly the same.
        linear, norm = nn.Linear(self.size, config.hidden, bias=False), nn.LayerNorm(config.hidden)
        nn.init.constant_(norm.weight, 0.1)
        self.layer = nn.Sequential(linear, norm, nn.Tanh())
        self.size = config.hidden

    def forward(self, batch: Batch) -> Encoded:
        states = self.layer(self.words(batch)).float()  # (B,T,H)
        mask = batch.mask[:, :, None]
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # (B,H); zeros for an empty text
        return Encoded(mask=batch.mask, states=states, pooled=pooled[:, None])
