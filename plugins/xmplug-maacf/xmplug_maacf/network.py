"""Co-attention of texts and labels, and the predictor of a pair's score (MAACF+ sections 3.2.2 to 3.3).

As printed, eq. 8 and 9 multiply a matrix for each pair of a text and a label. But all that stands before the first
activation of the predictor is linear in the aspects of the text, the vector of the label and those of its group, whose
weights sum to 1 or are none. So what the matrices make of each aspect and of each label is computed once, and a pair
needs the weighted sum of a few rows of these tables: the same numbers, with a hundredth of the work.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

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
    """s_in, the n aspects (B,n,D) of a text: the vectors that the encoder pools, or n poolings of its states, by attention
    with a learned query each; then a linear map of its own for each, to D numbers."""

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
    """z = MLP([S, H]) (eq. 9) of a text and a label, or a node of a tree.

    H = W_f [h, H^g] + b_f (eq. 8), of the label's vector h and the vector H^g of its group: each aspect weighs the
    group's members (eq. 4, 5), self-attention weighs what the aspects found (eq. 6, 7). S: h weighs the aspects likewise.
    A label without a group has H^g = 0.
    """

    per_node: ClassVar[tuple[str, ...]] = ("labels",)
    reads_label_groups: ClassVar[bool] = True

    def __init__(self, config: CoAttentionConfig, encoder: Encoder, num_nodes: int, rate: float = 0.5):
        """rate: how often a node is true."""
        super().__init__()
        self.config, size = config, config.size
        self.aspects = Aspects(encoder, config.aspects, size)
        self.labels = nn.Embedding(num_nodes, size, sparse=num_nodes >= _SPARSE_FROM)
        nn.init.normal_(self.labels.weight, std=config.init)
        if config.attention == "co":
            self.of_aspects = nn.Linear(size, self.aspects.count)  # row n is W_n and b_n of eq. 6
        else:
            self.of_aspects, self.of_members = nn.Linear(size, 1), nn.Linear(size, 1)
        self.fuse = nn.Linear(2 * size, size)  # W_f, b_f
        with torch.no_grad():
            self.fuse.weight[:, :size] = torch.eye(size)
            self.fuse.bias.zero_()
        widths = [2 * size, *[config.hidden] * (config.layers - 1), 1]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:]))
        self.dropout = Dropout(config.dropout)
        self.product: nn.Parameter | None = None
        if config.product:
            self.product = nn.Parameter(torch.ones(size))
        # A ranking loss never learns the last bias, which sets the scores' level; a wrong one pushes them all to 1.
        nn.init.constant_(self.layers[-1].bias, math.log(rate / (1 - rate)))

    @classmethod
    def build(cls, config: CoAttentionConfig, encoder: Encoder, num_nodes: int, task: Task) -> CoAttention:
        per_text = task.labels.counts.sum() / task.labels.num_documents
        return cls(config, encoder, num_nodes, min(0.5, per_text / num_nodes))

    def forward(self, encoded: Encoded, shortlist: Shortlist, labels: LabelTexts | None = None) -> Scores:
        aspects = self.aspects(encoded)  # (B,n,D)
        rows, own, members = self._candidates(shortlist.nodes)
        vectors = self.labels.weight if rows is None else self.labels(rows)  # (R,D)
        tables = self._tables(aspects, vectors)
        columns = own.shape[1]
        at_once = columns if self.training else max(1, _AT_ONCE // (len(aspects) * self.config.hidden))
        parts = [
            self._score(*tables, own[:, at : at + at_once], members[:, at : at + at_once])
            for at in range(0, columns, at_once)
        ]
        return Scores(torch.cat(parts, dim=1) if parts else aspects.new_zeros(len(aspects), 0))

    def _candidates(self, nodes: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """rows (R,): nodes whose vectors are needed; None: all. own (B,C) and members (B,C,k): places among them of
        candidates and of their groups' members, -1 = none; B = 1 where all texts have the same candidates."""
        groups = self.label_groups
        if groups is None:
            groups = self.labels.weight.new_zeros(self.labels.num_embeddings, 0, dtype=torch.int64)
        if nodes is None:
            if self.training and self.labels.sparse:
                raise ConfigError(
                    f"a level with all of its {self.labels.num_embeddings:,} nodes as candidates is too wide; "
                    "use --loss maacf:bpr, which samples, or --label-structure core:tree"
                )
            return None, torch.arange(len(groups), device=groups.device)[None], groups[None]
        own = nodes.clamp(min=0)
        members = groups[own]  # (B,C,k)
        if not self.labels.sparse and own.numel() + members.numel() >= self.labels.num_embeddings:
            return None, own, members
        asked = torch.cat([own[:, :, None], members.clamp(min=0)], dim=2)
        rows, places = asked.unique(return_inverse=True)
        return rows, places[:, :, 0], places[:, :, 1:].masked_fill(members < 0, -1)

    def _tables(self, aspects: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """affinity (B,n,R): s_in h_j of each aspect and label. on_aspects: what self-attention over aspects makes of
        each label's vector in its group, (R,n), or of each aspect, (B,n). on_members (R,): self-attention's logit of
        each label in a group. rows (2 R + B n, H): what the first layer makes of each label, of each as a member of a
        group, and of each aspect."""
        size = self.config.size
        first = self.layers[0]
        of_text, of_label = first.weight[:, :size], first.weight[:, size:]  # (H,D) each
        alone, grouped = self.fuse.weight[:, :size], self.fuse.weight[:, size:]  # (D,D) each
        bias = first.bias + of_label @ self.fuse.bias
        rows = torch.cat(
            [
                nn.functional.linear(vectors, of_label @ alone, bias),
                nn.functional.linear(vectors, of_label @ grouped),
                nn.functional.linear(aspects.flatten(0, 1), of_text),
            ]
        )
        if self.config.attention == "co":
            affinity = torch.einsum("bnd,rd->bnr", aspects, vectors.to(aspects.dtype))
            if self.product is not None:
                scaled = aspects * self.product
                self._gmf = [
                    torch.einsum("bnd,rd->bnr", scaled, nn.functional.linear(vectors, alone, self.fuse.bias).to(scaled.dtype)),
                    torch.einsum("bnd,rd->bnr", scaled, nn.functional.linear(vectors, grouped).to(scaled.dtype)),
                ]
            return affinity, self.of_aspects(vectors), vectors.new_zeros(0), rows
        return aspects.new_zeros(0), self.of_aspects(aspects).squeeze(-1), self.of_members(vectors).squeeze(-1), rows

    def _score(
        self, affinity: Tensor, on_aspects: Tensor, on_members: Tensor, rows: Tensor, own: Tensor, members: Tensor
    ) -> Tensor:
        """Logits (B,C) of the labels at `own` (B,C) of the tables, with groups `members` (B,C,k)."""
        there = members >= 0
        safe = members.clamp(min=0)
        count = self.aspects.count
        if self.config.attention == "co":
            texts, columns = len(affinity), own.shape[1]
            own, safe, there = (each.expand(texts, *each.shape[1:]) for each in (own, safe, there))

            def of_label(places: Tensor, affinity: Tensor = affinity) -> Tensor:
                """(B,n,..) affinities of the labels at places (B,..)."""
                found = affinity.gather(2, places.flatten(1)[:, None].expand(-1, count, -1))
                return found.unflatten(2, places.shape[1:]).float()

            on_text = of_label(own).softmax(dim=1)  # (B,n,C): the label weighs the aspects
            alpha = _masked_softmax(of_label(safe), there[:, None])  # (B,n,C,k), eq. 4
            combined = torch.einsum("bnck,bckn->bnc", alpha, on_aspects.float()[safe])
            beta = combined.softmax(dim=1)  # eq. 6; b_n is part of on_aspects, and counts once as alpha sums to 1
            on_group = torch.einsum("bnc,bnck->bck", beta, alpha)  # of eq. 5 and 7 together
        else:
            texts, columns = len(on_aspects), own.shape[1]
            own, safe, there = (each.expand(texts, *each.shape[1:]) for each in (own, safe, there))
            on_text = on_aspects.float().softmax(dim=1)[:, :, None].expand(-1, -1, columns)
            on_group = _masked_softmax(on_members.float()[safe], there)
        total = (len(rows) - texts * count) // 2
        aspect = 2 * total + torch.arange(texts * count, device=own.device).view(texts, 1, count)
        places = torch.cat([own[:, :, None], total + safe, aspect.expand(-1, columns, -1)], dim=2)
        weights = torch.cat([torch.ones_like(own[:, :, None], dtype=on_text.dtype), on_group, on_text.mT], dim=2)
        summed = embedding_bag(
            places.flatten(0, 1), rows, per_sample_weights=weights.flatten(0, 1).to(rows.dtype), mode="sum"
        )  # (B C,H)
        for layer in self.layers[1:-1]:
            summed = layer(self.dropout(torch.relu(summed)))
        if len(self.layers) == 1:
            return summed.view(texts, columns)
        last = self.layers[-1]
        with torch.autocast(summed.device.type, enabled=False):  # few digits would make many labels equal
            logits: Tensor = last(self.dropout(torch.relu(summed)).float())
        logits = logits.view(texts, columns)
        if self.product is not None:
            logits = logits + (on_text * of_label(own, self._gmf[0])).sum(1)
            if safe.shape[2]:
                logits = logits + (on_text * torch.einsum("bck,bnck->bnc", on_group, of_label(safe, self._gmf[1]))).sum(1)
        return logits


def _masked_softmax(logits: Tensor, there: Tensor) -> Tensor:
    """Softmax over the last dimension where `there`; 0 elsewhere, and everywhere in a row of nothing."""
    return logits.masked_fill(~there, -torch.inf).softmax(dim=-1).masked_fill(~there, 0)


class Classifier(Fusion):
    """An encoder alone (Tables 5 and 6): the mean of its aspects, dropout, and a linear layer with a row for each node."""

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
            return Scores(nn.functional.linear(text, self.weight.weight, self.bias.weight[:, 0]))
        known = shortlist.nodes.clamp(min=0)
        logits = (self.weight(known).to(text.dtype) @ text[:, :, None]).squeeze(-1)
        return Scores(logits + self.bias(known).squeeze(-1))
