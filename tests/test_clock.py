"""`training.minutes`: the clock ends a training, and everything else still holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import xmplug
from xmplug.api import resume
from xmplug.evaluation import evaluate_run
from xmplug.model import Model
from xmplug.optim import Optimizer
from xmplug.training import Listener, Progress, Trainer

from .conftest import PLT, QUICK, TOGETHER

LONG = QUICK | {"training.epochs": 1000, "training.minutes": 1, "training.evaluations": 1}


class _Clock(Listener):
    """Time stands still but for steps, which take a second each: what a training does at which time is known."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None, now: float = 0.0):
        self.now, self.stop_at, self.steps, self.rates = now, stop_at, 0, list[float]()
        self.records: list[dict[str, Any]] = []
        self.messages: list[str] = []
        monkeypatch.setattr("xmplug.training.time", SimpleNamespace(perf_counter=lambda: self.now))
        step = Optimizer.step

        def spy(optimizer: Optimizer, rate: float) -> None:
            self.rates.append(rate)
            self.now += 1
            step(optimizer, rate)

        monkeypatch.setattr(Optimizer, "step", spy)

    def step(self, progress: Progress) -> None:
        self.steps += 1
        self.stop = self.steps == self.stop_at

    def evaluated(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def message(self, text: str) -> None:
        self.messages.append(text)


def _lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_ends_with_an_evaluation_and_the_best_weights(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock(monkeypatch)
    xmplug.train("attentionxml", corpus, tmp_path / "run", options=LONG, listener=clock)
    assert clock.steps == 60
    assert [record["step"] for record in clock.records] == [25, 50, 60]
    assert [record["minutes"] for record in clock.records] == pytest.approx([25 / 60, 50 / 60, 1])
    lines = _lines(tmp_path / "run")
    assert [record.pop("minutes") for record in clock.records] and clock.records == lines  # files hold no times
    best = max(line["nDCG@5"] for line in lines)
    assert evaluate_run(tmp_path / "run", split="dev").rows["model"]["nDCG@5"] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("stop_at", [20, 50, 60])
def test_a_resumed_training_has_what_is_left(
    stop_at: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("attentionxml", corpus, tmp_path / "run", options=LONG, listener=_Clock(monkeypatch, stop_at))
    monkeypatch.undo()
    clock = _Clock(monkeypatch, now=5000)
    resume(tmp_path / "run", listener=clock)
    assert clock.steps == 60 - stop_at
    assert [line["step"] for line in _lines(tmp_path / "run")] == [25, 50, 60]
    assert [record["minutes"] for record in clock.records] == pytest.approx(
        [step / 60 for step in (25, 50, 60) if step > stop_at]
    )


def test_the_linear_schedule_and_the_average_follow_the_clock(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[int] = []
    monkeypatch.setattr("xmplug.training.WeightAverage.add", lambda self: added.append(clock.steps + 1))
    clock = _Clock(monkeypatch)
    options = LONG | {"training.schedule": "linear", "training.warmup": 0.1, "training.swa_start": 0.5}
    xmplug.train("attentionxml", corpus, tmp_path / "run", options=options, listener=clock)
    top = clock.rates.index(max(clock.rates))
    assert top == pytest.approx(6, abs=1) and max(clock.rates) == pytest.approx(0.02, rel=0.05)
    assert all(later > earlier for earlier, later in pairwise(clock.rates[:top]))
    assert all(later < earlier for earlier, later in pairwise(clock.rates[top:]))
    assert 0 < clock.rates[-1] < 0.02 * 0.05
    assert added == [40, 50, 60]


def test_a_training_shorter_than_its_minutes_is_as_without(corpus: Path, tmp_path: Path) -> None:
    for name, minutes in (("with", 1000), ("without", "none")):
        options = QUICK | {"training.epochs": 2, "training.minutes": minutes}
        xmplug.train("attentionxml", corpus, tmp_path / name, options=options)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without"))
    assert first == second and _lines(tmp_path / "with") == _lines(tmp_path / "without")


@pytest.mark.parametrize(("together", "steps"), [(False, [20, 40]), (True, [60])], ids=["apart", "together"])
def test_levels_share_the_minutes_by_their_epochs(
    together: bool, steps: list[int], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock(monkeypatch)
    options = LONG | PLT | {"training.epochs": "500,1000"} | (TOGETHER if together else {})
    xmplug.train("attentionxml", corpus, tmp_path / "run", options=options, listener=clock)
    lines = _lines(tmp_path / "run")
    assert [max(line["step"] for line in lines if line["level"] == level) for level in {L["level"] for L in lines}] == (
        steps
    )
    xmplug.load(tmp_path / "run").predict(["word1x1"])


def test_minutes_that_fitting_uses_up_are_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock(monkeypatch)
    fit = Model.fit

    def slow(*arguments: Any) -> Model:
        clock.now += 90
        return fit(*arguments)

    monkeypatch.setattr(Model, "fit", slow)
    with pytest.raises(xmplug.ConfigError, match=r"fitting took 1\.5 minutes, and training\.minutes is 1, .*give more"):
        xmplug.train("attentionxml", corpus, tmp_path / "run", options=LONG, listener=clock)
    assert not (tmp_path / "run").exists()


def test_a_level_without_time_makes_one_step(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)
    rank = Trainer._rank

    def slow(*arguments: Any) -> Any:
        clock.now += 30
        return rank(*arguments)

    monkeypatch.setattr(Trainer, "_rank", slow)
    xmplug.train("attentionxml", corpus, tmp_path / "run", options=LONG | PLT, listener=clock)
    assert [line["step"] for line in _lines(tmp_path / "run") if line["level"] == 2] == [1]
    assert "the 1 training.minutes were over before level 2 began: it makes one step" in clock.messages


def test_what_is_solved_takes_its_time(corpus: Path, tmp_path: Path) -> None:
    xmplug.train("linear", corpus, tmp_path / "run", options={"training.minutes": 1e-6})
    assert evaluate_run(tmp_path / "run").rows["model"]["P@1"] > 0.8
