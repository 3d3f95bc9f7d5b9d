"""TReaderXML: exploiting dynamic and fine-grained semantic scope for extreme multi-label text classification.

Wang, Song, Huo, Xu, Yang, Chen, Zhao, 2022.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from xmplug import Component, ComponentConfig, Paper, Recipe, hookimpl


class ScopeConfig(ComponentConfig):
    """The label scope of a text: labels of its nearest training texts and their parents (section 3.2)."""

    neighbours: int = Field(5, ge=1, description="k: nearest training texts whose labels make the scope")
    label_words: int = Field(4, ge=1, description="words of a label's name that are read")
    parents: bool = Field(True, description="add the parents of the labels, one level up")
    weights: Literal["equal", "votes"] = Field(
        "votes", description="what a label counts in the scope: all the same (the paper), or its number of neighbours"
    )
    exact_up_to: int = Field(
        100_000, ge=0, description="training texts up to which neighbours are searched exactly; above, by clusters"
    )


class DualConfig(ComponentConfig):
    """The dual cooperative network (section 3.2)."""

    heads: int = Field(4, ge=1, description="h: attention heads")
    reading: tuple[Literal["masked", "residual", "full"], ...] = Field(
        ("masked", "residual", "full"),
        description="the parts of Reading in their order: masked attention, residual, full attention",
    )
    hidden: int = Field(512, ge=1, description="width of the hidden bottleneck")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout of the hidden bottleneck")

    @field_validator("reading")
    @classmethod
    def _residual_follows_attention(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(part == "residual" and (at == 0 or value[at - 1] == "residual") for at, part in enumerate(value)):
            raise ValueError("residual adds what went into the attention before it; name an attention first")
        return value


class SoftmaxLogisticConfig(ComponentConfig):
    """No options."""


def _section_4_1(max_tokens: int, label_words: int, vector_size: int = 300) -> dict[str, dict[str, Any]]:
    """Lengths of texts, of label names and of word vectors for one of the paper's corpora."""
    return {
        "encoder": {"max_tokens": max_tokens, "vector_size": vector_size},
        "label_context": {"label_words": label_words, "weights": "equal"},
    }


def _laptop(max_tokens: int, epochs: int) -> dict[str, dict[str, Any]]:
    """Short texts and vectors, and steps as large as they may be, for two cores."""
    training = {"epochs": epochs, "batch_size": 32, "learning_rate": 2e-3, "warmup": 0.05}
    return {"encoder": {"vector_size": 200, "max_tokens": max_tokens}, "training": training}


_TABLE_3 = {
    "ablation-0": (),
    "ablation-1": (),
    "ablation-2": ("masked", "residual"),
    "ablation-3": ("full", "residual"),
    "ablation-4": ("full", "residual", "masked"),
    "ablation-5": ("masked", "full"),
    "ablation-6": ("masked", "residual", "full"),
}
"""What Reading is made of; the first row has no teacher knowledge either."""


def _ablation(name: str) -> dict[str, dict[str, Any]]:
    context = {"label_context": {"component": "core:none"}} if name == "ablation-0" else {}
    return _laptop(150, 3) | {"fusion": {"reading": _TABLE_3[name]}} | context


@hookimpl
def xmplug_label_contexts() -> list[Component]:
    return [
        Component(
            "scope",
            "xmplug_treaderxml.scope:Scope",
            ScopeConfig,
            "labels of the nearest texts, and their parents",
            gives=("label texts",),
            takes={"encoder": ("word vectors",)},
        )
    ]


@hookimpl
def xmplug_fusions() -> list[Component]:
    return [
        Component(
            "dual",
            "xmplug_treaderxml.network:DualNetwork",
            DualConfig,
            "dual cooperative network of text and scope",
            takes={"encoder": ("states",), "label_context": ("label texts", "nothing")},
        )
    ]


@hookimpl
def xmplug_losses() -> list[Component]:
    return [
        Component(
            "softmax_logistic",
            "xmplug_treaderxml.loss:SoftmaxLogistic",
            SoftmaxLogisticConfig,
            "softmax, then logistic loss: the paper's equations 18 and 19 as they stand",
            gives=(),
        )
    ]


@hookimpl
def xmplug_recipes() -> list[Recipe]:
    return [
        Recipe(
            "treaderxml",
            "self-attention over a text and the labels of the training texts nearest to it",
            encoder="core:words",
            label_structure="core:flat",
            label_context="treaderxml:scope",
            fusion="treaderxml:dual",
            loss="core:bce",
            paper=Paper(
                "Exploiting Dynamic and Fine-grained Semantic Scope for Extreme Multi-label Text Classification",
                2022,
                "https://arxiv.org/abs/2205.11973",
            ),
            options={"training": {"learning_rate": 1e-4, "schedule": "linear", "swa_start": None}},
            presets={
                "amazoncat-13k": _section_4_1(300, 4),
                "eur-lex": _section_4_1(500, 4),
                "rcv1": _section_4_1(250, 16, vector_size=400),
                "laptop": _laptop(300, 10),
                "demo": _laptop(200, 5),
                **{name: _ablation(name) for name in _TABLE_3},
            },
        )
    ]
