"""Levels trained together: one encoder, one encoding of each text, candidates by the present scores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import softplus

import xmplug
from xmplug.components.bce import BCE
from xmplug.config import resolve
from xmplug.data import load_dataset
from xmplug.data.batches import make_batch
from xmplug.evaluation import evaluate_run
from xmplug.inference import Tagger
from xmplug.interfaces import Scores, Shortlist, Targets
from xmplug.plugins import Plugins
from xmplug.training import Listener, Trainer

from .conftest import PLT, QUICK, TOGETHER

TEXTS = [f"word{at % 30}x0 word{at % 30}x1 noise{at % 7}" for at in range(40)]


def _trainer(corpus: Path, out: Path, options: dict[str, Any], listener: Listener | None = None) -> Trainer:
    plugins = Plugins().load()
    config = resolve(plugins, "attentionxml", overrides=options.items())
    return Trainer(config, plugins, load_dataset(corpus), out, {}, False, listener or Listener())


@contextmanager
def _encodings(tagger: Tagger) -> Iterator[list[int]]:
    """The number of texts in each call of an encoder."""
    seen: list[int] = []
    encoders = {level.encoder for level in tagger.models[0].levels}  # type: ignore[union-attr]
    hooks = [
        encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0].index)))  # type: ignore[union-attr]
        for encoder in encoders
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def test_it_learns_as_well_as_apart_in_as_many_passes(run: Path, corpus: Path, tmp_path: Path) -> None:
    """Apart, each of two levels takes the ten passes of QUICK."""
    xmplug.train("attentionxml", corpus, tmp_path / "run", options=QUICK | PLT | TOGETHER | {"training.epochs": 20})
    apart, joint = (evaluate_run(folder).rows["model"]["nDCG@5"] for folder in (run, tmp_path / "run"))
    assert joint > apart - 0.02


def test_the_encoder_is_kept_once(run: Path, together: Path) -> None:
    model = xmplug.load(together).models[0]
    assert model.level(0).encoder is model.level(1).encoder
    apart, joint = (load_file(folder / "model.safetensors") for folder in (run, together))
    encoder = model.level(0).encoder.state_dict()
    assert apart.keys() - joint.keys() == {f"1.encoder.{name}" for name in encoder}
    assert sum(value.numel() for value in joint.values()) == sum(value.numel() for value in model.parameters())


def test_a_text_is_encoded_once(run: Path, together: Path) -> None:
    for folder, levels in ((run, 2), (together, 1)):
        tagger = xmplug.load(folder)
        with _encodings(tagger) as seen:
            tagger.predict(TEXTS)
        assert sorted(seen, reverse=True) == [size for size in (16, 16, 8) for _ in range(levels)]


def test_a_loaded_run_predicts_explains_and_gives_vectors_as_the_trained_one(corpus: Path, tmp_path: Path) -> None:
    """Three levels, with all that training can do."""
    options = QUICK | PLT | TOGETHER | {"label_structure.branching": 2, "label_structure.height": 2}
    options |= {"training.epochs": 3, "training.evaluations": 2, "training.patience": 3}
    options |= {"training.swa_start": 0.1, "training.swa_every": 3, "training.precision": "bfloat16"}
    trainer = _trainer(corpus, tmp_path / "run", options)
    trainer.run()
    trained, loaded = Tagger(trainer.model.eval()), xmplug.load(tmp_path / "run")
    assert len(loaded.models[0].levels) == 3
    assert loaded.predict(TEXTS) == trained.predict(TEXTS)
    assert loaded.explain(TEXTS[0]) == trained.explain(TEXTS[0])
    assert (loaded.text_vectors(TEXTS) == trained.text_vectors(TEXTS)).all()


def test_a_step_sums_the_losses_of_all_levels_over_candidates_of_the_present_scores(
    corpus: Path, tmp_path: Path
) -> None:
    """Against each level's loss on its own, its candidates and its sum written out."""
    trainer = _trainer(corpus, tmp_path / "run", QUICK | PLT | TOGETHER)
    model, (levels,), places = trainer.model.eval(), trainer.model.stages, torch.arange(20).numpy()
    structure, encoder = model.structure, model.level(0).encoder
    targets = {level: structure.level_targets(level, trainer.train_data.targets) for level in levels}
    trainer._loss(levels, targets, None, places).backward()
    batch, siblings = make_batch(trainer.train_data.store, places), structure.siblings(1)

    def alone(level: int, row: int, nodes: list[int]) -> torch.Tensor:
        encoded = encoder(make_batch(trainer.train_data.store, places[row : row + 1]))
        logits = model.level(level).fusion(encoded, Shortlist(torch.tensor([nodes]))).logits[0]
        true = targets[level][row].toarray()[0, nodes]
        return (softplus(logits) - torch.from_numpy(true) * logits).sum() / len(places)

    expected = []
    tops = model.level(0).fusion(encoder(batch), Shortlist()).logits.argsort(dim=1, descending=True).tolist()
    for row, top in enumerate(tops):
        true = targets[0][row].indices.tolist()
        chosen = true + [node for node in top[: structure.beam] if node not in true][: structure.beam - len(true)]
        leaves = [leaf for node in chosen for leaf in range(siblings[node], siblings[node + 1])]
        expected += [alone(0, row, list(range(structure.level_size(0)))), alone(1, row, leaves)]
    gradients = torch.autograd.grad(torch.stack(expected).sum(), list(model.levels.parameters()))
    for parameter, gradient in zip(model.levels.parameters(), gradients):
        torch.testing.assert_close(parameter.grad.to_dense(), gradient.to_dense(), rtol=1e-4, atol=1e-6)


def test_every_true_node_is_a_candidate(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []
    forward = BCE.forward

    def spy(self: BCE, scores: Scores, shortlist: Shortlist, targets: Targets) -> torch.Tensor:
        complete = len(targets.positions(shortlist)[0]) == len(targets.indices)
        seen.append((shortlist.nodes is not None, complete))
        return forward(self, scores, shortlist, targets)

    monkeypatch.setattr(BCE, "forward", spy)
    options = QUICK | PLT | TOGETHER | {"training.epochs": 1, "label_structure.beam": 1}
    xmplug.train("attentionxml", corpus, tmp_path / "run", options=options)
    assert set(seen) == {(False, True), (True, True)}


def test_one_level_is_the_same_apart_and_together(corpus: Path, tmp_path: Path) -> None:
    for name, options in (("apart", {}), ("together", TOGETHER)):
        xmplug.train("attentionxml", corpus, tmp_path / name, options=QUICK | options | {"training.epochs": 1})
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("apart", "together"))
    assert first == second


class _Messages(Listener):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def test_the_shared_encoder_is_counted_once_before_training(corpus: Path, tmp_path: Path) -> None:
    for name, options, steps in (("apart", {}, "250 + 250 steps"), ("together", TOGETHER, "250 steps")):
        listener = _Messages()
        model = _trainer(corpus, tmp_path / name, QUICK | PLT | options, listener).model
        while len(model.levels) < 2:
            model.add_level()
        (found,) = [text for text in listener.texts if "parameters" in text]
        (count,) = re.findall(r"([\d,]+) parameters", found)
        assert int(count.replace(",", "")) == sum(parameter.numel() for parameter in model.parameters())
        assert steps in found


def test_levels_that_are_solved_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(xmplug.ConfigError, match=r"training\.levels apart"):
        xmplug.train("linear", corpus, tmp_path / "run", options=TOGETHER)
    assert not (tmp_path / "run").exists()
