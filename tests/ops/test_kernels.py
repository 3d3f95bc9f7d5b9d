from __future__ import annotations

import os
import subprocess
import sys

import pytest

from xmplug import ops
from xmplug.errors import KernelError

WITHOUT_NATIVE = """
import sys
sys.modules["xmplug._cpu"] = None  # as if it had not been built
import numpy as np, torch
from scipy import sparse
from xmplug import ops
print(ops.kernels()["beam_step"])
ops.beam_step(torch.zeros(2, 3), torch.arange(6).reshape(2, 3), torch.ones(2, 3), 2)
ops.build_label_tree(sparse.identity(9, format="csr", dtype=np.float32), 2, 2, seed=0)
print(ops.ranking_metrics(np.array([[1]]), np.array([0, 1]), np.array([1]), ks=(1,))["P@1"])
"""


def run(code: str, kernels: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"XMPLUG_KERNELS": kernels},
    )


def test_everything_works_where_nothing_was_compiled() -> None:
    result = run(WITHOUT_NATIVE, "auto")
    assert result.returncode == 0, result.stderr
    said, precision = result.stdout.splitlines()
    assert said.startswith("reference (native kernels do not load")
    assert precision == "1.0"


def test_demanding_what_is_not_there_says_what_to_do() -> None:
    result = run(WITHOUT_NATIVE, "native")
    assert result.returncode != 0
    assert "XMPLUG_BUILD=cpu" in result.stderr


def test_reference_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XMPLUG_KERNELS", "reference")
    assert ops.kernels()["beam_step"] == "reference (XMPLUG_KERNELS=reference)"
    assert ops.kernels().keys() == {
        "label_attention",
        "beam_step",
        "tree_beam_search",
        "ranking_metrics",
        "build_label_tree",
        "sparse_adam_step",
        "train_linear",
        "linear_scores",
        "linear_bce",
    }


def test_unknown_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XMPLUG_KERNELS", "fast")
    with pytest.raises(KernelError, match="auto, reference, native"):
        ops.kernels()
