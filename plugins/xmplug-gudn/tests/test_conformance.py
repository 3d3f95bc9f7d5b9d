"""The promises that every plugin makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_transformer import write_model

from xmplug.testing import conformance


def _options(corpus: Path) -> dict[str, Any]:
    return {
        "encoder.model": str(write_model(corpus.with_name(f"model-of-{corpus.name}"))),
        "encoder.max_tokens": 64,
        "encoder.rate": 1.0,
        "label_context.max_tokens": 16,
        "fusion.size": 48,
        "fusion.hidden": 48,
        "gudn+gudn:own_labels/fusion.label_input": "multi_hot",
    }


test_conformance = conformance("gudn", options=_options)
