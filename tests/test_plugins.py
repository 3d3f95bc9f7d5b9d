"""Discovery, conflicts, broken and single-file plugins."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def _distribution(folder: Path, distribution: str, plugin: str, module: str, code: str) -> None:
    """Install a distribution by hand: a module and its metadata with an entry point."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[xmplug1]\n{plugin} = {module}\n")


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
    with pytest.raises(PluginConflictError, match=r"acme-one 1.0 .*acme-two 1.0|acme-two 1.0 .*acme-one 1.0"):
        Plugins().load()


def test_a_broken_plugin_is_reported_and_kills_nothing_else(site: Path) -> None:
    _distribution(site, "broken", "broken", "broken_mod", "import no_such_module_anywhere")
    plugins = Plugins().load()
    assert plugins.recipe("attentionxml").plugin == "attentionxml"
    (broken,) = [plugin for plugin in plugins.found if plugin.name == "broken"]
    assert "no_such_module_anywhere" in broken.error
    with pytest.raises(PluginError, match=r"does not load.*no_such_module_anywhere"):
        plugins.recipe("broken")


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
