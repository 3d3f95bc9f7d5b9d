"""What this machine can do at most, and how much memory an operation takes: the yardsticks of the benchmarks.

python bench/machine.py     # prints the peaks as JSON
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import xmplug  # noqa: F401  what it sets for OpenMP must hold in every process that measures


@contextmanager
def threads(number: int) -> Iterator[None]:
    """PyTorch, and with it our kernels, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def medium() -> Iterator[None]:
    """`torch.set_float32_matmul_precision("medium")`: float32 products by oneDNN instead of MKL."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def peaks() -> dict[str, dict[str, float]]:
    """The most that this machine reached, by number of threads: GFLOP/s of the best matrix product in float32 (MKL or
    oneDNN, which `medium` asks for) and bfloat16, and GB/s of memory, reading alone or reading and writing."""
    size = 2048
    left, right = torch.randn(2, size, size)
    out = torch.empty(size, size)
    narrow = [each.bfloat16() for each in (left, right, out)]
    large = torch.zeros(64 << 20)  # 256 MiB, beyond the caches
    other = torch.empty_like(large)

    def by_onednn() -> None:
        with medium():
            torch.mm(left, right, out=out)

    found = {}
    for number in sorted({1, torch.get_num_threads()}):
        with threads(number):
            flops, read = 2.0 * size**3, 4.0 * large.numel()
            products = {
                "float32 MKL": _fastest(lambda: torch.mm(left, right, out=out)),
                "float32 oneDNN": _fastest(by_onednn),
                "bfloat16": _fastest(lambda: torch.mm(narrow[0], narrow[1], out=narrow[2])),
            }
            rates = {name: flops / seconds / 1e9 for name, seconds in products.items()}
            rates["memory"] = max(read / _fastest(large.sum), 2 * read / _fastest(lambda: other.copy_(large))) / 1e9
            found[str(number)] = rates | {"float32": max(rates["float32 MKL"], rates["float32 oneDNN"])}
    return found


def _fastest(call: Callable[[], object], seconds: float = 0.4) -> float:
    """The shortest time of a call, of as many as fit into `seconds`."""
    call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 3:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def peak_memory(file: str, case: str, implementation: str) -> int:
    """Bytes that a call takes beyond its inputs, its result included, measured in a process of its own.

    The file has `prepare(case, implementation)`, which makes the inputs and returns the call. After a first call and
    after giving free memory back to the system, the process sets its high-water mark (VmHWM) to what it holds now
    (write 5 to /proc/self/clear_refs), calls again, and reports by how much the mark rose.
    """
    # Blocks of 256 KiB and more come from the system and go back to it at once, so that the mark shows their use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(256 << 10)}
    command = [sys.executable, __file__, file, case, implementation]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def _growth(call: Callable[[], object]) -> int:
    import ctypes

    call()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _high_water_mark()
    result = call()
    after = _high_water_mark()
    del result
    return after - before


def _high_water_mark() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def load(file: str) -> ModuleType:
    """A file of benchmarks as a module."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def describe() -> dict[str, Any]:
    """Processor, memory and versions."""
    from importlib.metadata import PackageNotFoundError, version

    import psutil

    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info)}
    simd = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in named.get("flags", "").split()]
    versions = {}
    for package in ("xmplug", "torch", "numpy", "scipy", "scikit-learn", "libpecos", "napkinxc", "omikuji"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": f"{named.get('model name', 'unknown')} (family {named.get('cpu family')}, "
        f"model {named.get('model')}; {', '.join(simd)})",
        "cores": os.cpu_count(),
        "memory GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "python": sys.version.split()[0],
        "versions": versions,
    }


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(_growth(load(sys.argv[1]).prepare(*sys.argv[2:])))
    else:
        print(json.dumps(describe() | {"peaks": peaks()}, indent=1))
