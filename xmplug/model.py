"""A model: an encoder and a fusion for each level of a label structure; levels trained together share the encoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from .components.nothing import NoContext
from .config import RunConfig
from .data import Corpus, Documents, TokenStore
from .errors import DataError, ResourceError
from .interfaces import (
    Batch,
    Encoded,
    Encoder,
    Fusion,
    LabelContext,
    LabelStructure,
    LabelTexts,
    Loss,
    Scores,
    Shortlist,
    Task,
)
from .mixing import takes_context


class LevelModel(nn.Module):
    """What scores texts against the nodes of one level."""

    def __init__(self, encoder: Encoder, fusion: Fusion):
        super().__init__()
        self.encoder, self.fusion = encoder, fusion

    def drop_training_parts(self) -> None:
        """Let go of what only training needs."""
        for name in self.fusion.training_only:
            setattr(self.fusion, name, None)


def _context(config: RunConfig) -> type[LabelContext]:
    """The label context of a run: none where the fusion takes nothing from it."""
    if not takes_context(config):
        return NoContext
    context: type[LabelContext] = config.components["label_context"].resolve()
    return context


class Model(nn.Module):
    """All levels, from the top. Those trained apart are made when training reaches them (`add_level`)."""

    levels: nn.ModuleList
    stages: list[range]
    """The levels that are trained at once, from the top; those of a stage share their encoder."""

    def __init__(
        self, config: RunConfig, task: Task, encoder: Encoder, structure: LabelStructure, context: LabelContext
    ):
        super().__init__()
        self.config, self.task, self.structure, self.context = config, task, structure, context
        self.loss = self.new_loss()
        levels = range(structure.num_levels)
        self.stages = [levels] if config.training.levels == "together" else [levels[at : at + 1] for at in levels]
        # No level of a stage has learned anything that it could hand down to the next: each fusion starts as it is
        # built, for its number of nodes.
        self.levels = nn.ModuleList(LevelModel(encoder, self._fusion(level, encoder)) for level in self.stages[0])

    @classmethod
    def fit(cls, config: RunConfig, corpus: Corpus) -> Model:
        """A new model for these training texts, with the levels of its first stage."""
        torch.manual_seed(config.training.seed)
        encoder = config.components["encoder"].resolve().fit(config.options["encoder"], corpus)
        if (features := encoder.read(corpus.documents)) is not None:
            corpus.features = features
        structure = config.components["label_structure"].resolve().fit(config.options["label_structure"], corpus)
        context = _context(config).fit(config.options["label_context"], corpus, encoder)
        if not isinstance(context, config.components["label_context"].resolve()):
            fusion, unread = config.components["fusion"].id, config.components["label_context"].id
            context.notes = (f"{fusion} reads no label texts or groups; label context {unread} is left out",)
        learns = type(context).fit_level is not LabelContext.fit_level
        for level in range(structure.num_levels if learns else 0):
            context.fit_level(level, structure.level_targets(level, corpus.targets))
        return cls(config, corpus.task, encoder, structure, context)

    @classmethod
    def restore(cls, config: RunConfig, task: Task, folder: Path, training: bool = False) -> Model:
        """The model whose files `save_parts` wrote into `folder`, with its first levels; weights are loaded later.

        training: it goes on learning, and needs what the saved run does without."""
        options, parts = config.options, {slot: component.resolve() for slot, component in config.components.items()}
        encoder = parts["encoder"].restore(options["encoder"], folder / "encoder")
        structure = parts["label_structure"].restore(options["label_structure"], folder / "label_structure", task)
        kind = _context(config)
        if kind.training_only and not training and not (folder / "label_context").exists():
            kind = NoContext
        context = kind.restore(options["label_context"], folder / "label_context", task, encoder)
        return cls(config, task, encoder, structure, context)

    def save_parts(self, folder: Path) -> None:
        """Write what encoder, structure and context need besides the weights, each into a folder of its own."""
        parts: dict[str, Encoder | LabelStructure | LabelContext] = {
            "encoder": self.level(0).encoder,
            "label_structure": self.structure,
            "label_context": self.context,
        }
        for name, part in parts.items():
            try:
                (folder / name).mkdir(parents=True, exist_ok=True)
                part.save(folder / name)
            except (OSError, SafetensorError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise ResourceError(
                    f"cannot write {folder / name}: {reason}; free space or choose another --out"
                ) from error

    def level(self, level: int) -> LevelModel:
        """Encoder and fusion of `level`."""
        module = self.levels[level]
        assert isinstance(module, LevelModel)
        return module

    def stage(self, levels: range) -> nn.Module:
        """What is trained at once, one of `stages`: a level, or all."""
        return self.level(levels[0]) if len(levels) == 1 else self.levels

    def read(self, texts: Documents | Sequence[str]) -> TokenStore:
        """Tokens of texts, and what encoder and structure make of the raw texts."""
        encoder = self.level(0).encoder
        if not isinstance(texts, Documents):
            texts = list(texts)
            if not all(isinstance(text, str) for text in texts):
                raise DataError("one of the texts is no string; give a list of strings")
        if encoder.tokenizer is None:
            store = TokenStore.without_tokens(len(texts))
        elif isinstance(texts, Documents):
            store = TokenStore.of_documents(encoder.tokenizer, texts, encoder.max_tokens)
        else:
            store = TokenStore.of_texts(encoder.tokenizer, texts, encoder.max_tokens)
        store.features, store.candidates = encoder.read(texts), self.structure.read(texts)
        return store

    def encode(self, levels: range, batch: Batch) -> tuple[Encoded, LabelTexts | None]:
        """What the encoder of a stage makes of texts, and of the label texts that inform their scores."""
        level = self.level(levels[0])
        encoded, labels = level.encoder(batch), None
        if level.training or not self.context.training_only:
            labels = self.context.label_texts(batch)
        if labels is not None:
            labels = labels.to(batch.tokens.device)
            if labels.texts.tokens.shape[1]:
                labels = replace(labels, encoded=level.encoder(labels.texts))
        return encoded, labels

    def score(self, level: int, encoded: Encoded, shortlist: Shortlist, labels: LabelTexts | None) -> Scores:
        """Scores of the candidates at `level`, for what `encode` gave."""
        scores: Scores = self.level(level).fusion(encoded, shortlist, labels)
        return scores

    def add_level(self) -> None:
        """Make the next level. Encoder and shared weights of the fusion continue from the level above; the weights
        with a row for each node start afresh (AttentionXML section 2.5)."""
        above = self.level(len(self.levels) - 1)
        # One without weights does not change, and may hold a large vocabulary.
        encoder = copy.deepcopy(above.encoder) if above.encoder.state_dict() else above.encoder
        fusion = self._fusion(len(self.levels), encoder)
        inherited = {
            name: value
            for name, value in above.fusion.state_dict().items()
            if not any(name == own or name.startswith(own + ".") for own in fusion.per_node)
        }
        fusion.load_state_dict(inherited, strict=False)
        self.levels.append(LevelModel(encoder, fusion))

    def new_loss(self) -> Loss:
        """A loss as it is before training; the saved run does without it."""
        loss: Loss = self.config.components["loss"].resolve().build(self.config.options["loss"], self.task)
        return loss

    def drop_training_parts(self) -> None:
        """Let go of what only training needs, in all levels."""
        for level in range(len(self.levels)):
            self.level(level).drop_training_parts()
        if self.context.training_only:
            self.context = NoContext()

    def _fusion(self, level: int, encoder: Encoder) -> Fusion:
        factory = self.config.components["fusion"].resolve()
        fusion = factory.build(self.config.options["fusion"], encoder, self.structure.level_size(level), self.task)
        assert isinstance(fusion, Fusion)
        fusion.label_groups = self.context.label_groups(level)
        return fusion
