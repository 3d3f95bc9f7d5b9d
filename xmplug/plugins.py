"""Discovery, loading and look-up of plugins.

Own loader over pluggy, because pluggy drops the second of two plugins with one name silently and lets one broken
plugin end the program. Here a conflict is an error that names both sides, and a plugin that does not import is
reported and kills nothing else.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import pluggy

from . import hookspecs
from .errors import PluginConflictError, PluginError, nearest
from .hookspecs import ENTRY_POINT_GROUP, PROJECT
from .recipe import SLOTS, Component, Recipe, Slot

_HOOKS: dict[Slot, str] = {
    "encoder": "xmplug_encoders",
    "label_structure": "xmplug_label_structures",
    "label_context": "xmplug_label_contexts",
    "fusion": "xmplug_fusions",
    "loss": "xmplug_losses",
}
_CORE = "xmplug.components"
_Entry = TypeVar("_Entry", Component, Recipe)


@dataclass
class Plugin:
    """One plugin as found: where it comes from, and what went wrong with it (`error`, empty when it works).

    remedy: what its user can do about the error. details: the traceback.
    """

    name: str
    distribution: str
    version: str
    location: str
    module: ModuleType | None = None
    error: str = ""
    remedy: str = ""
    details: str = ""
    components: dict[Slot, list[Component]] = field(default_factory=dict)
    recipes: list[Recipe] = field(default_factory=list)

    @property
    def fault(self) -> str:
        """What went wrong and what to do, for an error of a command that needs this plugin; empty when it works."""
        if not self.error:
            return ""
        return f"plugin {self.name!r} ({self.release}) is installed but does not load: {self.error}; {self.remedy}"

    @property
    def release(self) -> str:
        """Distribution and version; of a single file, its path."""
        return f"{self.distribution} {self.version}".strip()


class Registry(Generic[_Entry]):
    """Components of one slot, or recipes, by full id and by short name where that is unique."""

    def __init__(self, kind: str, faults: Mapping[str, str]):
        """faults: by plugin, what is wrong with those that do not load."""
        self.kind, self._faults = kind, faults
        self._by_id: dict[str, _Entry] = {}

    def add(self, key: str, entry: _Entry) -> None:
        """Raises PluginConflictError when `key` is taken."""
        if key in self._by_id:
            owners = " and ".join(sorted({repr(self._by_id[key].plugin), repr(entry.plugin)}))
            raise PluginConflictError(
                f"two {self.kind}s are named {key!r}, in plugin {owners}; rename one of them, or uninstall its plugin"
            )
        self._by_id[key] = entry

    def __iter__(self) -> Any:
        return iter(self._by_id.values())

    def find(self, name: str) -> _Entry:
        """The entry with id `plugin:name`, or with that short name where only one plugin has it.

        Raises PluginError for an unknown or ambiguous name, or one of a plugin that does not load.
        """
        if name in self._by_id:
            return self._by_id[name]
        matches = [key for key in self._by_id if key.split(":")[-1] == name]
        if len(matches) == 1:
            return self._by_id[matches[0]]
        if matches:
            raise PluginError(f"{self.kind} {name!r} is ambiguous: say {' or '.join(sorted(matches))}")
        raise PluginError(
            self._faults.get(name.split(":")[0]) or f"no {self.kind} {name!r}: {nearest(name, self._by_id)}"
        )


class Plugins:
    """All plugins of this process: their components by slot and their recipes."""

    def __init__(self) -> None:
        self.found: list[Plugin] = []
        self._faults: dict[str, str] = {}
        self.components: dict[Slot, Registry[Component]] = {slot: Registry(slot, self._faults) for slot in SLOTS}
        self.recipes: Registry[Recipe] = Registry("recipe", self._faults)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)

    def load(self, files: tuple[str, ...] = ()) -> Plugins:
        """Load the runtime's own components, every installed plugin, and single-file plugins.

        Raises PluginConflictError when two distributions claim one name; PluginError when a single file that was
        asked for does not load. An installed plugin that does not load is kept in `found` with its error, as is one
        for another generation of the hooks.
        """
        core = Plugin("core", "xmplug", _version("xmplug"), str(Path(__file__).parent))
        self._register(core, importlib.import_module(_CORE))
        for plugin, entry_point in _installed():
            try:
                self._register(plugin, entry_point.load())
            except PluginConflictError:
                raise
            except Exception as error:  # a broken plugin must not take the others down
                plugin.error = f"{type(error).__name__}: {error}"
                plugin.remedy = f"{_mend(error)}, or remove it: pip uninstall {plugin.distribution}"
                plugin.details = traceback.format_exc()
                self._keep_broken(plugin)
        for plugin in _of_other_generations(self.found):
            self._keep_broken(plugin)
        for file in files:
            self._load_file(Path(file))
        return self

    def _keep_broken(self, plugin: Plugin) -> None:
        self.found.append(plugin)
        self._faults.setdefault(plugin.name, plugin.fault)
        _trace(f"plugin {plugin.name} does not load: {plugin.error}")

    def _load_file(self, path: Path) -> None:
        if not path.is_file():
            raise PluginError(f"plugin file {str(path)!r} does not exist; give the path of a Python file")
        name = path.stem
        plugin = Plugin(name, str(path), "", str(path))
        if name in sys.modules:
            other = getattr(sys.modules[name], "__file__", None)
            if other is not None and Path(other).resolve() == path.resolve():
                return self._register(plugin, sys.modules[name])
            raise PluginConflictError(
                f"plugin file {str(path)!r} is named like the module {name!r} ({other or 'built in'}); rename the file"
            )
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Registered before it runs, so that factories "name:Class" and pydantic's type look-ups resolve.
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
            self._register(plugin, module)
        except Exception as error:
            del sys.modules[name]
            if isinstance(error, PluginError):
                raise
            raise PluginError(f"plugin file {str(path)!r} does not load: {type(error).__name__}: {error}") from error

    def _register(self, plugin: Plugin, module: ModuleType) -> None:
        known = {hook for hook in vars(hookspecs) if hook.startswith("xmplug_")}
        for name in vars(module):
            # pluggy's check_pending sees only marked functions; a misspelt one without a mark is caught here too.
            if name.startswith("xmplug_") and name not in known:
                raise PluginError(f"plugin {plugin.name!r} has an unknown hook {name!r}: {nearest(name, known)}")
        for other in self.found:
            if other.name == plugin.name and not other.error:
                raise PluginConflictError(_conflict(other, plugin))
        self._manager.register(module, plugin.name)
        try:
            self._manager.check_pending()
            implementations = {caller.name: caller for caller in self._manager.get_hookcallers(module) or []}
            for slot, hook in _HOOKS.items():
                declared = _declared(plugin, module, hook, Component) if hook in implementations else []
                plugin.components[slot] = [replace(entry, plugin=plugin.name) for entry in declared]
            if "xmplug_recipes" in implementations:
                recipes = _declared(plugin, module, "xmplug_recipes", Recipe)
                plugin.recipes = [replace(recipe, plugin=plugin.name) for recipe in recipes]
            for slot in SLOTS:
                for component in plugin.components[slot]:
                    self.components[slot].add(component.id, component)
            for recipe in plugin.recipes:
                self.recipes.add(recipe.name, recipe)
        except Exception:
            self._manager.unregister(module)
            raise
        plugin.module = module
        self.found.append(plugin)

    def recipe(self, name: str) -> Recipe:
        """The recipe called `name`. Raises PluginError, with the plugin's own failure if it is installed but broken."""
        return self.recipes.find(name)

    def plugin(self, name: str) -> Plugin:
        """The plugin called `name`. Raises PluginError when there is none, or it does not load."""
        working = {plugin.name: plugin for plugin in self.found if not plugin.error}
        if name in working:
            return working[name]
        raise PluginError(self._faults.get(name) or f"no plugin {name!r}: {nearest(name, working)}")

    def owner(self, component_id: str) -> Plugin:
        """The plugin that a full component id belongs to."""
        return self.plugin(component_id.split(":")[0])


def _declared(plugin: Plugin, module: ModuleType, hook: str, kind: type[_Entry]) -> list[_Entry]:
    entries = list(getattr(module, hook)())
    for entry in entries:
        if not isinstance(entry, kind):
            raise PluginError(
                f"plugin {plugin.name!r}: {hook} must return {kind.__name__} objects, found {type(entry).__name__}"
            )
    _trace(f"{hook}: {plugin.name} answers {', '.join(entry.name for entry in entries) or 'nothing'}")
    return entries


def _trace(line: str) -> None:
    """With XMPLUG_TRACE=1, what plugins answer goes to standard error. pluggy's own tracing would say nothing: hooks
    are called plugin by plugin, since an answer belongs to the plugin that gave it."""
    if os.environ.get("XMPLUG_TRACE", "0") not in ("", "0"):
        _print_once(line)


@cache
def _print_once(line: str) -> None:
    """A command may load the plugins several times."""
    print(f"xmplug: trace: {line}", file=sys.stderr)


def _conflict(first: Plugin, second: Plugin) -> str:
    ways = [
        f"rename {plugin.location}"
        if plugin.location == plugin.distribution
        else f"pip uninstall {plugin.distribution}"
        for plugin in (first, second)
        if plugin.name != "core" or plugin.distribution != "xmplug"
    ]
    return (
        f"two plugins are named {first.name!r}: {first.location} and {second.location}; keep one of them: "
        f"{' or '.join(dict.fromkeys(ways))}"
    )


def _mend(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"install the package that brings the module {error.name}"
    return "install another version of it"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _installed() -> list[tuple[Plugin, importlib.metadata.EntryPoint]]:
    installed: dict[str, tuple[Plugin, importlib.metadata.EntryPoint]] = {}
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        plugin = _found(entry_point)
        if entry_point.name in installed:
            other, same = installed[entry_point.name]
            if (other.distribution, same.value) == (plugin.distribution, entry_point.value):
                continue  # one editable install is listed once per path that leads to it
            raise PluginConflictError(_conflict(other, plugin))
        installed[entry_point.name] = (plugin, entry_point)
    return [installed[name] for name in sorted(installed)]


def _of_other_generations(loaded: list[Plugin]) -> list[Plugin]:
    """Plugins that were written for other hooks than these, but for those of distributions that serve these too."""
    served = {(plugin.name, plugin.distribution) for plugin in loaded}
    others: dict[tuple[str, str], Plugin] = {}
    for entry_point in chain.from_iterable(each.entry_points for each in importlib.metadata.distributions()):
        generation = re.fullmatch(r"xmplug(\d+)", entry_point.group)
        if generation is None or entry_point.group == ENTRY_POINT_GROUP:
            continue
        plugin = _found(entry_point)
        version, own = _version("xmplug"), ENTRY_POINT_GROUP.removeprefix("xmplug")
        plugin.error = f"written for generation {generation[1]} of the hooks; xmplug {version} has generation {own}"
        fitting = "a newer" if int(generation[1]) > int(own) else "an older"
        plugin.remedy = (
            f"install {fitting} xmplug, or a version of {plugin.distribution} with an entry point in the group "
            f"{ENTRY_POINT_GROUP!r}, or remove it: pip uninstall {plugin.distribution}"
        )
        if (plugin.name, plugin.distribution) not in served:
            others.setdefault((plugin.name, plugin.distribution), plugin)
    return [others[key] for key in sorted(others)]


def _found(entry_point: importlib.metadata.EntryPoint) -> Plugin:
    distribution = entry_point.dist
    name = distribution.metadata["Name"] if distribution else "unknown"
    version = distribution.version if distribution else ""
    location = str(distribution.locate_file("")) if distribution else ""
    return Plugin(entry_point.name, name, version, f"{name} {version} in {location}")
