"""The conformance suite: each fault of a gallery fails the check that names it, and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from xmplug.cli.plugins import command
from xmplug.errors import ConfigError, PluginError
from xmplug.testing import Suite, conformance
from xmplug.testing.registry import CHECKS

from .faulty import FAULTS

FILE = str(Path(__file__).parent / "faulty.py")
QUICK = {"fusion.layers": "16", "training.epochs": 6, "training.learning_rate": 0.02}
SOUND = """
from pydantic import Field, field_validator

from xmplug import Component, ComponentConfig, Paper, Recipe, hookimpl


class Config(ComponentConfig):
    scale: float = Field(1.0, description="factor of the loss")


@hookimpl
def xmplug_losses():
    return [Component("scaled", "xmplug.components.bce:BCE", Config, "a loss")]


@hookimpl
def xmplug_recipes():
    parts = {"encoder": "core:words", "label_structure": "core:flat", "fusion": "attentionxml:label_attention"}
    paper = Paper("A title: of two parts", 2020, "https://example.org/paper")
    presets = {"double": {"loss": {"scale": 2.0}}}
    return [Recipe("method_of_NAME", "a method", loss="scaled", paper=paper, presets=presets, **parts)]
"""
README = "# NAME\n\n*A Title: of\ntwo parts*, [2020](https://example.org/paper)\n"
DECLARATIONS: dict[str, list[tuple[str, str]]] = {
    "declarations": [
        ('loss="scaled"', 'loss="scale"'),
        ("bce:BCE", "flat:Flat"),
        ("bce:BCE", "bce:Absent"),
        ("xmplug.components.bce:BCE", "xmplug.interfaces:Loss"),
    ],
    "mixing": [
        ('"a loss")', '"a loss", gives=())'),
        ('"a loss")', '"a loss", gives=("a margin", "margins"))'),
        ('"a loss")', '"a loss", gives=("a margin",), takes={"encoder": ("stats",)})'),
        ('"a loss")', '"a loss", gives=("a margin",), takes={"training.level": ("apart",)})'),
        ("@hookimpl\ndef xmplug_recipes", "@hookimpl\ndef xmplug_fusions():\n    takes = {'loss': ('a margin',)}\n    "
         "return [Component('solved', 'xmplug_linear.fusion:OneVsRest', Config, 'a fusion', takes=takes)]"
         "\n\n\n@hookimpl\ndef xmplug_recipes"),
    ],
    "presets": [('"scale": 2.0', '"scales": 2.0'), ('"scale": 2.0', '"scale": "two"')],
    "documented": [('Field(1.0, description="factor of the loss")', "1.0"), ('"a method"', '""')],
    "round-trip": [
        ("of the loss\")\n", "of the loss\")\n\n    @field_validator('scale')\n    def twice(cls, value):\n        "
         "return 2 * value\n"),
    ],
    "import-without-torch": [("from pydantic", "import torch\nfrom pydantic")],
    "readme-names-the-paper": [("A title: of two parts", "Another title"), ("org/paper", "org/another")],
}  # fmt: skip
"""By check: changes of the sound plugin's code that it finds."""

Install = Callable[[str], Suite]


@pytest.fixture(scope="module")
def gallery() -> Suite:
    return Suite("faulty", options=QUICK, plugin_files=(FILE,))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Install:
    """Installs the sound plugin with other code, and gives its suite."""

    def install(code: str) -> Suite:
        name = f"conf_{abs(hash(request.node.name))}"
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text(code.replace("NAME", name))
        (package / "README.md").write_text(README)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[xmplug1]\n{name} = {name}\n")
        monkeypatch.syspath_prepend(tmp_path)
        return Suite(name)

    return install


def _failed(suite: Suite, method: str = "") -> set[str]:
    """The checks of a method, or of the plugin as a whole, that failed."""
    results = [suite.result(*pair) for pair in suite.pairs() if pair[0] == method]
    assert all(result.message for result in results if result.outcome != "ok")
    return {result.check for result in results if result.outcome == "failed"}


@pytest.mark.parametrize("fault", [fault for fault, (check, _) in FAULTS.items() if check])
def test_each_fault_fails_the_check_that_names_it(fault: str, gallery: Suite) -> None:
    assert _failed(gallery, f"sound+faulty:{fault}") == {FAULTS[fault][0]}


def test_what_has_no_fault_fails_no_check(gallery: Suite) -> None:
    outcomes = {gallery.result("sound", name).outcome for name in CHECKS if CHECKS[name].scope == "method"}
    assert outcomes == {"ok"}


def test_a_component_that_needs_an_option_is_skipped_with_its_reason(gallery: Suite) -> None:
    method = "sound+faulty:NeedsAnOption"
    assert not _failed(gallery, method)
    assert gallery.result(method, "trains").message == "it needs options of its own: it needs a file"
    assert gallery.result(method, "save").message == "needs trains, which was skipped"


def test_every_check_has_a_fault_and_says_what_it_promises() -> None:
    assert {check for check, _ in FAULTS.values() if check} | set(DECLARATIONS) == set(CHECKS)
    for check in CHECKS.values():
        assert check.promise.endswith(".") and check.promise.count(". ") == 0
        assert set(check.needs) <= set(list(CHECKS)[: list(CHECKS).index(check.name)])


@pytest.mark.parametrize(("check", "old", "new"), [(check, *c) for check, cs in DECLARATIONS.items() for c in cs])
def test_each_wrong_declaration_fails_the_check_that_names_it(check: str, old: str, new: str, install: Install) -> None:
    assert old in SOUND
    assert _failed(install(SOUND.replace(old, new))) == {check}


def test_a_sound_declaration_fails_no_check(install: Install) -> None:
    suite = install(SOUND)
    assert {suite.result(*pair).outcome for pair in suite.pairs() if not pair[0]} == {"ok"}


def test_what_is_declared_wrong_is_not_trained(install: Install) -> None:
    suite = install(SOUND.replace("bce:BCE", "bce:Absent"))
    (method,) = suite.methods
    assert suite.result(method, "learns").message == "needs declarations, which failed"


def test_expected_failures_are_strict() -> None:
    expected = {"documented": "for a reason", "sound/presets": "it is not of a method"}
    with pytest.raises(ConfigError, match="'sound/presets', which is no check"):
        conformance("faulty", plugin_files=(FILE,), expected_failures=expected)
    del expected["sound/presets"]
    test = conformance("faulty", plugin_files=(FILE,), expected_failures=expected)
    with pytest.raises(pytest.fail.Exception, match=r"documented passes, but .*for a reason.*take it out"):
        test("", "documented")
    with pytest.raises(pytest.skip.Exception, match="no recipe of this plugin names a paper"):
        test("", "readme-names-the-paper")
    test("", "presets")


def test_failures_are_told_or_expected() -> None:
    faulty, options = "sound+faulty:DetachedParameter", {"fusion.layers": "8", "training.epochs": 1}

    def gradients(method: str, **expected: str) -> None:
        test = conformance("faulty", options=options, plugin_files=(FILE,), expected_failures=expected)
        test(method, "gradients")

    with pytest.raises(pytest.fail.Exception, match=r"no gradient reaches fusion.scale.*\n\npromised: The loss moves"):
        gradients(faulty)
    with pytest.raises(pytest.xfail.Exception, match=r"a constant: .*no gradient reaches fusion.scale"):
        gradients(faulty, **{f"{faulty}/gradients": "a constant"})
    gradients(faulty, **{"gradients:fusion.scale": "a constant"})
    with pytest.raises(
        pytest.fail.Exception, match=r"fusion.output.bias is expected to get no gradient .*but gets one"
    ):
        gradients("sound", **{"gradients:fusion.output.bias": "a constant"})


def test_options_and_plugins_that_there_are_not() -> None:
    with pytest.raises(ConfigError, match=r"'fusion.layer': did you mean 'fusion.layers'"):
        Suite("faulty", options={"fusion.layer": 3}, plugin_files=(FILE,))
    with pytest.raises(ConfigError, match=r"did you mean 'sound/fusion.layers'"):
        Suite("faulty", options={"sound/fusion.layer": 3}, plugin_files=(FILE,))
    with pytest.raises(PluginError, match="did you mean 'faulty'"):
        Suite("fault", plugin_files=(FILE,))


def test_options_of_one_method_alone() -> None:
    options = {"fusion.layers": "8", "sound/fusion.layers": "4", "sound/training.seed": 3}
    suite = Suite("faulty", options=options, plugin_files=(FILE,))
    sound, other = (suite.methods[name].options(options) for name in ("sound", "sound+faulty:FarTooSmall"))
    assert (sound["fusion.layers"], sound["training.seed"]) == ("4", 3)
    assert other["fusion.layers"] == "8" and "training.seed" not in other and other["loss"] == "faulty:FarTooSmall"


def test_the_command_line(tmp_path: Path) -> None:
    def check(*arguments: str) -> Result:
        return CliRunner().invoke(command, ["check", *arguments])

    path = tmp_path / "undocumented.py"
    code = SOUND.replace('"factor of the loss"', '""').replace("xmplug.components.bce:BCE", "undocumented:Loss")
    path.write_text(code + "\nfrom xmplug.components.bce import BCE\n\nclass Loss(BCE):\n    pass\n")
    (tmp_path / "README.md").write_text(README)
    found = check(str(path), *(part for name, value in QUICK.items() for part in (f"--{name}", str(value))))
    assert found.exit_code == 1, found.output
    lines = {line.split()[0]: line for line in found.output.splitlines()}
    assert "failed: option 'scale' of undocumented:scaled has no description; give Field" in lines["documented"]
    assert "skipped: a single file" in lines["import-without-torch"]
    assert lines.keys() == {*CHECKS, "method_of_NAME"} and found.output.count(" failed") == 1
    assert check("--list").output.count("\n") == len(CHECKS)
    assert "say which plugin" in check().output
