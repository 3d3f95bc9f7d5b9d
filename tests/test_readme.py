"""README's plugins, the single file and the package, do what README says."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xmplug.data import synthetic_dataset

README = Path(__file__).parent.parent / "README.md"


def _plugin() -> str:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "hookimpl" in block]
    return code


def test_the_plugin_is_focal_loss(tmp_path: Path) -> None:
    """With gamma = 0 focal loss is binary cross-entropy; with gamma = 2 it follows Lin et al. 2017, equation 4."""
    from xmplug.components.bce import BCE
    from xmplug.interfaces import Scores, Shortlist, Targets

    space: dict[str, object] = {}
    exec(_plugin(), space)
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.3, 1.0, -3.0]])
    shortlist = Shortlist(torch.tensor([[4, 1, 2], [0, 3, -1]]))
    targets = Targets(torch.tensor([0, 2, 3]), torch.tensor([1, 4, 3]))
    arguments = Scores(logits), shortlist, targets
    focal = space["Focal"]
    assert len(_plugin().splitlines()) < 40
    torch.testing.assert_close(focal(0.0)(*arguments), BCE()(*arguments))  # type: ignore[operator]
    chance = [[0.88079708, 0.26894142, 1 - 0.62245933], [1 - 0.57444252, 0.73105858]]
    expected = sum(-((1 - p) ** 2) * torch.tensor(p).log() for row in chance for p in row) / 2
    torch.testing.assert_close(focal(2.0)(*arguments), expected)  # type: ignore[operator]


def test_the_plugin_trains_and_its_run_names_it(tmp_path: Path) -> None:
    (tmp_path / "focal.py").write_text(_plugin())
    synthetic_dataset(200, 10, folder=tmp_path / "corpus")

    def xmplug(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "xmplug.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    quick = ["--encoder.vectors", "random", "--encoder.hidden", "8", "--training.epochs", "1"]
    trained = xmplug(
        *[
            "train",
            "--plugin",
            "attentionxml",
            "--plugin-file",
            "focal.py",
            "--loss",
            "focal:focal",
            "--data",
            "corpus",
            "--out",
            "run",
        ],
        *quick,
    )
    assert trained.returncode == 0, trained.stderr
    (tmp_path / "texts").write_text("word1x1 word1x2\n")
    alone = xmplug("predict", "run", "--input", "texts")
    assert alone.returncode != 0 and "needs plugin 'focal'" in alone.stderr and "focal.py" in alone.stderr
    assert xmplug("predict", "run", "--input", "texts", "--plugin-file", "focal.py").returncode == 0


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("pip", "setuptools"))), reason="a wheel needs pip and setuptools"
)
def test_a_new_package_installs_passes_its_checks_and_trains(tmp_path: Path) -> None:
    """README's commands as they stand, but for smaller models, and pip: into a folder, and without network."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", README.read_text(), re.S | re.M)
    (block,) = [block for block in blocks if "plugins new" in block]
    commands = [line.partition("#")[0].split() for line in block.splitlines()]
    assert [command[:3] for command in commands if command[1] == "plugins"] == [
        ["xmplug", "plugins", part] for part in ("new", "show", "check")
    ]
    synthetic_dataset(200, 10, folder=tmp_path / "mycorpus")
    site = tmp_path / "site"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    alone = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--target", str(site)]
    small = {"check": ["--training.epochs", "8", "--training.learning_rate", "0.02"]}
    small["train"] = ["--encoder.vectors", "random", "--training.epochs", "1"]

    def call(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    outputs = {}
    for program, *arguments in commands:
        if program == "pip":
            assert arguments[:2] == ["install", "--editable"]
            done = call("pip", "install", *alone, *(f"./{folder}" for folder in arguments[2:]))
            assert done.returncode == 0, done.stdout + done.stderr
            continue
        part = arguments[1] if arguments[0] == "plugins" else arguments[0]
        done = call("xmplug.cli", *arguments, *small.get(part, []))
        assert done.returncode == 0, done.stdout + done.stderr
        outputs[part] = done.stdout
    assert "mymethod  (xmplug-mymethod 0.1.0)  ok" in call("xmplug.cli", "plugins").stdout
    assert "fusion           mymethod:mean_classifier" in outputs["show"]
    assert "import-without-torch     ok" in outputs["check"] and "failed" not in outputs["check"]
    assert (tmp_path / "runs" / "mymethod" / "xmplug.json").is_file()
