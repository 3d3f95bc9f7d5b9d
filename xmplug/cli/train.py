"""`xmplug train`."""

from __future__ import annotations

import click
from click.core import ParameterSource

from .options import Sections, config_layers, corpus_options, describe_options, recipe_options


@click.command(
    "train",
    cls=Sections,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
)
@recipe_options
@click.option("--data", help="Corpus: a bundled or fetched name, a folder with train/dev/test files, or one file.")
@corpus_options
@click.option("--out", help="Folder for the run; it must not exist yet.")
@click.option(
    "--ensemble",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Models with seeds of their own, each in OUT/member-N. The same command goes on with a stopped one.",
)
@click.option("--resume", "resumed", metavar="RUN", help="Go on with a stopped or killed training, with its options.")
@click.option("-h", "--help", "show_help", is_flag=True, help="Show this; with --plugin, its options too.")
@click.pass_context
def command(
    context: click.Context,
    data: str | None,
    data_format: str | None,
    labels: str | None,
    dev_fraction: float,
    out: str | None,
    ensemble: int,
    resumed: str | None,
    show_help: bool,
    **recipe: str | None,
) -> None:
    """Train a model.

    Every option of the method can be given by its dotted name, for example --training.epochs 3 or
    --encoder.hidden 128; `xmplug train --plugin NAME --help` lists them.
    """
    if show_help:
        click.echo(context.get_help())
        click.echo(describe_options(recipe))
        return
    layers = config_layers(context, recipe)
    if resumed is not None:
        given = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if set(given) - {"resumed", "plugin_files"} or layers.overrides:
            raise click.UsageError("--resume RUN takes everything from the run; leave out the other options")
        _resume(resumed, layers.plugin_files)
        return
    for name, value in (("--plugin", layers.recipe), ("--data", data), ("--out", out)):
        if not value:
            raise click.UsageError(f"{name} is missing; see `xmplug train --help`")

    from ..config import resolve
    from ..plugins import Plugins

    # A wrong option, or components that do not fit one another, are said before torch is imported.
    plugins = Plugins().load(layers.plugin_files)
    resolve(plugins, layers.recipe, preset=layers.preset, file=layers.file, overrides=layers.overrides)

    from ..api import train
    from .progress import show_training

    assert data is not None and out is not None
    with show_training(out) as listener:
        train(
            layers.recipe,
            data,
            out,
            preset=layers.preset,
            options=dict(layers.overrides),
            config=layers.file,
            data_format=data_format,
            labels=labels,
            dev_fraction=dev_fraction,
            plugin_files=layers.plugin_files,
            listener=listener,
            ensemble=ensemble,
        )
    click.echo(f"\nrun: {out}\nnext: xmplug evaluate {out}    or: xmplug predict {out} --input FILE")


def _resume(run: str, plugin_files: tuple[str, ...]) -> None:
    from ..api import resume
    from .progress import show_training

    with show_training(run) as listener:
        resume(run, plugin_files, listener)
    click.echo(f"\nrun: {run}\nnext: xmplug evaluate {run}    or: xmplug predict {run} --input FILE")
