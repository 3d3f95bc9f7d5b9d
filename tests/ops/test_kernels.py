from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from xmplug import ops
from xmplug.errors import KernelError
from xmplug.ops import native

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


IN_A_FORKED_PROCESS = """
import os, torch
from xmplug import ops
torch.set_num_threads(2)
logits, parents = torch.randn(512, 1024).sort(dim=1).values, torch.rand(512, 1024)  # PyTorch's threads are at work
nodes = torch.arange(1024).expand(512, 1024).contiguous()
expected = ops.beam_step(logits, nodes, parents, 20)
child = os.fork()
if child == 0:
    found = ops.beam_step(logits, nodes, parents, 20)
    os._exit(not all(a.tolist() == b.tolist() for a, b in zip(expected, found)))
assert os.waitpid(child, 0)[1] == 0
"""


def run(code: str, kernels: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"XMPLUG_KERNELS": kernels},
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_threads_are_there_in_a_forked_process() -> None:
    result = run(IN_A_FORKED_PROCESS, "auto")
    assert result.returncode == 0, result.stderr


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


class OnGpu:
    """As much of a tensor on a GPU as the choice of kernels looks at."""

    device = torch.device("cuda", 0)


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that is older than the CUDA kernels know, and a CUDA module that loads."""
    monkeypatch.setenv("XMPLUG_KERNELS", "auto")
    monkeypatch.setattr(native, "_load", lambda name: ModuleType(name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    native._gpu.cache_clear()
    yield
    native._gpu.cache_clear()


@pytest.mark.usefixtures("old_gpu")
def test_the_reference_takes_over_on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.gpu(OnGpu()) is None
    monkeypatch.setenv("XMPLUG_KERNELS", "native")
    with pytest.raises(KernelError, match=r"Tesla V100 has compute capability 7\.0, .* need 7\.5; take a newer GPU"):
        native.gpu(OnGpu())


def test_without_cuda_kernels_the_reference_runs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XMPLUG_KERNELS", "auto")
    monkeypatch.setattr(native, "_load", lambda name: ImportError(f"No module named 'xmplug.{name}'"))
    native._gpu.cache_clear()
    assert native.gpu(OnGpu()) is None
    monkeypatch.setenv("XMPLUG_KERNELS", "native")
    with pytest.raises(KernelError, match="XMPLUG_BUILD=cuda"):
        native.gpu(OnGpu())
    native._gpu.cache_clear()
