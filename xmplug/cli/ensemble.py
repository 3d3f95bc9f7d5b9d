"""`xmplug ensemble`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import plugin_option


@click.command("ensemble")
@click.argument("runs", nargs=-1, metavar="RUN RUN ...")
@click.option("--out", required=True, help="Folder for the new run; it must not exist yet.")
@click.option(
    "--method",
    type=click.Choice(["mean", "weighted", "fitted", "ranks"]),
    default="mean",
    show_default=True,
    help="How scores go together.",
)
@click.option("--weights", metavar="W,W,...", help="For weighted: a number for each run, such as 0.3,0.7.")
@click.option("--data", help="For fitted: corpus whose dev split is used; without it, the one of the first run.")
@click.option("--data-format", help="Format of the corpus, where it cannot be told from the files.")
@plugin_option
def command(
    runs: tuple[str, ...],
    out: str,
    method: str,
    weights: str | None,
    data: str | None,
    data_format: str | None,
    plugin_files: tuple[str, ...],
) -> None:
    """Make several runs on the same labels one run.

    mean: the mean of their scores. weighted: with --weights. fitted: with weights that make nDCG@5 on dev high; prints
    dev figures of each run beside those of the ensemble, in which each half of dev has the weights fitted on the other.
    Where these are no better than equal weights, the weights stay equal.
    ranks: the mean of 61 / (60 + rank), which needs no scores that compare (reciprocal rank fusion); not probabilities
    until `xmplug calibrate` makes them so.

    OUT needs the runs no more: it links their files, or copies them to another disk.
    """
    try:
        given = None if weights is None else [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise click.UsageError(f"--weights {weights!r} is not a list of numbers such as 0.3,0.7") from None

    from ..refinement import ensemble
    from ..saving import read_manifest

    ensemble(runs, out, method=method, weights=given, data=data, data_format=data_format, plugin_files=plugin_files)
    if figures := read_manifest(Path(out)).get("dev"):
        from rich.console import Console
        from rich.table import Table

        rows = figures["rows"]
        columns = [name for name in rows[0] if "@" in name]
        shown = Table(caption=f"{figures['documents']} dev texts, in percent", caption_justify="left")
        shown.add_column("", overflow="fold")
        for name in ("weight", *columns):
            shown.add_column(name, justify="right")
        for row in rows:
            weight = f"{row['weight']:.2f}" if "weight" in row else ""
            shown.add_row(row["name"], weight, *(f"{100 * row[name]:.2f}" for name in columns))
        Console().print(shown)
    click.echo(f"run: {out}\nnext: xmplug evaluate {out}    or: xmplug calibrate {out}")
