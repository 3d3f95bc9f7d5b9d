"""Scores against the true labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from xmplug.interfaces import Loss, Scores, Shortlist, Targets, Task

from . import SmoothedBCEConfig


class SmoothedBCE(Loss):
    """Binary cross-entropy with 1 - smoothing as the target of a true label and 0 of another; mean over texts.

    To change: `forward`. `targets.positions` says where among the candidates the true ones are; padded candidates, -1
    in `shortlist.nodes`, count nothing. Sums over many labels are made in float32. Parameters of a loss learn like all
    others, at each level of a tree from the start, and are not saved: what prediction needs belongs into the fusion.
    """

    def __init__(self, smoothing: float):
        super().__init__()
        self.smoothing = smoothing

    @classmethod
    def build(cls, config: SmoothedBCEConfig, task: Task) -> SmoothedBCE:
        return cls(config.smoothing)

    def forward(self, scores: Scores, shortlist: Shortlist, targets: Targets) -> Tensor:
        logits = scores.logits.float()  # (B,C)
        penalty = softplus(logits)
        if shortlist.nodes is not None:
            penalty = penalty.masked_fill(shortlist.nodes < 0, 0)
        rows, columns = targets.positions(shortlist)
        return (penalty.sum() - (1 - self.smoothing) * logits[rows, columns].sum()) / len(logits)
