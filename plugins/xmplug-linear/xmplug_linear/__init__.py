"""A linear classifier on TF-IDF for each node of a label tree, solved by dual coordinate descent."""

from __future__ import annotations

from pydantic import Field, field_validator

from xmplug import Component, ComponentConfig, Paper, Recipe, hookimpl


class TfidfConfig(ComponentConfig):
    """TF-IDF of words and n-grams."""

    ngrams: int = Field(1, ge=1, le=3, description="longest word n-gram")
    characters: tuple[int, ...] = Field(
        (), description="shortest and longest character n-gram inside words, e.g. 3,5; empty: none"
    )
    min_count: int = Field(2, ge=1, description="texts that a feature must be in")
    max_features: int = Field(
        300_000, ge=1, le=2_000_000, description="most words, most word n-grams and most character n-grams kept"
    )
    sublinear: bool = Field(True, description="1 + ln of a count instead of the count")
    hashing: int | None = Field(
        None, ge=2, le=2**26, description="number of features by hash, without a vocabulary; none: a vocabulary"
    )

    vectors: str | None = Field(None, description="run whose dense vectors of the texts are added; none: no vectors")
    vectors_weight: float = Field(1.0, gt=0, description="length of a dense vector, that of the TF-IDF being 1")

    @field_validator("characters")
    @classmethod
    def _two_lengths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value and (len(value) != 2 or not 1 <= value[0] <= value[1]):
            raise ValueError("give the shortest and the longest length, e.g. 3,5")
        return value


class RunShortlistConfig(ComponentConfig):
    """Candidates from a run that is already trained."""

    run: str | None = Field(None, description="the run, such as a linear one on the same labels")
    candidates: int = Field(100, ge=1, description="labels that it gives for each text")


class OneVsRestConfig(ComponentConfig):
    """A sparse weight vector for each node."""

    cost: float = Field(1.0, gt=0, description="C: weight of the losses against |w|^2 / 2")
    bias: float = Field(1.0, ge=0, description="value of a feature that every text has; 0: none")
    tolerance: float = Field(0.1, gt=0, description="largest violation of the dual's optimality at the end")
    passes: int = Field(100, ge=1, le=1_000_000, description="most passes over the examples of a node")
    prune: float = Field(0.1, ge=0, description="weights nearer to 0 are dropped")
    sharpness: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="factor of the margin under the sigmoid; none: 1 for logistic loss, 5 for squared hinge",
    )
    ranked_negatives: bool = Field(
        False, description="texts that the level above ranks under a node are examples for its children too"
    )


class SquaredHingeConfig(ComponentConfig):
    """No options."""


@hookimpl
def xmplug_encoders() -> list[Component]:
    return [
        Component(
            "tfidf",
            "xmplug_linear.tfidf:Tfidf",
            TfidfConfig,
            "TF-IDF of words and n-grams, sparse",
            gives=("sparse vectors",),
        )
    ]


@hookimpl
def xmplug_label_structures() -> list[Component]:
    return [
        Component(
            "shortlist",
            "xmplug_linear.shortlist:RunShortlist",
            RunShortlistConfig,
            "one level: the labels that another run ranks highest",
        )
    ]


@hookimpl
def xmplug_fusions() -> list[Component]:
    return [
        Component(
            "one_vs_rest",
            "xmplug_linear.fusion:OneVsRest",
            OneVsRestConfig,
            "a sparse linear classifier for each node, solved by dual coordinate descent",
            takes={"encoder": ("sparse vectors",), "loss": ("a margin",), "training.levels": ("apart",)},
        )
    ]


@hookimpl
def xmplug_losses() -> list[Component]:
    return [
        Component(
            "squared_hinge",
            "xmplug_linear.loss:SquaredHinge",
            SquaredHingeConfig,
            "max(0, 1 - margin) squared",
            gives=("a margin",),
        )
    ]


@hookimpl
def xmplug_recipes() -> list[Recipe]:
    return [
        Recipe(
            name="linear",
            summary="a linear label tree on TF-IDF: trains in a minute on one core",
            encoder="linear:tfidf",
            label_structure="core:tree",
            fusion="linear:one_vs_rest",
            loss="linear:squared_hinge",
            paper=Paper(
                "Parabel: Partitioned label trees for extreme classification with application to dynamic search "
                "advertising",
                2018,
                "https://doi.org/10.1145/3178876.3185998",
            ),
            options={"label_structure": {"max_leaf": 400}, "training": {"batch_size": 256}},
            presets={
                "flat": {"label_structure": {"component": "core:flat"}},
                "pecos": {"label_structure": {"branching": 16, "max_leaf": 100, "beam": 20}},
                "parabel": {"label_structure": {"branching": 2, "max_leaf": 100, "beam": 10}},
                "bonsai": {"label_structure": {"branching": 100, "max_leaf": 100, "balanced": False, "beam": 10}},
            },
        )
    ]
