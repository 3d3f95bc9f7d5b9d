"""One sparse linear classifier for each node of a level."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from xmplug import XmplugError
from xmplug.interfaces import Encoded, Encoder, Fusion, MarginLoss, Scores, Shortlist, Task
from xmplug.ops import LinearWeights, linear_scores, train_linear

from . import OneVsRestConfig

_WORK = 4_000_000_000
"""Numbers that the nodes solved in one call of a kernel read in a pass; between calls a training can be stopped."""
_ARRAYS = [field.name for field in fields(LinearWeights)[1:]]


class OneVsRest(Fusion):
    """The logit of a node is sharpness * (w . x + b).

    The weights of a level are the arrays of `xmplug.ops.LinearWeights` as buffers, of the size that training gave them;
    those of a run that is loaded stay in its file until they are used.
    """

    per_node = tuple(_ARRAYS)
    solved = True

    def __init__(self, config: OneVsRestConfig, size: int, num_nodes: int, seed: int):
        super().__init__()
        self.config, self.num_nodes, self.seed = config, num_nodes, seed
        self.ranked_negatives = config.ranked_negatives
        nothing = csr_matrix((num_nodes, size), dtype=np.float32)
        self._put(LinearWeights.of_matrix(nothing, np.zeros(num_nodes), np.array([0, num_nodes])))
        self.register_buffer("sharpness", torch.ones(()))

    @classmethod
    def build(cls, config: OneVsRestConfig, encoder: Encoder, num_nodes: int, task: Task) -> OneVsRest:
        return cls(config, encoder.size, num_nodes, task.seed)

    def _put(self, weights: LinearWeights) -> None:
        self.linear = weights
        for name in _ARRAYS:
            self.register_buffer(name, torch.from_numpy(getattr(weights, name)))

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if all(prefix + name in state for name in _ARRAYS):
            weights = LinearWeights(self.linear.num_features, *(state[prefix + name].numpy() for name in _ARRAYS))
            try:
                weights.check(self.num_nodes)
            except XmplugError as error:
                rest[-1].append(str(error))
                return
            self._put(weights)
        # Kept as they are, so that those of a mapped file stay there: copied onto themselves, all would be read.
        super()._load_from_state_dict(state, prefix, {**metadata, "assign_to_params_buffers": True}, *rest)

    def _apply(self, function: Any, recurse: bool = True) -> OneVsRest:
        return self  # the kernels read them on the CPU

    def solve(
        self,
        features: csr_matrix,
        targets: csr_matrix,
        siblings: np.ndarray,
        examples: csr_matrix,
        margin_loss: MarginLoss,
        progress: Callable[[str], None],
    ) -> None:
        begun = said = time.perf_counter()
        targets, examples = targets.tocsc(), examples.tocsc()
        # Numbers that solving a node of each group reads in a pass.
        work = np.diff(np.concatenate([[0], np.cumsum(np.diff(features.indptr)[examples.indices])])[examples.indptr])
        parts: list[LinearWeights] = []
        for first, last in _calls(work * np.diff(siblings)):
            calls = [siblings[first : last + 1]]
            if last == first + 1 and siblings[first] < siblings[last]:  # a large group too in parts
                calls = [siblings[first] + np.array(part) for part in _calls(np.full(np.diff(calls[0]), work[first]))]
            found = []
            for nodes in calls:
                found.append(
                    train_linear(
                        features,
                        targets[:, nodes[0] : nodes[-1]],
                        nodes - nodes[0],
                        examples[:, first:last],
                        loss=margin_loss,
                        cost=self.config.cost,
                        bias=self.config.bias,
                        tolerance=self.config.tolerance,
                        passes=self.config.passes,
                        prune=self.config.prune,
                        seed=self.seed + first,
                    )
                )
                late = nodes[-1] < siblings[-1] and time.perf_counter() - said > 10
                progress(f"{nodes[-1]:,} of {siblings[-1]:,} nodes" if late else "")
                said = time.perf_counter() if late else said
            parts.append(found[0] if len(found) == 1 else LinearWeights.beside(found))
        self._put(LinearWeights.joined(parts))
        usual = 1.0 if margin_loss == "logistic" else 5.0
        self.sharpness = torch.tensor(self.config.sharpness or usual)
        seconds = time.perf_counter() - begun
        progress(f"{len(self.linear.weights):,} weights of {siblings[-1]:,} nodes in {seconds:.1f} s")

    def forward(self, encoded: Encoded, shortlist: Shortlist, labels: Any = None) -> Scores:
        assert encoded.features is not None
        nodes = None if shortlist.nodes is None else shortlist.nodes.cpu().numpy()
        return Scores(torch.from_numpy(linear_scores(encoded.features, self.linear, nodes)) * self.sharpness)

    def contributions(self, encoded: Encoded, shortlist: Shortlist) -> csr_matrix:
        assert encoded.features is not None
        assert shortlist.nodes is not None
        rows = self.linear.rows(shortlist.nodes[0].cpu().numpy())
        return csr_matrix(float(self.sharpness) * rows.multiply(encoded.features))


def _calls(work: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of items with about `_WORK` in all, or of one item with more."""
    ends = np.cumsum(work, dtype=np.float64)
    first = 0
    while first < len(work):
        last = max(first + 1, int(np.searchsorted(ends, (ends[first - 1] if first else 0) + _WORK, side="right")))
        yield first, last
        first = last
