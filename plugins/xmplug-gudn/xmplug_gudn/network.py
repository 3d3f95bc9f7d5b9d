"""Feature extractor, guide network and ranking classifier (GUDN sections 3.2 to 3.4, eq. 2 to 6)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from xmplug import ConfigError
from xmplug.components.words import Dropout
from xmplug.interfaces import Encoded, Encoder, Fusion, LabelTexts, Scores, Shortlist, Task

from . import GuidedConfig

_MOMENTUM = 0.01
"""How much of the running means one batch is, after the first hundred."""
_SPARSE_FROM = 100_000
"""A level with so many nodes gets row-sparse gradients. Below, one dense update costs less than sorting rows."""


class Standardize(nn.Module):
    """Numbers of mean 0 and variance 1 each, by running means over the training texts.

    Some numbers of a [CLS] state are a hundred times as large as others, and steps that suit one are wrong for the
    other. The same means serve in training and prediction, so that a text's features depend on no other text.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, values: Tensor) -> Tensor:
        """values (B,size); returns float32 (B,size)."""
        values = values.float()
        if self.training:
            with torch.no_grad():
                self.batches += 1
                share = (1 / self.batches).clamp(min=_MOMENTUM)
                centred = values - self.mean.lerp(values.mean(dim=0), share)
                self.variance.copy_(self.variance.lerp(centred.square().mean(dim=0), share))
                self.mean.copy_(self.mean.lerp(values.mean(dim=0), share))
        return (values - self.mean) * (self.variance + 1e-5).rsqrt()


class FeatureExtractor(nn.Module):
    """E = W_e ReLU(dropout(f)) + b_e (eq. 2), f the [CLS] states of the last n layers side by side, standardized."""

    def __init__(self, layers: int, states: int, size: int, dropout: float):
        super().__init__()
        self.layers = layers
        self.standardize = Standardize(layers * states)
        self.dropout, self.mlp = Dropout(dropout), nn.Linear(layers * states, size)

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled (B,n,D), the last n layers or more; returns (B,size)."""
        states = self.standardize(pooled[:, -self.layers :].flatten(1))
        features: Tensor = self.mlp(torch.relu(self.dropout(states)))
        return features


class MultiHotFeatures(nn.Module):
    """Eq. 2 with the multi-hot vector of a text's labels as f (Table 7): the sum of a row for each label."""

    def __init__(self, labels: int, size: int):
        super().__init__()
        self.rows, self.bias = nn.Embedding(labels, size), nn.Parameter(torch.zeros(size))
        nn.init.uniform_(self.rows.weight, -1 / math.sqrt(size), 1 / math.sqrt(size))

    def forward(self, labels: Tensor) -> Tensor:
        """labels (U,): places in the label set; returns (U,size), to be summed over the labels of a text."""
        rows: Tensor = self.rows(labels)
        return rows


class NodeClassifier(nn.Module):
    """z = W x + b with a row of W for each node of a level."""

    def __init__(self, nodes: int, size: int, rate: float):
        super().__init__()
        sparse = nodes >= _SPARSE_FROM
        self.weight, self.bias = nn.Embedding(nodes, size, sparse=sparse), nn.Embedding(nodes, 1, sparse=sparse)
        nn.init.uniform_(self.weight.weight, -1 / math.sqrt(size), 1 / math.sqrt(size))
        # Before it has learned anything, a flat model says of every label how often a label is true.
        nn.init.constant_(self.bias.weight, math.log(rate / (1 - rate)))

    def forward(self, inputs: Tensor, nodes: Tensor | None) -> Tensor:
        """inputs (B,size), nodes (B,C) or None: all; returns logits (B,C) or (B,nodes)."""
        if nodes is None:
            if self.weight.sparse:
                raise ConfigError(
                    f"a level with all of its {self.weight.num_embeddings:,} nodes as candidates is too wide; "
                    "use --label-structure core:tree"
                )
            return nn.functional.linear(inputs, self.weight.weight, self.bias.weight[:, 0])
        known = nodes.clamp(min=0)
        scores = (self.weight(known).to(inputs.dtype) @ inputs[:, :, None]).squeeze(-1)
        return scores + self.bias(known).squeeze(-1)


class Guided(Fusion):
    """z = W_c theta(W_1 E_t + b_1) (eq. 6); in training with the guide network, which reads the label texts.

    extras, where there are label texts: "feature", the mean squared difference of E_t and E_l of each text that has one
    (eq. 3), and "link", logits (B,C) from the label features (eq. 4).
    """

    per_node: ClassVar[tuple[str, ...]] = ("classifier", "link")
    training_only: ClassVar[tuple[str, ...]] = ("labels", "shape", "guide", "link")

    def __init__(
        self, config: GuidedConfig, states: int, num_pooled: int, num_nodes: int, num_labels: int, rate: float
    ):
        """states: length of a [CLS] state. num_pooled: how many a text has, from as many layers; 0: the mean of its
        tokens' states stands for one. num_labels: the labels of the whole task. rate: how often a node is true."""
        super().__init__()
        self.config, size = config, config.size
        layers = max(1, num_pooled)
        self.text = FeatureExtractor(min(config.text_layers, layers), states, size, config.dropout)
        self.hidden = nn.Linear(size, config.hidden)  # MLP_2
        self.classifier = NodeClassifier(num_nodes, config.hidden, rate)
        self.labels: nn.Module | None = None
        self.shape: nn.Module | None = None
        self.guide: nn.Module | None = None
        self.link: nn.Module | None = None
        if config.guides:
            self.labels = (
                MultiHotFeatures(num_labels, size)
                if config.label_input == "multi_hot"
                else FeatureExtractor(min(config.label_layers, layers), states, size, config.dropout)
            )
            self.guide = nn.Linear(size, size)  # the fully connected layer of figure 3
            if "feature" in config.guides:
                self.shape = nn.Linear(size, size)
            if "link" in config.guides:
                self.link = NodeClassifier(num_nodes, size, rate)

    @classmethod
    def build(cls, config: GuidedConfig, encoder: Encoder, num_nodes: int, task: Task) -> Guided:
        per_text = task.labels.counts.sum() / task.labels.num_documents
        rate = min(0.5, per_text / num_nodes)
        return cls(config, encoder.size, encoder.num_pooled, num_nodes, task.num_labels, rate)

    def forward(self, encoded: Encoded, shortlist: Shortlist, labels: LabelTexts | None = None) -> Scores:
        text = self.text(_pooled(encoded))  # (B,size), E_t
        hidden = self.hidden(text)
        hidden = hidden.float().softmax(dim=-1) if self.config.activation == "softmax" else hidden
        logits = self.classifier(hidden, shortlist.nodes)
        if labels is None or self.labels is None or self.guide is None:
            return Scores(logits)
        label = self.guide(self._label_features(labels))  # (B,size)
        extras = {}
        if self.shape is not None:
            there = (labels.members >= 0).any(dim=1)
            gap = self.guide(self.shape(text)) - label
            extras["feature"] = gap.float().square().mean(dim=-1)[there]
        if self.link is not None:
            extras["link"] = self.link(label, shortlist.nodes)
        return Scores(logits, extras)

    def _label_features(self, labels: LabelTexts) -> Tensor:
        """(B,size) E_l; 0 of a text without labels. Of several label texts the weighted mean, of a multi-hot vector
        the sum."""
        weights = labels.weights / labels.weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
        if isinstance(self.labels, MultiHotFeatures):
            each, weights = self.labels(labels.texts.index), labels.weights
        else:
            assert self.labels is not None and labels.encoded is not None
            each = self.labels(_pooled(labels.encoded))  # (U,size)
        of_text = each[labels.members.clamp(min=0)]  # (B,K,size)
        summed = (of_text * weights.to(each.dtype)[:, :, None]).sum(dim=1)
        return summed + self.labels.bias if isinstance(self.labels, MultiHotFeatures) else summed


def _pooled(encoded: Encoded) -> Tensor:
    """(B,n,D): what the encoder pooled, or the mean of the states."""
    if encoded.pooled is not None:
        return encoded.pooled
    if encoded.states is None:
        raise ConfigError("the guided classifier reads pooled vectors or states, and this encoder gives neither")
    weights = encoded.mask.to(encoded.states.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,btd->bd", weights, encoded.states)[:, None]
