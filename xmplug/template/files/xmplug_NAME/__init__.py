"""Title of the paper that you follow: what the method does, in a sentence.

This module only declares, and stays without torch, for which every command would wait otherwise: the classes that the
components name are imported when they are chosen. What a component gives to others and takes from them decides what it
can be put together with; the words are those of `xmplug.recipe.WORDS`.
"""

from __future__ import annotations

from pydantic import Field

from xmplug import Component, ComponentConfig, Paper, Recipe, hookimpl
from xmplug.components import WordsConfig

# begin encoder


class MeanWordsConfig(WordsConfig):
    """The options of `core:words`, and one more. Each becomes an option of `xmplug train`: --encoder.hidden."""

    hidden: int = Field(100, ge=1, description="length of a word's state and of a text's vector")


# end encoder
# begin label_structure


class CoOccurrenceTreeConfig(ComponentConfig):
    """Each becomes an option of `xmplug train`: --label-structure.branching."""

    branching: int = Field(16, ge=2, description="most children of an inner node above the clusters of labels")
    max_leaf: int = Field(10, ge=1, description="most labels of a cluster")
    beam: int = Field(20, ge=1, description="nodes of a level whose children are candidates at the next")


# end label_structure
# begin label_context


class NearestLabelsConfig(ComponentConfig):
    """Each becomes an option of `xmplug train`: --label-context.neighbours."""

    neighbours: int = Field(3, ge=1, description="nearest training texts whose labels are read")
    label_words: int = Field(8, ge=1, description="words of a label's name that are read")


# end label_context
# begin fusion


class MeanClassifierConfig(ComponentConfig):
    """Each becomes an option of `xmplug train`: --fusion.dropout."""

    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of a text's vector")


# end fusion
# begin loss


class SmoothedBCEConfig(ComponentConfig):
    """Each becomes an option of `xmplug train`: --loss.smoothing."""

    smoothing: float = Field(0.05, ge=0, lt=1, description="by how much the target of a true label stays below 1")


# end loss
# begin encoder


@hookimpl
def xmplug_encoders() -> list[Component]:
    return [
        Component(
            "mean_words",
            "xmplug_NAME.encoder:MeanWords",
            MeanWordsConfig,
            "words, and their mean",
            gives=("tokens", "word vectors", "states", "pooled vectors"),
        )
    ]


# end encoder
# begin label_structure


@hookimpl
def xmplug_label_structures() -> list[Component]:
    return [
        Component(
            "co_occurrence",
            "xmplug_NAME.label_structure:CoOccurrenceTree",
            CoOccurrenceTreeConfig,
            "a tree in which labels of the same texts lie together",
        )
    ]


# end label_structure
# begin label_context


@hookimpl
def xmplug_label_contexts() -> list[Component]:
    return [
        Component(
            "nearest",
            "xmplug_NAME.label_context:NearestLabels",
            NearestLabelsConfig,
            "names of the labels of the training texts with the most words in common",
            gives=("label texts",),
            takes={"encoder": ("tokens",)},
        )
    ]


# end label_context
# begin fusion


@hookimpl
def xmplug_fusions() -> list[Component]:
    return [
        Component(
            "mean_classifier",
            "xmplug_NAME.fusion:MeanClassifier",
            MeanClassifierConfig,
            "a linear classifier of a text's mean vector",
            takes={"encoder": ("pooled vectors", "states"), "label_context": ("label texts", "nothing")},
        )
    ]


# end fusion
# begin loss


@hookimpl
def xmplug_losses() -> list[Component]:
    return [
        Component(
            "smoothed_bce",
            "xmplug_NAME.loss:SmoothedBCE",
            SmoothedBCEConfig,
            "binary cross-entropy with smoothed targets",
            gives=(),
        )
    ]


# end loss


@hookimpl
def xmplug_recipes() -> list[Recipe]:
    return [
        Recipe(
            "NAME",
            "what the method does, in a line",
            encoder="NAME:mean_words",
            label_structure="NAME:co_occurrence",
            label_context="NAME:nearest",
            fusion="NAME:mean_classifier",
            loss="NAME:smoothed_bce",
            paper=Paper("Title of the paper that you follow", 2026, "https://example.org/paper"),
            # Options that differ from their defaults, nested as in `xmplug config --plugin NAME`.
            options={"training": {"epochs": 20, "learning_rate": 5e-3}},
            presets={"quick": {"training": {"epochs": 5}}},
        )
    ]
