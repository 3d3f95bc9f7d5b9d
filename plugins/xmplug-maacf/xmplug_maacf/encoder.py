"""n independent text encoders of one kind, which read the same words: n aspects (MAACF+ section 3.2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xmplug.components.lstm import read_both_ways
from xmplug.components.words import Dropout, Words
from xmplug.data import Tokenizer
from xmplug.interfaces import Batch, Encoded

from . import AttentionBiLSTMConfig, XMLCNNConfig


class XMLCNN(Words):
    """pooled (B,n,D): n times XML-CNN (Liu et al., SIGIR 2017): convolutions of several widths over word vectors,
    dynamic max-pooling, a fully connected bottleneck."""

    def __init__(self, config: XMLCNNConfig, tokenizer: Tokenizer, vectors: Tensor):
        super().__init__(config, tokenizer, vectors)
        self.config, self.size, self.num_pooled = config, config.size, config.aspects
        widths, pooled = config.widths, len(config.widths) * config.filters * config.pools
        # The filters of all aspects in one convolution; none sees those of another.
        self.convolutions = nn.ModuleList(
            nn.Conv1d(vectors.shape[1], config.aspects * config.filters, width) for width in widths
        )
        self.bottlenecks = nn.ModuleList(nn.Linear(pooled, config.size) for _ in range(config.aspects))
        self.feature_dropout = Dropout(config.feature_dropout)

    def forward(self, batch: Batch) -> Encoded:
        words = self.words(batch).transpose(1, 2)  # (B,D,T), 0 behind the end of a text
        pooled = []
        for convolution in self.convolutions:
            # A window may reach beyond the end: a text of T words gives T features, however few they are.
            (width,) = convolution.kernel_size  # type: ignore[misc]
            features = convolution(nn.functional.pad(words, (0, width - 1))).transpose(1, 2)  # (B,T,n F)
            pooled.append(dynamic_max_pool(features, batch.lengths, self.config.pools))  # (B,p,n F)
        # (B,p,n,F) of each width -> (n,B,p,F) -> (n,B, p F of all widths)
        apart = [each.unflatten(2, (self.config.aspects, -1)).permute(2, 0, 1, 3).flatten(2) for each in pooled]
        of_aspect = self.feature_dropout(torch.relu(torch.cat(apart, dim=-1)))
        vectors = [torch.relu(layer(part)) for layer, part in zip(self.bottlenecks, of_aspect)]
        return Encoded(mask=batch.mask, pooled=torch.stack(vectors, dim=1))

    def activations(self, tokens: int) -> int:
        features = len(self.config.widths) * self.config.aspects * self.config.filters
        return tokens * (2 * self.embedding.embedding_dim + 3 * features)


class AttentionBiLSTM(Words):
    """pooled (B,n,D): n times a bidirectional LSTM of one layer, with self-attention a_t = softmax_t(v . tanh(W h_t))
    over its states (Lin et al., ICLR 2017, with one hop)."""

    def __init__(self, config: AttentionBiLSTMConfig, tokenizer: Tokenizer, vectors: Tensor):
        super().__init__(config, tokenizer, vectors)
        self.size, self.num_pooled = 2 * config.hidden, config.aspects
        self.onward, self.backward_ = (
            nn.ModuleList(nn.LSTM(vectors.shape[1], config.hidden, batch_first=True) for _ in range(config.aspects))
            for _ in range(2)
        )
        self.keys = nn.ModuleList(nn.Linear(self.size, config.attention) for _ in range(config.aspects))
        self.queries = nn.ModuleList(nn.Linear(config.attention, 1, bias=False) for _ in range(config.aspects))
        self.state_dropout = Dropout(config.state_dropout)

    def forward(self, batch: Batch) -> Encoded:
        words, mask = self.words(batch), batch.mask  # (B,T,D)
        vectors = []
        for onward, backward, key, query in zip(self.onward, self.backward_, self.keys, self.queries):
            assert isinstance(onward, nn.LSTM)
            assert isinstance(backward, nn.LSTM)
            states = self.state_dropout(read_both_ways(onward, backward, words, mask))  # (B,T,2N)
            logits = query(torch.tanh(key(states))).squeeze(-1).float()  # (B,T)
            weights = logits.masked_fill(~mask, -torch.inf).softmax(dim=-1).nan_to_num()  # 0 for an empty text
            vectors.append(torch.einsum("bt,btd->bd", weights.to(states.dtype), states))
        return Encoded(mask=mask, pooled=torch.stack(vectors, dim=1))

    def activations(self, tokens: int) -> int:
        return tokens * (2 * self.embedding.embedding_dim + 8 * self.num_pooled * self.size)


def dynamic_max_pool(features: Tensor, lengths: Tensor, pools: int) -> Tensor:
    """(B,p,F): the largest of each of p like parts of each text; 0 of an empty one.

    features (B,T,F), lengths (B,): part i of a text of m words goes from floor(i m / p) to ceil((i + 1) m / p), so that
    parts of a text of less than p words overlap.
    """
    part = torch.arange(pools, device=lengths.device)
    begin = part * lengths[:, None] // pools  # (B,p)
    end = -(-(part + 1) * lengths[:, None] // pools)
    longest = int((end - begin).max()) if end.numel() else 0
    if not longest:
        return features.new_zeros(len(features), pools, features.shape[2])
    places = begin[:, :, None] + torch.arange(longest, device=lengths.device)  # (B,p,M)
    places = torch.minimum(places, end[:, :, None] - 1).clamp(min=0)
    chosen = features.gather(1, places.flatten(1)[:, :, None].expand(-1, -1, features.shape[2]))
    largest = chosen.unflatten(1, (pools, longest)).amax(dim=2)
    return largest * (lengths > 0).to(largest.dtype)[:, None, None]
