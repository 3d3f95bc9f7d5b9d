"""Bayesian personalized ranking: a true label above some of the others (MAACF+ eq. 10)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from xmplug.interfaces import Loss, Scores, Shortlist, Targets, Task

from . import BPRConfig


class BPR(Loss):
    """Sum over the true candidates p of a text and its others n of softplus(z_n - z_p), mean over texts.

    softplus(z_n - z_p) is the term of eq. 10, -log(1 / (1 + exp(-(z_p - z_n)))), and finite for any logits.
    """

    def __init__(self, negatives: int | None):
        super().__init__()
        self.negatives = negatives

    @classmethod
    def build(cls, config: BPRConfig, task: Task) -> BPR:
        return cls(config.negatives)

    def sample(self, shortlist: Shortlist, targets: Targets, num_nodes: int) -> Shortlist:
        """The true candidates of each text, then for each of them `negatives` others, drawn uniformly: from a shortlist
        without repetition, from all nodes of a level with it, and those drawn twice count once."""
        if self.negatives is None:
            return shortlist
        rows, columns = targets.positions(shortlist)
        texts, where = len(targets.indptr) - 1, rows.device
        count = torch.bincount(rows, minlength=texts)  # (B,)
        width = max(1, int(count.max()))
        place = torch.arange(len(rows), device=where) - (count.cumsum(0) - count)[rows]
        wanted = torch.arange(self.negatives * width, device=where) < self.negatives * count[:, None]  # (B,W)
        if shortlist.nodes is None:
            true = torch.full((texts, width), -1, device=where)
            true[rows, place] = columns
            drawn = torch.randint(num_nodes, wanted.shape, device=where).masked_fill(~wanted, -1).sort(dim=1).values
            drawn[:, 1:][drawn[:, 1:] == drawn[:, :-1]] = -1
            drawn[targets.positions(Shortlist(drawn))] = -1
            return Shortlist(torch.cat([true, drawn], dim=1))
        nodes = shortlist.nodes  # (B,C)
        # The true ones have keys above all others, padding below; the others a random order.
        keys = torch.rand(nodes.shape, device=where).masked_fill(nodes < 0, -1)
        keys[rows, columns] = 2
        order = keys.argsort(dim=1, descending=True)[:, : width + wanted.shape[1]]
        kept = torch.arange(order.shape[1], device=where) < (1 + self.negatives) * count[:, None]
        prior = shortlist.prior
        return Shortlist(
            nodes.gather(1, order).masked_fill(~kept, -1),
            None if prior is None else prior.gather(1, order).masked_fill(~kept, 0),
        )

    def forward(self, scores: Scores, shortlist: Shortlist, targets: Targets) -> Tensor:
        logits = scores.logits.float()  # (B,C)
        true = targets.positions(shortlist)
        other = torch.ones_like(logits, dtype=torch.bool) if shortlist.nodes is None else shortlist.nodes >= 0
        other[true] = False
        of_text = other[true[0]]  # (P,C): for each true candidate the others of its text
        terms = softplus(logits[true[0]] - logits[true][:, None]).masked_fill(~of_text, 0)
        return terms.sum() / len(logits)
