"""GUDN: a guide network with label reinforcement for extreme multi-label text classification.

Wang, Zhu, Shu, Asamoah, Shi, Zhou, 2022.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from xmplug import Component, ComponentConfig, Paper, Recipe, Takes, hookimpl

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""A small encoder: 6 layers of 384 numbers. The extra `minilm` brings its files, for machines without internet."""


class BertConfig(ComponentConfig):
    """A pretrained encoder of the BERT family (section 3.2)."""

    model: str = Field("google-bert/bert-base-uncased", description="name on the Hugging Face hub, or a folder")
    revision: str | None = Field(None, description="branch, tag or commit on the hub; none: its main branch")
    max_tokens: int = Field(512, ge=3, description="longer texts are cut here")
    layers: int = Field(10, ge=1, description="last layers whose [CLS] is kept, or all where there are fewer")
    frozen: int = Field(0, ge=0, description="lowest layers that do not learn, with the embeddings; 0: all learn")
    rate: float = Field(1.0, gt=0, description="learning rate of the highest layer, as a multiple of training's")
    decay: float = Field(1.0, gt=0, le=1, description="learning rate of a layer, as a multiple of the one above")
    dropout: float | None = Field(None, ge=0, lt=1, description="dropout inside the model; none: its own")
    checkpointing: bool = Field(False, description="forget states in forward and make them again in backward")


class ReinforcedConfig(ComponentConfig):
    """The labels of a training text as one text (section 3.5)."""

    fill: Literal["shuffled", "ordered", "none"] = Field(
        "shuffled", description="how the labels are repeated up to max_tokens: shuffled, in order, or not at all"
    )
    max_tokens: int = Field(512, ge=3, description="tokens of a label text")
    ids_as_names: bool = Field(False, description="read the id of a label that has no name")


class OwnLabelsConfig(ComponentConfig):
    """The labels of a training text as they are numbered (Table 7, multi-hot vectors)."""


class GuidedConfig(ComponentConfig):
    """Feature extractor, guide network and ranking classifier (sections 3.2 to 3.4)."""

    text_layers: int = Field(8, ge=1, description="last layers whose [CLS] are the features of a text")
    label_layers: int = Field(10, ge=1, description="the same of a label text")
    size: int = Field(512, ge=1, description="length of E_t and E_l, the output of MLP_1")
    hidden: int = Field(512, ge=1, description="length of the output of MLP_2")
    activation: Literal["softmax", "none"] = Field("none", description="theta in eq. 6, behind MLP_2")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout of the concatenated [CLS] states")
    guides: tuple[Literal["feature", "link"], ...] = Field(
        ("feature", "link"), description="which guides there are, eq. 3 and 4"
    )
    label_input: Literal["text", "multi_hot"] = Field(
        "text", description="what label features are made of: the encoder's states, or the labels' multi-hot vector"
    )


class GuidedLossConfig(ComponentConfig):
    """L_class + L_feature + L_link (eq. 3 to 5, 7, 8)."""

    feature_weight: float = Field(1.0, ge=0, description="how much L_feature counts beside the others")


def _section_4_2(epochs: int, max_tokens: int = 512, **others: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The paper's setting for one of its corpora. Longformer reads what is longer than 512 tokens (section 4.6)."""
    encoder: dict[str, Any] = {"max_tokens": max_tokens}
    if max_tokens > 512:
        encoder["model"] = "allenai/longformer-base-4096"
    return {"encoder": encoder, "training": {"epochs": epochs, "batch_size": 8, **others.pop("training", {})}, **others}


def _laptop(max_tokens: int, label_tokens: int, epochs: int) -> dict[str, dict[str, Any]]:
    """A small encoder of which the upper half learns, and short texts, for two cores."""
    encoder = {"model": MINILM, "max_tokens": max_tokens, "frozen": 3, "rate": 0.05, "dropout": 0.0}
    return {
        "encoder": encoder,
        "label_context": {"max_tokens": label_tokens},
        "training": {"epochs": epochs, "batch_size": 32, "learning_rate": 2e-3, "warmup": 0.05},
    }


_MULTI_HOT = {"label_context": {"component": "gudn:own_labels"}, "fusion": {"label_input": "multi_hot"}}
_ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "bert": {"label_context": {"component": "core:none"}, "fusion": {"guides": ()}},
    "feature": {"fusion": {"guides": ("feature",)}},
    "link": {"fusion": {"guides": ("link",)}},
    "both": {},
    "multi-hot": _MULTI_HOT,
    "ordered": {"label_context": {"fill": "ordered"}},
    "unfilled": {"label_context": {"fill": "none"}},
}
"""Rows of Table 6 (guides), Table 7 (what guides) and figure 5 (label reinforcement, of which "both" is shuffled)."""


def _ablation(name: str) -> dict[str, dict[str, Any]]:
    preset = _laptop(64, 32, 3)
    for section, options in _ABLATIONS[name].items():
        preset[section] = options if "component" in options else {**preset.get(section, {}), **options}
    return preset


@hookimpl
def xmplug_encoders() -> list[Component]:
    return [
        Component(
            "bert",
            "xmplug_gudn.encoder:Bert",
            BertConfig,
            "pretrained transformer encoder",
            gives=("tokens", "word vectors", "states", "pooled vectors"),
        )
    ]


@hookimpl
def xmplug_label_contexts() -> list[Component]:
    return [
        Component(
            "reinforced",
            "xmplug_gudn.labels:Reinforced",
            ReinforcedConfig,
            "a training text's labels as one text",
            gives=("label texts",),
            takes={"encoder": ("tokens",)},
        ),
        Component(
            "own_labels",
            "xmplug_gudn.labels:OwnLabels",
            OwnLabelsConfig,
            "a training text's labels by number",
            gives=("label numbers",),
            takes={},
        ),
    ]


def _taken_by_guided(config: GuidedConfig) -> Takes:
    encoder = {"encoder": ("pooled vectors", "states")}
    if not config.guides:
        return encoder
    labels = ("label numbers",) if config.label_input == "multi_hot" else ("label texts", "nothing")
    return {**encoder, "label_context": labels}


@hookimpl
def xmplug_fusions() -> list[Component]:
    return [
        Component(
            "guided",
            "xmplug_gudn.network:Guided",
            GuidedConfig,
            "ranking classifier with a guide network in training",
            takes=_taken_by_guided,
        )
    ]


@hookimpl
def xmplug_losses() -> list[Component]:
    return [
        Component(
            "guided",
            "xmplug_gudn.loss:GuidedLoss",
            GuidedLossConfig,
            "logistic loss of the classifier and the guides",
            gives=(),
        )
    ]


@hookimpl
def xmplug_recipes() -> list[Recipe]:
    return [
        Recipe(
            "gudn",
            "pretrained transformer, guided in training by the texts of the labels",
            encoder="gudn:bert",
            label_structure="core:flat",
            label_context="gudn:reinforced",
            fusion="gudn:guided",
            loss="gudn:guided",
            paper=Paper(
                "GUDN: A novel guide network with label reinforcement strategy for extreme multi-label text "
                "classification",
                2022,
                "https://arxiv.org/abs/2201.11582",
            ),
            options={
                "encoder": {"rate": 0.05},
                "training": {"learning_rate": 1e-3, "schedule": "linear", "warmup": 0.1, "swa_start": None},
            },
            presets={
                "eurlex-4k": _section_4_2(40),
                "wiki10-31k": _section_4_2(40),
                "amazoncat-13k": _section_4_2(20),
                "wiki-500k": _section_4_2(
                    20,
                    label_structure={"component": "core:tree", "branching": 100_000, "max_leaf": 60, "beam": 20},
                    training={"levels": "together"},
                ),
                **{f"longformer-{tokens}": _section_4_2(40, tokens) for tokens in (1024, 2048, 4096)},
                "laptop": _laptop(96, 24, 5),
                "demo": _laptop(64, 24, 1),
                **{f"ablation-{name}": _ablation(name) for name in _ABLATIONS},
            },
        )
    ]
