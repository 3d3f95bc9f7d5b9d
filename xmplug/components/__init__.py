"""The runtime's own components, registered as plugin "core" through the same hooks as every other."""

from __future__ import annotations

from ..hookspecs import hookimpl
from ..recipe import Component, ComponentConfig


class FlatConfig(ComponentConfig):
    """No options."""


class BCEConfig(ComponentConfig):
    """No options."""


@hookimpl
def xmplug_label_structures() -> list[Component]:
    return [
        Component(
            "flat",
            "xmplug.components.flat:Flat",
            FlatConfig,
            "one level: every label is scored for every text",
        )
    ]


@hookimpl
def xmplug_losses() -> list[Component]:
    return [
        Component("bce", "xmplug.components.bce:BCE", BCEConfig, "binary cross-entropy, summed over the candidates")
    ]
