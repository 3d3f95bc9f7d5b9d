"""`xmplug calibrate`."""

from __future__ import annotations

import click

from .options import plugin_option


@click.command("calibrate")
@click.argument("run")
@click.option(
    "--method",
    type=click.Choice(["platt", "isotonic", "none"]),
    default="platt",
    show_default=True,
    help="platt: two numbers for each rank; isotonic: any rising line, for thousands of texts; none: as it was.",
)
@click.option("--data", help="Corpus whose dev to fit on, or one file; without it, the one of the training.")
@click.option("--data-format", help="Format of the corpus, where it cannot be told from the files.")
@plugin_option
def command(run: str, method: str, data: str | None, data_format: str | None, plugin_files: tuple[str, ...]) -> None:
    """Make the scores of RUN probabilities: of labels with a score of 0.7, seven in ten shall be true.

    For each of the first 20 ranks, a map from score to the share of true labels is fitted on dev; deeper ranks share
    the last. The ranking stays, and no label gets more than the one before it. Prints how well it does on texts that
    it was not fitted on: each half of dev with the maps of the other. Lower is better for both figures, the Brier score
    and the expected calibration error.
    """
    from ..refinement import calibrate

    calibration = calibrate(
        run, method=method, data=data, data_format=data_format, plugin_files=plugin_files
    ).calibration
    if calibration is None:
        click.echo(f"{run} is not calibrated")
        return
    figures = calibration.figures
    click.echo(f"first {figures['ranks']} labels of {figures['documents']} texts of dev:")
    click.echo(f"{'':<12}{'Brier':>8}{'ECE':>8}")
    for stage in ("before", "after"):
        click.echo(f"{stage:<12}{figures[stage]['Brier']:>8.4f}{figures[stage]['ECE']:>8.4f}")
    if any(figures["after"][name] > figures["before"][name] for name in ("Brier", "ECE")):
        click.echo(
            f"warning: worse than before, perhaps for want of texts; more dev texts (--data) may help, and "
            f"`xmplug calibrate {run} --method none` makes the scores what they were",
            err=True,
        )
    click.echo(f"next: xmplug evaluate {run}    or: xmplug predict {run} --input FILE")
