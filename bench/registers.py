"""Registers, spills and memory of each CUDA kernel, as nvcc reports them: compiles csrc/cuda for all architectures.

python bench/registers.py     # needs nvcc, no GPU; writes results/cuda-registers.md
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cuda"
ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\S+)' for 'sm_(?P<device>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    r"(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def compiler_output() -> str:
    """What nvcc prints when it compiles everything."""
    shutil.rmtree(BUILD / "temp" / "xmplug._cuda", ignore_errors=True)
    command = [
        sys.executable,
        "setup.py",
        "build",
        "--build-lib",
        str(BUILD / "lib"),
        "--build-temp",
        str(BUILD / "temp"),
    ]
    built = subprocess.run(command, cwd=ROOT, env=os.environ | {"XMPLUG_BUILD": "cuda"}, capture_output=True, text=True)
    if built.returncode:
        sys.exit(built.stdout + built.stderr)
    return built.stdout


def short(name: str) -> str:
    """A kernel's name without its namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|xmplug::cuda::|^void ", "", name)
    return name.partition("(")[0]


def main() -> None:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in ENTRY.finditer(compiler_output()):
        registers = int(entry["registers"])
        if registers < 10 and not entry["shared"]:
            continue  # empty: the kernel is not for this device
        spills = int(entry["stores"]) + int(entry["loads"]) + int(entry["stack"])
        text = entry["registers"] + (f", {int(entry['shared']):,} B" if entry["shared"] else "")
        found[entry["kernel"]][entry["device"]] = text + (f", SPILLS {spills} B" if spills else "")
    names = subprocess.run(
        ["c++filt"], input="\n".join(found), capture_output=True, text=True, check=True
    ).stdout.split("\n")
    devices = sorted({device for each in found.values() for device in each}, key=lambda each: int(each.rstrip("a")))
    version = re.search(r"release (\S+),", subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout)
    assert version is not None
    lines = [
        "# CUDA kernels: registers",
        "",
        f"`python bench/registers.py`, nvcc {version[1]}. Registers of a thread and static shared memory of a block,",
        "by compute capability; no kernel spills, which would be an error of the build. Empty: not for this device.",
        "",
        "| kernel | " + " | ".join(devices) + " |",
        "|---|" + "---|" * len(devices),
    ]
    rows = sorted((short(name), found[mangled]) for name, mangled in zip(names, found))
    lines += [f"| `{name}` | " + " | ".join(by.get(device, "") for device in devices) + " |" for name, by in rows]
    (ROOT / "bench" / "results" / "cuda-registers.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
