"""The Python entry points: `xmplug.train`, `xmplug.load`, `xmplug.ensemble` and `xmplug.calibrate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .calibration import FILE as CALIBRATION
from .config import resolve
from .data import load_dataset
from .errors import RunError
from .inference import Tagger
from .plugins import Plugins
from .refinement import calibrate as calibrate
from .refinement import ensemble as ensemble
from .saving import MANIFEST, load_run, read_manifest, save_ensemble
from .saving import copy_run as copy_run
from .training import Listener, resumable_config
from .training import train as train_run


def load(run: str | Path, plugin_files: Sequence[str] = ()) -> Tagger:
    """A finished run, ready to predict: `xmplug.load("runs/x").predict(["a text"], k=5)`.

    run: the folder that training wrote. plugin_files: Python files of single-file plugins that the run needs.
    Raises RunError for a missing, unfinished or damaged run, PluginError for a missing plugin.
    """
    return load_run(run, Plugins().load(tuple(plugin_files)))


def train(
    plugin: str,
    data: str | Path,
    out: str | Path,
    *,
    preset: str | None = None,
    options: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    data_format: str | None = None,
    labels: str | Path | None = None,
    dev_fraction: float = 0.1,
    plugin_files: Sequence[str] = (),
    listener: Listener | None = None,
    ensemble: int = 1,
) -> Tagger:
    """Train a model and return it, ready to predict.

    plugin: a recipe, e.g. "attentionxml". data: a corpus by name, a folder or a file (see `load_dataset`). out: a
    folder that does not exist yet. preset: one of the recipe's. options: dotted names and values, e.g.
    {"training.epochs": 3, "loss": "core:bce"}. config: content of a configuration file. dev_fraction: share of the
    training texts that chooses the weights where the data bring no dev split. ensemble: number of models with seeds of
    their own, each a run in out/member-N; members that are complete already are kept.

    Raises XmplugError for everything that can be wrong with the arguments or the data, before training starts.
    """
    plugins = Plugins().load(tuple(plugin_files))
    overrides = dict(options or {})
    resolved = resolve(plugins, plugin, preset=preset, file=config, overrides=overrides.items())
    dataset = load_dataset(data, format=data_format, labels=labels, dev_fraction=dev_fraction)
    source = {
        "spec": dataset.spec,
        "format": data_format,
        "labels": None if labels is None else str(Path(labels).absolute()),
        "dev_fraction": dev_fraction,
    }
    if ensemble == 1:
        train_run(resolved, plugins, dataset, out, source=source, listener=listener)
        return load_run(out, plugins)
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or not all(_is_of_ensemble(entry) for entry in folder.iterdir())):
        raise RunError(f"{str(out)!r} holds something else than an ensemble; choose another --out")
    members = [f"member-{number}" for number in range(ensemble)]
    for number, member in enumerate(members):
        overrides["training.seed"] = resolved.training.seed + number
        config_of_member = resolve(plugins, plugin, preset=preset, file=config, overrides=overrides.items())
        begun = (folder / member / MANIFEST).exists()
        if begun:
            found = read_manifest(folder / member)
            if (found["config"], found["data"]["source"]) != (config_of_member.as_dict(), source):
                raise RunError(f"{folder / member} was trained with other options or data; choose another --out")
            if found["state"] == "complete":
                continue
        train_run(config_of_member, plugins, dataset, folder / member, source=source, resume=begun, listener=listener)
    if not (folder / MANIFEST).exists() or read_manifest(folder)["members"] != members:
        for stale in (*folder.glob("evaluation-*.json"), *folder.glob(CALIBRATION)):  # of other members
            stale.unlink()
    save_ensemble(folder, members)
    return load_run(folder, plugins)


def _is_of_ensemble(entry: Path) -> bool:
    """Whether a file or folder belongs into the folder of an ensemble."""
    if entry.name == MANIFEST:
        return "members" in read_manifest(entry.parent)
    if entry.is_dir():
        return entry.name.startswith("member-")
    return entry.name == CALIBRATION or (entry.name.startswith("evaluation-") and entry.suffix == ".json")


def resume(run: str | Path, plugin_files: Sequence[str] = (), listener: Listener | None = None) -> Tagger:
    """Go on with a training that was stopped or killed; it ends with the numbers it would have had.

    Raises RunError when there is nothing to resume or the data have changed.
    """
    if not Path(run).is_dir():
        raise RunError(f"no run at {str(run)!r}: the folder does not exist; give the --out of a training")
    plugins = Plugins().load(tuple(plugin_files))
    config, data = resumable_config(run, plugins)
    source = data["source"]
    train_run(config, plugins, load_dataset(**source), run, source=source, resume=True, listener=listener)
    return load_run(run, plugins)
