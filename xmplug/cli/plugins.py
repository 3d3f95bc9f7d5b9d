"""`xmplug plugins` and `xmplug plugins check`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Sections, plugin_option


@click.group("plugins", invoke_without_command=True)
@plugin_option
@click.pass_context
def command(context: click.Context, plugin_files: tuple[str, ...]) -> None:
    """List the plugins, where they come from, and what they contribute; broken ones with the reason."""
    if context.invoked_subcommand is not None:
        return
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


@command.command("check", cls=Sections)
@click.argument("name", required=False)
@plugin_option
@click.option("--recipe", metavar="NAME", help="Check this recipe only; or put the plugin's components into it.")
@click.option("--list", "listing", is_flag=True, help="Say what each check promises, and check nothing.")
@click.pass_context
def check(
    context: click.Context, name: str | None, plugin_files: tuple[str, ...], recipe: str | None, listing: bool
) -> None:
    """Check that a plugin keeps what the runtime promises: the plugin NAME, or a single file's path.

    Small models are trained, in ten to twenty seconds for each recipe and component; dotted options, such as
    --encoder.hidden 24, make them smaller.
    """
    assert context.parent is not None
    plugin_files = (*context.parent.params["plugin_files"], *plugin_files)
    from ..testing import Suite
    from ..testing.registry import CHECKS

    if listing:
        from ..testing import declared, trained  # noqa: F401, they register the checks

        for each in CHECKS.values():
            click.echo(f"{each.name:<24} {each.promise}")
        return
    if name is None:
        raise click.UsageError("say which plugin; `xmplug plugins` lists them")
    if name.endswith(".py"):
        plugin_files, name = (*plugin_files, name), Path(name).stem
    suite = Suite(name, options=dict(context.meta["overrides"]), recipe=recipe, plugin_files=plugin_files)
    failed, last = 0, ""
    for result in suite.results():
        if result.method != last:
            click.echo(result.method)
        last = result.method
        failed += result.outcome == "failed"
        click.echo(f"  {result.check:<24} {result.outcome}{': ' if result.message else ''}{result.message}")
    if failed:
        context.exit(1)
