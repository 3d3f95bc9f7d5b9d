"""The losses of ranking classifier and guide network (GUDN eq. 3 to 5, 7 and 8)."""

from __future__ import annotations

from torch import Tensor

from xmplug.components.bce import BCE
from xmplug.interfaces import Loss, Scores, Shortlist, Targets, Task

from . import GuidedLossConfig


class GuidedLoss(Loss):
    """L_overall = L_class + L_feature + L_link (eq. 5 and 8), each a mean over texts.

    L_class (eq. 7) and L_link (eq. 4) are binary cross-entropies summed over the candidates; L_feature (eq. 3) is half
    the mean squared difference of text and label features: a mean over their numbers, where the paper has a sum. Guides
    that a fusion has not, and in evaluation, are left out.
    """

    def __init__(self, feature_weight: float):
        super().__init__()
        self.feature_weight, self.cross_entropy = feature_weight, BCE()

    @classmethod
    def build(cls, config: GuidedLossConfig, task: Task) -> GuidedLoss:
        return cls(config.feature_weight)

    def forward(self, scores: Scores, shortlist: Shortlist, targets: Targets) -> Tensor:
        loss: Tensor = self.cross_entropy(scores, shortlist, targets)  # eq. 7
        if "feature" in scores.extras:
            loss = loss + self.feature_weight * scores.extras["feature"].sum() / (2 * len(scores.logits))  # eq. 3
        if "link" in scores.extras:
            loss = loss + self.cross_entropy(Scores(scores.extras["link"]), shortlist, targets)  # eq. 4
        return loss
