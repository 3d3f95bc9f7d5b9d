"""The runtime's own components, registered as plugin "core" through the same hooks as every other.

Plugins may use them or build on them: `WordsConfig` here, the classes in the modules beside.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from ..hookspecs import hookimpl
from ..recipe import Component, ComponentConfig


class WordsConfig(ComponentConfig):
    """Words of a text as vectors."""

    vectors: str = Field(
        "corpus",
        description="corpus: word2vec on the training texts; random; transformer:NAME_OR_PATH: each word by a sentence "
        "encoder; or a file in GloVe, word2vec or fastText format",
    )
    unlabelled: str | None = Field(None, description="text file, one text per line, that word2vec reads besides")
    vector_size: int = Field(300, ge=1, description="length of corpus and random vectors")
    train_vectors: bool = Field(True, description="fine-tune the word vectors")
    max_words: int = Field(500_000, ge=1, description="most frequent words kept")
    min_count: int = Field(2, ge=1, description="a rarer word counts as unknown")
    max_tokens: int = Field(500, ge=1, description="longer texts are cut here")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout of word vectors")
    word_dropout: float = Field(0.0, ge=0, lt=1, description="share of words that training replaces by unknown")

    @model_validator(mode="after")
    def _unlabelled_is_read(self) -> WordsConfig:
        if self.unlabelled is not None and self.vectors != "corpus":
            raise ValueError("unlabelled texts are read for vectors 'corpus' only")
        return self


class FlatConfig(ComponentConfig):
    """No options."""


class TreeConfig(ComponentConfig):
    """A label tree, walked from the top."""

    branching: int = Field(16, ge=2, description="most children of an inner node above the clusters of labels")
    max_leaf: int = Field(100, ge=1, description="most labels of a cluster")
    balanced: bool = Field(
        True, description="clusters of equal size; false: k-means with clusters of any size, which suits rare labels"
    )
    beam: int = Field(20, ge=1, description="nodes of a level whose children are candidates at the next")


class NoContextConfig(ComponentConfig):
    """No options."""


class BCEConfig(ComponentConfig):
    """No options."""


@hookimpl
def xmplug_encoders() -> list[Component]:
    gives = ("tokens", "word vectors", "states")
    return [Component("words", "xmplug.components.words:Words", WordsConfig, "a vector for each word", gives=gives)]


@hookimpl
def xmplug_label_structures() -> list[Component]:
    return [
        Component(
            "flat",
            "xmplug.components.flat:Flat",
            FlatConfig,
            "one level: every label is scored for every text",
        ),
        Component("tree", "xmplug.components.tree:Tree", TreeConfig, "labels as leaves of a tree, level by level"),
    ]


@hookimpl
def xmplug_label_contexts() -> list[Component]:
    return [
        Component(
            "none",
            "xmplug.components.nothing:NoContext",
            NoContextConfig,
            "no label texts inform a text",
            gives=("nothing",),
            takes={},
        )
    ]


@hookimpl
def xmplug_losses() -> list[Component]:
    return [
        Component(
            "bce",
            "xmplug.components.bce:BCE",
            BCEConfig,
            "binary cross-entropy, summed over the candidates",
            gives=("a margin",),
        )
    ]
