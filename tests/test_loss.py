"""Parameters of a loss are trained with the model, and the saved run does without them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import xmplug
from xmplug.api import resume
from xmplug.training import Listener, Progress

from .conftest import PLT, QUICK, TOGETHER

PLUGIN = """
import torch
from torch import nn
from xmplug import Component, ComponentConfig, hookimpl
from xmplug.components.bce import BCE
from xmplug.interfaces import Scores


class Nothing(ComponentConfig):
    pass


@hookimpl
def xmplug_losses():
    return [Component("weighed", "weighed:Weighed", Nothing, "a task weight as in Kendall et al. 2018")]


class Weighed(BCE):
    values = []  # of the parameter, one list for each loss that was built

    def __init__(self):
        super().__init__()
        self.log_variance = nn.Parameter(torch.rand(()))
        self.seen = []
        self.values.append(self.seen)

    def forward(self, scores, shortlist, targets):
        self.seen.append(float(self.log_variance.detach()))
        return super().forward(scores, shortlist, targets) * (-self.log_variance).exp() + self.log_variance
"""


class _StopAt(Listener):
    def __init__(self, level: int, step: int):
        self.at = level, step

    def step(self, progress: Progress) -> None:
        self.stop = (progress.level, progress.step) == self.at


@pytest.mark.parametrize(
    ("levels", "stops"), [({}, [(1, 1), (1, 25), (2, 30)]), (TOGETHER, [(2, 30)])], ids=["apart", "together"]
)
def test_a_loss_learns_anew_at_each_stage_and_resumes(
    levels: dict[str, Any], stops: list[tuple[int, int]], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "weighed", raising=False)
    (tmp_path / "weighed.py").write_text(PLUGIN)
    options = QUICK | PLT | levels | {"training.epochs": 2, "loss": "weighed:weighed"}
    arguments: dict[str, Any] = {"options": options, "plugin_files": ["weighed.py"]}
    xmplug.train("attentionxml", corpus, "whole", **arguments)
    values = importlib.import_module("weighed").Weighed.values
    learned = [seen for seen in values if seen]
    assert len(learned) == (1 if levels else 2)
    for seen in learned:
        assert 0 <= seen[0] < 1 and abs(seen[-1] - seen[0]) > 0.1
    if not levels:
        assert learned[0][0] != learned[1][0] != learned[0][-1]
    with safe_open("whole/model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "log_variance" in name]  # noqa: SIM118, not a dict
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            xmplug.train("attentionxml", corpus, f"run{stop}", listener=_StopAt(*stop), **arguments)
        resume(f"run{stop}", ["weighed.py"])
        assert Path(f"run{stop}/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
