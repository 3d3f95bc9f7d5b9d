"""A method under test: a recipe, perhaps with one component exchanged, and the small models that are trained of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from ..components import WordsConfig
from ..config import RunConfig, TrainingConfig, merge, resolve
from ..data import Dataset, TokenStore, load_dataset, synthetic_dataset
from ..data.batches import make_batch, make_targets
from ..errors import ConfigError
from ..inference import Ranked, Tagger, device, rank_stage
from ..interfaces import Batch, Scores, Shortlist, Targets
from ..mixing import check
from ..model import Model
from ..plugins import Plugins
from ..recipe import SLOTS, Component, ComponentConfig, Slot
from ..training import Listener, Progress, Trainer, candidates_for_training, train
from .registry import Failed

if TYPE_CHECKING:
    from .suite import Suite

SMALL: Mapping[str, Any] = {
    "training.epochs": 20,
    "training.batch_size": 16,
    "training.learning_rate": 0.004,
    "training.precision": "float32",
}
"""Options with which most methods learn 240 texts in seconds."""
SMALL_WORDS: Mapping[str, Any] = {"encoder.vectors": "random", "encoder.vector_size": 32, "encoder.min_count": 1}
"""More of them, for encoders that begin with `core:words`."""
_FEW: dict[str, Any] = {"training.epochs": 2, "training.batch_size": 16, "training.evaluations": 1}
_BATCH = 16


@dataclass(frozen=True)
class Step:
    """What a level is to score: a batch, its candidates and its true nodes. places: of the texts in their store."""

    level: int
    places: np.ndarray
    batch: Batch
    shortlist: Shortlist
    targets: Targets


class Walk:
    """Some texts on their way through the levels of a model; candidates are those of training, or of prediction."""

    def __init__(self, model: Model, store: TokenStore, labels: csr_matrix, training: bool):
        self.model, self.store, self.labels, self.training = model, store, labels, training

    @cached_property
    def above(self) -> list[Ranked | None]:
        """For each level the best nodes of the one above."""
        found: list[Ranked | None] = [None]
        for level in range(self.model.structure.num_levels - 1):
            beam = self.model.structure.beam
            found.append(rank_stage(self.model, range(level, level + 1), self.store, found[-1], beam, self.training))
        return found

    def step(self, level: int, places: Sequence[int] | np.ndarray) -> Step:
        where, structure, at = device(), self.model.structure, np.asarray(places)
        batch = make_batch(self.store, at, self.training).to(where)
        nodes = scores = None
        above = self.above[level]
        if above is not None and self.training:
            nodes, scores = candidates_for_training(
                Ranked(above.nodes[at], above.scores[at]), structure.level_targets(level - 1, self.labels)[at]
            )
        elif above is not None:
            nodes = torch.from_numpy(above.nodes[at].astype(np.int64))
            scores = torch.from_numpy(above.scores[at])
        if nodes is not None and scores is not None:
            nodes, scores = nodes.to(where), scores.to(where)
        shortlist = structure.shortlist(level, batch, nodes, scores)
        return Step(level, at, batch, shortlist, make_targets(structure.level_targets(level, self.labels), at))

    def steps(self, level: int) -> Iterator[Step]:
        """All texts in batches."""
        for start in range(0, len(self.store), _BATCH):
            yield self.step(level, range(start, min(start + _BATCH, len(self.store))))

    def score(self, step: Step) -> Scores:
        encoded, labels = self.model.encode(range(step.level, step.level + 1), step.batch)
        return self.model.score(step.level, encoded, step.shortlist, labels)

    @torch.no_grad()
    def logits(self, level: int, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """(B, nodes of the level) float32; nan where a node is no candidate."""
        step = self.step(level, places)
        found = self.score(step).logits.float().cpu()
        nodes = step.shortlist.nodes
        if nodes is None:
            return found.numpy()
        dense = np.full((len(found), self.model.structure.level_size(level)), np.nan, np.float32)
        rows, columns = (nodes.cpu() >= 0).nonzero(as_tuple=True)
        dense[rows, nodes.cpu()[rows, columns]] = found[rows, columns]
        return dense


class StopInside(Listener):
    """Stops half way through a level; one that is solved, before it begins."""

    def __init__(self, level: int, solved: bool = False):
        self.level, self.solved = level, solved

    def message(self, text: str) -> None:
        self.stop = self.stop or (self.solved and self.level == 1)

    def evaluated(self, record: Mapping[str, Any]) -> None:
        self.stop = self.stop or (self.solved and record["level"] == self.level - 1)

    def step(self, progress: Progress) -> None:
        self.stop = progress.level == self.level and progress.step == max(1, progress.steps // 2)


@dataclass
class Trained:
    """A finished training: its model as it was in memory, its folder, and the corpus. dev: its texts on their way
    through the levels."""

    model: Model
    folder: Path
    dataset: Dataset
    dev: Walk

    @cached_property
    def tagger(self) -> Tagger:
        return Tagger(self.model.eval())

    @cached_property
    def texts(self) -> list[str]:
        """Those of dev, and some that are unlike all others."""
        texts = list(self.dataset.split("dev").texts())
        return [*texts, "", "?!", "none of these words was ever seen", " ".join(texts)]


class Method:
    """A recipe with options for small models, perhaps with one component exchanged; and what is trained of it."""

    def __init__(self, suite: Suite, name: str, recipe: str, exchanged: tuple[Slot, Component] | None = None):
        self.suite, self.name, self.recipe, self.exchanged = suite, name, recipe, exchanged

    @cached_property
    def folder(self) -> Path:
        folder = self.suite.folder / self.name.replace(":", "-")
        folder.mkdir()
        return folder

    @property
    def solved(self) -> bool:
        """Whether its levels are fitted at once instead of by steps along a gradient."""
        return bool(self.trained.model.level(0).fusion.solved)

    def config(self, corpus: Path, **changes: Any) -> RunConfig:
        options = {**self.options(self.suite.given(corpus)), **changes}
        try:
            config = merge(self.suite.plugins, self.recipe, overrides=options.items())
        except ConfigError as error:
            raise Failed(str(error)) from None
        check(config, self.suite.plugins)
        return config

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those that this method has, of the given ones and of those that make models small."""
        own, components = self._own(given), self._components(given)
        known = self.known_options(given)
        small = {**SMALL, **(SMALL_WORDS if issubclass(components["encoder"].config, WordsConfig) else {})}
        return {name: value for name, value in {**small, **own}.items() if name in known or name in SLOTS}

    def known_options(self, given: Mapping[str, Any]) -> set[str]:
        """All that this method has, by their dotted names, with the components that `given` chooses."""
        sections: dict[str, type[ComponentConfig]] = {"training": TrainingConfig}
        sections |= {slot: component.config for slot, component in self._components(given).items()}
        return {f"{section}.{name}" for section, config in sections.items() for name in config.model_fields}

    def _components(self, given: Mapping[str, Any]) -> Mapping[Slot, Component]:
        slots = [(name, value) for name, value in self._own(given).items() if name in SLOTS]
        return merge(self.suite.plugins, self.recipe, overrides=slots).components

    def _own(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What is given for all methods, then for this one; the component that is exchanged stays."""
        own = {name: value for name, value in given.items() if "/" not in name}
        prefix = f"{self.name}/"
        own |= {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
        if self.exchanged is not None:
            slot, component = self.exchanged
            own[slot] = component.id
        return own

    @cached_property
    def trained(self) -> Trained:
        """Trained until it knows a planted corpus."""
        out = self.folder / "trained"
        trainer, dataset = self._trainer(out, Listener())
        trainer.run()
        model, dev = trainer.model.eval(), trainer.dev_data
        targets = dev.targets[:, : model.task.num_labels].tocsr()
        return Trained(model, out, dataset, Walk(model, dev.store, targets, training=False))

    @cached_property
    def midway(self) -> Walk:
        """The training texts, in a training that was stopped half way through its last level: with what only training
        has. Of a method that is solved: in one that is begun."""
        trainer, _ = self._trainer(self.folder / "midway", StopInside(self.trained.model.structure.num_levels), **_FEW)
        if self.solved:
            return Walk(self.trained.model, trainer.train_data.store, trainer.train_data.targets, training=True)
        with suppress(KeyboardInterrupt):
            trainer.run()
        return Walk(trainer.model.eval(), trainer.train_data.store, trainer.train_data.targets, training=True)

    def _trainer(self, out: Path, listener: Listener, **changes: Any) -> tuple[Trainer, Dataset]:
        corpus = planted_corpus(self.suite.folder)
        config, dataset = self.config(corpus, **changes), load_dataset(corpus)
        return Trainer(config, self.suite.plugins, dataset, out, {"spec": str(corpus)}, False, listener), dataset

    @cached_property
    def short_config(self) -> RunConfig:
        """Of a training of two epochs."""
        return self.config(odd_corpus(self.suite.folder), **_FEW)

    @cached_property
    def short(self) -> Path:
        """A short training on a corpus with odd texts and labels."""
        return self.train_short(self.folder / "short")

    def train_short(self, out: Path, resume: bool = False, listener: Listener | None = None) -> Path:
        corpus = odd_corpus(self.suite.folder)
        dataset, source = load_dataset(corpus), {"spec": str(corpus)}
        train(self.short_config, self.suite.plugins, dataset, out, source=source, resume=resume, listener=listener)
        return out

    def request(self) -> dict[str, Any]:
        """What `train_elsewhere` needs to train `short` once more."""
        config, corpus = self.short_config.as_dict(), odd_corpus(self.suite.folder)
        return {
            "config": config,
            "data": str(corpus),
            "out": str(self.folder / "elsewhere"),
            "files": [os.path.abspath(file) for file in self.suite.plugin_files],
        }


def planted_corpus(folder: Path) -> Path:
    """300 texts and 20 labels with words of their own; large enough for a tree of two levels."""
    corpus = folder / "planted"
    if not corpus.exists():
        corpus.mkdir()
        synthetic_dataset(300, 20, folder=corpus)
    return corpus


def odd_corpus(folder: Path) -> Path:
    """A small corpus with empty texts, texts without labels, and labels without texts (the broader ones)."""
    corpus = folder / "odd"
    if not corpus.exists():
        corpus.mkdir()
        synthetic_dataset(80, 20, seed=1, folder=corpus)
        odd = [
            {"text": "", "labels": ["label0000"]},
            {"text": "none of note", "labels": []},
            {"text": "", "labels": []},
        ]
        with open(corpus / "train.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in odd)
    return corpus


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in another process, which finds the modules that this one does, and hashes strings in another way."""
    places = os.pathsep.join(os.path.abspath(place) for place in sys.path)
    hashing = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = os.environ | {"PYTHONPATH": places, "PYTHONHASHSEED": hashing}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def train_elsewhere(requests: list[dict[str, Any]], folder: Path) -> None:
    """Train in another process. What goes wrong there is written beside the run."""
    (folder / "requests.json").write_text(json.dumps(requests), encoding="utf-8")
    done = run_python(f"from {__name__} import _train_requests; _train_requests('requests.json')", folder)
    if done.returncode:
        raise Failed(f"another process ends with {done.stderr.strip().splitlines()[-1]}; let the plugin load there too")


def _train_requests(path: str) -> None:
    for request in json.loads(Path(path).read_text(encoding="utf-8")):
        out = Path(request["out"])
        try:
            plugins = Plugins().load(tuple(request["files"]))
            config = resolve(plugins, request["config"]["recipe"], file=request["config"])
            train(config, plugins, load_dataset(request["data"]), out, source={"spec": request["data"]})
        except Exception as error:
            out.with_suffix(".error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
