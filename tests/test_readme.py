"""README's single-file plugin does what README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
