"""AttentionXML: label tree-based attention-aware deep model for extreme multi-label text classification.

You, Zhang, Wang, Dai, Mamitsuka, Zhu, NeurIPS 2019.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from xmplug import Component, ComponentConfig, Paper, Recipe, hookimpl
from xmplug.components import WordsConfig


class BiLSTMConfig(WordsConfig):
    """Word vectors and a bidirectional LSTM (sections 2.4.1, 2.4.2)."""

    hidden: int = Field(256, ge=1, description="LSTM units per direction")
    state_dropout: float = Field(0.5, ge=0, lt=1, description="dropout of LSTM states")


class LabelAttentionConfig(ComponentConfig):
    """Multi-label attention and fully connected layers shared by all labels (sections 2.4.3, 2.4.4)."""

    layers: tuple[int, ...] = Field((256,), description="widths of the shared fully connected layers")


class PLTConfig(ComponentConfig):
    """Shallow and wide probabilistic label tree (section 2.2)."""

    branching: int = Field(16, ge=2, description="K = M: most children of a node, the root excepted")
    height: int = Field(1, ge=1, description="H: levels between the root and the labels")
    beam: int = Field(16, ge=1, description="C: nodes of a level whose children are candidates at the next")


def _table2(
    epochs: int,
    batch_size: int,
    hidden: int,
    layers: tuple[int, ...],
    tree: tuple[int, int, int] | None,
    fine_tune: bool = True,
) -> dict[str, dict[str, Any]]:
    """One row of the paper's Table 2: E, B, N, N_fc, (H, K, C) where there is a tree; fine-tuning by section 3.3."""
    options: dict[str, dict[str, Any]] = {
        "encoder": {"hidden": hidden, "train_vectors": fine_tune},
        "fusion": {"layers": layers},
        "training": {"epochs": epochs, "batch_size": batch_size},
    }
    if tree is not None:
        height, branching, beam = tree
        options["label_structure"] = {
            "component": "attentionxml:plt",
            "height": height,
            "branching": branching,
            "beam": beam,
        }
    return options


@hookimpl
def xmplug_encoders() -> list[Component]:
    return [
        Component(
            "bilstm",
            "xmplug_attentionxml.encoder:BiLSTM",
            BiLSTMConfig,
            "word vectors and BiLSTM states",
            gives=("tokens", "word vectors", "states"),
        )
    ]


@hookimpl
def xmplug_label_structures() -> list[Component]:
    return [Component("plt", "xmplug_attentionxml.tree:PLT", PLTConfig, "shallow and wide probabilistic label tree")]


@hookimpl
def xmplug_fusions() -> list[Component]:
    return [
        Component(
            "label_attention",
            "xmplug_attentionxml.attention:LabelAttention",
            LabelAttentionConfig,
            "multi-label attention and a perceptron shared by all labels",
            takes={"encoder": ("states",)},
        )
    ]


@hookimpl
def xmplug_recipes() -> list[Recipe]:
    return [
        Recipe(
            "attentionxml",
            "BiLSTM, attention of its own for each label, label tree for many labels",
            encoder="attentionxml:bilstm",
            label_structure="core:flat",
            fusion="attentionxml:label_attention",
            loss="core:bce",
            paper=Paper(
                "AttentionXML: Label Tree-based Attention-Aware Deep Model for High-Performance Extreme Multi-Label "
                "Text Classification",
                2019,
                "https://arxiv.org/abs/1811.01727",
            ),
            presets={
                "eur-lex": _table2(30, 40, 256, (256,), None, fine_tune=False),
                "wiki10-31k": _table2(30, 40, 256, (256,), None, fine_tune=False),
                "amazoncat-13k": _table2(10, 200, 512, (512, 256), None),
                "amazon-670k": _table2(10, 200, 512, (512, 256), (3, 8, 160)),
                "wiki-500k": _table2(5, 200, 512, (512, 256), (1, 64, 15)),
                "amazon-3m": _table2(5, 200, 512, (512, 256), (3, 8, 160)),
                "laptop": {
                    "encoder": {"hidden": 160, "vector_size": 200, "max_tokens": 300},
                    "training": {"epochs": 8, "batch_size": 32, "learning_rate": 3e-3, "swa_start": 0.4},
                },
                "demo": {
                    "encoder": {"hidden": 128, "vector_size": 200, "max_tokens": 200},
                    "training": {"epochs": 5, "batch_size": 32, "learning_rate": 3e-3, "swa_start": 0.4},
                },
            },
        )
    ]
