"""The CUDA kernels beside PyTorch's forms, on this machine's GPU; gpu_check.sh builds and checks them first.

python bench/gpu.py [OUT.md]      # times them and writes the table: results/gpu.md
python bench/gpu.py --once        # runs each once on small shapes, for compute-sanitizer
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_clock import copy_rate, product_rate

import xmplug

PARTS = ("gpu_label_attention", "gpu_search", "gpu_linear_bce")
COLUMNS = ("operation", "shape", "dtype", "peer", "peer_ms", "ours_ms", "ratio", "note")


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in rows:
        cells = (row.get(column, "") for column in COLUMNS)
        lines.append(
            "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"
        )
    return "\n".join(lines)


def header() -> str:
    device = torch.cuda.get_device_properties(0)
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
        commit = git.stdout.strip() or "unknown"
    except FileNotFoundError:
        commit = "unknown"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, xmplug {xmplug.__version__}"
    return f"""# CUDA kernels: `bench/gpu_check.sh`

{device.name}, {device.total_memory / 2**30:.0f} GiB, compute capability {device.major}.{device.minor}; {versions},
commit {commit}; {time.strftime("%Y-%m-%d")}.
A bfloat16 product of 8192 x 8192 matrices runs at {product_rate() / 1e12:.0f} TFLOP/s, a copy at
{copy_rate() / 1e12:.2f} TB/s. Milliseconds: medians of calls of ours and of the peer in turn.
"""


def once() -> None:
    """Every kernel, on shapes with more than one tile and ragged ends."""
    for part in PARTS:
        importlib.import_module(part).once()
    torch.cuda.synchronize()


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("bench/gpu.py measures a GPU, and PyTorch sees none")
    if sys.argv[1:] == ["--once"]:
        return once()
    out = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "results" / "gpu.md"
    top, rows = header(), []
    for part in PARTS:
        rows += importlib.import_module(part).rows()
        out.write_text(f"{top}\n{table(rows)}\n", encoding="utf-8")  # what is measured stays, whatever comes
    print(out.read_text(encoding="utf-8"))
    return None


if __name__ == "__main__":
    main()
