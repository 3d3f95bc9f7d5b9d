"""plugins/README.md: its reference is complete, and its code runs."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xmplug
from xmplug import hookspecs, interfaces
from xmplug.data import synthetic_dataset
from xmplug.evaluation import evaluate_run
from xmplug.plugins import Plugins
from xmplug.recipe import SLOTS

GUIDE = (Path(__file__).parent.parent / "plugins/README.md").read_text(encoding="utf-8")


def _section(heading: str, level: int = 2) -> str:
    """What stands below a heading, up to the next one that is not below it."""
    below = rf"^{'#' * level} {re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)"
    found = re.search(below, _without_code(), re.S | re.M)
    assert found, f"plugins/README.md has no section {heading!r}"
    return GUIDE[found.start(1) : found.end(1)]


def _without_code() -> str:
    """The page with code blanked, whose comments look like headings."""
    return re.sub(r"^```\w*\n.*?^```$", lambda block: re.sub(r"[^\n]", " ", block[0]), GUIDE, flags=re.S | re.M)


def _blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.S | re.M)


def test_every_hook_has_its_heading_and_an_example() -> None:
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("xmplug_")}
    signatures = [f"{name}{inspect.signature(hook)}".replace("'", "") for name, hook in hooks.items()]
    headings = re.findall(r"^### (xmplug_.*)$", _without_code(), re.M)
    assert headings == signatures
    for name, heading in zip(hooks, headings):
        assert any(f"def {name}():" in code for _, code in _blocks(_section(heading, 3))), f"{heading} has no example"


INTERFACES = [
    interfaces.Encoder,
    interfaces.LabelStructure,
    interfaces.LabelContext,
    interfaces.Fusion,
    interfaces.Loss,
]


@pytest.mark.parametrize("interface", INTERFACES)
def test_every_method_of_an_interface_is_there(interface: type) -> None:
    section = _section(interface.__name__, 3)
    methods = {}
    for name, value in vars(interface).items():
        function = value.__func__ if isinstance(value, classmethod) else value
        if inspect.isfunction(function) and not name.startswith("_"):
            arguments = list(inspect.signature(function).parameters)[1:]
            methods[f"{name}({', '.join(arguments)})"] = getattr(function, "__isabstractmethod__", False)
    rows = [row for row in section.splitlines() if row.startswith("| `")]
    told = {call: "*needed*" in row for row in rows for call in re.findall(r"`(\w+\(.*?\))`", row.split("|")[1])}
    assert told == methods
    attributes = {name for name in interface.__annotations__ if not name.startswith("_")}
    assert attributes <= set(re.findall(r"`(\w+)`", section.partition("Attributes: ")[2]))


def test_the_examples_of_the_hooks_are_a_plugin_that_learns(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "\n\n".join(code for language, code in _blocks(_section("Hooks")) if language == "python")
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    plugin = Plugins().load(("mine.py",)).plugin("mine")
    assert [slot for slot, components in plugin.components.items() if components] == list(SLOTS)
    options = {"encoder.vectors": "random", "encoder.vector_size": 32, "training.learning_rate": 0.02}
    for preset in (None, "flat"):
        run = f"run-{preset}"
        xmplug.train("mine", corpus, run, preset=preset, options=options, plugin_files=["mine.py"])
        rows = evaluate_run(run, plugin_files=["mine.py"]).rows
        assert rows["model"]["nDCG@5"] > 2 * rows["popularity"]["nDCG@5"]


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("pip", "setuptools", "matplotlib"))),
    reason="the walk needs pip, setuptools and matplotlib",
)
def test_the_walk_through_a_paper(tmp_path: Path) -> None:
    """Its files and commands in their order; pip into a folder and without network, smaller models and data."""
    synthetic_dataset(300, 15, folder=tmp_path / "planted")
    site, programs = tmp_path / "site", tmp_path / "bin"
    programs.mkdir()
    alone = f"--no-deps --no-build-isolation --no-index --disable-pip-version-check --target {site}"
    shims = {
        "xmplug": '-m xmplug.cli "$@"',
        "python": '"$@"',
        "pip": f'-m pip "$1" {alone} "./$3"',  # install, --editable, the folder
    }
    for name, call in shims.items():
        (programs / name).write_text(f"#!/bin/sh\nexec {sys.executable} {call}\n")
        (programs / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "xmplug-asl"), str(site), *sys.path]),  # --editable
    }
    small = "--encoder.vectors random --training.epochs 8 --training.learning_rate 0.02"
    smaller = {
        "--data debtags": "--data planted",
        "plugins check asl": f"plugins check asl {small}",
        "train --plugin asl": f"train --plugin asl {small}",
        "--minutes 5 --seeds 3": f"--minutes 0.3 --seeds 1 {small}",
    }
    outputs = {}
    for language, code in _blocks(_section("Your paper as a plugin in 30 minutes")):
        if language == "json":
            (tmp_path / "mixes.json").write_text(code)
        elif language == "sh":
            for line in code.splitlines():
                command = line
                for written, quick in smaller.items():
                    command = command.replace(written, quick)
                done = subprocess.run(
                    command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
                )
                assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
                outputs[line] = done.stdout
                for leftover in (tmp_path / "xmplug-asl").glob("*.egg-info"):
                    shutil.rmtree(leftover)
        else:
            name = re.match(r"(?:# |<!-- )(\S+)", code)
            assert name, f"which file is this?\n{code[:80]}"
            assert (tmp_path / name[1]).parent.is_dir()
            (tmp_path / name[1]).write_text(code)
    (checked,) = [output for line, output in outputs.items() if "check" in line]
    assert "readme-names-the-paper   ok" in checked and "failed" not in checked
    (explained,) = [output for line, output in outputs.items() if "explain" in line]
    assert explained
    report = (tmp_path / "comparison/table.md").read_text()
    assert "| asymmetric | cross-entropy |" in report and "1 of 1" in report
