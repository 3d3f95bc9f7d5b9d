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
        description="n: poolings of an encoder's states by attention; none: the vectors that it pools itself, or 2 "
        "where it pools none",
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
        description="poolings of an encoder's states by attention; none: the vectors that it pools itself, or 2 where "
        "it pools none",
    )
    size: int = Field(256, ge=1, description="length of a text vector")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout of the text vector")


class BPRConfig(ComponentConfig):
    """Bayesian personalized ranking (eq. 10)."""

    negatives: int | None = Field(
        10, ge=1, description="Neg: candidates drawn for each true label of a text; none: all candidates count"
    )


_MINILM = "sentence-transformers/all-MiniLM-L6-v2"
Options = dict[str, dict[str, Any]]


def _with(base: Options, **changes: dict[str, Any]) -> Options:
    """`base` with options added; a section that names another component replaces the whole section."""
    replaced = {name: new if "component" in new else {**base.get(name, {}), **new} for name, new in changes.items()}
    return {**base, **replaced}


def _section_4(max_tokens: int, **others: dict[str, Any]) -> Options:
    """RoBERTa, which gives the paper its best results, for one of its corpora; n, epochs and rates are not in it."""
    encoder = {"component": "gudn:bert", "model": "FacebookAI/roberta-base", "max_tokens": max_tokens, "rate": 0.05}
    training = {"epochs": 20, "batch_size": 16, **others.pop("training", {})}
    return {"encoder": encoder, "fusion": {"aspects": 2}, "training": training, **others}


def _laptop(max_tokens: int, epochs: int) -> Options:
    """Small BiLSTMs, and all labels as candidates of a logistic loss, which learns faster than sampled pairs."""
    return {
        "encoder": {"component": "maacf:bilstm", "vector_size": 200, "max_tokens": max_tokens},
        "loss": {"component": "core:bce"},
        "training": {"epochs": epochs, "batch_size": 32, "learning_rate": 2e-3, "swa_start": 0.4},
    }


def _ablations() -> dict[str, Options]:
    """Table 7 (mcf: no co-attention, acf: one aspect), figures 2 and 3 (size of the groups), figure 4 (layers of the
    predictor), and what this plugin adds or leaves out."""
    base = _laptop(150, 3)
    return {
        "full": base,
        "mcf": _with(base, fusion={"attention": "self"}),
        "acf": _with(base, encoder={**base["encoder"], "aspects": 1}),
        **{f"k{k}": _with(base, label_context={"neighbours": k}) for k in (0, 5)},
        **{f"layers-{layers}": _with(base, fusion={"layers": layers}) for layers in (1, 3)},
        "no-product": _with(base, fusion={"product": False}),
        "bpr": _with(base, loss={"component": "maacf:bpr"}),
    }


def _encoders() -> dict[str, Options]:
    """Tables 5 and 6: each encoder alone, and with the rest."""
    base = _laptop(150, 3)
    words = {"vector_size": 200, "max_tokens": 150}
    minilm = {"component": "gudn:bert", "model": _MINILM, "max_tokens": 64, "frozen": 3, "rate": 0.05, "dropout": 0.0}
    kinds = {"xmlcnn": {"component": "maacf:xmlcnn", **words}, "bilstm": base["encoder"], "minilm": minilm}
    presets = {}
    for name, encoder in kinds.items():
        one, poolings = ({}, {"aspects": 1}) if name == "minilm" else ({"aspects": 1}, {})
        presets[f"alone-{name}"] = _with(
            base, encoder={**encoder, **one}, fusion={"component": "maacf:classifier", **poolings}
        )
        presets[f"with-{name}"] = _with(base, encoder=encoder, fusion={"aspects": 2} if name == "minilm" else {})
    return presets


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
            takes={},
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
                "https://discovery.researcher.life/article/multi-aspect-co-attentional-collaborative-filtering-for-"
                "extreme-multi-label-text-classification/6e3c72ba3c173e2db922f658ff4dcf42",
            ),
            options={"training": {"patience": 3}},
            presets={
                "eur-lex": _section_4(512),
                "aapd": _section_4(256),
                "amazoncat-13k": _section_4(512),
                "wiki-500k": _section_4(
                    512,
                    label_structure={"component": "core:tree", "branching": 10_000, "max_leaf": 60, "beam": 20},
                    training={"levels": "together"},
                ),
                "laptop": _laptop(300, 8),
                "demo": _laptop(150, 4),
                **{f"ablation-{name}": options for name, options in _ablations().items()},
                **_encoders(),
            },
        )
    ]
