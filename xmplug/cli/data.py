"""`xmplug data`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..data import Dataset

_SHOWN = 20  # problems that `validate` prints


@click.group("data")
def command() -> None:
    """Look at, check, convert and fetch corpora.

    A corpus is a bundled or fetched name (debtags), a folder with train.*, dev.*, test.* and a label file
    labels.*, or one file.
    """


_format_option = click.option("--format", help="Format of the documents, where it cannot be told from the files.")
_labels_option = click.option("--labels", metavar="FILE", help="Label file (JSON lines, TSV or SKOS).")


@command.command("stats")
@click.argument("spec")
@_format_option
@_labels_option
def stats(spec: str, format: str | None, labels: str | None) -> None:
    """Count documents, labels and words of the corpus SPEC.

    Without a dev file, dev is the part of train that training would hold out.
    """
    from rich.console import Console
    from rich.table import Table

    from ..data import load_dataset

    dataset = load_dataset(spec, format=format, labels=labels)
    columns = {name: _split_figures(dataset, name) for name in ("train", "dev", "test") if len(dataset.split(name))}
    table = Table(title=dataset.name)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for row in next(iter(columns.values())):
        table.add_row(row, *(figures[row] for figures in columns.values()))
    console = Console()
    console.print(table)
    if "train" in columns:
        for line in _label_figures(dataset):
            console.print(line, highlight=False)


def _split_figures(dataset: Dataset, name: str) -> dict[str, str]:
    import numpy as np

    documents = dataset.split(name)
    words = np.array([len(text.split()) for text in documents.texts()])
    labels = [set(labels) for labels in documents.label_lists()]
    sizes = np.array([len(each) for each in labels])
    return {
        "documents": f"{len(documents):,}",
        "labels in use": f"{len(set().union(*labels)):,}",
        "labels per text": f"{sizes.mean():.2f}",
        "without label": f"{(sizes == 0).sum():,}",
        "words, mean": f"{words.mean():.0f}",
        "words, median": f"{np.median(words):.0f}",
        "words, longest": f"{words.max():,}",
        "empty texts": f"{(words == 0).sum():,}",
    }


def _label_figures(dataset: Dataset) -> list[str]:
    labels = dataset.labels
    counts = labels.counts[: labels.num_trained]
    tail = 100 * (counts < 10).mean()
    lines = [
        f"labels: {len(labels):,}, of them {labels.num_trained:,} with training texts",
        f"tail: {tail:.0f} % of those have fewer than 10 training texts",
    ]
    relations = sum(map(len, labels.broader))
    if relations:
        lines.append(f"hierarchy: {relations:,} broader relations, {_depth(labels.broader)} levels")
    return lines


def _depth(broader: list[list[int]]) -> int:
    """Labels on the longest way up."""
    from graphlib import TopologicalSorter

    depth: dict[int, int] = {}
    for label in TopologicalSorter(dict(enumerate(broader))).static_order():
        depth[label] = 1 + max((depth[above] for above in broader[label]), default=0)
    return max(depth.values())


@command.command("validate")
@click.argument("spec")
@_format_option
@_labels_option
@click.pass_context
def validate(context: click.Context, spec: str, format: str | None, labels: str | None) -> None:
    """Check the corpus SPEC; print what is wrong, with file and line."""
    from ..data.dataset import problems

    found = list(islice(problems(spec, format=format, labels=labels), _SHOWN + 1))
    for error in found[:_SHOWN]:
        click.echo(str(error))
    if len(found) > _SHOWN:
        click.echo("and more")
    if found:
        context.exit(1)
    click.echo(f"{spec}: nothing wrong")


@command.command("convert")
@click.argument("source")
@_format_option
@click.option("--out", required=True, metavar="FILE.jsonl", help="Also FILE.jsonl.gz or FILE.jsonl.xz.")
def convert(source: str, format: str | None, out: str) -> None:
    """Write the documents of the file or folder SOURCE as JSON lines."""
    from ..data import read_documents, write_documents

    if not out.endswith((".jsonl", ".jsonl.gz", ".jsonl.xz")):
        raise click.UsageError(f"--out {out!r} must end in .jsonl, .jsonl.gz or .jsonl.xz")
    count = write_documents(read_documents(source, format), out)
    click.echo(f"{out}: {count} documents")


@command.command("fetch")
@click.argument("name")
def fetch_(name: str) -> None:
    """Download the published corpus NAME, for example eurlex57k."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from ..data import fetch

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns) as bar:
        tasks: dict[str, Any] = {}

        def show(file: str, here: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file)
            bar.update(tasks[file], completed=here, total=total)

        folder = fetch(name, progress=show)
    click.echo(f"{Path(folder)}\nnext: xmplug data stats {name}    or: xmplug train --data {name} ...")
