"""The hooks of xmplug, API generation 1.

A plugin is a torch-free module, named by an entry point of the group `xmplug1`, with functions marked by `hookimpl`.
Hooks are pure declarations: they return what there is and do no work.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from .recipe import Component, Recipe

PROJECT = "xmplug"
ENTRY_POINT_GROUP = "xmplug1"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# Slots --------------------------------------------------------------------------------------------------------------


@hookspec
def xmplug_encoders() -> Iterable[Component]:  # type: ignore[empty-body]
    """Components that turn the tokens of a text into vectors (`xmplug.interfaces.Encoder`).

    Called once, when plugins are loaded. All plugins' answers are put together.
    """


@hookspec
def xmplug_label_structures() -> Iterable[Component]:  # type: ignore[empty-body]
    """Components that say which labels or tree nodes to score for a text (`xmplug.interfaces.LabelStructure`).

    Called once, when plugins are loaded. All plugins' answers are put together.
    """


@hookspec
def xmplug_label_contexts() -> Iterable[Component]:  # type: ignore[empty-body]
    """Components that say which label texts inform the scores of a text (`xmplug.interfaces.LabelContext`).

    Called once, when plugins are loaded. All plugins' answers are put together.
    """


@hookspec
def xmplug_fusions() -> Iterable[Component]:  # type: ignore[empty-body]
    """Components that score texts against labels (`xmplug.interfaces.Fusion`).

    Called once, when plugins are loaded. All plugins' answers are put together.
    """


@hookspec
def xmplug_losses() -> Iterable[Component]:  # type: ignore[empty-body]
    """Components that hold the scores against the true labels (`xmplug.interfaces.Loss`).

    Called once, when plugins are loaded. All plugins' answers are put together.
    """


# Methods ------------------------------------------------------------------------------------------------------------


@hookspec
def xmplug_recipes() -> Iterable[Recipe]:  # type: ignore[empty-body]
    """Methods: a component for each slot with options and presets. `xmplug train --plugin NAME` takes one by name.

    Called once, when plugins are loaded. A recipe named like its plugin is the plugin's default one.
    """
