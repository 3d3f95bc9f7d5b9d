"""MAACF+: multi-aspect co-attentional collaborative filtering for extreme multi-label text classification.

Wang, Chen, Qin, He, Chen, 2023.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from xmplug import Component, ComponentConfig, Paper, Recipe, Takes, hookimpl
from xmplug.components import WordsConfig


class XMLCNNConfig(WordsConfig):
    """n times XML-CNN on one table of word vectors."""

    aspects: int = Field(2, ge=1, description="n: independent encoders, each of which gives one vector")
    widths: tuple[int, ...] = Field((2, 4, 8), description="words that a filter sees")
    filters: int = Field(128, ge=1, description="filters of each width")
    pools: int = Field(8, ge=1, description="parts of a text, of each of which a filter keeps its largest value")
    size: int = Field(256, ge=1, description="length of a vector")
    feature_dropout: float = Field(0.5, ge=0, lt=1, description="dropout of what the filters kept")


class AttentionBiLSTMConfig(WordsConfig):
    """n times a bidirectional LSTM with self-attention, on one table of word vectors."""

    aspects: int = Field(2, ge=1, description="n: independent encoders, each of which gives one vector")
    hidden: int = Field(128, ge=1, description="LSTM units per direction")
    attention: int = Field(128, ge=1, description="hidden units of the self-attention")
    state_dropout: float = Field(0.5, ge=0, lt=1, description="dropout of LSTM states")


class LabelGroupsConfig(ComponentConfig):
    """Global nearest label groups (section 3.2.1)."""

    neighbours: int = Field(2, ge=0, description="k: labels in the group of a label; 0: no groups")


class CoAttentionConfig(ComponentConfig):
    """Label model and text side with co-attention, and the predictor (sections 3.2.2 to 3.3)."""

    aspects: int | None = Field(
        None,
        ge=1,
        description="n: poolings of an encoder's states by attention; none: the vectors that it pools itself, or 2 where "
        "it pools none",
    )
    size: int = Field(256, ge=1, description="D: length of the vectors of texts and labels")
    attention: Literal["co", "self"] = Field(
        "co", description="whether texts and labels weigh one another, or each side itself (MCF+)"
    )
    layers: int = Field(2, ge=1, description="layers of the predictor")
    hidden: int = Field(256, ge=1, description="width of the predictor's hidden layers")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout of the predictor's hidden layers")
    product: bool = Field(True, description="add the weighted product of both vectors to the predictor's score")


class ClassifierConfig(ComponentConfig):
    """A linear layer on an encoder alone."""

    aspects: int | None = Field(
        None,
        ge=1,
        description="poolings of an encoder's states by attention; none: the vectors that it pools itself, or 2 where it "
        "pools none",
    )
    size: int = Field(256, ge=1, description="length of a text vector")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout of the text vector")


class BPRConfig(ComponentConfig):
    """Bayesian personalized ranking (eq. 10)."""

    negatives: int | None = Field(
        10, ge=1, description="Neg: candidates drawn for each true label of a text; none: all candidates count"
    )


def _taken_by_classifier(config: ClassifierConfig | CoAttentionConfig) -> Takes:
    return {"encoder": ("pooled vectors", "states") if config.aspects is None else ("states",)}


def _taken_by_co_attention(config: CoAttentionConfig) -> Takes:
    return {**_taken_by_classifier(config), "label_context": ("label groups", "nothing")}


@hookimpl
def xmplug_encoders() -> list[Component]:
    return [
        Component(
            "xmlcnn",
            "xmplug_maacf.encoder:XMLCNN",
            XMLCNNConfig,
            "XML-CNN, several side by side",
            gives=("tokens", "word vectors", "pooled vectors"),
        ),
        Component(
            "bilstm",
            "xmplug_maacf.encoder:AttentionBiLSTM",
            AttentionBiLSTMConfig,
            "BiLSTM with self-attention, several side by side",
            gives=("tokens", "word vectors", "pooled vectors"),
        ),
    ]


@hookimpl
def xmplug_label_contexts() -> list[Component]:
    return [
        Component(
            "label_groups",
            "xmplug_maacf.groups:LabelGroups",
            LabelGroupsConfig,
            "for each label those that occur with it, by CF-IDF",
            gives=("label groups",),
        )
    ]


@hookimpl
def xmplug_fusions() -> list[Component]:
    return [
        Component(
            "co_attention",
            "xmplug_maacf.network:CoAttention",
            CoAttentionConfig,
            "co-attention of text and label group, perceptron on the pair",
            takes=_taken_by_co_attention,
        ),
        Component(
            "classifier",
            "xmplug_maacf.network:Classifier",
            ClassifierConfig,
            "a linear layer on text vectors",
            takes=_taken_by_classifier,
        ),
    ]


@hookimpl
def xmplug_losses() -> list[Component]:
    return [Component("bpr", "xmplug_maacf.loss:BPR", BPRConfig, "true labels above sampled others", gives=())]


@hookimpl
def xmplug_recipes() -> list[Recipe]:
    return [
        Recipe(
            "maacf",
            "text and label weigh one another, a perceptron scores the pair",
            encoder="maacf:xmlcnn",
            label_structure="core:flat",
            label_context="maacf:label_groups",
            fusion="maacf:co_attention",
            loss="maacf:bpr",
            paper=Paper(
                "Multi-Aspect co-Attentional Collaborative Filtering for extreme multi-label text classification",
                2023,
                "https://doi.org/10.1016/j.knosys.2022.110110",
            ),
        )
    ]
