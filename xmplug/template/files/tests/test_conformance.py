"""The promises that every plugin makes."""

from xmplug.testing import conformance

# `options` make the models smaller, for example options={"training.epochs": 5}.
test_conformance = conformance("NAME")
