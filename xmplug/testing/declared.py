"""Checks of what a plugin declares; nothing is trained."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from ..config import TrainingConfig, options_of, resolve
from ..errors import XmplugError, nearest
from ..plugins import Plugin
from ..recipe import SLOTS, WORDS, Component, ComponentConfig, Gives, Slot, Takes
from .methods import run_python
from .registry import Failed, Skipped, of_plugin
from .suite import Suite

_PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")


@of_plugin()
def declarations(suite: Suite) -> None:
    """Recipes name components that exist, and each component is a complete class of its slot with options of its own,
    so that what is listed can be chosen."""
    from .. import interfaces

    for recipe in suite.plugin.recipes:
        for slot in SLOTS:
            suite.plugins.components[slot].find(recipe.component(slot))
    for slot, component in _components(suite.plugin):
        wanted = getattr(interfaces, slot.title().replace("_", ""))
        found = component.resolve()
        if not (inspect.isclass(found) and issubclass(found, wanted)):
            raise Failed(
                f"{component.factory} of {component.id} is no subclass of {wanted.__name__}, which slot {slot} needs; "
                "correct the factory or the class"
            )
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            raise Failed(f"{component.factory} of {component.id} has no {', '.join(missing)}; write what is missing")
        if not (inspect.isclass(component.config) and issubclass(component.config, ComponentConfig)):
            raise Failed(f"config of {component.id} is {component.config!r}; give a subclass of ComponentConfig")


@of_plugin("declarations")
def mixing(suite: Suite) -> None:
    """What components say they give and take is in words that others use too, and agrees with their classes: it alone
    decides what they can be put together with."""
    others = [(slot, *_said(component)) for plugin in suite.plugins.found for slot, component in _components(plugin)]
    for slot, component in _components(suite.plugin):
        given, taken = _said(component)
        known = {*WORDS[slot]}.union(*((theirs or {}).get(slot, ()) for _, _, theirs in others))
        _check_words(f"{component.id} gives", given or (), known)
        for source, words in (taken or {}).items():
            if source in WORDS:
                known = {*WORDS[source]}.union(*(theirs or () for place, theirs, _ in others if place == source))
                _check_words(f"{component.id} takes, from {source},", words, known)
            elif source not in (options := [f"training.{name}" for name in TrainingConfig.model_fields]):
                raise Failed(f"{component.id} takes something from {source!r}: {nearest(source, (*SLOTS, *options))}")
        found = component.resolve()
        if slot == "loss" and given is not None and ("a margin" in given) != (found.margin_loss is not None):
            raise Failed(
                f"{component.id} gives {given or 'nothing'}, and margin_loss of {component.factory} is "
                f"{found.margin_loss!r}; 'a margin' is given where margin_loss is set, and only there"
            )
        if slot == "fusion" and found.solved and not {"loss", "training.levels"} <= {*(taken or {})}:
            raise Failed(
                f"{component.factory} is solved, and {component.id} does not take 'a margin' from the loss and 'apart' "
                "from training.levels; declare both"
            )


def _said(component: Component) -> tuple[Gives | None, Takes | None]:
    """What a component gives and takes with its default options."""
    try:
        options = component.config()
    except ValidationError:  # one that only its user can give
        return None, None
    return component.given(options), component.taken(options)


def _check_words(what: str, words: Iterable[str], known: set[str]) -> None:
    for word in words:
        if word not in known:
            raise Failed(f"{what} {word!r}, a word that nothing else uses: {nearest(word, known)}")


@of_plugin("declarations", "mixing")
def presets(suite: Suite) -> None:
    """Each recipe and each of its presets is a valid configuration, so that no user meets a preset that cannot run."""
    for recipe in suite.plugin.recipes:
        for preset in (None, *recipe.presets):
            try:
                resolve(suite.plugins, recipe.name, preset=preset)
            except XmplugError as error:
                where = f"preset {preset!r} of recipe {recipe.name!r}" if preset else f"recipe {recipe.name!r}"
                raise Failed(f"{where} does not resolve: {error}; correct it") from None


@of_plugin("declarations")
def documented(suite: Suite) -> None:
    """Components and recipes have a summary and options a description, since `train --help` and `plugins` show nothing
    else."""
    for slot, component in _components(suite.plugin):
        if not component.summary.strip():
            raise Failed(f"{slot} {component.id} has no summary; say in a line what it is")
        for name, _, description in options_of(component.config):
            if not description.strip():
                raise Failed(f"option {name!r} of {component.id} has no description; give Field(description=...)")
    for recipe in suite.plugin.recipes:
        if not recipe.summary.strip():
            raise Failed(f"recipe {recipe.name!r} has no summary; say in a line what it is")


@of_plugin("declarations")
def round_trip(suite: Suite) -> None:
    """A configuration that was written as JSON is read back as the same, since a run is restored from what it wrote."""
    for recipe in suite.plugin.recipes:
        for preset in (None, *recipe.presets):
            try:
                written = resolve(suite.plugins, recipe.name, preset=preset).as_dict()
            except XmplugError:
                continue  # said by `presets`
            try:
                read = resolve(suite.plugins, recipe.name, file=json.loads(json.dumps(written))).as_dict()
            except (XmplugError, TypeError, ValueError) as error:
                raise Failed(
                    f"the configuration of {recipe.name!r} cannot be written as JSON and read back: {error}; let "
                    "options hold only what JSON has, and validators accept what they return"
                ) from None
            for section, options in written.items():
                if options != read[section]:
                    raise Failed(
                        f"section {section} of {recipe.name!r}, preset {preset}, is {options} when written and "
                        f"{read[section]} when read back; let validators leave alone what they have returned"
                    )


@of_plugin()
def import_without_torch(suite: Suite) -> None:
    """Importing the plugin's module does not import torch, since every command imports every plugin, and torch takes
    seconds."""
    module = suite.plugin.module
    assert module is not None
    if suite.plugin.location == suite.plugin.distribution:
        raise Skipped("a single file holds its classes too, and is imported only where it is asked for")
    done = run_python(f"import sys, {module.__name__}; print('torch' in sys.modules)", suite.folder)
    if done.returncode:
        raise Failed(f"{module.__name__} does not import by itself: {done.stderr.strip().splitlines()[-1]}")
    if done.stdout.split()[-1] == "True":
        raise Failed(
            f"importing {module.__name__} imports torch; declare in this module, and move the classes into modules "
            "that the factories name"
        )


@of_plugin()
def readme_names_the_paper(suite: Suite) -> None:
    """The README names title and address of the paper that a recipe follows, so that users can see what was built and
    whom to cite."""
    papers = [(recipe.name, recipe.paper) for recipe in suite.plugin.recipes if recipe.paper]
    if not papers:
        raise Skipped("no recipe of this plugin names a paper")
    readme = _readme(suite.plugin)
    if readme is None:
        raise Skipped("no README found, neither beside the module nor in the distribution's metadata")
    text = _plain(readme)
    for recipe, paper in papers:
        if _plain(paper.title) not in text:
            raise Failed(f"the README does not name the paper of {recipe!r}, {paper.title!r}; write its title")
        if paper.url not in readme:
            raise Failed(f"the README does not link the paper of {recipe!r}; write its address, {paper.url}")


def _components(plugin: Plugin) -> Iterator[tuple[Slot, Component]]:
    for slot, components in plugin.components.items():
        for component in components:
            yield slot, component


def _readme(plugin: Plugin) -> str | None:
    """The text beside the module, or beside its package in a source tree; else that of the installed distribution."""
    assert plugin.module is not None
    folder = Path(plugin.module.__file__ or "").parent
    folders = [folder]
    if any((folder.parent / name).exists() for name in _PROJECT_FILES):
        folders.append(folder.parent)
    for folder in folders:
        for path in sorted(folder.glob("README*")):
            return path.read_text(encoding="utf-8")
    try:
        return importlib.metadata.metadata(plugin.distribution)["Description"]
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return None


def _plain(text: str) -> str:
    """Lower-case words, without line breaks, marks of emphasis and signs."""
    return " ".join(re.findall(r"\w+", text.lower().replace("_", " ")))
