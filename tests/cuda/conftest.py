"""The CUDA kernels, compiled for the host (cuda_on_host.h), and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11
import pytest
import torch

from xmplug.ops import native

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-O2 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas"


@pytest.fixture(scope="session")
def cuda_on_host() -> ModuleType:
    """The module xmplug._cuda, for arrays in main memory. Only what changed is compiled."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = ROOT / "build" / "cuda_on_host"
    folder.mkdir(parents=True, exist_ok=True)
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    lines = [
        f"flags = {FLAGS} -DXMPLUG_MODULE=cuda_on_host -I {Path(__file__).parent} "
        + " ".join(f"-isystem {path}" for path in includes),
        "rule compile",
        f"  command = {compiler} -MMD -MF $out.d $flags -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler} -shared $in -o $out",
    ]
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    lines += [f"build {source.stem}.o: compile {source}" for source in sources]
    lines += [f"build cuda_on_host.so: link {' '.join(f'{source.stem}.o' for source in sources)}"]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    ninja = shutil.which("ninja") or str(Path(sysconfig.get_path("scripts"), "ninja"))
    built = subprocess.run([ninja, "-C", str(folder)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout
    spec = importlib.util.spec_from_file_location("cuda_on_host", folder / "cuda_on_host.so")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Host(native.Gpu):
    """A GPU that is the host: tensors on the CPU are on it."""

    def __call__(self, name: str, *arguments: Any) -> Any:
        return getattr(self.module, name)(*arguments, 0)


GPU = pytest.param("gpu", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


@pytest.fixture(params=[(7, 5), (8, 0), (9, 0), GPU], ids=str)
def on_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> native.Gpu:
    """Runs a test with the CUDA kernels: on the host, for each kind of GPU that they know, and on a GPU.

    Tensors on the `device` of what it returns go through them.
    """
    if request.param == "gpu":
        monkeypatch.setenv("XMPLUG_KERNELS", "native")
        gpu = native.gpu(torch.empty(0, device="cuda"))
        assert gpu is not None
        return gpu
    host = Host(request.getfixturevalue("cuda_on_host"), torch.device("cpu"), request.param)
    monkeypatch.setattr(native, "cpu", lambda: None)
    monkeypatch.setattr(native, "gpu", lambda tensor: host)
    return host
