"""Binary cross-entropy over the candidates, against sparse targets."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from ..interfaces import Loss, Scores, Shortlist, Targets, Task
from . import BCEConfig


class BCE(Loss):
    """Sum over a text's candidates of softplus(z) - y z, mean over texts.

    Equal to the usual form -y log s(z) - (1-y) log(1-s(z)), stable for any z, and it needs the ones of y only. The
    sum over candidates (and not their mean) keeps a text's gradient independent of the number of labels: a mean over
    thousands of labels, of which a handful are true, learns slowly.
    """

    margin_loss = "logistic"

    @classmethod
    def build(cls, config: BCEConfig, task: Task) -> BCE:
        return cls()

    def forward(self, scores: Scores, shortlist: Shortlist, targets: Targets) -> Tensor:
        logits = scores.logits.float()  # (B,C)
        penalty = softplus(logits)
        if shortlist.nodes is not None:
            penalty = penalty.masked_fill(shortlist.nodes < 0, 0)
        rows, columns = targets.positions(shortlist)
        return (penalty.sum() - logits[rows, columns].sum()) / len(logits)
