"""Discovery, conflicts, broken and single-file plugins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from xmplug.cli.plugins import command
from xmplug.errors import PluginConflictError, PluginError
from xmplug.plugins import Plugins

LOSS = """
from xmplug import Component, ComponentConfig, hookimpl

class Config(ComponentConfig):
    scale: float = 1.0

@hookimpl
def xmplug_losses():
    return [Component("{name}", "{module}:Loss", Config, "a loss")]
"""


def _distribution(folder: Path, distribution: str, plugin: str, module: str, code: str, group: str = "xmplug1") -> None:
    """Install a distribution by hand: a module and its metadata with an entry point."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    with open(info / "entry_points.txt", "a") as file:
        file.write(f"[{group}]\n{plugin} = {module}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_an_installed_plugin_is_found_and_its_short_name_accepted(site: Path) -> None:
    _distribution(site, "acme-loss", "acme", "acme_mod_a", LOSS.format(name="acme_loss", module="acme_mod_a"))
    plugins = Plugins().load()
    assert plugins.components["loss"].find("acme_loss").id == "acme:acme_loss"
    assert plugins.owner("acme:acme_loss").version == "1.0"


def test_an_ambiguous_short_name_names_both(site: Path) -> None:
    _distribution(site, "acme-loss", "acme", "acme_mod_b", LOSS.format(name="bce", module="acme_mod_b"))
    with pytest.raises(PluginError, match="acme:bce or core:bce"):
        Plugins().load().components["loss"].find("bce")


def test_two_distributions_with_one_name_are_a_conflict_that_names_both(site: Path) -> None:
    _distribution(site, "acme-one", "acme", "acme_one", LOSS.format(name="a", module="acme_one"))
    _distribution(site, "acme-two", "acme", "acme_two", LOSS.format(name="b", module="acme_two"))
    with pytest.raises(PluginConflictError) as found:
        Plugins().load()
    message = str(found.value)
    assert message.startswith("two plugins are named 'acme': ")
    assert all(
        f"{name} 1.0 in {site}" in message and f"pip uninstall {name}" in message for name in ("acme-one", "acme-two")
    )


def test_a_plugin_named_like_the_runtime_s_own_is_a_conflict(site: Path) -> None:
    _distribution(site, "acme-core", "core", "acme_core", LOSS.format(name="a", module="acme_core"))
    with pytest.raises(PluginConflictError, match=r"acme-core 1.0 in .*; keep one of them: pip uninstall acme-core$"):
        Plugins().load()


def test_two_recipes_with_one_name_are_a_conflict_that_names_both_plugins(site: Path) -> None:
    code = """
from xmplug import Recipe, hookimpl

@hookimpl
def xmplug_recipes():
    return [Recipe("linear", "another", encoder="words", label_structure="flat", fusion="dual", loss="bce")]
"""
    _distribution(site, "acme-recipe", "acme", "acme_recipe", code)
    with pytest.raises(
        PluginConflictError, match=r"two recipes are named 'linear', in plugin 'acme' and 'linear'; rename"
    ):
        Plugins().load()


def test_a_broken_plugin_is_reported_and_kills_nothing_else(site: Path) -> None:
    _distribution(site, "broken", "broken", "broken_mod", "import no_such_module_anywhere")
    plugins = Plugins().load()
    assert plugins.recipe("attentionxml").plugin == "attentionxml"
    (broken,) = [plugin for plugin in plugins.found if plugin.name == "broken"]
    assert "no_such_module_anywhere" in broken.error
    for ask in (
        lambda: plugins.recipe("broken"),
        lambda: plugins.components["loss"].find("broken:loss"),
        lambda: plugins.plugin("broken"),
    ):
        with pytest.raises(PluginError) as found:
            ask()
        assert str(found.value) == (
            "plugin 'broken' (broken 1.0) is installed but does not load: ModuleNotFoundError: No module named "
            "'no_such_module_anywhere'; install the package that brings the module no_such_module_anywhere, or remove "
            "it: pip uninstall broken"
        )


def test_a_plugin_with_a_fault_of_its_own_is_to_be_exchanged_or_removed(site: Path) -> None:
    _distribution(site, "acme-fault", "fault", "fault_mod", "1 / 0")
    with pytest.raises(PluginError, match=r"ZeroDivisionError: .*; install another version of it, or remove it: pip"):
        Plugins().load().plugin("fault")


@pytest.mark.parametrize(("generation", "xmplug"), [(0, "an older"), (2, "a newer")])
def test_a_plugin_of_another_generation_is_told_from_a_missing_one(site: Path, generation: int, xmplug: str) -> None:
    _distribution(site, "acme-other", "other", "other_mod", "import no_such_module", group=f"xmplug{generation}")
    plugins = Plugins().load()
    with pytest.raises(PluginError) as found:
        plugins.recipe("other")
    assert (
        f"(acme-other 1.0) is installed but does not load: written for generation {generation} of the hooks; xmplug"
        in (str(found.value))
    )
    assert f"has generation 1; install {xmplug} xmplug, or a version of acme-other with an entry point" in str(
        found.value
    )
    assert "'xmplug1', or remove it: pip uninstall acme-other" in str(found.value)
    assert plugins.recipe("attentionxml").plugin == "attentionxml"


def test_a_distribution_may_serve_several_generations(site: Path) -> None:
    _distribution(site, "acme-both", "both", "both_mod", LOSS.format(name="a", module="both_mod"))
    _distribution(site, "acme-both", "both", "both_old", LOSS.format(name="a", module="both_mod"), group="xmplug0")
    assert [plugin.error for plugin in Plugins().load().found if plugin.name == "both"] == [""]


def test_a_plugin_of_another_generation_does_not_hide_one_of_its_name(site: Path) -> None:
    _distribution(site, "acme-now", "acme", "acme_now", LOSS.format(name="a", module="acme_now"))
    _distribution(site, "acme-later", "acme", "acme_later", "", group="xmplug2")
    plugins = Plugins().load()
    assert plugins.plugin("acme").distribution == "acme-now"
    assert [plugin.distribution for plugin in plugins.found if plugin.error] == ["acme-later"]


def test_the_list_says_what_is_there_and_what_is_broken(site: Path) -> None:
    _distribution(site, "acme-loss", "acme", "acme_list", LOSS.format(name="mine", module="acme_list"))
    _distribution(site, "acme-fault", "fault", "fault_list", "1 / 0")
    _distribution(site, "acme-other", "other", "other_list", "", group="xmplug2")
    lines = CliRunner().invoke(command, []).output.splitlines()
    assert "acme  (acme-loss 1.0)  ok" in lines and any(
        line.split() == ["loss", "acme:mine", "a", "loss"] for line in lines
    )
    assert any(line.startswith("linear  (xmplug-linear ") and line.endswith(")  ok") for line in lines)
    assert any(line.split()[:2] == ["recipe", "linear"] for line in lines)
    at = lines.index("fault  (acme-fault 1.0)  broken")
    assert lines[at + 1 : at + 3] == [
        "    ZeroDivisionError: division by zero",
        "    to do: install another version of it, or remove it: pip uninstall acme-fault",
    ]
    assert "    Traceback (most recent call last):" in lines[at:]
    at = lines.index("other  (acme-other 1.0)  broken")
    assert "written for generation 2 of the hooks" in lines[at + 1] and "a newer xmplug" in lines[at + 2]


def test_show_says_what_a_plugin_is_made_of(site: Path, tmp_path: Path) -> None:
    def show(*arguments: str) -> str:
        return CliRunner().invoke(command, ["show", *arguments]).output

    text = " ".join(show("treaderxml").split())
    for expected in (
        "treaderxml (xmplug-treaderxml ",
        "ok",
        "recipe treaderxml: self-attention over a text",
        "paper Exploiting Dynamic and Fine-grained Semantic Scope",
        "(2022, https://arxiv.org/abs/2205.11973)",
        "encoder core:words label-structure core:flat label-context treaderxml:scope fusion treaderxml:dual loss core:",
        "options training.learning_rate=0.0001, training.schedule=linear",
        "preset demo encoder.vector_size=200",
        "preset ablation-0 encoder.vector_size=200, encoder.max_tokens=150",
        "label_context=core:none",
        "label-context treaderxml:scope: labels of the nearest texts",
        "gives label texts takes word vectors from encoder",
        "--label-context.neighbours integer k: nearest training texts whose labels make the scope [5]",
        "--fusion.reading N,N,... the parts of Reading",
        "[masked,residual,full]",
        "loss treaderxml:softmax_logistic: softmax",
    ):
        assert expected in text
    path = tmp_path / "shown_single_file.py"
    path.write_text(LOSS.format(name="mine", module="shown_single_file").replace(": float = 1.0", ": float"))
    assert "--loss.scale number [needed]" in " ".join(show(str(path)).split())
    _distribution(site, "acme-fault", "fault", "fault_show", "1 / 0")
    broken = CliRunner().invoke(command, ["show", "fault"])
    assert (
        broken.exit_code == 1 and "ZeroDivisionError" in broken.output and "pip uninstall acme-fault" in broken.output
    )
    missing = CliRunner().invoke(command, ["show", "lineer"])
    assert isinstance(missing.exception, PluginError) and "did you mean 'linear'" in str(missing.exception)


@pytest.mark.parametrize("value", ["1", "0", None])
def test_the_trace_says_once_what_each_plugin_answers(site: Path, value: str | None) -> None:
    _distribution(site, "acme-fault", "fault", "fault_trace", "1 / 0")
    environment = {name: content for name, content in os.environ.items() if name != "XMPLUG_TRACE"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    environment |= {} if value is None else {"XMPLUG_TRACE": value}
    code = "from xmplug.plugins import Plugins\nfor _ in range(2): Plugins().load()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and not done.stdout
    lines = done.stderr.splitlines()
    if value != "1":
        assert lines == []
        return
    for expected in (
        "xmplug: trace: xmplug_label_structures: core answers flat, tree",
        "xmplug: trace: xmplug_losses: treaderxml answers softmax_logistic",
        "xmplug: trace: xmplug_recipes: linear answers linear",
        "xmplug: trace: plugin fault does not load: ZeroDivisionError: division by zero",
    ):
        assert lines.count(expected) == 1
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("mark", ["@hookimpl\n", ""])
def test_a_misspelt_hook_is_reported_with_the_nearest_name(site: Path, mark: str) -> None:
    code = f"from xmplug import hookimpl\n\n{mark}def xmplug_loses():\n    return []\n"
    _distribution(site, "typo", "typo", f"typo_mod_{len(mark)}", code)
    (typo,) = [plugin for plugin in Plugins().load().found if plugin.name == "typo"]
    assert "xmplug_loses" in typo.error and "xmplug_losses" in typo.error


def test_a_hook_that_returns_something_else_is_reported(site: Path) -> None:
    code = "from xmplug import hookimpl\n\n@hookimpl\ndef xmplug_losses():\n    return ['bce']\n"
    _distribution(site, "odd", "odd", "odd_mod", code)
    (odd,) = [plugin for plugin in Plugins().load().found if plugin.name == "odd"]
    assert "must return Component objects, found str" in odd.error


def test_a_single_file_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my_single_file.py"
    path.write_text(LOSS.format(name="mine", module="my_single_file") + "\nclass Loss: ...\n")
    component = Plugins().load((str(path),)).components["loss"].find("mine")
    assert component.id == "my_single_file:mine"
    assert component.resolve().__name__ == "Loss"


def test_a_single_file_can_be_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "my_repeated_file.py"
    path.write_text(LOSS.format(name="again", module="my_repeated_file"))
    for _ in range(2):
        assert Plugins().load((str(path),)).components["loss"].find("again").plugin == "my_repeated_file"


def test_a_single_file_named_like_a_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text(LOSS.format(name="mine", module="json"))
    with pytest.raises(PluginConflictError, match="rename the file"):
        Plugins().load((str(path),))


def test_a_single_file_that_is_missing_or_broken_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="does not exist"):
        Plugins().load((str(tmp_path / "none.py"),))
    path = tmp_path / "my_broken_file.py"
    path.write_text("def broken(:\n")
    with pytest.raises(PluginError, match="does not load: SyntaxError"):
        Plugins().load((str(path),))


def test_an_unknown_name_comes_with_the_nearest() -> None:
    with pytest.raises(PluginError, match="did you mean 'attentionxml'"):
        Plugins().load().recipe("atentionxml")
