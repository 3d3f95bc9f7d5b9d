"""The promises that every plugin makes."""

from xmplug.testing import conformance

test_conformance = conformance(
    "attentionxml",
    options={"encoder.hidden": 24, "fusion.layers": "32", "label_structure.branching": 4, "label_structure.beam": 4},
)
