"""The CUDA kernels, compiled for the host (cuda_on_host.h), and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11
import pytest
import torch

from xmplug.ops import native

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-O2 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas"
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
TILES = [Path(__file__).with_name("tile_products.cu")]


def compiled(name: str, sources: list[Path], compiler: str, link: str) -> ModuleType:
    """A Python module. Only what changed is compiled."""
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    lines = [
        f"flags = -DXMPLUG_MODULE={name} " + " ".join(f"-isystem {path}" for path in includes),
        "rule compile",
        f"  command = {compiler} -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {link} -shared $in -o $out",
    ]
    lines += [f"build {source.stem}.o: compile {source}" for source in sources]
    lines += [f"build {name}.so: link {' '.join(f'{source.stem}.o' for source in sources)}"]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    ninja = shutil.which("ninja") or str(Path(sysconfig.get_path("scripts"), "ninja"))
    built = subprocess.run([ninja, "-C", str(folder)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.so")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled_for_the_host(name: str, sources: list[Path]) -> ModuleType:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    return compiled(name, sources, f"{compiler} {FLAGS} -I {Path(__file__).parent} -x c++", compiler)


@pytest.fixture(scope="session")
def cuda_on_host() -> ModuleType:
    """The module xmplug._cuda, for arrays in main memory."""
    return compiled_for_the_host("cuda_on_host", SOURCES)


@pytest.fixture(scope="session")
def tiles_on_host() -> ModuleType:
    """Products of tiles, alone, for arrays in main memory."""
    return compiled_for_the_host("tiles_on_host", TILES)


class Host(native.Gpu):
    """A GPU that is the host: tensors on the CPU are on it."""

    def __call__(self, name: str, *arguments: Any) -> Any:
        return getattr(self.module, name)(*arguments, 0)


IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
GPU = pytest.param("gpu", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])
GPU_AS_8_0 = pytest.param(
    "gpu as 8.0", marks=[pytest.mark.cuda, pytest.mark.skipif(not IS_HOPPER, reason="no 9.0 GPU")]
)


@pytest.fixture(scope="session", params=["host", GPU])
def tile_products(request: pytest.FixtureRequest) -> tuple[ModuleType, torch.device]:
    """Products of tiles, alone, and where their arrays must be."""
    if request.param == "host":
        return request.getfixturevalue("tiles_on_host"), torch.device("cpu")
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    major, minor = torch.cuda.get_device_capability()
    target = f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")
    flags = f"-std=c++17 -Xcompiler=-fPIC -gencode=arch=compute_{target},code=sm_{target}"
    return compiled("tiles_on_gpu", TILES, f"{nvcc} {flags}", nvcc), torch.device("cuda")


@pytest.fixture(params=[(7, 5), (8, 0), (9, 0), GPU, GPU_AS_8_0], ids=str)
def on_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> native.Gpu:
    """Runs a test with the CUDA kernels: on the host, for each kind of GPU that they know, and on a GPU, where one of
    compute capability 9.0 also takes what it would for 8.0.

    Tensors on the `device` of what it returns go through them.
    """
    if request.param in ("gpu", "gpu as 8.0"):
        monkeypatch.setenv("XMPLUG_KERNELS", "native")
        gpu = native.gpu(torch.empty(0, device="cuda"))
        assert gpu is not None
        if request.param == "gpu":
            return gpu
        older = replace(gpu, capability=(8, 0))
        monkeypatch.setattr(native, "gpu", lambda tensor: older if tensor.device.type == "cuda" else None)
        return older
    host = Host(request.getfixturevalue("cuda_on_host"), torch.device("cpu"), request.param)
    monkeypatch.setattr(native, "cpu", lambda: None)
    monkeypatch.setattr(native, "gpu", lambda tensor: host)
    return host
