"""`xmplug plugins new`: what it writes works as it is, for every choice of slots."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.sparse import csr_matrix

from xmplug.cli.plugins import command
from xmplug.components import WordsConfig
from xmplug.components.words import Words
from xmplug.data import Corpus, Document, Documents, LabelSet, TokenStore
from xmplug.data.batches import make_batch
from xmplug.errors import PluginConflictError, PluginError
from xmplug.interfaces import Task
from xmplug.plugins import Plugins
from xmplug.recipe import SLOTS
from xmplug.template import write_plugin
from xmplug.template.files.xmplug_NAME import NearestLabelsConfig
from xmplug.template.files.xmplug_NAME.label_context import NearestLabels
from xmplug.testing import Suite

QUICK = {"encoder.vector_size": 16, "training.epochs": 8, "training.learning_rate": 0.02}


@pytest.mark.parametrize("slots", [*((slot,) for slot in SLOTS), SLOTS], ids=lambda slots: "+".join(slots))
def test_the_package_keeps_all_promises(
    slots: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"new_{'_'.join(slots)}"
    write_plugin(name, slots, tmp_path, Plugins().load())
    info = tmp_path / f"{name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: xmplug-{name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[xmplug1]\n{name} = xmplug_{name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    suite = Suite(name, options=QUICK)
    results = list(suite.results())
    assert [(result.check, result.message) for result in results if result.outcome == "failed"] == []
    assert {result.check: result.outcome for result in results}["readme-names-the-paper"] == "ok"
    assert list(suite.methods) == [name]
    assert [slot for slot, components in suite.plugin.components.items() if components] == list(slots)
    (recipe,) = suite.plugin.recipes
    assert [slot for slot in SLOTS if recipe.component(slot).startswith(f"{name}:")] == list(slots)


def test_every_choice_of_slots_is_clean_code(tmp_path: Path) -> None:
    plugins = Plugins().load()
    chosen = [slots for size in range(1, len(SLOTS) + 1) for slots in combinations(SLOTS, size)]
    for number, slots in enumerate(chosen):
        written = write_plugin("mine", slots, tmp_path / str(number), plugins)
        names = {path.stem for path in written}
        assert names & {*SLOTS} == {*slots} and {"pyproject", "README", "test", "test_conformance"} <= names
        for path in written:
            text = path.read_text()
            assert "NAME" not in text and "DEPENDENCIES" not in text, path
            assert not re.search(r"^(# |<!-- )(begin|end) ", text, re.M), path
            if path.suffix == ".py":
                compile(text, str(path), "exec")
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("the style of what was written is not checked: ruff is not installed")
    for arguments in (["check", "--select", "E,W,F,I,UP"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "--isolated", "--line-length", "120"]
        if arguments[0] == "check":
            ruff += ["--config", "lint.isort.known-first-party=['xmplug']"]
        done = subprocess.run([*ruff, "."], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Method", r"'My-Method' cannot name a plugin: asked are lower-case .*; try 'my_method'"),
        ("2fast", "try 'fast'"),
        ("über", "try 'ber'"),
        ("_", "begin with a letter"),
        ("a__b", "try 'a_b'"),
        ("treaderxml", r"'treaderxml' is taken: xmplug-treaderxml .*; choose another name"),
        ("core", "'core' is taken"),
    ],
)
def test_names_that_cannot_be(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=message):
        write_plugin(name, ["loss"], tmp_path / "out", Plugins().load())
    assert not (tmp_path / "out").exists()


def test_a_name_whose_module_exists_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xmplug_present.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginConflictError, match=r"'present' is taken: module xmplug_present in .*uninstall"):
        write_plugin("present", ["loss"], tmp_path / "out", Plugins().load())


def test_folders_and_slots_that_cannot_be(tmp_path: Path) -> None:
    plugins = Plugins().load()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for place in ("full", "full/file"):
        with pytest.raises(PluginError, match=r"holds something; give a new or an empty folder with --out"):
            write_plugin("mine", ["loss"], tmp_path / place, plugins)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]
    with pytest.raises(PluginError, match="no slot 'fusoin': did you mean 'fusion'"):
        write_plugin("mine", ["fusoin"], tmp_path / "new", plugins)
    with pytest.raises(PluginError, match="no slot is asked for; give --slots"):
        write_plugin("mine", [], tmp_path / "new", plugins)
    plugins.found = [plugin for plugin in plugins.found if plugin.name != "attentionxml"]
    with pytest.raises(
        PluginError, match=r"attentionxml:label_attention, .*not installed; pip install xmplug-attentionxml, or add"
    ):
        write_plugin("mine", ["loss"], tmp_path / "new", plugins)
    assert not (tmp_path / "new").exists()


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["new", "mine"])
    assert done.exit_code == 0, done.output
    assert "next: pip install --editable xmplug-mine" in done.output
    written = {str(path.relative_to("xmplug-mine")) for path in Path("xmplug-mine").rglob("*") if path.is_file()}
    assert written == {
        ".github/workflows/test.yml",
        "README.md",
        "pyproject.toml",
        "tests/test_conformance.py",
        "xmplug_mine/__init__.py",
        "xmplug_mine/fusion.py",
        "xmplug_mine/loss.py",
    }
    assert CliRunner().invoke(command, ["new", "mine", "--slots", "label-context, loss", "--out", "."]).exit_code == 1
    assert CliRunner().invoke(command, ["new", "mine", "--slots", "all", "--out", "all"]).exit_code == 0
    assert Path("all/xmplug_mine/label_context.py").exists()
    assert 'dependencies = ["xmplug>=0.1,<0.2"]' in Path("all/pyproject.toml").read_text()


def test_the_label_context_tells_no_training_text_its_own_labels() -> None:
    """Nor those of a copy; in prediction a text like these is told them."""
    texts = ["red apple tree", "apple red red tree", "red apple pie", "blue sea", ""]
    documents = [Document(str(place), text, (f"label{place}",)) for place, text in enumerate(texts)]
    labels = LabelSet.build([document.labels for document in documents])
    corpus = Corpus(Documents.of(documents), csr_matrix(np.eye(len(texts), dtype=np.int8)), Task(labels, seed=0))
    encoder = Words.fit(WordsConfig(vectors="random", vector_size=4, min_count=1), corpus)
    context = NearestLabels.fit(NearestLabelsConfig(neighbours=2), corpus, encoder)
    store = TokenStore.of_texts(encoder.tokenizer, texts, 10)

    def told(place: int, training: bool) -> list[int]:
        found = context.label_texts(make_batch(store, np.array([place]), training))
        return [] if found is None else sorted(found.texts.index[found.members[found.members >= 0]].tolist())

    assert [told(place, training=True) for place in range(len(texts))] == [[2], [2], [0, 1], [], []]
    assert [told(place, training=False) for place in range(len(texts))] == [[0, 1], [0, 1], [0, 2], [3], []]
