"""Runs on disk: what a trained model needs, in files that run no code when they are read.

    RUN/xmplug.json         format, configuration, plugins with versions, data, metrics
    RUN/model.safetensors   weights of all levels
    RUN/labels.jsonl        the labels in the order of the model's outputs
    RUN/encoder/, label_structure/, label_context/   tokenizer, tree, neighbours
    RUN/metrics.jsonl       one line for each evaluation
    RUN/calibration.json    where there is one: what makes the scores probabilities
    RUN/checkpoints/        while training: what a killed run resumes from

An ensemble is a run whose `xmplug.json` names its members' folders, and how they go together. Manifest, weights,
checkpoints and calibration are written under a temporary name, synced, and renamed, so that none is ever half there.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .calibration import read_calibration
from .combination import METHODS
from .config import RunConfig, resolve
from .data import LabelSet
from .errors import ConfigError, PluginError, ResourceError, RunError
from .inference import Ensemble, Tagger, device
from .interfaces import Task
from .model import Model
from .plugins import Plugins
from .recipe import SLOTS

FORMAT = 1
MANIFEST = "xmplug.json"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; when the block ends well, it is synced and renamed to `path`.

    Raises ResourceError when the disk is full or not writable.
    """
    scratch = path.with_name(f".{path.name}.part")
    try:
        yield scratch
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except (OSError, SafetensorError) as error:
        scratch.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else error
        raise ResourceError(f"cannot write {path}: {reason}; free space or choose another --out") from error


def write_json(path: Path, content: Any) -> None:
    with whole_file(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Any = None) -> None:
    """A safetensors file; `note` is kept in its header as JSON."""
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with whole_file(path) as scratch:
        save_file(whole, scratch, {"note": json.dumps(note)})


def _kept_names(module: torch.nn.Module) -> dict[str, str]:
    """For the name of each weight the name that it is kept under: the first one, where it has several."""
    first: dict[int, str] = {}
    weights = module.state_dict(keep_vars=True)  # the parameters themselves, of which each is one object
    return {name: first.setdefault(id(value), name) for name, value in weights.items()}


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of `module` for a file, each once: levels may share an encoder."""
    kept = set(_kept_names(module).values())
    return {name: value for name, value in module.state_dict().items() if name in kept}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Inverse of `write_tensors`. Raises RunError when the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("note", "null"))
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118, not a dict
    except FileNotFoundError:
        raise RunError(f"{path} is missing; the run is incomplete: train it again, or resume with --resume") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); restore it from a copy, or train again") from error


def save_run(model: Model, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the weights, then the manifest that declares the run complete, then drop what only training needed."""
    training_context = model.context.training_only
    model.drop_training_parts()
    write_tensors(folder / "model.safetensors", weights_of(model.levels))
    write_json(folder / MANIFEST, {**manifest, "state": "complete"})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if training_context:
        shutil.rmtree(folder / "label_context", ignore_errors=True)


def manifest(config: RunConfig, plugins: Plugins, data: Mapping[str, Any]) -> dict[str, Any]:
    """What `xmplug.json` says of a run while it trains; `save_run` completes it."""
    owners = {plugins.owner(config.components[slot].id).name for slot in SLOTS} | {config.recipe.plugin}
    found = [plugin for plugin in plugins.found if plugin.name in owners]
    return {
        "format": FORMAT,
        "state": "training",
        "config": config.as_dict(),
        "preset": config.preset,
        "plugins": [
            {"name": plugin.name, "distribution": plugin.distribution, "version": plugin.version} for plugin in found
        ],
        "data": dict(data),
        "versions": {
            "xmplug": importlib.metadata.version("xmplug"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def save_ensemble(
    folder: Path,
    members: list[str],
    method: str = "mean",
    weights: list[float] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> None:
    """Declare the runs in the sub-folders `members` to be one ensemble. figures: what it did on dev."""
    content = {"format": FORMAT, "state": "complete", "members": members, "method": method, "weights": weights}
    write_json(folder / MANIFEST, content | ({} if figures is None else {"dev": dict(figures)}))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; when the block ends well, it is renamed to `path`, else nothing is left.

    Raises RunError when `path` is there already, ResourceError when the disk is full or not writable.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{str(path)!r} is there already, and not an empty folder; choose another --out")
    scratch = path.with_name(f".{path.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # of a command that was killed
    try:
        scratch.mkdir(parents=True)
        yield scratch
        os.replace(scratch, path)
    except (OSError, shutil.Error) as error:
        raise ResourceError(f"cannot make {path}: {error}; free space or choose another --out") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def copy_run(source: str | Path, target: str | Path) -> None:
    """A finished run once more, at no cost where the file system has hard links.

    Links are safe: files of a run are replaced, never written into. Checkpoints and figures stay behind, and what is
    hidden, such as a folder that is being made here.
    """
    left_out = shutil.ignore_patterns(".*", "checkpoints", "evaluation-*.json")
    shutil.rmtree(target, ignore_errors=True)  # of a training that was stopped and begins again
    shutil.copytree(source, target, ignore=left_out, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of `xmplug.json`. Raises RunError when there is no run, or one of another format."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise RunError(f"no run at {str(folder)!r}: the folder does not exist; give the --out of a finished training")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"no run at {str(folder)!r}: it holds no {MANIFEST}; give the --out of a training") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}; restore it from a copy, or train again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise RunError(f"{path} is of format {found!r}, this xmplug reads {FORMAT}; use the version that wrote it")
    needed = {"state", "members"} if "members" in content else {"state", "config", "plugins", "data"}
    if missing := needed - content.keys():
        raise RunError(f"{path} lacks {', '.join(sorted(missing))}; restore it from a copy, or train again")
    members = content.get("members", ["member-0"])
    if not isinstance(members, list) or not members or not all(_is_inside(member) for member in members):
        raise RunError(f"{path} names {members!r} as members; they must be folders inside the run")
    return content


def _is_inside(member: Any) -> bool:
    return isinstance(member, str) and Path(member).name == member and member not in ("", ".", "..")


def run_config(content: Mapping[str, Any], plugins: Plugins) -> RunConfig:
    """The configuration kept in a manifest. Raises PluginError when a plugin of the run is not installed."""
    names = {plugin.name for plugin in plugins.found if not plugin.error}
    for needed in content["plugins"]:
        if needed["name"] not in names:
            for plugin in plugins.found:
                if plugin.name == needed["name"]:
                    raise PluginError(f"the run cannot be read: {plugin.fault}")
            name, distribution, version = needed["name"], needed["distribution"], needed["version"]
            remedy = f"pip install {distribution}=={version}" if version else f"add --plugin-file {distribution}"
            raise PluginError(
                f"the run needs plugin {name!r} ({' '.join([distribution, version]).strip()}), not found here: {remedy}"
            )
    config = content["config"]
    return resolve(plugins, config["recipe"], file=config)


def load_run(folder: str | Path, plugins: Plugins, calibrated: bool = True) -> Tagger:
    """A finished run, ready to predict; with its calibration where it has one, unless `calibrated` is False.

    Raises RunError when the run is missing, unfinished or damaged; PluginError when it needs a plugin that is not
    here.
    """
    folder = Path(folder)
    content = read_manifest(folder)
    if content["state"] != "complete":
        raise RunError(f"the training of {str(folder)!r} has not finished; go on with `xmplug train --resume {folder}`")
    tagger = _load_ensemble(folder, content, plugins) if "members" in content else _load_model(folder, content, plugins)
    tagger.calibration = read_calibration(folder) if calibrated else None
    return tagger


def _load_ensemble(folder: Path, content: Mapping[str, Any], plugins: Plugins) -> Ensemble:
    members = [load_run(folder / member, plugins) for member in content["members"]]
    method, weights = content.get("method", "mean"), content.get("weights")
    try:
        if method not in METHODS:
            raise ConfigError(f"found method {method!r}; there are {', '.join(METHODS)}")
        return Ensemble(members, weights, by_rank=method == "ranks")
    except (ConfigError, TypeError) as error:
        raise RunError(f"{folder / MANIFEST} is damaged: {error}; restore it from a copy, or make it again") from error
    except RunError as error:
        raise RunError(f"{str(folder)!r}: {error}") from None


def _load_model(folder: Path, content: Mapping[str, Any], plugins: Plugins) -> Tagger:
    try:
        config = run_config(content, plugins)
        task = Task(LabelSet.load(folder / "labels.jsonl"), config.training.seed)
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder / MANIFEST} lacks {error}; restore it from a copy, or train again") from error
    model = Model.restore(config, task, folder)
    while len(model.levels) < model.structure.num_levels:
        model.add_level()
    model.drop_training_parts()
    weights, _ = read_tensors(folder / "model.safetensors")
    load_weights(model.levels, weights, folder / "model.safetensors")
    tagger = Tagger(model.to(device()).eval())
    tagger.trained_on = frozenset(filter(None, [content["data"].get("train_fingerprint")]))
    return tagger


def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load what `weights_of` gave. Raises RunError when the weights are not those of `module`."""
    shared = {name: weights[kept] for name, kept in _kept_names(module).items() if kept in weights}
    try:
        module.load_state_dict({**weights, **shared})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RunError(f"{path} does not fit the run's configuration: {reason}; the files are of two runs") from error
