"""`xmplug compare`."""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
from pathlib import Path
from typing import Any

import click

from .options import Sections, corpus_options


class _Compare(Sections):
    """Keeps the command line as it was given, for the report."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.meta["command"] = shlex.join(["xmplug", "compare", *args])
        return super().parse_args(context, args)


@click.command(
    "compare",
    cls=_Compare,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": ["-h", "--help"]},
)
@click.option("--plugins", metavar="NAME,NAME@PRESET,...", help="Methods, each with --preset or one of its own.")
@click.option("--mixes", metavar="FILE", help="More entries, with options of their own, from a JSON file.")
@click.option("--preset", help="Of the methods that name none; NAME@ takes none.")
@click.option("--data", required=True, help="Corpus: a bundled or fetched name, a folder, or one file.")
@corpus_options
@click.option("--documents", type=click.IntRange(1), help="Train on so many texts, drawn by a fixed seed.  [all]")
@click.option("--minutes", type=float, help="Most minutes of each training: training.minutes of all entries.")
@click.option("--epochs", help="Passes over the training texts: training.epochs of all entries.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Trainings of each: 0, 1, 2, ...")
@click.option("--split", type=click.Choice(["test", "dev"]), default="test", show_default=True, help="What to measure.")
@click.option("--out", required=True, help="Folder for runs and report. The same command goes on with a stopped one.")
@click.option("--plugin-file", "plugin_files", multiple=True, metavar="FILE.py", help="Also load this plugin.")
@click.pass_context
def command(
    context: click.Context,
    plugins: str | None,
    mixes: str | None,
    preset: str | None,
    minutes: float | None,
    epochs: str | None,
    out: str,
    **given: Any,
) -> None:
    """Train and measure methods, or mixes of components, under one budget, and write a report.

    A mix is an entry of --mixes, such as {"bce": {"plugin": "gudn", "preset": "laptop", "options": {"loss":
    "core:bce"}}}. Dotted options, such as --training.dev_documents 1000, are those of all entries, before their own.
    OUT gets table.md, report.html, comparison.json with every figure, and runs/NAME-seedN.
    """
    from ..comparison import entries_of, plan, results, run_all
    from ..report import check_libraries, errors, html, markdown
    from ..saving import whole_file, write_json

    check_libraries()
    options = dict(context.meta["overrides"])
    budget = {"training.minutes": minutes, "training.epochs": epochs}
    options |= {name: value for name, value in budget.items() if value is not None}
    made = plan(entries_of(plugins, preset, mixes), out=out, options=options, **given)

    def write() -> dict[str, Any]:
        result = results(made, context.meta["command"])
        write_json(made.out / "comparison.json", result)
        for name, text in (("table.md", markdown(result)), ("report.html", html(result))):
            with whole_file(made.out / name) as scratch:
                scratch.write_text(text, encoding="utf-8")
        return result

    worker = [sys.executable, "-m", __name__]
    for _ in run_all(made, worker, lambda line: click.echo(line, err=True)):
        write()  # what there is can be looked at while the rest is trained
    result = write()
    _show(result)
    click.echo(f"report: {made.out / 'report.html'}")
    if failed := errors(result):
        click.echo("\n".join(f"failed: {line}" for line in failed), err=True)
        context.exit(1)


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..report import columns, lines

    shown = Table()
    shown.add_column("%")
    for name in columns(result):
        shown.add_column(name, justify="right", overflow="fold")
    for line in lines(result):
        shown.add_row(
            line.name, *(f"[bold]{cell}[/]" if at in line.best else cell for at, cell in enumerate(line.cells))
        )
    Console().print(shown)


def _work(job: dict[str, Any]) -> None:
    """One run, in a process of its own, which ends when the one that waits for it does."""
    from ..comparison import perform
    from ..errors import XmplugError
    from .progress import show_training

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        with show_training(str(Path(job["run"]).parent)) as listener:
            perform(job, listener)
    except XmplugError as error:
        sys.exit(f"xmplug: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    _work(json.loads(sys.argv[-1]))
