"""`xmplug plugins`: list, show, check, and begin a new one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from ..recipe import SLOTS
from .options import Sections, plugin_option, title, write_options

if TYPE_CHECKING:
    from ..plugins import Plugin
    from ..recipe import Component, Recipe


@click.group("plugins", invoke_without_command=True)
@plugin_option
@click.pass_context
def command(context: click.Context, plugin_files: tuple[str, ...]) -> None:
    """List the plugins, where they come from, and what they contribute; broken ones with the reason."""
    if context.invoked_subcommand is not None:
        return
    from ..plugins import Plugins

    for plugin in Plugins().load(plugin_files).found:
        click.echo(_headline(plugin))
        if plugin.error:
            _echo_fault(plugin)
        for slot, components in plugin.components.items():
            for component in components:
                click.echo(f"    {title(slot):<16} {component.id:<30} {component.summary}")
        for recipe in plugin.recipes:
            click.echo(f"    {'recipe':<16} {recipe.name:<30} {recipe.summary}{_year_and_address(recipe)}")
            click.echo(f"    {'':<16} {'':<30} presets: {', '.join(recipe.presets) or 'none'}")


@command.command("show")
@click.argument("name")
@plugin_option
@click.pass_context
def show(context: click.Context, name: str, plugin_files: tuple[str, ...]) -> None:
    """Show a plugin, NAME or a single file's path: its recipes with paper, components and presets, and the options of
    its components with their defaults."""
    from ..plugins import Plugins

    name, plugin_files = _asked(context, name, plugin_files)
    plugins = Plugins().load(plugin_files)
    for found in plugins.found:
        if found.name == name and found.error:
            click.echo(_headline(found))
            _echo_fault(found)
            context.exit(1)
    plugin = plugins.plugin(name)
    click.echo(f"{_headline(plugin)}\n{plugin.location}")
    for recipe in plugin.recipes:
        click.echo(f"\nrecipe {recipe.name}: {recipe.summary}")
        formatter = click.HelpFormatter(width=100)
        formatter.indent()
        rows = [("paper", f"{recipe.paper.title}{_year_and_address(recipe)}")] if recipe.paper else []
        for slot in SLOTS:
            rows.append((title(slot), plugins.components[slot].find(recipe.component(slot)).id))
        rows.append(("options", _changes(recipe.options)))
        rows += [(f"preset {preset}", _changes(changes)) for preset, changes in recipe.presets.items()]
        formatter.write_dl(rows)
        click.echo(formatter.getvalue().rstrip())
    for slot, components in plugin.components.items():
        for component in components:
            click.echo(f"\n{title(slot)} {component.id}: {component.summary}{_given_and_taken(component)}")
            formatter = click.HelpFormatter(width=100)
            fields = component.config.model_fields.items()
            defaults = {
                at: field.get_default(call_default_factory=True) for at, field in fields if not field.is_required()
            }
            write_options(formatter, slot, component.config, defaults, "options")
            if options := formatter.getvalue().rstrip():
                click.echo(options)


@command.command("new")
@click.argument("name")
@click.option(
    "--slots",
    default="fusion,loss",
    show_default=True,
    help=f"What it brings a component of its own for: some of {', '.join(map(title, SLOTS))}; or all.",
)
@click.option("--out", metavar="FOLDER", help="A new or empty folder; xmplug-NAME when left out.")
def new(name: str, slots: str, out: str | None) -> None:
    """Write a plugin package that installs, trains and passes its checks, to begin with.

    Its recipe and its plugin are called NAME; what is to be changed stands in its README.
    """
    from ..plugins import Plugins
    from ..template import write_plugin

    chosen = SLOTS if slots == "all" else [slot.strip().replace("-", "_") for slot in slots.split(",") if slot.strip()]
    folder = Path(out or f"xmplug-{name}")
    for path in write_plugin(name, chosen, folder, Plugins().load()):
        click.echo(path)
    click.echo(
        f"\nnext: pip install --editable {folder}\n      xmplug plugins check {name}\n"
        f"      xmplug train --plugin {name} --data debtags --out runs/{name}"
    )


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
    from ..testing import Suite
    from ..testing.registry import CHECKS

    if listing:
        from ..testing import declared, trained  # noqa: F401, they register the checks

        for each in CHECKS.values():
            click.echo(f"{each.name:<24} {each.promise}")
        return
    if name is None:
        raise click.UsageError("say which plugin; `xmplug plugins` lists them")
    name, plugin_files = _asked(context, name, plugin_files)
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


def _asked(context: click.Context, name: str, plugin_files: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The name of the plugin that is asked for, and the single files to load: its own too where it is one."""
    assert context.parent is not None
    files = (*context.parent.params["plugin_files"], *plugin_files)
    return (Path(name).stem, (*files, name)) if name.endswith(".py") else (name, files)


def _headline(plugin: Plugin) -> str:
    return f"{plugin.name}  ({plugin.release})  {'broken' if plugin.error else 'ok'}"


def _echo_fault(plugin: Plugin) -> None:
    click.echo(f"    {plugin.error}\n    to do: {plugin.remedy}\n    {plugin.location}")
    if plugin.details:
        click.echo("    " + plugin.details.strip().replace("\n", "\n    "))


def _year_and_address(recipe: Recipe) -> str:
    return f" ({recipe.paper.year}, {recipe.paper.url})" if recipe.paper else ""


def _given_and_taken(component: Component) -> str:
    """What a component gives to other slots and takes from them, with its default options."""
    try:
        options = component.config()
    except ValidationError:  # one that only its user can give
        return ""
    given, taken = component.given(options), component.taken(options) or {}
    lines = [f"gives {', '.join(given)}"] if given else []
    lines += [f"takes {' or '.join(words)} from {title(source)}" for source, words in taken.items()]
    return "".join(f"\n  {line}" for line in lines)


def _changes(options: Any) -> str:
    """Nested options as dotted ones."""
    dotted = [f"{section}.{name}={value}" for section, part in options.items() for name, value in part.items()]
    return ", ".join(dotted).replace(".component=", "=") or "as they are"
