"""The promises that every plugin makes."""

from xmplug.testing import conformance

test_conformance = conformance(
    "maacf",
    options={
        "encoder.aspects": 2,
        "encoder.filters": 24,
        "encoder.widths": "2,3",
        "encoder.pools": 2,
        "encoder.size": 48,
        "fusion.size": 48,
        "fusion.hidden": 48,
    },
)
