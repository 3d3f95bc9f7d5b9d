"""Writes the table and the plot of a run of the benchmarks.

python bench/report.py RESULTS.json OUT      # OUT.md and OUT.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HEAD = "operation | shape | type | threads | peer | peer's time | ours | ratio | ours: work | of peak | memory | ours"


def main() -> None:
    record = json.loads(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    rows = [row for benchmark in record["benchmarks"] if (row := row_of(benchmark, record["machine_info"]["peaks"]))]
    out.with_suffix(".md").write_text("\n".join([*preface(record, out.stem), *table(rows)]) + "\n")
    plot(rows, title(record), out.with_suffix(".svg"))
    print(f"{out.with_suffix('.md')}, {out.with_suffix('.svg')}: {len(rows)} rows")


def row_of(benchmark: dict[str, Any], peaks: dict[str, dict[str, float]]) -> dict[str, Any] | None:
    """The cells of a row; None for the rows that measure ours alone."""
    info = benchmark["extra_info"]
    if info["implementation"] == "native":
        return None
    theirs, ours = sorted(benchmark["stats"]["data"]), sorted(info["ours"])
    here = peaks[str(info["threads"])]
    rate, share = "", ""
    if "rate" in info:
        rate = info["rate"]
    elif info["flops"]:
        rate = f"{info['flops'] / median(ours) / 1e9:.0f} GFLOP/s"
        share = f"{info['flops'] / median(ours) / 1e9 / here[info['dtype']]:.0%}"
    elif info["bytes"]:
        rate = f"{info['bytes'] / median(ours) / 1e9:.1f} GB/s"
        share = f"{info['bytes'] / median(ours) / 1e9 / here['memory']:.0%}"
    elif info["documents"]:
        rate = f"{info['documents'] / median(ours):,.0f} documents/s"
    memory = [f"{info[name] / 1e6:,.0f} MB" for name in ("memory", "memory_ours") if name in info] or ["", ""]
    return {
        "case": f"{info['op']}, {info['shape']}, {info['dtype']}, {info['threads']} threads",
        "peer": info["implementation"],
        "ratio": median(theirs) / median(ours),
        "cells": [
            info["op"],
            info["shape"],
            info["dtype"],
            str(info["threads"]),
            info["implementation"],
            times(theirs),
            times(ours),
            f"{median(theirs) / median(ours):.2f} ({theirs[0] / ours[0]:.2f})",
            rate,
            share,
            *memory,
        ],
    }


def times(seconds: list[float]) -> str:
    """Median and, in brackets, the shortest; of a hundred calls or more the 99th percentile too."""
    late = f"; p99 {duration(quantiles(seconds, n=100)[-1])}" if len(seconds) >= 100 else ""
    return f"{duration(median(seconds))} ({duration(seconds[0])}{late})"


def duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def title(record: dict[str, Any]) -> str:
    machine, commit = record["machine_info"], record["commit_info"]
    changed = ", changed" if commit["dirty"] else ""
    return f"{machine['cores']} cores of {machine['processor']}, commit {commit['id'][:7]}{changed}"


def preface(record: dict[str, Any], name: str) -> list[str]:
    machine = record["machine_info"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    lines = [
        f"# Kernels: `make bench{'-full' if name.endswith('full') else ''}`",
        "",
        f"{title(record)}; {machine['memory GiB']} GiB; {record['datetime'][:10]}.",
        f"Python {machine['python']}, {versions}.",
        "",
        f"Load average when the run began: {machine['load']:.1f}. Other work slows code that often waits for all its",
        "threads more than code that does not: figures taken above 0.5 are not to be trusted.",
        "",
        "Times are medians, with the shortest in brackets, of calls of the peer and of ours in turn; ratio: the peer's",
        "time through ours, likewise. [bench/](../README.md) says what each row measures.",
        "",
        "Peaks of this machine in the same run:",
        "",
        "| threads | float32, MKL | float32, oneDNN | bfloat16 | memory |",
        "|---|---|---|---|---|",
    ]
    for threads, peak in machine["peaks"].items():
        products = (f"{peak[name]:.0f} GFLOP/s" for name in ("float32 MKL", "float32 oneDNN", "bfloat16"))
        lines.append(f"| {threads} | {' | '.join(products)} | {peak['memory']:.1f} GB/s |")
    return [*lines, "", f"![ratios]({name}.svg)", ""]


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [HEAD.split(" | "), ["---"] * len(HEAD.split(" | ")), *(row["cells"] for row in rows)]
    width = len(lines[0]) if any(row["cells"][-1] for row in rows) else len(lines[0]) - 2  # memory, where measured
    return [f"| {' | '.join(line[:width])} |" for line in lines]


def plot(rows: list[dict[str, Any]], heading: str, path: Path) -> None:
    """A line for each case, a mark for each peer at the ratio of its time to ours."""
    cases = list(dict.fromkeys(row["case"] for row in rows))[::-1]
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    figure, axes = plt.subplots(figsize=(11, 1.2 + 0.26 * len(cases)), layout="constrained")
    for number, peer in enumerate(peers):
        of_peer = [row for row in rows if row["peer"] == peer]
        axes.plot(
            [row["ratio"] for row in of_peer],
            [cases.index(row["case"]) for row in of_peer],
            linestyle="none",
            marker="osD^vP*X<>"[number % 10],
            label=peer,
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="time of the peer / time of ours", yticks=range(len(cases)), yticklabels=cases)
    axes.set_title(heading, fontsize=8, loc="left")
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(axis="both", linewidth=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


if __name__ == "__main__":
    main()
