"""GUDN: a guide network with label reinforcement for extreme multi-label text classification.

Wang, Zhu, Shu, Asamoah, Shi, Zhou, 2022.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from xmplug import Component, ComponentConfig, Paper, Recipe, hookimpl

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
    attention_dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout of attention weights; none: the model's own"
    )
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

    feature_weight: float = Field(0.01, ge=0, description="how much L_feature counts beside the others")


def _laptop(max_tokens: int, label_tokens: int, epochs: int, frozen: int) -> dict[str, dict[str, Any]]:
    """A small encoder and short texts, for two cores."""
    return {
        "encoder": {
            "model": MINILM,
            "max_tokens": max_tokens,
            "frozen": frozen,
            "rate": 0.03,
            "attention_dropout": 0.0,
        },
        "label_context": {"max_tokens": label_tokens},
        "training": {"epochs": epochs, "batch_size": 32, "learning_rate": 3e-3, "warmup": 0.05},
    }


@hookimpl
def xmplug_encoders() -> list[Component]:
    return [Component("bert", "xmplug_gudn.encoder:Bert", BertConfig, "pretrained transformer encoder")]


@hookimpl
def xmplug_label_contexts() -> list[Component]:
    return [
        Component(
            "reinforced", "xmplug_gudn.labels:Reinforced", ReinforcedConfig, "a training text's labels as one text"
        ),
        Component("own_labels", "xmplug_gudn.labels:OwnLabels", OwnLabelsConfig, "a training text's labels by number"),
    ]


@hookimpl
def xmplug_fusions() -> list[Component]:
    return [
        Component(
            "guided", "xmplug_gudn.network:Guided", GuidedConfig, "ranking classifier with a guide network in training"
        )
    ]


@hookimpl
def xmplug_losses() -> list[Component]:
    return [
        Component(
            "guided", "xmplug_gudn.loss:GuidedLoss", GuidedLossConfig, "logistic loss of the classifier and the guides"
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
                "training": {"learning_rate": 5e-5, "schedule": "linear", "warmup": 0.1, "swa_start": None},
            },
            presets={"laptop": _laptop(128, 32, 6, 3)},
        )
    ]
