"""Presets of one method beside one another, several seeds each: quality, steps to a level of dev, time, memory.

    python bench/presets.py gudn ablation-bert ablation-feature --data mycorpus --documents 4000 --out runs/table-6

Each run trains in a process of its own, one after the other; what is complete in --out is kept, so that the same
command goes on after a stop, and with more seeds. Two such commands with other seeds may share a folder.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

COSTS = ("processor minutes", "peak GiB", "texts/s trained", "texts/s predicted")
COLUMNS = ("P@1", "P@3", "P@5", "nDCG@3", "nDCG@5", "PSP@1", "PSP@3", "PSP@5")


@click.command()
@click.argument("plugin")
@click.argument("presets", nargs=-1, required=True)
@click.option("--data", required=True, help="a corpus as `xmplug train` takes it")
@click.option("--documents", type=int, help="train on so many documents of train, drawn by a fixed seed; default: all")
@click.option("--split", default="test", show_default=True, help="where the figures of the table are from")
@click.option("--seeds", default="0", show_default=True, help="0,1,2")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="an option of all runs")
@click.option("--level", type=float, help="count the steps to this nDCG@5 on dev, in percent")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    plugin: str,
    presets: tuple[str, ...],
    data: str,
    documents: int | None,
    split: str,
    seeds: str,
    settings: tuple[str, ...],
    level: float | None,
    out: Path,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for seed in map(int, seeds.split(",")):
        for preset in presets:
            if not (out / f"{preset}-{seed}.json").exists():
                options = dict(setting.split("=", 1) for setting in settings) | {"training.seed": seed}
                request = [plugin, preset, data, documents, split, options, str(out), f"{preset}-{seed}"]
                subprocess.run([sys.executable, __file__, "--one", json.dumps(request)], check=True)
    click.echo(table(out, presets, level))


def one(
    plugin: str, preset: str, data: str, documents: int | None, split: str, options: Any, out: str, name: str
) -> None:
    """Train and evaluate, and leave the figures in OUT/NAME.json."""
    import xmplug
    from xmplug.data import load_dataset, write_documents
    from xmplug.evaluation import evaluate_run
    from xmplug.training import Listener, Progress

    class Speed(Listener):
        documents_per_second = 0.0

        def step(self, progress: Progress) -> None:
            self.documents_per_second = progress.documents_per_second

    run = Path(out) / name
    if documents is not None:
        dataset = load_dataset(data)
        folder = Path(out) / f"first-{documents}"
        if not folder.exists():
            scratch = folder.with_name(f".{folder.name}-{os.getpid()}")
            scratch.mkdir()
            chosen = np.sort(np.random.default_rng(0).permutation(len(dataset.split("train")))[:documents])
            train = list(dataset.split("train"))
            write_documents([train[place] for place in chosen], scratch / "train.jsonl")
            for part in {"dev", split}:
                write_documents(dataset.split(part), scratch / f"{part}.jsonl")
            dataset.labels.save(scratch / "labels.jsonl")
            scratch.rename(folder)
        data = str(folder)
    speed = Speed()
    begun, processor = time.perf_counter(), time.process_time()
    tagger = xmplug.train(plugin, data, run, preset=preset, options=options, listener=speed)
    seconds = time.perf_counter() - begun, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    texts = [document.text for document in islice(load_dataset(data).split(split), 500)]
    tagger.predict(texts[:32])
    begun = time.perf_counter()
    tagger.predict(texts)
    predicting = len(texts) / (time.perf_counter() - begun)
    report = evaluate_run(run, split=split).rows["model"]
    figures: dict[str, Any] = {
        "preset": preset,
        "minutes": seconds[0] / 60,
        "processor minutes": seconds[1] / 60,
        "peak GiB": peak,
        "texts/s trained": speed.documents_per_second,
        "texts/s predicted": predicting,
        "dev": [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()],
        "model": {column: report[column] for column in COLUMNS},
    }
    (Path(out) / f"{name}.json").write_text(json.dumps(figures))


def table(out: Path, presets: tuple[str, ...], level: float | None) -> str:
    """Markdown: mean and standard deviation over seeds."""
    head = ["preset", "seeds", *COLUMNS, *COSTS]
    head += [] if level is None else [f"steps to dev {level:g}"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for preset in presets:
        runs = [json.loads(path.read_text()) for path in sorted(out.glob(f"{preset}-[0-9]*.json"))]
        if not runs:
            continue
        cells = [preset, str(len(runs))]
        cells += [spread([100 * run["model"][column] for run in runs]) for column in COLUMNS]
        cells += [spread([run[cost] for run in runs], 1) for cost in COSTS]
        if level is not None:
            reached = [next((at["step"] for at in run["dev"] if 100 * at["nDCG@5"] >= level), None) for run in runs]
            cells.append(", ".join("never" if step is None else str(step) for step in reached))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float], digits: int = 2) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        one(*json.loads(sys.argv[2]))
    else:
        main()
