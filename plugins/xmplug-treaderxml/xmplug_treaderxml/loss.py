"""Softmax before a one-versus-all logistic loss, as TReaderXML's equations 18 and 19 have it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from xmplug.interfaces import Loss, Scores, Shortlist, Targets, Task

from . import SoftmaxLogisticConfig


class SoftmaxLogistic(Loss):
    """Sum over a text's candidates of softplus(Y) - y Y with Y = softmax(z), mean over texts.

    Each Y is between 0 and 1 and they sum to 1, so that sigmoid(Y) of a wrong label never falls below 0.5, and of two
    right labels one takes from the other. It is here to be compared with; the recipe takes `core:bce` on z itself.
    """

    @classmethod
    def build(cls, config: SoftmaxLogisticConfig, task: Task) -> SoftmaxLogistic:
        return cls()

    def forward(self, scores: Scores, shortlist: Shortlist, targets: Targets) -> Tensor:
        logits = scores.logits.float()  # (B,C)
        absent = torch.zeros_like(logits, dtype=torch.bool) if shortlist.nodes is None else shortlist.nodes < 0
        share = logits.masked_fill(absent, -torch.inf).softmax(dim=-1)
        rows, columns = targets.positions(shortlist)
        return (softplus(share).masked_fill(absent, 0).sum() - share[rows, columns].sum()) / len(share)
