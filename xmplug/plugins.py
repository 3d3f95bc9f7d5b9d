"""Discovery, loading and look-up of plugins.

Own loader over pluggy, because pluggy drops the second of two plugins with one name silently and lets one broken
plugin end the program. Here a conflict is an error that names both sides, and a plugin that does not import is
reported and kills nothing else.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import traceback
from dataclasses import dataclass, field, replace
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
    """One plugin as found: where it comes from, and what went wrong with it (`error`, empty when it works)."""

    name: str
    distribution: str
    version: str
    location: str
    module: ModuleType | None = None
    error: str = ""
    details: str = ""
    components: dict[Slot, list[Component]] = field(default_factory=dict)
    recipes: list[Recipe] = field(default_factory=list)


class Registry(Generic[_Entry]):
    """Components of one slot, or recipes, by full id and by short name where that is unique."""

    def __init__(self, kind: str):
        self.kind = kind
        self._by_id: dict[str, _Entry] = {}

    def add(self, key: str, entry: _Entry) -> None:
        """Raises PluginConflictError when `key` is taken."""
        if key in self._by_id:
            raise PluginConflictError(f"two {self.kind}s are named {key!r}; rename one of them in its plugin")
        self._by_id[key] = entry

    def __iter__(self) -> Any:
        return iter(self._by_id.values())

    def find(self, name: str) -> _Entry:
        """The entry with id `plugin:name`, or with that short name where only one plugin has it.

        Raises PluginError for an unknown or ambiguous name.
        """
        if name in self._by_id:
            return self._by_id[name]
        matches = [key for key in self._by_id if key.split(":")[-1] == name]
        if len(matches) == 1:
            return self._by_id[matches[0]]
        if matches:
            raise PluginError(f"{self.kind} {name!r} is ambiguous: say {' or '.join(sorted(matches))}")
        raise PluginError(f"no {self.kind} {name!r}: {nearest(name, self._by_id)}")


class Plugins:
    """All plugins of this process: their components by slot and their recipes."""

    def __init__(self) -> None:
        self.found: list[Plugin] = []
        self.components: dict[Slot, Registry[Component]] = {slot: Registry(slot) for slot in SLOTS}
        self.recipes: Registry[Recipe] = Registry("recipe")
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)

    def load(self, files: tuple[str, ...] = ()) -> Plugins:
        """Load the runtime's own components, every installed plugin, and single-file plugins.

        Raises PluginConflictError when two distributions claim one name; PluginError when a single file that was
        asked for does not load. An installed plugin that does not load is kept in `found` with its error.
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
                plugin.details = traceback.format_exc()
                self.found.append(plugin)
        for file in files:
            self._load_file(Path(file))
        return self

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
                raise PluginConflictError(_conflict(plugin.name, other.location, plugin.location))
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
        for plugin in self.found:
            if plugin.name == name and plugin.error:
                raise PluginError(
                    f"plugin {name!r} ({plugin.distribution} {plugin.version}) is installed but does not load: "
                    f"{plugin.error}; `xmplug plugins` shows more"
                )
        return self.recipes.find(name)

    def owner(self, component_id: str) -> Plugin:
        """The plugin that a full component id belongs to."""
        name = component_id.split(":")[0]
        for plugin in self.found:
            if plugin.name == name:
                return plugin
        raise PluginError(f"no plugin {name!r}: {nearest(name, [plugin.name for plugin in self.found])}")


def _declared(plugin: Plugin, module: ModuleType, hook: str, kind: type[_Entry]) -> list[_Entry]:
    entries = list(getattr(module, hook)())
    for entry in entries:
        if not isinstance(entry, kind):
            raise PluginError(
                f"plugin {plugin.name!r}: {hook} must return {kind.__name__} objects, found {type(entry).__name__}"
            )
    return entries


def _conflict(name: str, first: str, second: str) -> str:
    return f"two plugins are named {name!r}: {first} and {second}; uninstall or rename one of them"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _installed() -> list[tuple[Plugin, importlib.metadata.EntryPoint]]:
    installed: dict[str, tuple[Plugin, importlib.metadata.EntryPoint]] = {}
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        distribution = entry_point.dist
        name = distribution.metadata["Name"] if distribution else "unknown"
        version = distribution.version if distribution else ""
        location = str(distribution.locate_file("")) if distribution else ""
        plugin = Plugin(entry_point.name, name, version, f"{name} {version} in {location}")
        if entry_point.name in installed:
            other, same = installed[entry_point.name]
            if (other.distribution, same.value) == (plugin.distribution, entry_point.value):
                continue  # one editable install is listed once per path that leads to it
            raise PluginConflictError(_conflict(entry_point.name, other.location, plugin.location))
        installed[entry_point.name] = (plugin, entry_point)
    return [installed[name] for name in sorted(installed)]
