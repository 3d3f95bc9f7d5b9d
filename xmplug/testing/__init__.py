"""Conformance of plugins: named checks of what the runtime promises its users, whatever the method.

In a plugin's own tests one line runs them all:

    test_conformance = xmplug.testing.conformance("treaderxml", options={"fusion.hidden": 64})

On the command line: `xmplug plugins check treaderxml`; `xmplug plugins check --list` says what each check promises.
"""

from __future__ import annotations

from .registry import Check, Failed, Result, Skipped
from .suite import Suite, conformance

__all__ = ["Check", "Failed", "Result", "Skipped", "Suite", "conformance"]
