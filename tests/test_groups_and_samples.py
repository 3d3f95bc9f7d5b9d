"""What informs a label's score, and which candidates a loss looks at: groups and samples, at each level of a tree."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import xmplug
from xmplug.api import resume
from xmplug.data import load_dataset
from xmplug.plugins import Plugins
from xmplug.saving import load_run
from xmplug.training import Listener, Progress

from .conftest import PLT, QUICK, TOGETHER

PLUGIN = """
import numpy as np
import torch
from xmplug import Component, ComponentConfig, hookimpl
from xmplug.components.bce import BCE
from xmplug.interfaces import LabelContext, Shortlist
from xmplug_attentionxml import LabelAttentionConfig
from xmplug_attentionxml.attention import LabelAttention


class Nothing(ComponentConfig):
    pass


@hookimpl
def xmplug_label_contexts():
    return [Component("common", "grouped:Common", Nothing, "the commonest nodes", gives=("label groups",), takes={})]


@hookimpl
def xmplug_fusions():
    takes = {"encoder": ("states",), "label_context": ("label groups",)}
    return [Component("grouped", "grouped:Grouped", LabelAttentionConfig, "sees its groups", takes=takes)]


@hookimpl
def xmplug_losses():
    return [Component("sampled", "grouped:Sampled", Nothing, "the true ones and the first other", gives=())]


class Common(LabelContext):
    fitted = []  # levels

    def __init__(self):
        self.groups = {}

    @classmethod
    def fit(cls, config, corpus, encoder):
        return cls()

    @classmethod
    def restore(cls, config, folder, task, encoder):
        context = cls()
        with np.load(folder / "groups.npz") as arrays:
            context.groups = {int(level): arrays[level] for level in arrays}
        return context

    def save(self, folder):
        np.savez(folder / "groups.npz", **{str(level): groups for level, groups in self.groups.items()})

    def fit_level(self, level, targets):
        self.fitted.append(level)
        counts = np.asarray(targets.sum(axis=0)).ravel()
        best = np.argsort(-counts, kind="stable")[:2]
        self.groups[level] = np.where(best == np.arange(len(counts))[:, None], -1, best)

    def label_groups(self, level):
        return torch.from_numpy(self.groups[level])


class Grouped(LabelAttention):
    seen = {}  # by number of nodes

    def forward(self, encoded, shortlist, labels=None):
        self.seen.setdefault(self.queries.num_embeddings, []).append(self.label_groups)
        return super().forward(encoded, shortlist, labels)


class Sampled(BCE):
    asked = []  # (nodes of the level, shortlist before, shortlist after)
    given = []  # shortlists that were scored in training

    def sample(self, shortlist, targets, num_nodes):
        rows, columns = targets.positions(shortlist)
        nodes = shortlist.nodes
        if nodes is None:
            nodes = torch.arange(num_nodes).expand(len(targets.indptr) - 1, -1)
        other = nodes >= 0
        other[rows, columns] = False
        kept = other & (other.cumsum(dim=1) == 1)
        kept[rows, columns] = True
        chosen = Shortlist(nodes.masked_fill(~kept, -1), shortlist.prior)
        self.asked.append((num_nodes, shortlist, chosen))
        return chosen

    def forward(self, scores, shortlist, targets):
        self.given.append(shortlist)
        return super().forward(scores, shortlist, targets)
"""


class _Steps(Listener):
    """Counts the steps of each level, keeps what is said, and stops where it is told to."""

    def __init__(self, level: int = 0, step: int = 0):
        self.at = level, step
        self.made: dict[int, int] = {}
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def step(self, progress: Progress) -> None:
        self.made[progress.level] = progress.step
        self.stop = (progress.level, progress.step) == self.at


@pytest.fixture
def grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin above, in the present folder, which has recorded nothing yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "grouped", raising=False)
    (tmp_path / "grouped.py").write_text(PLUGIN)
    Plugins().load(("grouped.py",))
    return importlib.import_module("grouped")


def _train(corpus: Path, out: str, options: dict[str, Any], listener: Listener | None = None) -> None:
    options = QUICK | {"training.epochs": 2} | options
    xmplug.train("attentionxml", corpus, out, options=options, plugin_files=["grouped.py"], listener=listener)


@pytest.mark.parametrize("levels", [{}, TOGETHER], ids=["apart", "together"])
def test_the_fusion_of_each_level_has_its_groups_and_a_restored_run_the_same(
    levels: dict[str, Any], corpus: Path, grouped: ModuleType
) -> None:
    chosen = PLT | levels | {"label_context": "grouped:common", "fusion": "grouped:grouped"}
    _train(corpus, "run", chosen)
    model = load_run("run", Plugins().load(("grouped.py",))).models[0]
    structure = model.structure
    assert structure.num_levels == 2
    assert grouped.Common.fitted == [0, 1]  # once each, and not again for a restored run

    dataset = load_dataset(corpus)
    labels = dataset.split("train").targets(dataset.labels)[:, : model.task.num_labels].tocsr()
    for level in range(structure.num_levels):
        counts = np.asarray(structure.level_targets(level, labels).sum(axis=0)).ravel()
        best = np.argsort(-counts, kind="stable")[:2]
        expected = [[-1 if other == node else int(other) for other in best] for node in range(len(counts))]
        seen = grouped.Grouped.seen[structure.level_size(level)]
        assert seen and all(groups.tolist() == expected for groups in seen)
        assert model.level(level).fusion.label_groups.tolist() == expected
    assert not [name for name in model.state_dict() if "label_groups" in name]

    stops = [(2, 5)] if levels else [(1, 5), (2, 5)]
    for stop in stops:
        out = f"stopped{stop[0]}"
        with pytest.raises(KeyboardInterrupt):
            _train(corpus, out, chosen, _Steps(*stop))
        grouped.Common.fitted.clear()
        grouped.Grouped.seen.clear()
        resume(out, ["grouped.py"])
        assert not grouped.Common.fitted
        for level in range(structure.num_levels):
            wanted = model.level(level).fusion.label_groups
            seen = grouped.Grouped.seen.get(structure.level_size(level), [])
            assert all(torch.equal(groups, wanted) for groups in seen)
        assert grouped.Grouped.seen[structure.level_size(1)]
        assert Path(out, "model.safetensors").read_bytes() == Path("run/model.safetensors").read_bytes()


def test_a_fusion_has_no_groups_where_the_context_has_none(corpus: Path, grouped: ModuleType) -> None:
    _train(corpus, "run", {})
    assert load_run("run", Plugins().load(())).models[0].level(0).fusion.label_groups is None


@pytest.mark.parametrize(
    ("structure", "sampled"),
    [({}, {1}), (PLT, {1, 2}), (PLT | TOGETHER, {2})],
    ids=["flat", "apart", "together"],
)
def test_a_loss_samples_in_training_where_the_scores_choose_no_candidates(
    structure: dict[str, Any], sampled: set[int], corpus: Path, grouped: ModuleType
) -> None:
    """At the last level of those that are trained at once, once a step. Scores above choose what comes below, and dev
    and prediction rank all candidates."""
    steps = _Steps()
    _train(corpus, "run", structure | {"loss": "grouped:sampled"}, steps)
    asked, given = grouped.Sampled.asked, grouped.Sampled.given
    tagger = load_run("run", Plugins().load(("grouped.py",)))
    model = tagger.models[0]
    sizes = {level: model.structure.level_size(level - 1) for level in range(1, model.structure.num_levels + 1)}
    assert {num_nodes for num_nodes, _, _ in asked} == {sizes[level] for level in sampled}
    for level in sampled:
        assert sum(num_nodes == sizes[level] for num_nodes, _, _ in asked) == steps.made[level]
    # What was sampled is what was scored; the levels above were scored as the structure has them.
    chosen = [after for _, _, after in asked]
    above = 0 if len(sampled) == model.structure.num_levels else steps.made[2]
    assert len(given) == len(asked) + above
    assert all(any(shortlist is after for shortlist in given) for after in chosen)
    for num_nodes, before, after in asked:
        assert after.nodes is not None
        assert int((after.nodes >= 0).sum(dim=1).max()) < num_nodes
        if before.nodes is not None:
            assert torch.equal(after.nodes[after.nodes >= 0], before.nodes[after.nodes >= 0])
    asked.clear()
    assert len(tagger.predict(["word0x1 word0x2"], k=5)[0]) == 5
    assert not asked


@pytest.mark.parametrize(
    ("fusion", "context", "left_out"),
    [
        ("attentionxml:label_attention", "grouped:common", True),
        ("attentionxml:label_attention", "core:none", False),
        ("grouped:grouped", "grouped:common", False),
    ],
)
def test_a_note_says_which_label_context_is_left_out(
    fusion: str, context: str, left_out: bool, corpus: Path, grouped: ModuleType
) -> None:
    steps = _Steps()
    _train(corpus, "run", {"fusion": fusion, "label_context": context, "training.epochs": 1}, steps)
    notes = [line for line in steps.said if "left out" in line]
    note = f"{fusion} reads no label texts or groups; label context {context} is left out"
    assert notes == ([note] if left_out else [])
    assert bool(grouped.Common.fitted) == (context == "grouped:common" and not left_out)
    assert any(Path("run/label_context").iterdir()) == bool(grouped.Common.fitted)
