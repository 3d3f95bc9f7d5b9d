"""A plugin package to begin with: what `xmplug plugins new` writes.

The files below `files` are a whole plugin with a component for each slot. They are checked like all other code, and
become a package as they are, but for what follows: NAME is the plugin's name, and what stands between `begin SLOT` and
`end SLOT` is there for a chosen slot only. pyproject.toml has another name here, or tools would take the folder for a
project.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..errors import PluginConflictError, PluginError, nearest
from ..plugins import Plugins
from ..recipe import SLOTS, Slot

FILES = Path(__file__).parent / "files"
_KINDS = (".py", ".md", ".toml", ".yml")
_OTHERS: dict[Slot, str] = {
    "encoder": "core:words",
    "label_structure": "core:flat",
    "label_context": "core:none",
    "fusion": "attentionxml:label_attention",
    "loss": "core:bce",
}
"""What the recipe takes where the package has no component of its own."""
_READS_LABEL_TEXTS = "treaderxml:dual"
"""The fusion that it takes where the package has a label context."""
_MARK = "(?:# |<!-- )"


def write_plugin(name: str, slots: Sequence[str], folder: Path, plugins: Plugins) -> list[Path]:
    """Write a plugin package with a component for each of `slots`; returns its files.

    Raises PluginError for a name that cannot be one, an unknown slot, a fusion that is needed and not installed, or a
    folder that holds something; PluginConflictError for a name that is taken.
    """
    _check_name(name, plugins)
    chosen = _check_slots(slots)
    others = {slot: component for slot, component in _OTHERS.items() if slot not in chosen}
    if "fusion" in others and "label_context" in chosen:
        others["fusion"] = _READS_LABEL_TEXTS
    needed = _needed(others, plugins)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PluginError(f"{str(folder)!r} holds something; give a new or an empty folder with --out")
    written = []
    for source in sorted(path for path in FILES.rglob("*") if path.suffix in _KINDS):
        if source.stem in SLOTS and source.stem not in chosen:
            continue
        target = folder / str(source.relative_to(FILES)).replace("NAME", name).replace(".template", "")
        target.parent.mkdir(parents=True, exist_ok=True)
        text = _without(source.read_text(encoding="utf-8"), others).replace("NAME", name)
        target.write_text(text.replace('"DEPENDENCIES"', ", ".join(f'"{each}"' for each in needed)), encoding="utf-8")
        written.append(target)
    return written


def _check_name(name: str, plugins: Plugins) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        usual = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
        advice = f"try {usual!r}" if usual else "begin with a letter"
        raise PluginError(
            f"{name!r} cannot name a plugin: asked are lower-case letters, digits and single _ inside, as in a Python "
            f"module; {advice}"
        )
    taken = {recipe.name: f"a recipe of plugin {recipe.plugin!r}" for recipe in plugins.recipes}
    taken |= {plugin.name: plugin.location for plugin in plugins.found}
    module = importlib.util.find_spec(f"xmplug_{name}")
    if name in taken or module is not None:
        where = taken.get(name) or f"module xmplug_{name} in {module and module.origin}"
        raise PluginConflictError(f"{name!r} is taken: {where}; choose another name, or uninstall that first")


def _check_slots(slots: Sequence[str]) -> list[Slot]:
    for slot in slots:
        if slot not in SLOTS:
            raise PluginError(f"no slot {slot!r}: {nearest(slot, SLOTS)}")
    if not slots:
        raise PluginError(f"no slot is asked for; give --slots with some of {','.join(SLOTS)}")
    return [slot for slot in SLOTS if slot in slots]


def _needed(others: dict[Slot, str], plugins: Plugins) -> list[str]:
    """Requirements of the package: the runtime, and the plugins whose components the recipe takes."""
    needed = [_requirement("xmplug", __version__)]
    for slot, component in others.items():
        owner = component.split(":")[0]
        if owner == "core":
            continue
        found = [plugin for plugin in plugins.found if plugin.name == owner and not plugin.error]
        if not found:
            raise PluginError(
                f"without a {slot} of its own the package takes {component}, and plugin {owner!r} is not installed; "
                f"pip install xmplug-{owner}, or add {slot} to --slots"
            )
        needed.append(_requirement(found[0].distribution, found[0].version))
    return needed


def _requirement(distribution: str, version: str) -> str:
    """This minor version and no later one: before 1.0 each may change what plugins rely on."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        return distribution
    major, minor = map(int, numbers.groups())
    return f"{distribution}>={major}.{minor},<{major}.{minor + 1}"


def _without(text: str, others: dict[Slot, str]) -> str:
    """The text without its parts for slots that others fill, and without the marks of the other parts."""
    for slot, component in others.items():
        text = re.sub(rf"^{_MARK}begin {slot}\b.*\n(?s:.*?)^{_MARK}end {slot}\b.*\n", "", text, flags=re.M)
        text = re.sub(rf'^( +{slot}=)"NAME:\w+"', rf'\1"{component}"', text, flags=re.M)
    text = re.sub(rf"^{_MARK}(begin|end) \w+( -->)?\n", "", text, flags=re.M)
    text = re.sub(r"^from \S+ import .*\n", lambda line: _used(line[0], text), text, flags=re.M)
    return re.sub(r"\n{4,}", "\n\n\n", text)


def _used(line: str, text: str) -> str:
    """An import without the names that nothing uses any more."""
    module, _, names = line.strip().partition(" import ")
    used = [name for name in names.split(", ") if len(re.findall(rf"\b{name}\b", text)) > 1 or "__future__" in module]
    return f"{module} import {', '.join(used)}\n" if used else ""
