"""The CUDA kernels compile and link for every kind of GPU, where nvcc is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


@needs_nvcc
def test_the_cuda_module_builds_without_warnings_and_spills() -> None:
    # Both are errors of the build. Only what changed is compiled again.
    folder = ROOT / "build" / "cuda"
    command = [
        sys.executable,
        "setup.py",
        "build",
        "--build-lib",
        str(folder / "lib"),
        "--build-temp",
        str(folder / "temp"),
    ]
    built = subprocess.run(command, cwd=ROOT, env=os.environ | {"XMPLUG_BUILD": "cuda"}, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-5000:] + built.stderr[-5000:]
    assert "wgmma.mma_async instructions are serialized" not in built.stdout  # a remark, not a warning
    # Nothing of CUDA has to be there for it to load: the runtime is linked in.
    loads = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('_cuda', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.__doc__, module.has_wgmma)"
    )
    (module,) = (folder / "lib" / "xmplug").glob("_cuda.*")
    loaded = subprocess.run([sys.executable, "-c", loads, str(module)], capture_output=True, text=True)
    assert "Native CUDA kernels" in loaded.stdout and "True" in loaded.stdout, loaded.stderr


@needs_nvcc
@pytest.mark.parametrize("name", ["label_attention", "label_attention_backward"])
def test_attention_reads_no_local_memory(name: str, tmp_path: Path) -> None:
    # It has no arrays there. nvcc 13.0 took a pointer in an object that lambdas captured for one to local memory, and
    # read the tokens' places from there, without a warning.
    out = tmp_path / "kernels.ptx"
    command = [str(NVCC), "-O3", "-std=c++17", "-arch=compute_90a", "-ptx", f"csrc/cuda/{name}.cu", "-o", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert ".local" not in out.read_text()
