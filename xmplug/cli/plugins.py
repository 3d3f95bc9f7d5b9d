"""`xmplug plugins`."""

from __future__ import annotations

import click

from .options import plugin_option


@click.command("plugins")
@plugin_option
def command(plugin_files: tuple[str, ...]) -> None:
    """List the plugins, where they come from, and what they contribute; broken ones with the reason."""
    from ..plugins import Plugins

    for plugin in Plugins().load(plugin_files).found:
        click.echo(f"{plugin.name}  ({plugin.distribution} {plugin.version})".replace(" )", ")"))
        if plugin.error:
            click.echo(f"    broken: {plugin.error}\n    {plugin.location}")
            click.echo("    " + plugin.details.strip().replace("\n", "\n    "))
        for slot, components in plugin.components.items():
            for component in components:
                click.echo(f"    {slot.replace('_', '-'):<16} {component.id:<30} {component.summary}")
        for recipe in plugin.recipes:
            paper = f" ({recipe.paper.year}, {recipe.paper.url})" if recipe.paper else ""
            click.echo(f"    {'recipe':<16} {recipe.name:<30} {recipe.summary}{paper}")
            click.echo(f"    {'':<16} {'':<30} presets: {', '.join(recipe.presets) or 'none'}")
