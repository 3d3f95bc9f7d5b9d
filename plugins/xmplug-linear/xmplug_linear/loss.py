"""The squared hinge loss."""

from __future__ import annotations

import torch
from torch import Tensor

from xmplug.interfaces import Loss, Scores, Shortlist, Targets, Task

from . import SquaredHingeConfig


class SquaredHinge(Loss):
    """Sum over a text's candidates of max(0, 1 - y z)^2, y = 1 for a true one and -1 for another; mean over texts."""

    margin_loss = "squared_hinge"

    @classmethod
    def build(cls, config: SquaredHingeConfig, task: Task) -> SquaredHinge:
        return cls()

    def forward(self, scores: Scores, shortlist: Shortlist, targets: Targets) -> Tensor:
        logits = scores.logits.float()  # (B,C)
        sign = torch.full_like(logits, -1)
        sign[targets.positions(shortlist)] = 1
        penalty = (1 - sign * logits).clamp(min=0).square()
        if shortlist.nodes is not None:
            penalty = penalty.masked_fill(shortlist.nodes < 0, 0)
        return penalty.sum() / len(logits)
