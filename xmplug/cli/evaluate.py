"""`xmplug evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import plugin_option


@click.command("evaluate")
@click.argument("run")
@click.option("--data", help="Corpus; without it, the one of the training.")
@click.option("--data-format", help="Format of the corpus, where it cannot be told from the files.")
@click.option("--split", type=click.Choice(["test", "dev", "train"]), default="test", show_default=True)
@click.option("--k", "ks", default="1,3,5", show_default=True, help="Ranks, with commas between.")
@click.option(
    "--tail-labels",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also how well the N rarest labels find their texts: precision of the best 1, 10 and 20 texts of each.",
)
@click.option("--json", "json_file", metavar="FILE", help="Where to write the figures. [RUN/evaluation-SPLIT.json]")
@plugin_option
def command(
    run: str,
    data: str | None,
    data_format: str | None,
    split: str,
    ks: str,
    tail_labels: int,
    json_file: str | None,
    plugin_files: tuple[str, ...],
) -> None:
    """Measure the model in RUN on a split, beside the most frequent labels as a baseline."""
    try:
        ranks = tuple(sorted({int(k) for k in ks.split(",")}))
    except ValueError:
        raise click.UsageError(f"--k {ks!r} is not a list of numbers such as 1,3,5") from None
    if min(ranks) < 1:
        raise click.UsageError(f"--k {ks!r}: ranks begin with 1")
    from rich.console import Console

    from ..evaluation import evaluate_run
    from ..metrics import table
    from ..saving import write_json

    result = evaluate_run(
        run, data, split=split, ks=ranks, data_format=data_format, plugin_files=plugin_files, tail_labels=tail_labels
    )
    Console().print(table(result.rows))
    if result.tail is not None:
        click.echo("rarest labels: " + ", ".join(f"{name} {100 * value:.2f}" for name, value in result.tail.items()))
    for note in result.notes:
        click.echo(note)
    target = Path(json_file) if json_file else Path(run) / f"evaluation-{split}.json"
    write_json(target, result.as_dict())
    click.echo(f"figures: {target}")
