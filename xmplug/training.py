"""Training: one loop that walks the levels of a label structure, or trains them together.

Everything random is a function of the seed and of the position in the data, and a checkpoint holds weights, moments,
averages, generator states and position. A run that is killed and resumed therefore ends with the same numbers, unless
`training.minutes` ends it: then the clock decides how many steps there are. No file of a finished run holds times.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from .config import RunConfig
from .data import Corpus, Dataset, Documents, LabelSet, TokenStore
from .data.batches import make_batch, make_targets, training_order
from .errors import ConfigError, DataError, RunError
from .inference import Ranked, autocast, best_nodes, device, node_labels, rank_stage
from .interfaces import Task
from .metrics import inverse_propensity
from .model import Model
from .ops import ranking_metrics
from .optim import Optimizer, WeightAverage, learning_rate
from .plugins import Plugins
from .preflight import check_resources
from .saving import (
    MANIFEST,
    load_weights,
    manifest,
    read_manifest,
    read_tensors,
    run_config,
    save_run,
    weights_of,
    whole_file,
    write_json,
    write_tensors,
)


class Listener:
    """Told how training goes; the command line's draws it."""

    stop = False
    """Set to True to end after the present step, with a checkpoint to resume from."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def step(self, progress: Progress) -> None:
        """A step was made."""

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """An evaluation on dev was made; `record` is the new line of metrics.jsonl, and the `minutes` of training until
        then, those before a stop included."""


@dataclass
class Position:
    """Where a training stands; kept in each checkpoint. level: the first of those that are being trained.

    seconds: how long the training has taken. began, ends: in such seconds, when its stage began and when it has to end.
    """

    level: int = 0
    step: int = 0
    best: float = -1.0
    worse: int = 0
    averaged: int = 0
    evaluations: int = 0
    finished: bool = False
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0
    began: float = 0.0
    ends: float | None = None


@dataclass(frozen=True)
class Progress:
    """For a listener: level and epoch count from 1, level is the last of those trained together; loss is the mean over
    the steps since the last evaluation; documents_per_second is that of this process so far."""

    level: int
    levels: int
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    documents_per_second: float
    seconds_left: float
    metric: float | None


@dataclass
class Split:
    """A split as training needs it: tokens and labels."""

    store: TokenStore
    targets: csr_matrix


def train(
    config: RunConfig,
    plugins: Plugins,
    dataset: Dataset,
    out: str | Path,
    *,
    source: Mapping[str, Any] | None = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> dict[str, float]:
    """Train, evaluate on dev, and leave a finished run in `out`. Returns its dev metrics.

    `dataset.split("dev")` chooses the weights; the test split is not read. `source` is
    kept in the run: the arguments of `load_dataset` that give the data again.

    Raises RunError when `out` holds something already and `resume` is False, or holds no training to resume;
    DataError for data that cannot be learned from; ResourceError for work that does not fit into the memory or disk.
    """
    return Trainer(config, plugins, dataset, Path(out), source or {}, resume, listener or Listener()).run()


def resumable_config(out: str | Path, plugins: Plugins) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration and the data section of an unfinished training in `out`."""
    content = read_manifest(Path(out))
    if content["state"] == "complete":
        raise RunError(f"the training of {str(out)!r} is complete; nothing to resume")
    return run_config(content, plugins), content["data"]


class Trainer:
    """One training run: its model, its data and its position."""

    def __init__(
        self,
        config: RunConfig,
        plugins: Plugins,
        dataset: Dataset,
        out: Path,
        source: Mapping[str, Any],
        resume: bool,
        listener: Listener,
    ):
        self.config, self.settings, self.out, self.listener = config, config.training, out, listener
        self.checkpoints = out / "checkpoints"
        self.position = Position()
        self.begun = time.perf_counter()
        if out.exists() and not out.is_dir():
            raise RunError(f"{str(out)!r} is a file; --out names the folder to make")
        fresh = not out.exists() or not any(out.iterdir())
        if not fresh and not resume:
            raise RunError(
                f"{str(out)!r} is not empty; choose another --out, or go on with `xmplug train --resume {out}`"
            )

        train_split, dev_split = dataset.split("train"), dataset.split("dev")
        self.task = Task(dataset.labels, self.settings.seed)
        labels_of_train = train_split.targets(dataset.labels)[:, : self.task.num_labels].tocsr()
        if not len(dev_split):
            raise DataError(f"data {dataset.name!r} leaves no dev text; give more texts or a larger --dev-fraction")
        data = {
            "source": dict(source),
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "train_fingerprint": train_split.fingerprint,
            "train": len(train_split),
            "dev": len(dev_split),
            "labels": self.task.num_labels,
        }
        self.manifest = manifest(config, plugins, data)

        if resume and read_manifest(out)["data"]["fingerprint"] != data["fingerprint"]:
            raise RunError(f"the data have changed since {str(out)!r} was begun; train anew with another --out")

        started = resume and (self.checkpoints / "last.safetensors").exists()
        try:
            if started:
                self.model = Model.restore(config, self.task, out, training=True)
                self._read_finished_levels()
            else:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                write_json(out / MANIFEST, self.manifest)
                self.listener.message("fitting vocabulary, vectors, label structure and context")
                self.model = Model.fit(config, Corpus(train_split, labels_of_train, self.task))
                for note in self.model.context.notes:
                    self.listener.message(note)
            self._prepare(train_split, dev_split, labels_of_train, dataset.labels)
            if started:  # the clock goes on where it stood; reading everything again costs nothing
                self.begun = time.perf_counter() - self.position.seconds
            else:
                (out / "metrics.jsonl").unlink(missing_ok=True)
                self._check_clock()
                self.model.save_parts(out)
                dataset.labels.save(out / "labels.jsonl")
        except BaseException:
            if fresh:  # nothing half-written stays behind
                shutil.rmtree(out, ignore_errors=True)
            raise

    def _prepare(
        self, train_split: Documents, dev_split: Documents, labels_of_train: csr_matrix, labels: LabelSet
    ) -> None:
        self.train_data = Split(self.model.read(train_split), labels_of_train)
        candidates = self.train_data.store.candidates
        if candidates is not None:
            self.train_data.store.candidates = candidates.maximum(labels_of_train.astype(candidates.dtype)).tocsr()
        self.dev_data = Split(self.model.read(dev_split), dev_split.targets(labels))
        if self.settings.dev_documents is not None and self.settings.dev_documents < len(self.dev_data.store):
            chosen = np.sort(
                np.random.default_rng(self.settings.seed).permutation(len(self.dev_data.store))[
                    : self.settings.dev_documents
                ]
            )
            self.dev_data = Split(self.dev_data.store.subset(chosen), self.dev_data.targets[chosen])
        if not self.dev_data.targets[:, : self.task.num_labels].nnz:
            raise DataError("no dev text has a label that occurs in training; give more texts or another dev split")
        self.listener.message(check_resources(self.model, self.train_data.store, self.out))
        self.model.to(device())

    def run(self) -> dict[str, float]:
        """All levels, from where the checkpoint stands to the finished run."""
        above_train: Ranked | None = None
        above_dev: Ranked | None = None
        for levels in self.model.stages:
            if levels[-1] >= len(self.model.levels):
                torch.manual_seed(self.settings.seed + levels[0])
                self.model.add_level()
                self.model.loss = self.model.new_loss()  # what a loss has learned on a level is of that level
                self.model.to(device())
            fusion = self.model.level(levels[0]).fusion
            if levels[0] >= self.position.level:
                if fusion.solved:
                    self._solve_level(levels, above_train, above_dev)
                else:
                    self._train_stage(levels, above_train, above_dev)
                self._checkpoint_between(levels.stop)
            if levels != self.model.stages[-1]:
                if not fusion.solved or fusion.ranked_negatives:
                    above_train = self._rank(levels, self.train_data, above_train)
                above_dev = self._rank(levels, self.dev_data, above_dev)
        record = self._best_record(self.model.structure.num_levels)
        save_run(self.model, self.out, {**self.manifest, "metrics": {"dev": record}})
        return record

    # The clock -------------------------------------------------------------------------------------------------------

    def _seconds(self) -> float:
        """How long this training has taken, what it took before it was stopped included."""
        return time.perf_counter() - self.begun

    def _check_clock(self) -> None:
        """Raises ConfigError where fitting left no time for a step. What is solved without steps takes its time."""
        minutes, fitted = self.settings.minutes, self._seconds() / 60
        if minutes is not None and fitted >= minutes and not self.model.level(0).fusion.solved:
            raise ConfigError(
                f"fitting took {fitted:.1f} minutes, and training.minutes is {minutes:g}, so that nothing was learned; "
                "give more, or what fits faster, such as other word vectors"
            )

    def _deadline(self, levels: range) -> float | None:
        """When a stage that begins now has to end: what is left is shared with later ones in proportion to epochs."""
        if self.settings.minutes is None:
            return None
        now = self._seconds()
        left = 60 * self.settings.minutes - now
        if left <= 0:
            self.listener.message(
                f"the {self.settings.minutes:g} training.minutes were over before level {levels[0] + 1} began: "
                "it makes one step"
            )
        epochs = [self.settings.epochs_at(stage[0]) for stage in self.model.stages if stage[0] >= levels[0]]
        return now + max(0.0, left) * epochs[0] / sum(epochs)

    def _made(self, steps: int) -> float:
        """How many of its `steps` a stage has made, or would have at an even pace where its time runs out before."""
        position = self.position
        if position.ends is None:
            return position.step
        share = (self._seconds() - position.began) / max(position.ends - position.began, 1e-3)
        return max(position.step, min(share * steps, steps - 1))

    # One stage: a level, or all of them ------------------------------------------------------------------------------

    def _train_stage(self, levels: range, above_train: Ranked | None, above_dev: Ranked | None) -> None:
        settings, structure, position = self.settings, self.model.structure, self.position
        first, last = levels[0], levels[-1]
        targets = {
            level: structure.level_targets(level, self.train_data.targets)
            for level in range(max(0, first - 1), levels.stop)
        }
        module, encoder = self.model.stage(levels), self.model.level(first).encoder
        parameters = dict(encoder.named_parameters())
        factors = {parameters[name]: factor for name, factor in encoder.learning_rates().items()}
        trained = self._with_loss(module)
        optimizer, average = Optimizer(trained, settings, factors), WeightAverage(trained)
        torch.manual_seed(settings.seed + 1000 * (first + 1))
        lengths = self.train_data.store.lengths
        per_epoch = math.ceil(len(lengths) / settings.batch_size)
        epochs = settings.epochs_at(first)
        steps = per_epoch * epochs
        evaluate_at = {
            per_epoch * epoch + math.ceil(per_epoch * part / settings.evaluations)
            for epoch in range(epochs)
            for part in range(1, settings.evaluations + 1)
        }
        average_from = steps + 1 if settings.swa_start is None else settings.swa_start * steps
        if (self.checkpoints / "last.safetensors").exists() and position.step:
            self._read_checkpoint(trained, optimizer, average)
        else:
            position.level, position.best, position.worse, position.finished = first, -1.0, 0, False
            position.ends = self._deadline(levels)
            position.began = self._seconds()
            self._checkpoint(trained, optimizer, average)

        begun, documents = time.perf_counter(), 0
        order: list[np.ndarray] = []
        metric: float | None = None
        trained.train()
        while position.step < steps and not position.finished:
            epoch, place = divmod(position.step, per_epoch)
            if place == 0 or not order:
                order = training_order(lengths, settings.batch_size, (settings.seed, first, epoch))
            places = order[place]
            value = 0.0
            size = settings.micro_batch or len(places)
            for part in (places[at : at + size] for at in range(0, len(places), size)):
                # A loss is a mean over texts: parts count by their share, so that their sum is that of the whole.
                loss = self._loss(levels, targets, above_train, part) * (len(part) / len(places))
                loss.backward()
                value += float(loss.detach())
            if not math.isfinite(value):
                raise ConfigError(
                    f"the loss became {value} at step {position.step} of level {last + 1}; "
                    "lower training.learning_rate, or set training.precision float32"
                )
            optimizer.step(learning_rate(settings, self._made(steps), steps))
            position.step += 1
            if self._made(steps) > average_from and position.step % settings.swa_every == 0:
                average.add()
            documents += len(places)
            position.loss_sum, position.loss_steps = position.loss_sum + value, position.loss_steps + 1
            mean_loss = position.loss_sum / position.loss_steps
            over = position.ends is not None and self._seconds() >= position.ends
            evaluating = over or position.step in evaluate_at
            if evaluating:
                metric = self._evaluate(levels, average, above_dev, epoch + 1)
                position.finished |= over
            if evaluating or position.step % settings.checkpoint_every == 0:
                self._checkpoint(trained, optimizer, average)
            seconds = time.perf_counter() - begun
            left = (steps - position.step) * settings.batch_size * seconds / documents
            if position.ends is not None:
                left = min(left, max(0.0, position.ends - self._seconds()))
            self.listener.step(
                Progress(
                    last + 1,
                    structure.num_levels,
                    epoch + 1,
                    epochs,
                    position.step,
                    steps,
                    mean_loss,
                    documents / seconds,
                    left,
                    metric,
                )
            )
            if self.listener.stop:
                self._checkpoint(trained, optimizer, average)
                raise KeyboardInterrupt
        weights, _ = read_tensors(self._kept(levels))
        load_weights(module, weights, self._kept(levels))

    def _loss(
        self, levels: range, targets: Mapping[int, csr_matrix], above: Ranked | None, places: np.ndarray
    ) -> Tensor:
        """The losses of `levels`, summed, of the training texts at `places`, which are encoded once.

        targets: the true nodes of `levels` and of the level above them. above: what that level ranks for all training
        texts. Between levels that are trained together, the present scores rank (LightXML's dynamic negative sampling).
        """
        where, precision = device(), self.settings.precision
        batch = make_batch(self.train_data.store, places, training=True).to(where)
        with autocast(precision):
            encoded, labels = self.model.encode(levels, batch)
        ranked = None if above is None else Ranked(above.nodes[places], above.scores[places])
        losses = []
        for level in levels:
            nodes = scores = None
            if ranked is not None:
                nodes, scores = candidates_for_training(ranked, targets[level - 1][places])
                nodes, scores = nodes.to(where), scores.to(where)
            shortlist = self.model.structure.shortlist(level, batch, nodes, scores)
            true = make_targets(targets[level], places).to(where)
            if level == levels[-1]:  # the scores of a level above choose the candidates of the next
                shortlist = self.model.loss.sample(shortlist, true, targets[level].shape[1])
            with autocast(precision):
                predicted = self.model.score(level, encoded, shortlist, labels)
            losses.append(self.model.loss(predicted, shortlist, true))
            if level != levels[-1]:
                best = best_nodes(self.model, level, predicted.logits.detach(), shortlist, self.model.structure.beam)
                ranked = Ranked(*(tensor.cpu().numpy() for tensor in best))
        return torch.stack(losses).sum()

    def _solve_level(self, levels: range, above_train: Ranked | None, above_dev: Ranked | None) -> None:
        """Fit a level whose fusion needs no steps."""
        (level,) = levels
        structure, module = self.model.structure, self.model.level(level)
        features, margin_loss = self.train_data.store.features, self.model.loss.margin_loss
        assert features is not None
        if margin_loss is None:
            raise ConfigError(f"loss {self.config.components['loss'].id} has no margin_loss; a level is solved for one")
        targets = structure.level_targets(level, self.train_data.targets)
        siblings = structure.siblings(level)
        if level:
            examples = structure.level_targets(level - 1, self.train_data.targets)
            if above_train is not None:
                examples = examples.maximum(_ranked_nodes(above_train, examples.shape[1])).tocsr()
        else:
            examples = csr_matrix(np.ones((len(self.train_data.store), 1), np.int8))
        if len(siblings) - 1 != examples.shape[1] or siblings[-1] != targets.shape[1]:
            raise ConfigError(
                f"label structure {self.config.components['label_structure'].id} names {len(siblings) - 1} groups with "
                f"{siblings[-1]} siblings at level {level + 1}, which has {targets.shape[1]} nodes under "
                f"{examples.shape[1]}; correct its `siblings`"
            )

        def progress(text: str) -> None:
            if self.listener.stop:
                raise KeyboardInterrupt
            if text:
                self.listener.message(f"level {level + 1}/{structure.num_levels}: {text}")

        progress("")
        module.fusion.solve(features, targets, siblings, examples, margin_loss, progress)
        values = dev_metrics(
            self.model, levels, self.dev_data, self.train_data.targets, above_dev, self.settings.metric
        )
        write_tensors(self._kept(levels), weights_of(module))
        self._record({"level": level + 1, **values})

    def _record(self, record: Mapping[str, Any]) -> None:
        self.position.evaluations += 1
        with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.listener.evaluated({**record, "minutes": self._seconds() / 60})

    def _kept(self, levels: range) -> Path:
        """The file of the best weights of a stage."""
        return self.checkpoints / f"level-{levels[-1]}.safetensors"

    def _evaluate(self, levels: range, average: WeightAverage, above: Ranked | None, epoch: int) -> float:
        """Metrics on dev; keep the weights when they are the best so far."""
        position, settings = self.position, self.settings
        average.swap()
        values = dev_metrics(self.model, levels, self.dev_data, self.train_data.targets, above, settings.metric)
        if values[settings.metric] > position.best:
            position.best, position.worse = values[settings.metric], 0
            write_tensors(self._kept(levels), weights_of(self.model.stage(levels)))
        else:
            position.worse += 1
            position.finished = settings.patience is not None and position.worse >= settings.patience
        average.swap()
        loss = round(position.loss_sum / position.loss_steps, 6)
        position.loss_sum, position.loss_steps = 0.0, 0
        self._record({"level": levels[-1] + 1, "epoch": epoch, "step": position.step, "loss": loss, **values})
        return values[settings.metric]

    def _rank(self, levels: range, split: Split, above: Ranked | None) -> Ranked:
        """The best nodes of a finished stage, from which the next takes its candidates; kept for a resumed run."""
        level = levels[-1]
        name = "train" if split is self.train_data else "dev"
        path = self.checkpoints / f"ranked-{level}-{name}.safetensors"
        if path.exists():
            tensors, _ = read_tensors(path)
            return Ranked(tensors["nodes"].numpy(), tensors["scores"].numpy())
        self.listener.message(
            f"ranking the {self.model.structure.level_size(level)} nodes of level {level + 1} on {name}"
        )
        training = split is self.train_data
        ranked = rank_stage(self.model, levels, split.store, above, self.model.structure.beam, training)
        write_tensors(path, {"nodes": torch.from_numpy(ranked.nodes), "scores": torch.from_numpy(ranked.scores)})
        return ranked

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def _with_loss(self, module: torch.nn.Module) -> torch.nn.Module:
        """A stage and the loss: all that steps change. The kept weights are those of the stage alone."""
        return torch.nn.ModuleDict({"stage": module, "loss": self.model.loss})

    def _checkpoint(self, module: torch.nn.Module, optimizer: Optimizer, average: WeightAverage) -> None:
        self.position.averaged, self.position.seconds = average.count, self._seconds()
        tensors = {f"model.{name}": value for name, value in weights_of(module).items()}
        tensors |= {f"average.{name}": value for name, value in average.mean.items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer.state().items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        write_tensors(self.checkpoints / "last.safetensors", tensors, asdict(self.position))

    def _checkpoint_between(self, level: int) -> None:
        """Mark that the levels above `level` are done; the next one begins from its own initial weights."""
        self.position = Position(level=level, evaluations=self.position.evaluations, seconds=self._seconds())
        write_tensors(self.checkpoints / "last.safetensors", {}, asdict(self.position))

    def _read_checkpoint(self, module: torch.nn.Module, optimizer: Optimizer, average: WeightAverage) -> None:
        path = self.checkpoints / "last.safetensors"
        tensors, _ = read_tensors(path)

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        load_weights(module, part("model."), path)
        optimizer.load_state(part("optimizer."))
        average.mean, average.count = (
            {name: v.to(device()) for name, v in part("average.").items()},
            self.position.averaged,
        )
        torch.set_rng_state(tensors["rng.cpu"])
        if torch.cuda.is_available() and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"])

    def _read_finished_levels(self) -> None:
        """Bring a restored model to where the checkpoint stands, and drop what was recorded after it."""
        tensors, note = read_tensors(self.checkpoints / "last.safetensors")
        self.position = Position(**note)
        for levels in self.model.stages:
            if levels[0] < self.position.level:
                if levels[0]:
                    self.model.add_level()
                load_weights(self.model.stage(levels), read_tensors(self._kept(levels))[0], self._kept(levels))
        if self.position.level == 0 and self.position.step == 0:
            weights = {name.removeprefix("model."): v for name, v in tensors.items() if name.startswith("model.")}
            first = self._with_loss(self.model.stage(self.model.stages[0]))
            load_weights(first, weights, self.checkpoints / "last.safetensors")
        metrics = self.out / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
        with whole_file(metrics) as scratch:
            scratch.write_text("".join(lines[: self.position.evaluations]), encoding="utf-8")

    def _best_record(self, level: int) -> dict[str, float]:
        """The evaluation whose weights were kept at `level`, which counts from 1."""
        path = self.out / "metrics.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            records: list[dict[str, float]] = [record for record in map(json.loads, lines) if record["level"] == level]
            return max(records, key=lambda record: record[self.settings.metric])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged ({error}); restore it from a copy, or train again") from error


def _ranked_nodes(ranked: Ranked, nodes: int) -> csr_matrix:
    """(N, nodes) int8: 1 where a node is ranked for a text."""
    rows, columns = np.nonzero(ranked.nodes >= 0)
    shape = (len(ranked.nodes), nodes)
    return csr_matrix((np.ones(len(rows), np.int8), (rows, ranked.nodes[rows, columns])), shape=shape)


def candidates_for_training(above: Ranked, parents: csr_matrix) -> tuple[Tensor, Tensor]:
    """The nodes whose children are a text's candidates: all true ones, then the best predicted, up to the beam.

    above: the beam's worth of nodes predicted for each text. parents: (B, nodes) CSR, the true ones. Returns nodes
    (B,b) int64, -1 = none, and their predicted probabilities (B,b), 1 for a true one (AttentionXML section 2.3, 2).
    """
    rows = []
    for predicted, probabilities, begin, end in zip(above.nodes, above.scores, parents.indptr, parents.indptr[1:]):
        true = parents.indices[begin:end]
        other = (predicted >= 0) & ~np.isin(predicted, true)
        room = max(0, len(predicted) - len(true))
        rows.append(
            (
                np.concatenate([true, predicted[other][:room]]),
                np.concatenate([np.ones(len(true), np.float32), probabilities[other][:room]]),
            )
        )
    width = max(1, max(len(nodes) for nodes, _ in rows))
    nodes, scores = np.full((len(rows), width), -1, np.int64), np.zeros((len(rows), width), np.float32)
    for row, (found, probability) in enumerate(rows):
        nodes[row, : len(found)], scores[row, : len(found)] = found, probability
    return torch.from_numpy(nodes), torch.from_numpy(scores)


def dev_metrics(
    model: Model, levels: range, dev: Split, train_labels: csr_matrix, above: Ranked | None, metric: str
) -> dict[str, float]:
    """Ranking metrics of a stage's last level: of its nodes, or at the last of all of the labels themselves."""
    level = levels[-1]
    name, _, k = metric.partition("@")
    ks = tuple(sorted({1, 3, 5, int(k)}))
    ranked = rank_stage(model, levels, dev.store, above, max(ks))
    if level == model.structure.num_levels - 1:
        top, truth = node_labels(model, ranked.nodes), dev.targets
        counts = np.zeros(truth.shape[1], np.int64)
        counts[: len(model.task.labels)] = model.task.labels.counts
    else:
        top = ranked.nodes
        truth = model.structure.level_targets(level, dev.targets[:, : model.task.num_labels].tocsr())
        counts = np.asarray(model.structure.level_targets(level, train_labels).sum(axis=0)).ravel()
    weights = inverse_propensity(counts, model.task.labels.num_documents) if name.startswith("PS") else None
    values = ranking_metrics(top, truth.indptr, truth.indices, weights, ks)
    return {key: round(value, 6) for key, value in values.items()}
