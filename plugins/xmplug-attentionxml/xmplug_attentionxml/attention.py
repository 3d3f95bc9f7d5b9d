"""Multi-label attention, fully connected and output layer (AttentionXML sections 2.4.3 and 2.4.4)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from xmplug import ConfigError
from xmplug.interfaces import Encoded, Encoder, Fusion, LabelTexts, Scores, Shortlist, Task
from xmplug.ops import label_attention

from . import LabelAttentionConfig

_SPARSE_FROM = 100_000
"""A level with so many nodes gets row-sparse gradients. Below, one dense update costs less than sorting rows."""


class LabelAttention(Fusion):
    """z_j = v . relu(W m_j), with m_j = sum_i alpha_ij h_i and alpha_ij = softmax_i(h_i . w_j) (eq. 2).

    Each node has its own attention vector w_j; W and v are the same for all.
    """

    per_node: ClassVar[tuple[str, ...]] = ("queries",)

    def __init__(self, config: LabelAttentionConfig, size: int, num_nodes: int, rate: float = 0.5):
        super().__init__()
        self.queries = nn.Embedding(num_nodes, size, sparse=num_nodes >= _SPARSE_FROM)
        nn.init.xavier_uniform_(self.queries.weight)
        widths = (size, *config.layers)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.output = nn.Linear(widths[-1], 1)
        for layer in (*self.layers, self.output):
            nn.init.xavier_uniform_(layer.weight)
        # Before it has learned anything, a flat model says of every label how often a label is true.
        nn.init.constant_(self.output.bias, math.log(rate / (1 - rate)))

    @classmethod
    def build(cls, config: LabelAttentionConfig, encoder: Encoder, num_nodes: int, task: Task) -> LabelAttention:
        per_text = task.labels.counts.sum() / task.labels.num_documents
        return cls(config, encoder.size, num_nodes, min(0.5, per_text / num_nodes))

    def forward(self, encoded: Encoded, shortlist: Shortlist, labels: LabelTexts | None = None) -> Scores:
        states = _states(encoded)
        if shortlist.nodes is None and self.queries.sparse:
            raise ConfigError(
                f"a level with all of its {self.queries.num_embeddings:,} nodes as candidates is too wide; "
                "use --label-structure attentionxml:plt with a larger height"
            )
        hidden = label_attention(
            states, encoded.mask, self.queries.weight, shortlist.nodes, sparse_grad=self.queries.sparse
        )  # (B,C,D)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        return Scores(self.output(hidden).squeeze(-1))

    def attention(self, encoded: Encoded, shortlist: Shortlist) -> Tensor:
        states = _states(encoded)
        queries = self.queries.weight if shortlist.nodes is None else self.queries(shortlist.nodes.clamp(min=0))
        logits = torch.einsum("btd,bcd->bct" if queries.dim() == 3 else "btd,cd->bct", states, queries.to(states.dtype))
        return logits.float().masked_fill(~encoded.mask[:, None, :], -torch.inf).softmax(-1).nan_to_num()


def _states(encoded: Encoded) -> Tensor:
    if encoded.states is None:
        raise ConfigError("label attention reads the states of each token, and this encoder gives none; choose another")
    return encoded.states
