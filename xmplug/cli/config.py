"""`xmplug config`."""

from __future__ import annotations

import json

import click

from .options import Sections, config_layers, recipe_options


@click.command("config", cls=Sections, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@recipe_options
@click.pass_context
def command(context: click.Context, **recipe: str | None) -> None:
    """Print the full configuration of a run to be, as JSON that `xmplug train --config FILE` reads."""
    from ..config import resolve
    from ..plugins import Plugins

    layers = config_layers(context, recipe)
    if not layers.recipe:
        raise click.UsageError("--plugin is missing; `xmplug plugins` lists the methods")
    plugins = Plugins().load(layers.plugin_files)
    config = resolve(plugins, layers.recipe, preset=layers.preset, file=layers.file, overrides=layers.overrides)
    click.echo(json.dumps(config.as_dict(), indent=2))
