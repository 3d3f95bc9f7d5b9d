"""The dual cooperative network: Reading, Interaction and Prediction (TReaderXML section 3.2, eq. 3-18)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from xmplug import ConfigError
from xmplug.components.words import Dropout
from xmplug.interfaces import Encoded, Encoder, Fusion, LabelTexts, Scores, Shortlist, Task

from . import DualConfig

_SPARSE_FROM = 100_000
"""A level with so many nodes gets row-sparse gradients. Below, one dense update costs less than sorting rows."""


class SelfAttention(nn.Module):
    """Multi-head self-attention with a tanh projection (eq. 3-7 and 10-13): tanh({H_1; ...; H_h} W).

    Texts stand at the front of their rows. masked: a word sees itself and the words before it (eq. 8 and 9, MMHSA),
    which hides the padding behind the end from every word by itself; else (MHSA) all words of its text.
    """

    def __init__(self, size: int, heads: int, masked: bool):
        super().__init__()
        self.heads, self.masked = heads, masked
        self.queries_keys_values = nn.Linear(size, 3 * size, bias=False)  # eq. 4-6
        self.output = nn.Linear(size, size, bias=False)  # eq. 12 and 13
        for weight in (*self.queries_keys_values.weight.chunk(3), self.output.weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states (B,T,D), mask (B,T); returns (B,T,D)."""
        batch, length, size = states.shape
        parts = self.queries_keys_values(states).view(batch, length, 3, self.heads, size // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # (B,h,T,D/h)
        # A text without a word sees all, or its softmax would be over nothing.
        seen = None if self.masked else mask | ~mask.any(dim=1, keepdim=True)
        heads = attend(queries, keys, values, seen)
        return torch.tanh(self.output(heads.transpose(1, 2).reshape(batch, length, size)))


def attend(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None) -> Tensor:
    """softmax(Q K' / sqrt(d_k)) V (eq. 7, 10, 11) for (B,h,T,d_k).

    seen (B,T): the words of each text that the softmax is over; None: a word itself and those before it (eq. 8 and 9).
    PyTorch's fused attention, but in bfloat16 on a CPU, where two batched products are twice as fast as it is.
    """
    if queries.device.type != "cpu" or queries.dtype != torch.bfloat16:
        mask = None if seen is None else seen[:, None, None, :]
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=seen is None)
    scores = (queries / math.sqrt(queries.shape[-1])) @ keys.transpose(-1, -2)  # (B,h,T,T)
    # Added, not filled in: where a probability is 0 so is its gradient, and backward has nothing to fill.
    if seen is None:
        unseen = torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype).triu(1)
    else:
        unseen = torch.zeros_like(seen, dtype=scores.dtype).masked_fill_(~seen, -torch.inf)[:, None, None, :]
    return scores.add_(unseen).softmax(dim=-1) @ values


class Reading(nn.Module):
    """Attentions and residuals in their order; the paper's: MMHSA, E + MMHSA(E) (eq. 14 and 15), MHSA."""

    def __init__(self, config: DualConfig, size: int):
        super().__init__()
        self.parts = config.reading
        self.attentions = nn.ModuleList(
            SelfAttention(size, config.heads, masked=part == "masked") for part in config.reading if part != "residual"
        )

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        before, attentions = states, iter(self.attentions)
        for part in self.parts:
            if part == "residual":
                states = before + states
            else:
                before, states = states, next(attentions)(states, mask)
        return states


class DualNetwork(Fusion):
    """z = W_output W_HB [mean of scope; mean of text], after Reading of each and Interaction of both.

    Scope and text have a Reading of their own. The scope's words are put before the text's (eq. 16), so that through
    the masked attention of Interaction each word of the text sees the whole scope. Equations 17 and 18 take one vector
    for a text; here it is the mean over the scope's words beside the mean over the text's.
    """

    per_node: ClassVar[tuple[str, ...]] = ("output", "bias")

    def __init__(self, config: DualConfig, size: int, num_nodes: int, rate: float = 0.5):
        super().__init__()
        if size % config.heads:
            raise ConfigError(
                f"word vectors of {size} numbers do not divide into {config.heads} attention heads; "
                "change --fusion.heads or the encoder's size"
            )
        self.text, self.scope = Reading(config, size), Reading(config, size)
        self.interaction = SelfAttention(size, config.heads, masked=True)
        self.bottleneck = nn.Linear(2 * size, config.hidden, bias=False)  # eq. 17
        nn.init.xavier_uniform_(self.bottleneck.weight)
        self.dropout = Dropout(config.dropout)
        self.output = nn.Embedding(num_nodes, config.hidden, sparse=num_nodes >= _SPARSE_FROM)  # eq. 18
        nn.init.uniform_(self.output.weight, -1 / math.sqrt(config.hidden), 1 / math.sqrt(config.hidden))
        # Before it has learned anything, a flat model says of every label how often a label is true.
        self.bias = nn.Embedding(num_nodes, 1, sparse=num_nodes >= _SPARSE_FROM)
        nn.init.constant_(self.bias.weight, math.log(rate / (1 - rate)))

    @classmethod
    def build(cls, config: DualConfig, encoder: Encoder, num_nodes: int, task: Task) -> DualNetwork:
        per_text = task.labels.counts.sum() / task.labels.num_documents
        return cls(config, encoder.size, num_nodes, min(0.5, per_text / num_nodes))

    def forward(self, encoded: Encoded, shortlist: Shortlist, labels: LabelTexts | None = None) -> Scores:
        if encoded.states is None:
            raise ConfigError("the dual network reads the states of each word, and this encoder gives none")
        if shortlist.nodes is None and self.output.sparse:
            raise ConfigError(
                f"a level with all of its {self.output.num_embeddings:,} nodes as candidates is too wide; "
                "use --label-structure attentionxml:plt with a larger height"
            )
        text, scope = self.text(encoded.states, encoded.mask), encoded.states[:, :0]
        there = encoded.mask[:, :0]
        if labels is not None:
            scope, there = scope_states(labels)
            scope = self.scope(scope, there)
        states, mask = front(torch.cat([scope, text], dim=1), torch.cat([there, encoded.mask], dim=1))  # eq. 16
        states = self.interaction(states, mask)
        of_scope = mask & (torch.arange(mask.shape[1], device=mask.device) < there.sum(dim=1, keepdim=True))
        both = torch.cat([_mean(states, of_scope), _mean(states, mask & ~of_scope)], dim=1)  # (B,2D)
        hidden = self.dropout(self.bottleneck(both))  # (B,H)
        if shortlist.nodes is None:
            return Scores(nn.functional.linear(hidden, self.output.weight, self.bias.weight[:, 0]))
        nodes = shortlist.nodes.clamp(min=0)
        rows = self.output(nodes).to(hidden.dtype)  # (B,C,H)
        return Scores((rows @ hidden[:, :, None])[:, :, 0] + self.bias(nodes)[:, :, 0])


def scope_states(labels: LabelTexts) -> tuple[Tensor, Tensor]:
    """E_y' (B,W,D): the mean of the texts of a scope's K labels, word by word (algorithm 1, line 8), and its mask.

    The mean is weighted by `labels.weights`. A label with fewer than W words adds zeros, as the paper's sum has it.
    mask (B,W): some label has this word.
    """
    assert labels.encoded is not None and labels.encoded.states is not None
    mask = labels.encoded.mask  # (U,W)
    states = labels.encoded.states * mask[:, :, None]  # (U,W,D)
    texts = len(labels.members)
    share = torch.zeros(texts, len(states), device=states.device)  # (B,U)
    share.scatter_add_(1, labels.members.clamp(min=0), labels.weights)
    there = share @ mask.float() > 0
    total = share.sum(dim=1, keepdim=True)
    share = share / total.where(total > 0, 1)
    return (share.to(states.dtype) @ states.flatten(1)).view(texts, *states.shape[1:]), there


def front(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The words of each row at its front, in their order, and the padding behind."""
    order = (~mask).int().argsort(dim=1, stable=True)
    return states.gather(1, order[:, :, None].expand_as(states)), mask.gather(1, order)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """(B,D): the mean of the words (B,T,D) that the mask (B,T) keeps; zeros where it keeps none."""
    share = mask.to(torch.promote_types(states.dtype, torch.float32))
    share = share / share.sum(dim=1, keepdim=True).clamp(min=1)  # (B,T)
    return (share[:, None].to(states.dtype) @ states)[:, 0]
