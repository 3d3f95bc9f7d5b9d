"""The conformance suite: each fault of a gallery fails the check that names it, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from xmplug.testing import Suite
from xmplug.testing.registry import CHECKS

from .faulty import FAULTS

FILE = str(Path(__file__).parent / "faulty.py")
QUICK = {"fusion.layers": "16", "training.epochs": 10, "training.learning_rate": 0.01}


@pytest.fixture(scope="module")
def gallery() -> Suite:
    return Suite("faulty", options=QUICK, plugin_files=(FILE,))


def _failed(suite: Suite, method: str) -> set[str]:
    """The checks of a method, or of the plugin as a whole, that failed."""
    results = [suite.result(*pair) for pair in suite.pairs() if pair[0] == method]
    assert all(result.message for result in results if result.outcome != "ok")
    return {result.check for result in results if result.outcome == "failed"}


@pytest.mark.parametrize("fault", [fault for fault, (check, _) in FAULTS.items() if check])
def test_each_fault_fails_the_check_that_names_it(fault: str, gallery: Suite) -> None:
    assert _failed(gallery, f"sound+faulty:{fault}") == {FAULTS[fault][0]}


def test_what_has_no_fault_fails_no_check(gallery: Suite) -> None:
    assert not _failed(gallery, "sound")
    assert {gallery.result("sound", name).outcome for name in CHECKS if CHECKS[name].scope == "method"} == {"ok"}


def test_a_component_that_needs_an_option_is_skipped_with_its_reason(gallery: Suite) -> None:
    method = "sound+faulty:NeedsAnOption"
    assert not _failed(gallery, method)
    assert gallery.result(method, "trains").message == "it needs options of its own: it needs a file"
    assert gallery.result(method, "save").outcome == "skipped"
