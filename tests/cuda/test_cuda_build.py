"""The CUDA kernels compile and link for every kind of GPU, where nvcc is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    shutil.which("nvcc") is None and not Path("/usr/local/cuda/bin/nvcc").exists(), reason="nvcc is not installed"
)
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
