"""Layers of the configuration, and what is said of wrong options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xmplug.config import read_config, resolve
from xmplug.errors import ConfigError, PluginError
from xmplug.plugins import Plugins


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins().load()


def test_later_layers_win(plugins: Plugins) -> None:
    paper = resolve(plugins, "attentionxml", preset="amazon-670k")
    assert (paper.training.batch_size, paper.training.epochs) == (200, (10,))
    file = {"training": {"batch_size": 50, "epochs": 7}}
    config = resolve(plugins, "attentionxml", preset="amazon-670k", file=file, overrides=[("training.epochs", "3,2")])
    assert config.training.batch_size == 50
    assert [config.training.epochs_at(level) for level in range(3)] == [3, 2, 2]
    assert config.options["label_structure"].height == 3  # type: ignore[attr-defined]


def test_the_presets_of_table_2(plugins: Plugins) -> None:
    """You et al. 2019, Table 2: E, B, N, N_fc, H, M = K, C."""
    for name, row in {
        "eur-lex": (30, 40, 256, (256,), None),
        "wiki10-31k": (30, 40, 256, (256,), None),
        "amazoncat-13k": (10, 200, 512, (512, 256), None),
        "amazon-670k": (10, 200, 512, (512, 256), (3, 8, 160)),
        "wiki-500k": (5, 200, 512, (512, 256), (1, 64, 15)),
        "amazon-3m": (5, 200, 512, (512, 256), (3, 8, 160)),
    }.items():
        config = resolve(plugins, "attentionxml", preset=name).as_dict()
        tree = config["label_structure"]
        assert row == (
            config["training"]["epochs"][0],
            config["training"]["batch_size"],
            config["encoder"]["hidden"],
            tuple(config["fusion"]["layers"]),
            (tree["height"], tree["branching"], tree["beam"]) if tree["component"] == "attentionxml:plt" else None,
        )


def test_another_component_starts_its_options_afresh(plugins: Plugins) -> None:
    config = resolve(plugins, "attentionxml", preset="amazon-670k", overrides=[("label_structure", "flat")])
    assert config.components["label_structure"].id == "core:flat"
    config = resolve(plugins, "attentionxml", overrides=[("label_structure", "plt"), ("label_structure.beam", "5")])
    assert config.options["label_structure"].beam == 5  # type: ignore[attr-defined]


def test_printed_and_read_again_it_is_the_same(plugins: Plugins, tmp_path: Path) -> None:
    config = resolve(plugins, "attentionxml", preset="wiki-500k", overrides=[("training.clip_norm", "none")])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.as_dict()))
    assert resolve(plugins, "attentionxml", file=read_config(path)).as_dict() == config.as_dict()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("training.epoch", "3")], "did you mean 'training.epochs'"),
        ([("encoder.hiden", "3")], "did you mean 'encoder.hidden'"),
        ([("trainin.epochs", "3")], "did you mean 'training'"),
        ([("training.epochs", "0")], "at least one epoch"),
        ([("training.epochs", "many")], "training.epochs"),
        ([("training.batch_size", "-1")], "'training.batch_size' cannot be '-1'"),
        ([("encoder.dropout", "1.5")], "'encoder.dropout' cannot be '1.5'"),
        ([("training.metric", "accuracy")], "give P@k"),
        ([("training.precision", "float8")], "'training.precision' cannot be 'float8'"),
        ([("training", "fast")], "training"),
    ],
)
def test_a_wrong_option_is_named(plugins: Plugins, overrides: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(plugins, "attentionxml", overrides=overrides)


def test_unknown_presets_and_components(plugins: Plugins) -> None:
    with pytest.raises(ConfigError, match="did you mean 'laptop'"):
        resolve(plugins, "attentionxml", preset="labtop")
    with pytest.raises(PluginError, match="did you mean 'attentionxml:bilstm'"):
        resolve(plugins, "attentionxml", overrides=[("encoder", "attentionxml:bilsm")])


def test_config_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_config(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"training": ')
    with pytest.raises(ConfigError, match=r"not JSON.*line 1"):
        read_config(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        read_config(tmp_path / "list.json")
