"""Options that several commands share, and the dotted ones that belong to a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..recipe import SLOTS, ComponentConfig


class Sections(click.Command):
    """Leaves dotted options to `config_layers`, with the dashes of a section turned into underscores."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        rest: list[str] = []
        overrides: list[tuple[str, str]] = []
        at = 0
        while at < len(args):
            name, equals, value = args[at].partition("=")
            if not (name.startswith("--") and "." in name):
                rest.append(args[at])
            else:
                if not equals:
                    at += 1
                    if at == len(args):
                        raise click.UsageError(f"option {name} needs a value")
                    value = args[at]
                overrides.append((name[2:].replace("-", "_"), value))
            at += 1
        context.meta["overrides"] = overrides
        extra = super().parse_args(context, rest)
        if context.args:
            from ..errors import nearest

            known = [option for parameter in self.params for option in parameter.opts]
            raise click.UsageError(f"no option {context.args[0]!r}: {nearest(context.args[0], known)}")
        return extra


def corpus_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How to read the corpus to train on: --data-format, --labels, --dev-fraction."""
    options = (
        click.option("--data-format", help="Format of the corpus, where it cannot be told from the files."),
        click.option("--labels", help="Label file (JSON lines, TSV or SKOS) where the folder brings none."),
        click.option(
            "--dev-fraction",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            default=0.1,
            show_default=True,
            help="Share of the training texts that chooses the weights, where there is no dev file.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--plugin, --preset, --config and one option for each slot."""
    for slot in reversed(SLOTS):
        option = "--" + slot.replace("_", "-")
        command = click.option(option, slot, metavar="ID", help="Another component for this slot, plugin:name.")(
            command
        )
    command = click.option("--config", "config_file", metavar="FILE", help="Options from a JSON file.")(command)
    command = click.option("--preset", help="One of the method's presets.")(command)
    command = click.option(
        "--plugin-file", "plugin_files", multiple=True, metavar="FILE.py", help="Also load this plugin."
    )(command)
    return click.option(
        "--plugin", metavar="NAME", help="The method: a recipe's name, or a single-file plugin's path."
    )(command)


def plugin_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--plugin-file, for commands that read a run."""
    return click.option(
        "--plugin-file",
        "plugin_files",
        multiple=True,
        metavar="FILE.py",
        help="A single-file plugin that the run needs.",
    )(command)


@dataclass(frozen=True)
class Layers:
    """The layers of a configuration, as given on the command line."""

    recipe: str
    preset: str | None
    file: dict[str, Any] | None
    overrides: tuple[tuple[str, str], ...]
    plugin_files: tuple[str, ...]


def config_layers(context: click.Context, given: dict[str, Any]) -> Layers:
    """Put together what `recipe_options` and dotted options gave."""
    from ..config import read_config

    slots = [(slot, given[slot]) for slot in SLOTS if given[slot] is not None]
    files = tuple(given["plugin_files"])
    file = None if given["config_file"] is None else read_config(given["config_file"])
    recipe = given["plugin"] or (file or {}).get("recipe", "")
    if recipe.endswith(".py"):
        files, recipe = (*files, recipe), Path(recipe).stem
    return Layers(recipe, given["preset"], file, (*slots, *context.meta["overrides"]), files)


def describe_options(given: dict[str, Any]) -> str:
    """The options and presets of the method asked for; without one, the methods there are."""
    from ..config import TrainingConfig
    from ..plugins import Plugins

    context = click.get_current_context()
    layers = config_layers(context, given)
    plugins = Plugins().load(layers.plugin_files)
    if not layers.recipe:
        return "\nMethods for --plugin: " + ", ".join(sorted(recipe.name for recipe in plugins.recipes))
    from ..config import resolve

    config = resolve(plugins, layers.recipe, preset=layers.preset, file=layers.file, overrides=layers.overrides)
    chosen = config.as_dict()
    formatter = click.HelpFormatter(width=100)
    presets = ", ".join(config.recipe.presets) or "none"
    formatter.write(f"\n{config.recipe.name}: {config.recipe.summary}\nPresets: {presets}\n")
    for slot in SLOTS:
        component = config.components[slot]
        write_options(formatter, slot, component.config, chosen[slot], f"{title(slot)} {component.id}")
    write_options(formatter, "training", TrainingConfig, chosen["training"], "training")
    return formatter.getvalue().rstrip()


def write_options(
    formatter: click.HelpFormatter, section: str, model: type[ComponentConfig], values: Mapping[str, Any], heading: str
) -> None:
    """A table of the options of a section, by their names on the command line; nothing where there are none.

    values: what is shown as the value of each; an option without one is needed.
    """
    from ..config import options_of

    rows = [
        (f"--{title(section)}.{name} {kind}", f"{text} [{_shown(values[name]) if name in values else 'needed'}]")
        for name, kind, text in options_of(model)
    ]
    if rows:
        with formatter.section(heading):
            formatter.write_dl(rows, col_max=40)


def title(section: str) -> str:
    """A section's name as it stands on the command line."""
    return section.replace("_", "-")


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)
