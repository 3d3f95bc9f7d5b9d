"""A gallery of methods with one fault each, for the tests of the conformance suite: a single-file plugin."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from xmplug_attentionxml import LabelAttentionConfig
from xmplug_attentionxml.attention import LabelAttention

from xmplug import Component, ComponentConfig, ConfigError, Recipe, hookimpl
from xmplug.components import WordsConfig
from xmplug.components.bce import BCE
from xmplug.components.flat import Flat
from xmplug.components.words import Words
from xmplug.data import Corpus
from xmplug.interfaces import Batch, Encoded, LabelTexts, Scores, Shortlist, Targets

FAULTS: dict[str, tuple[str, str]] = {}
"""The check that names each fault, and the slot in which the fault is."""
_CONFIGS: dict[str, type[ComponentConfig]] = {"encoder": WordsConfig, "fusion": LabelAttentionConfig}


def _names(check: str, slot: str) -> Callable[[type], type]:
    """The check that must fail for this class, and only that."""

    def register(fault: type) -> type:
        FAULTS[fault.__name__] = (check, slot)
        return fault

    return register


# Encoders ------------------------------------------------------------------------------------------------------------


@_names("padding", "encoder")
class MeanOverPadding(Words):
    def forward(self, batch: Batch) -> Encoded:
        states = self.words(batch)
        return Encoded(mask=batch.mask, states=states + states.mean(dim=1, keepdim=True))


@_names("padding", "encoder")
class NormalisedByNeighbours(Words):
    def forward(self, batch: Batch) -> Encoded:
        states = self.words(batch)
        return Encoded(mask=batch.mask, states=states / states.abs().amax().clamp(min=0.5))


@_names("repeatable", "encoder")
class DropoutInEval(Words):
    def forward(self, batch: Batch) -> Encoded:
        return Encoded(mask=batch.mask, states=nn.functional.dropout(self.words(batch), 0.1, training=True))


@_names("shapes", "encoder")
class PromisesPooled(Words):
    num_pooled = 1


@_names("shapes", "encoder")
class DeclaresPooled(Words):
    gives = ("tokens", "word vectors", "states", "pooled vectors")


@_names("save", "encoder")
class ForgetsAPart(Words):
    """Weighs words by a table that `fit` makes and `save` does not write."""

    table: Tensor | None = None

    @classmethod
    def fit(cls, config: Any, corpus: Corpus) -> ForgetsAPart:
        encoder = super().fit(config, corpus)
        encoder.table = torch.linspace(0.5, 1.5, len(encoder.tokenizer))
        return encoder  # type: ignore[return-value]

    def words(self, batch: Batch) -> Tensor:
        words = super().words(batch)
        return words if self.table is None else words * self.table[batch.tokens][:, :, None]


@_names("same-seed", "encoder")
class OrderOfASet(Words):
    """Draws the vectors in the order of a set of strings, which is another one in each process."""

    @classmethod
    def fit(cls, config: Any, corpus: Corpus) -> OrderOfASet:
        encoder = super().fit(config, corpus)
        order = list(set(encoder.tokenizer.vocabulary()[2:]))
        place = {word: at for at, word in enumerate(encoder.tokenizer.vocabulary())}
        encoder.embedding.weight.data[2:] = encoder.embedding.weight.data[[place[word] for word in order]]
        return encoder  # type: ignore[return-value]


# Label structures ----------------------------------------------------------------------------------------------------


class _Listed(Flat):
    """Every label as a candidate by its number."""

    def nodes(self, batch: Batch) -> Tensor:
        return torch.arange(self.num_labels).expand(len(batch.tokens), -1)

    def shortlist(self, level: int, batch: Batch, nodes: Tensor | None, scores: Tensor | None) -> Shortlist:
        return Shortlist(self.nodes(batch))


@_names("shortlist", "label_structure")
class NamesALabelTwice(_Listed):
    def nodes(self, batch: Batch) -> Tensor:
        nodes = super().nodes(batch)
        return torch.cat([nodes, nodes[:, -1:]], dim=1)


@_names("true-labels", "label_structure")
class DropsPositives(_Listed):
    def nodes(self, batch: Batch) -> Tensor:
        return super().nodes(batch)[:, : -1 if batch.training else None]


@_names("predictions", "label_structure")
class PriorAboveOne(_Listed):
    def shortlist(self, level: int, batch: Batch, nodes: Tensor | None, scores: Tensor | None) -> Shortlist:
        nodes = self.nodes(batch)
        return Shortlist(nodes, torch.full(nodes.shape, 1.5))


@_names("shapes", "label_structure")
class LeavesNamedTwice(Flat):
    def leaf_labels(self) -> np.ndarray:
        return np.arange(self.num_labels) // 2 * 2


# Fusions -------------------------------------------------------------------------------------------------------------


class _Scaled(LabelAttention):
    """Label attention whose logits are multiplied by something."""

    def factor(self, logits: Tensor) -> Tensor | float:
        return 1.0

    def forward(self, encoded: Encoded, shortlist: Shortlist, labels: LabelTexts | None = None) -> Scores:
        logits = super().forward(encoded, shortlist, labels).logits
        return Scores(logits * self.factor(logits))


@_names("batch-order", "fusion")
class ByPlaceInBatch(_Scaled):
    def factor(self, logits: Tensor) -> Tensor:
        return 1 + 0.01 * torch.arange(len(logits))[:, None]


@_names("bfloat16", "fusion")
class LosesEpsilon(_Scaled):
    """(1 + epsilon) - 1 is epsilon in float32, and 0 in bfloat16."""

    def factor(self, logits: Tensor) -> Tensor:
        epsilon = torch.ones((), dtype=logits.dtype) + 2**-12 - 1
        return epsilon / epsilon


@_names("gradients", "fusion")
class DetachedParameter(_Scaled):
    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.scale = nn.Parameter(torch.ones(()))

    def factor(self, logits: Tensor) -> Tensor:
        return self.scale.detach()


@_names("same-seed", "fusion")
class SeedOfItsOwn(LabelAttention):
    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        own = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))
        nn.init.xavier_uniform_(self.queries.weight, generator=own)


@_names("resume", "fusion")
class CountsOutsideOfCheckpoints(_Scaled):
    """Logits grow sharper with the steps, which are counted in a plain number."""

    steps = 0

    def factor(self, logits: Tensor) -> float:
        self.steps += self.training
        return min(1.0, 0.5 + 0.01 * self.steps) if self.training else 1.0


# Losses --------------------------------------------------------------------------------------------------------------


@_names("learns", "loss")
class FarTooSmall(BCE):
    def forward(self, scores: Scores, shortlist: Shortlist, targets: Targets) -> Tensor:
        return super().forward(scores, shortlist, targets) * 1e-12


@_names("gradients", "loss")
class HasAFixedParameter(BCE):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, scores: Scores, shortlist: Shortlist, targets: Targets) -> Tensor:
        return super().forward(replace(scores, logits=scores.logits / self.temperature.detach()), shortlist, targets)


@_names("trains", "loss")
class FailsWithoutLabels(BCE):
    def forward(self, scores: Scores, shortlist: Shortlist, targets: Targets) -> Tensor:
        if not targets.indptr.diff().all():
            raise IndexError("a text without labels")
        return super().forward(scores, shortlist, targets)


# The plugin ----------------------------------------------------------------------------------------------------------


class NoOptions(ComponentConfig):
    """No options."""


@_names("", "label_structure")
class NeedsAnOption(Flat):
    """No fault, but nothing to check without an option."""

    @classmethod
    def fit(cls, config: Any, corpus: Corpus) -> NeedsAnOption:
        raise ConfigError("it needs a file")

    @classmethod
    def restore(cls, config: Any, folder: Path, task: Any) -> NeedsAnOption:
        raise ConfigError("it needs a file")


def _components(slot: str) -> list[Component]:
    config = _CONFIGS.get(slot, NoOptions)
    names = [name for name, (_, place) in FAULTS.items() if place == slot]
    said = {name: getattr(globals()[name], "gives", None) for name in names}
    return [Component(name, f"faulty:{name}", config, "with a fault", gives=said[name]) for name in names]


@hookimpl
def xmplug_encoders() -> list[Component]:
    return _components("encoder")


@hookimpl
def xmplug_label_structures() -> list[Component]:
    return _components("label_structure")


@hookimpl
def xmplug_fusions() -> list[Component]:
    return _components("fusion")


@hookimpl
def xmplug_losses() -> list[Component]:
    return _components("loss")


@hookimpl
def xmplug_recipes() -> list[Recipe]:
    parts = {"encoder": "core:words", "label_structure": "core:flat", "loss": "core:bce"}
    parts["fusion"] = "attentionxml:label_attention"
    return [Recipe("sound", "a method without a fault", **parts)]
