"""The promises that every plugin makes."""

from xmplug.testing import conformance

test_conformance = conformance("treaderxml", options={"fusion.hidden": 64})
