"""Text vectors and candidates become scores."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from xmplug import ConfigError
from xmplug.interfaces import Encoded, Encoder, Fusion, LabelTexts, Scores, Shortlist, Task

from . import MeanClassifierConfig


class MeanClassifier(Fusion):
    """z = W norm(text + labels) + b: the mean vector of a text, and of the label texts that inform it, if any.

    To change: the layers in `__init__`, and in `forward` what comes before `self.output`. Parameters with a row for
    each node stand in `per_node`: in a label tree they start afresh at each level. What it takes from encoder and label
    context stands in its declaration.
    """

    per_node: ClassVar[tuple[str, ...]] = ("output",)

    def __init__(self, config: MeanClassifierConfig, size: int, num_nodes: int):
        super().__init__()
        self.norm = nn.LayerNorm(size)  # the mean of many vectors is short, and short vectors are learned from slowly
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(size, num_nodes)

    @classmethod
    def build(cls, config: MeanClassifierConfig, encoder: Encoder, num_nodes: int, task: Task) -> MeanClassifier:
        return cls(config, encoder.size, num_nodes)

    def forward(self, encoded: Encoded, shortlist: Shortlist, labels: LabelTexts | None = None) -> Scores:
        vector = mean_vector(encoded)  # (B,D)
        if labels is not None and labels.encoded is not None:
            share = labels.weights / labels.weights.sum(dim=1, keepdim=True).clamp(min=1e-6)  # (B,K)
            each = mean_vector(labels.encoded)[labels.members.clamp(min=0)]  # (B,K,D)
            vector = vector + (share[:, :, None] * each).sum(dim=1)
        vector = self.dropout(self.norm(vector))
        if shortlist.nodes is None:
            return Scores(self.output(vector))
        nodes = shortlist.nodes.clamp(min=0)  # (B,C); what padding scores, nobody reads
        logits = torch.einsum("bd,bcd->bc", vector, self.output.weight[nodes]) + self.output.bias[nodes]
        return Scores(logits)


def mean_vector(encoded: Encoded) -> Tensor:
    """(B,D): the mean of what the encoder pooled, or else of the words' states; zeros for an empty text."""
    if encoded.pooled is not None:
        return encoded.pooled.mean(dim=1)
    if encoded.states is None:
        raise ConfigError("the classifier needs pooled vectors or states, and this encoder gives neither")
    mask = encoded.mask[:, :, None]
    mean: Tensor = (encoded.states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return mean
