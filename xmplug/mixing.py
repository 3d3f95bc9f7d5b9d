"""Which components can work with one another: what each takes from other slots, held against what these give.

Torch-free: it is decided by what components declare (`Component.gives` and `takes`), before any class is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import ValidationError

from .errors import ConfigError, PluginError
from .plugins import Plugins
from .recipe import SLOTS, Slot

if TYPE_CHECKING:
    from .config import RunConfig


@dataclass(frozen=True)
class Clash:
    """The component of `slot` takes one of `taken` from `source`, another slot or an option of training, and `given` is
    what there is."""

    slot: Slot
    source: str
    taken: tuple[str, ...]
    given: tuple[str, ...]


def takes_context(config: RunConfig) -> bool:
    """Whether the fusion takes anything from the label context; where it does not, the context is left out."""
    taken = config.taken("fusion")
    return taken is None or "label_context" in taken


def clashes(config: RunConfig) -> list[Clash]:
    """All that does not fit in a configuration, what the fusion takes first.

    Raises PluginError where something is taken from what is no slot and no option of training.
    """
    found = []
    for slot in sorted(SLOTS, key=lambda slot: slot != "fusion"):
        if slot == "label_context" and not takes_context(config):
            continue
        for source, taken in (config.taken(slot) or {}).items():
            given = config.given(source)
            if given is not None and not set(taken) & set(given):
                found.append(Clash(slot, source, taken, given))
    return found


def check(config: RunConfig, plugins: Plugins) -> None:
    """Raises ConfigError for components that do not fit one another, or the way of training."""
    for clash in clashes(config):
        taken, given = _list(clash.taken, "or"), _list(clash.given, "and") or "nothing that it can take"
        asker = f"{clash.slot.replace('_', ' ')} {config.components[clash.slot].id}"
        if clash.source in config.components:
            giver = config.components[clash.source].id  # type: ignore[index]
            reason = f"takes {taken} from the {clash.source.replace('_', ' ')}, and {giver} gives {given}"
        else:
            reason = f"works with {clash.source} {taken}, and asked is {given}"
        raise ConfigError(f"{asker} {reason}; {_advice(config, plugins, clash)}")


def _advice(config: RunConfig, plugins: Plugins, clash: Clash) -> str:
    """Which single changes would mend this clash, and leave no other; where there are none, mend this one at least."""
    whole: dict[str, list[str]] = {}
    partial: dict[str, list[str]] = {}
    for source in (clash.source, clash.slot):
        for option, value, changed in _changes(config, plugins, source):
            try:
                said = clash.source in (changed.taken(clash.slot) or {}) and changed.given(clash.source) is not None
                left = {(other.slot, other.source) for other in clashes(changed)}
            except PluginError:  # of a component that was not asked for
                continue
            if said and (clash.slot, clash.source) not in left:
                partial.setdefault(option, []).append(value)
                if not left:
                    whole.setdefault(option, []).append(value)
    ways = [f"{option} {_list(values, 'or')}" for option, values in (whole or partial).items()]
    return f"give {', or '.join(ways)}" if ways else "exchange one of them"


def _changes(config: RunConfig, plugins: Plugins, source: str) -> Iterator[tuple[str, str, RunConfig]]:
    """(option, value, what the configuration becomes by it) for each choice of an option, and each other component."""
    if source not in config.components:
        name = source.partition(".")[2]
        for value in _choices(config.training, name):
            training = config.training.model_copy(update={name: value})
            yield f"--{source}", value, replace(config, training=training)
        return
    slot: Slot = source  # type: ignore[assignment]
    for component in plugins.components[slot]:
        if component == config.components[slot]:
            continue
        try:
            options = component.config()
        except ValidationError:  # an option that only its user can give
            continue
        components = {**config.components, slot: component}
        changed = replace(config, components=components, options={**config.options, slot: options})
        yield f"--{_title(slot)}", component.id, changed
    own = config.options[slot]
    for name in type(own).model_fields:
        for value in _choices(own, name):
            options = own.model_copy(update={name: value})
            yield f"--{_title(slot)}.{name}", value, replace(config, options={**config.options, slot: options})


def _choices(options: Any, name: str) -> Sequence[str]:
    annotation = type(options).model_fields[name].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _title(slot: str) -> str:
    return slot.replace("_", "-")


def _list(words: Sequence[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
