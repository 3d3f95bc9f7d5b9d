"""What a plugin declares: components for the slots, and recipes that put them together as a method.

Torch-free: a component names its implementation by a string, which is imported only when it has been chosen.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

from .errors import PluginError

Slot = Literal["encoder", "label_structure", "label_context", "fusion", "loss"]
SLOTS: tuple[Slot, ...] = ("encoder", "label_structure", "label_context", "fusion", "loss")


class ComponentConfig(BaseModel):
    """Base of a component's options: typed, bounded, described; an unknown key is an error.

    Text, as a command line gives it, is read by the field's type: "none" where None is allowed, and commas between
    the items of a tuple.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, values: Any) -> Any:
        for name, option in cls.model_fields.items():
            value = values.get(name)
            if get_origin(option.annotation) is tuple and isinstance(value, (str, int)):
                values[name] = (
                    tuple(value.split(",")) if isinstance(value, str) and value else (value,) if value else ()
                )
            elif value == "none" and type(None) in get_args(option.annotation):
                values[name] = None
        return values


Gives = tuple[str, ...]
Takes = Mapping[str, tuple[str, ...]]
WORDS: Mapping[str, Mapping[str, str]] = {
    "encoder": {
        "tokens": "it has a tokenizer, and reads tokens",
        "word vectors": "a vector for each token id that does not depend on its neighbours",
        "states": "a vector for each token of a text",
        "pooled vectors": "vectors of a text as a whole",
        "sparse vectors": "sparse features of the raw text",
    },
    "label_structure": {},
    "label_context": {
        "nothing": "no label informs a text; of a component that does without a label context",
        "label texts": "texts of labels, which the encoder reads",
        "label numbers": "places in the label set, which the encoder does not read",
        "label groups": "for each label, or node of a tree, those that inform its score",
    },
    "fusion": {},
    "loss": {"a margin": "it sums a function of the margin over the candidates, and names it in `margin_loss`"},
}
"""What components give, by slot, in the words of `Component.gives` and `takes`. A plugin may have words of its own."""


@dataclass(frozen=True)
class Component:
    """One implementation of a slot.

    name: short name, unique inside the plugin and the slot; the full id is `plugin:name`.
    factory: `"package.module:Class"`, a subclass of the slot's interface in `xmplug.interfaces`.
    config: the pydantic model of its options.
    summary: one line for `xmplug plugins`.
    gives: what other slots can take from it, in the words of `WORDS`. takes: by slot what it takes from there, one of
    several, such as {"encoder": ("states", "pooled vectors")}, or by an option of training the values that it can work
    with, such as {"training.levels": ("apart",)}; a label context is left out where the fusion takes nothing from it.
    Either may be a function of the options. What does not fit is refused when a run's configuration is resolved; None:
    not said, so that nothing is refused on its account.
    """

    name: str
    factory: str
    config: type[ComponentConfig]
    summary: str
    plugin: str = ""
    gives: Gives | Callable[[Any], Gives] | None = None
    takes: Takes | Callable[[Any], Takes] | None = field(default=None, hash=False)

    @property
    def id(self) -> str:
        return f"{self.plugin}:{self.name}"

    def given(self, config: ComponentConfig) -> Gives | None:
        """What it gives with these options."""
        return self.gives(config) if callable(self.gives) else self.gives

    def taken(self, config: ComponentConfig) -> Takes | None:
        """What it takes with these options."""
        return self.takes(config) if callable(self.takes) else self.takes

    def resolve(self) -> Any:
        """Import and return the class named by `factory`.

        Raises PluginError when the module does not import or has no such class.
        """
        module_name, _, attribute = self.factory.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except Exception as error:
            raise PluginError(
                f"component {self.id!r}: cannot load {self.factory!r}: {type(error).__name__}: {error}; "
                "reinstall the plugin or correct its factory"
            ) from error


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    year: int
    url: str


@dataclass(frozen=True)
class Recipe:
    """A published method: a component for each slot, options that differ from their defaults, and presets.

    `options` and each preset are nested like the configuration itself, for example
    `{"encoder": {"hidden": 512}, "training": {"epochs": 10}}`. A preset may exchange a component:
    `{"label_structure": {"component": "attentionxml:plt", "height": 2}}`.
    """

    name: str
    summary: str
    encoder: str
    label_structure: str
    fusion: str
    loss: str
    label_context: str = "core:none"
    paper: Paper | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    plugin: str = ""

    def component(self, slot: Slot) -> str:
        """The component id (or short name) that this recipe puts into `slot`."""
        return str(getattr(self, slot))
