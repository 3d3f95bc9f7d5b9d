"""Co-attention of texts and labels, and the predictor of a pair's score (MAACF+ sections 3.2.2 to 3.3).

As printed, eq. 8 and 9 multiply a matrix for each pair of a text and a label. But all that stands before the first
activation of the predictor is linear in the aspects of the text, the vector of the label and those of its group, whose
weights sum to 1 or are none. So what the matrices make of each aspect and of each label is computed once, and a pair
needs the weighted sum of a few rows of these tables: the same numbers, with a hundredth of the work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, embedding_bag, linear

from xmplug import ConfigError
from xmplug.components.words import Dropout
from xmplug.interfaces import Encoded, Encoder, Fusion, LabelTexts, Scores, Shortlist, Task
from xmplug.ops import label_attention

from . import ClassifierConfig, CoAttentionConfig

_SPARSE_FROM = 100_000
"""A level with so many nodes gets row-sparse gradients. Below, one dense update costs less than sorting rows."""

_AT_ONCE = 4_000_000
"""Numbers of a hidden layer that prediction holds at once."""


class Aspects(nn.Module):
    """s_in, the n aspects (B,n,D) of a text: the vectors that the encoder pools, or n poolings of its states, by
    attention with a learned query each; then a linear map of its own for each, to D numbers."""

    def __init__(self, encoder: Encoder, poolings: int | None, size: int):
        super().__init__()
        self.count = poolings or encoder.num_pooled or 2
        self.queries: nn.Parameter | None = None
        if poolings or not encoder.num_pooled:
            self.queries = nn.Parameter(torch.randn(self.count, encoder.size) / math.sqrt(encoder.size))
        self.maps = nn.ModuleList(nn.Linear(encoder.size, size) for _ in range(self.count))

    def forward(self, encoded: Encoded) -> Tensor:
        pooled = encoded.pooled
        if self.queries is not None:
            if encoded.states is None:
                raise ConfigError(
                    "fusion.aspects pools the states of each token, and this encoder gives none; "
                    "give --fusion.aspects none, for the vectors that it pools itself"
                )
            pooled = label_attention(encoded.states, encoded.mask, self.queries)  # (B,n,D')
        assert pooled is not None
        return torch.stack([each(pooled[:, at]) for at, each in enumerate(self.maps)], dim=1)


class CoAttention(Fusion):
    """z = MLP([S, H]) + v . (S * H) of a text and a label, or a node of a tree: eq. 9, and a product beside it.

    H = W_f [h, H^g] + b_f (eq. 8), of the label's vector h and the vector H^g of its group: each aspect weighs the
    group's members (eq. 4, 5), self-attention weighs what the aspects found (eq. 6, 7). S: h weighs the aspects
    likewise. A label without a group has H^g = 0.
    """

    per_node: ClassVar[tuple[str, ...]] = ("labels",)

    def __init__(self, config: CoAttentionConfig, encoder: Encoder, num_nodes: int, rate: float = 0.5):
        """rate: how often a node is true."""
        super().__init__()
        self.config, size = config, config.size
        self.aspects = Aspects(encoder, config.aspects, size)
        self.labels = nn.Embedding(num_nodes, size, sparse=num_nodes >= _SPARSE_FROM)
        nn.init.normal_(self.labels.weight, std=0.1)
        self.of_aspects = nn.Linear(size, self.aspects.count if config.attention == "co" else 1)  # W_n, b_n of eq. 6
        self.of_members = nn.Linear(size, 1) if config.attention == "self" else None
        self.fuse = nn.Linear(2 * size, size)  # W_f, b_f
        with torch.no_grad():  # begin with H = h and a little of the group: so h learns as fast as a linear classifier
            self.fuse.weight[:, :size] = torch.eye(size)
            self.fuse.bias.zero_()
        widths = [2 * size, *[config.hidden] * (config.layers - 1), 1]
        layers = [nn.Linear(*pair) for pair in pairwise(widths)]
        self.first, self.layers = layers[0], nn.ModuleList(layers[1:])
        self.dropout = Dropout(config.dropout)
        self.product = nn.Parameter(torch.ones(size)) if config.product else None  # v
        # A ranking loss never learns the last bias, which sets the scores' level; a wrong one pushes them all to 1.
        nn.init.constant_(layers[-1].bias, math.log(rate / (1 - rate)))

    @classmethod
    def build(cls, config: CoAttentionConfig, encoder: Encoder, num_nodes: int, task: Task) -> CoAttention:
        per_text = task.labels.counts.sum() / task.labels.num_documents
        return cls(config, encoder, num_nodes, min(0.5, per_text / num_nodes))

    def forward(self, encoded: Encoded, shortlist: Shortlist, labels: LabelTexts | None = None) -> Scores:
        aspects, nodes = self.aspects(encoded), shortlist.nodes  # (B,n,D)
        texts, total, where = len(aspects), self.labels.num_embeddings, aspects.device
        if nodes is None:
            if self.training and self.labels.sparse:
                raise ConfigError(
                    f"a level with all of its {total:,} nodes as candidates is too wide; "
                    "use --loss maacf:bpr, which samples, or --label-structure core:tree"
                )
            nodes = torch.arange(total, device=where).expand(texts, -1)
        there = nodes >= 0
        text, asked = there.nonzero()[:, 0], nodes[there]  # (P,): a pair of a text and a node for each candidate
        asked = asked[:, None] if self.label_groups is None else self._with_groups(asked)  # (P,1+k), -1 = none
        rows: Tensor | None = None
        places = asked
        if shortlist.nodes is not None and (self.labels.sparse or asked.numel() < total):
            rows, places = asked.clamp(min=0).unique(return_inverse=True)
            places = places.masked_fill(asked < 0, -1)
        tables = self._tables(aspects, self.labels.weight if rows is None else self.labels(rows))
        at_once = len(text) if self.training else max(1, _AT_ONCE // self.config.hidden)
        parts = [
            self._score(tables, text[at : at + at_once], places[at : at + at_once])
            for at in range(0, len(text), max(1, at_once))
        ]
        logits = torch.zeros(nodes.shape, dtype=self.labels.weight.dtype, device=where)
        return Scores(logits.masked_scatter(there, torch.cat(parts)) if parts else logits)

    def _with_groups(self, nodes: Tensor) -> Tensor:
        assert self.label_groups is not None
        return torch.cat([nodes[:, None], self.label_groups[nodes]], dim=1)

    def _tables(self, aspects: Tensor, vectors: Tensor) -> _Tables:
        size, first = self.config.size, self.first
        of_text, of_label = first.weight[:, :size], first.weight[:, size:]  # (H,D) each
        alone, grouped = self.fuse.weight[:, :size], self.fuse.weight[:, size:]  # (D,D) each
        bias = first.bias + of_label @ self.fuse.bias

        def affinity(texts: Tensor, labels: Tensor) -> Tensor:
            """(B R,n): products of each text's aspects with R labels."""
            return torch.einsum("rd,bnd->brn", labels.to(texts.dtype), texts).flatten(0, 1)

        products = None
        if self.product is not None:
            scaled = aspects * self.product.to(aspects.dtype)
            products = (
                affinity(scaled, linear(vectors, alone, self.fuse.bias)),
                affinity(scaled, linear(vectors, grouped)),
            )
        co, exact = self.config.attention == "co", self.labels.weight.dtype
        return _Tables(
            labels=len(vectors),
            aspects=aspects.shape[1],
            hidden=torch.cat(
                [
                    linear(vectors, of_label @ alone, bias),
                    linear(vectors, of_label @ grouped),
                    linear(aspects.flatten(0, 1), of_text),
                ]
            ),
            affinity=affinity(aspects, vectors) if co else None,
            of_aspects=self.of_aspects(vectors if co else aspects).to(exact),
            of_members=None if self.of_members is None else self.of_members(vectors).squeeze(-1).to(exact),
            products=products,
        )

    def _score(self, tables: _Tables, text: Tensor, places: Tensor) -> Tensor:
        """Logits (P,) of pairs of a text and a label. places (P,1+k): the label's row in the tables, then those
        of its group, -1 = none."""
        there, members = places[:, 1:] >= 0, places[:, 1:].clamp(min=0)  # (P,k)
        own = places[:, 0]
        exact = self.labels.weight.dtype  # of what is not multiplied in a few digits
        at_own, at_members = text * tables.labels + own, text[:, None] * tables.labels + members
        if tables.affinity is not None:
            on_text = embedding(at_own, tables.affinity).to(exact).softmax(dim=1)  # (P,n): the label weighs the aspects
            alpha = embedding(at_members, tables.affinity).to(exact)  # (P,k,n)
            alpha = _masked_softmax(alpha, there[:, :, None])  # eq. 4
            found = (alpha * embedding(members, tables.of_aspects)).sum(dim=1)  # (P,n): W_n h_in + b_n
            beta = found.softmax(dim=1)  # eq. 6
            on_members = (beta[:, None] * alpha).sum(dim=2)  # (P,k), eq. 5 and 7 at once
        else:
            assert tables.of_members is not None
            on_text = tables.of_aspects.squeeze(-1).softmax(dim=1)[text]
            on_members = _masked_softmax(tables.of_members[members], there)
        aspects = torch.arange(tables.aspects, device=text.device) + tables.aspects * text[:, None]
        summed = embedding_bag(
            torch.cat([own[:, None], tables.labels + members, 2 * tables.labels + aspects], dim=1),
            tables.hidden,
            per_sample_weights=torch.cat([torch.ones_like(on_text[:, :1]), on_members, on_text], dim=1).to(
                tables.hidden.dtype
            ),
            mode="sum",
        )  # (P,H): the first layer of [S, H]
        for layer in self.layers[:-1]:
            summed = layer(self.dropout(torch.relu(summed)))
        with torch.autocast(text.device.type, enabled=False):  # few digits would make many labels equal
            logits = summed.to(exact)
            for layer in self.layers[-1:]:
                logits = layer(self.dropout(torch.relu(logits)))
            logits = logits.squeeze(-1)
            if tables.products is not None:
                alone, grouped = tables.products
                logits = logits + (on_text * embedding(at_own, alone).to(exact)).sum(dim=1)
                of_group = (on_members[:, :, None] * embedding(at_members, grouped).to(exact)).sum(dim=1)  # (P,n)
                logits = logits + (on_text * of_group).sum(dim=1)
            return logits


@dataclass(frozen=True)
class _Tables:
    """What matrices make of B texts of n aspects and of R labels, before they meet.

    hidden (2 R + B n,H): the first layer of the predictor, of each label, of each as a member of a group, and of each
    aspect. affinity (B R,n): s_in h_j; None without co-attention. of_aspects: W_n h_j + b_n of each label (R,n), or of
    each aspect (B,n,1). of_members (R,): self-attention's logit of a label in a group. products, with a product: as
    affinity, with v and what W_f makes of each label, and of each as a member of a group.
    """

    labels: int
    aspects: int
    hidden: Tensor
    affinity: Tensor | None
    of_aspects: Tensor
    of_members: Tensor | None
    products: tuple[Tensor, Tensor] | None


def _masked_softmax(logits: Tensor, there: Tensor) -> Tensor:
    """Softmax over the members of groups, (P,k) or (P,k,n), where `there`; 0 elsewhere, and for an empty group."""
    return logits.masked_fill(~there, -torch.inf).softmax(dim=1).masked_fill(~there, 0)


class Classifier(Fusion):
    """An encoder alone (Tables 5 and 6): the mean of its aspects, dropout, a linear layer with a row for each node."""

    per_node: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, config: ClassifierConfig, encoder: Encoder, num_nodes: int, rate: float = 0.5):
        super().__init__()
        self.aspects, self.dropout = Aspects(encoder, config.aspects, config.size), Dropout(config.dropout)
        sparse = num_nodes >= _SPARSE_FROM
        self.weight, self.bias = (nn.Embedding(num_nodes, width, sparse=sparse) for width in (config.size, 1))
        nn.init.uniform_(self.weight.weight, -1 / math.sqrt(config.size), 1 / math.sqrt(config.size))
        nn.init.constant_(self.bias.weight, math.log(rate / (1 - rate)))

    @classmethod
    def build(cls, config: ClassifierConfig, encoder: Encoder, num_nodes: int, task: Task) -> Classifier:
        per_text = task.labels.counts.sum() / task.labels.num_documents
        return cls(config, encoder, num_nodes, min(0.5, per_text / num_nodes))

    def forward(self, encoded: Encoded, shortlist: Shortlist, labels: LabelTexts | None = None) -> Scores:
        text = self.dropout(self.aspects(encoded).mean(dim=1))  # (B,D)
        if shortlist.nodes is None:
            if self.weight.sparse:
                raise ConfigError(
                    f"a level with all of its {self.weight.num_embeddings:,} nodes as candidates is too wide; "
                    "use --label-structure core:tree"
                )
            return Scores(linear(text, self.weight.weight, self.bias.weight[:, 0]))
        known = shortlist.nodes.clamp(min=0)
        logits = (self.weight(known).to(text.dtype) @ text[:, :, None]).squeeze(-1)
        return Scores(logits + self.bias(known).squeeze(-1))
