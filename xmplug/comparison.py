"""Methods beside one another under one budget: what is trained, and what is made of it.

    OUT/runs/NAME-seedN/        the runs, which load like all others
    OUT/runs/NAME-seedN.jsonl   what dev said at which minute
    OUT/runs/NAME-seedN.json    the figures of a run, or why there are none

Each run trains and is measured in a process of its own, one after the other, so that memory is its own and a failure
ends nothing else. What is complete is kept: the same command goes on where it was stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from .api import load, resume, train
from .config import RunConfig, read_config, resolve
from .data import Dataset, load_dataset, write_documents
from .errors import ConfigError, DataError, RunError, XmplugError, nearest
from .evaluation import evaluate_documents, split_of
from .inference import Tagger, device
from .plugins import Plugins
from .saving import MANIFEST, read_manifest, write_json
from .training import Listener, Progress

KS = (1, 3, 5)
CURVE = "nDCG@5"
"""The measure on dev whose course is kept and drawn."""
_SPEED_TEXTS = 1000


@dataclass(frozen=True)
class Entry:
    """What is compared: a method by name, with what differs from it. options: as `xmplug.train` takes them."""

    name: str
    plugin: str
    preset: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A comparison that was checked.

    data: arguments of `xmplug.train` that give the corpus. options: those of every run, the budget among them.
    """

    entries: tuple[Entry, ...]
    configs: Mapping[str, RunConfig]
    data: Mapping[str, Any]
    dataset: Dataset
    split: str
    seeds: int
    options: Mapping[str, Any]
    plugin_files: tuple[str, ...]
    out: Path

    def jobs(self) -> Iterator[tuple[Entry, int, Path]]:
        """Entry, seed and folder of each run: all entries with the first seed, then with the next."""
        for seed in range(self.seeds):
            for entry in self.entries:
                yield entry, seed, self.out / "runs" / f"{entry.name}-seed{seed}"

    def arguments(self, entry: Entry, seed: int) -> dict[str, Any]:
        """Arguments of `xmplug.train`, JSON-able, but for --out."""
        options = {**entry.options, **self.options, "training.seed": seed}
        named = {"plugin": entry.plugin, "preset": entry.preset, "options": options}
        return named | dict(self.data) | {"plugin_files": list(self.plugin_files)}


def entries_of(methods: str | None, preset: str | None, mixes: str | Path | None) -> list[Entry]:
    """The entries that a command line asks for.

    methods: recipes with commas between, each as it is or as RECIPE@PRESET. preset: of those without one; RECIPE@ has
    none. mixes: a JSON file, {"NAME": {"plugin": RECIPE, "preset": PRESET, "options": {"loss": "core:bce"}}}.
    Raises ConfigError for entries that cannot be read, and names that cannot be one or are there twice.
    """
    entries = []
    for text in filter(None, (part.strip() for part in (methods or "").split(","))):
        plugin, at, own = text.partition("@")
        entries.append(Entry(text.removesuffix("@"), plugin, (own or None) if at else preset))
    for name, mix in ({} if mixes is None else read_config(mixes)).items():
        if not isinstance(mix, Mapping) or not isinstance(mix.get("plugin"), str):
            raise ConfigError(f'{str(mixes)!r}: entry {name!r} needs a method: {{"plugin": "attentionxml", ...}}')
        known = ("plugin", "preset", "options")
        if unknown := mix.keys() - set(known):
            raise ConfigError(f"{str(mixes)!r}: entry {name!r} holds {min(unknown)!r}: {nearest(min(unknown), known)}")
        if not isinstance(mix.get("options", {}), Mapping):
            raise ConfigError(f'{str(mixes)!r}: options of {name!r} must be an object, {{"loss": "core:bce"}}')
        entries.append(Entry(name, mix["plugin"], mix.get("preset"), mix.get("options", {})))
    names = [entry.name for entry in entries]
    for name in names:
        if not re.fullmatch(r"\w[\w.+@-]*", name):
            raise ConfigError(f"an entry cannot be called {name!r}, which names a folder; use letters, digits, + - . _")
        if names.count(name) > 1:
            raise ConfigError(f"there are two entries {name!r}; rename one of them")
    if not entries:
        raise ConfigError("nothing to compare; give --plugins attentionxml,gudn@laptop, or --mixes FILE.json")
    return entries


def plan(
    entries: Sequence[Entry],
    data: str | Path,
    out: str | Path,
    *,
    seeds: int = 3,
    split: str = "test",
    options: Mapping[str, Any] | None = None,
    documents: int | None = None,
    data_format: str | None = None,
    labels: str | Path | None = None,
    dev_fraction: float = 0.1,
    plugin_files: Sequence[str] = (),
) -> Plan:
    """Check everything that can be checked before anything trains.

    options: of all entries, before their own. documents: train on so many texts, drawn by a fixed seed. The others are
    those of `xmplug.train`. Raises XmplugError for an unknown name or option, data without the split, and runs in
    `out` that were made in another way.
    """
    plugins = Plugins().load(tuple(plugin_files))
    out, configs = Path(out), {}
    if out.exists() and not out.is_dir():
        raise RunError(f"{str(out)!r} is a file; --out names the folder to make")
    for entry in entries:
        overrides = {**entry.options, **(options or {})}
        try:
            configs[entry.name] = resolve(plugins, entry.plugin, preset=entry.preset, overrides=overrides.items())
        except XmplugError as error:
            error.args = (f"entry {entry.name!r}: {error}",)
            raise
    given = {"data_format": data_format, "labels": labels, "dev_fraction": dev_fraction}
    dataset = load_dataset(data, format=data_format, labels=labels, dev_fraction=dev_fraction)
    if not len(dataset.split(split)):
        raise DataError(f"data {str(data)!r} have no {split} split; give --split, or add the file {split}.jsonl")
    place: str | Path = dataset.spec
    if documents is not None:
        place = _part(dataset, documents, {"dev", split}, out)
        dataset, given = load_dataset(place), {}
    if given.get("labels") is not None:
        given["labels"] = str(Path(str(labels)).absolute())
    named = {"data": str(place)} | {name: value for name, value in given.items() if value is not None}
    made = Plan(tuple(entries), configs, named, dataset, split, seeds, dict(options or {}), tuple(plugin_files), out)
    for entry, seed, run in made.jobs():
        if (run / MANIFEST).exists():
            found, wanted = read_manifest(run), configs[entry.name].as_dict()
            wanted["training"]["seed"] = seed
            if found.get("config") != wanted or found["data"].get("fingerprint") != dataset.fingerprint:
                raise RunError(f"{run} was trained with other options or data; choose another --out, or remove it")
    return made


def _part(dataset: Dataset, documents: int, splits: set[str], out: Path) -> Path:
    """A corpus with so many of the training documents, written once. Its name begins with that of the whole, by which
    the constants of propensities go."""
    folder = out / "data" / f"{dataset.name}-{documents}"
    train = list(dataset.split("train"))
    if documents > len(train):
        raise DataError(f"asked for {documents} training documents of {dataset.name!r}, which has {len(train)}")
    if not folder.exists():
        scratch = folder.with_name(f".{folder.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:documents])
        write_documents([train[place] for place in chosen], scratch / "train.jsonl")
        for split in splits - {"train"}:
            write_documents(dataset.split(split), scratch / f"{split}.jsonl")
        dataset.labels.save(scratch / "labels.jsonl")
        scratch.rename(folder)
    return folder.absolute()


# Running it -----------------------------------------------------------------------------------------------------------


def run_all(made: Plan, worker: Sequence[str], say: Callable[[str], None]) -> Iterator[None]:
    """Train and measure what is not there yet; yields after each run.

    worker: the command that calls `perform` for the job that it gets as its last argument. say: gets a line for each
    run. Raises RunError when another process is at work in the folder, KeyboardInterrupt after Ctrl-C.
    """
    jobs = list(made.jobs())
    (made.out / "runs").mkdir(parents=True, exist_ok=True)
    with open(made.out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"another comparison is at work in {str(made.out)!r}; wait, or choose another --out"
            ) from None
        for number, (entry, seed, run) in enumerate(jobs, 1):
            title = f"{number}/{len(jobs)}  {entry.name}, seed {seed}"
            if _is_done(figures_of(run), made.split):
                say(f"{title}: there already")
                continue
            say(title)
            Path(f"{run}.json").unlink(missing_ok=True)
            job = {"arguments": made.arguments(entry, seed), "split": made.split, "run": str(run)}
            code = _ended([*worker, json.dumps(job)])
            if code == 130:
                raise KeyboardInterrupt
            if not figures_of(run):
                hint = " (was there too little memory?)" if code == -signal.SIGKILL else ""
                _write_error(run, f"ended with exit code {code}{hint}; what it said stands above")
            if not _is_done(figures_of(run), made.split):
                say(f"{title} failed: {figures_of(run)['error']}")
            yield


def _ended(command: Sequence[str]) -> int:
    """Run a command, hand Ctrl-C on to it, and return its exit code; below 0 the signal that ended it.

    It is out of reach of the terminal's Ctrl-C, which would come twice, and ends when its standard input does: so it
    does not outlive this process, however that ends.
    """
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    before = signal.signal(signal.SIGINT, lambda number, frame: process.send_signal(signal.SIGINT))
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        assert process.stdin is not None
        process.stdin.close()


def figures_of(run: Path) -> dict[str, Any]:
    """The figures of a run, or {"error": why there are none}; empty where it has not been tried."""
    with suppress(OSError, ValueError):
        content = json.loads(Path(f"{run}.json").read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def _is_done(figures: Mapping[str, Any], split: str) -> bool:
    return "evaluation" in figures and figures["split"] == split


def _write_error(run: Path, message: str) -> None:
    write_json(Path(f"{run}.json"), {"error": message})


# One run, in a process of its own ------------------------------------------------------------------------------------


class _Recorder(Listener):
    """Hands everything on, and writes down what dev said and at which minute."""

    def __init__(self, shown: Listener, path: Path):
        self.shown, self.path = shown, path
        written = _course(path)
        self.before = written[-1]["processor"] if written else 0.0

    @property
    def stop(self) -> bool:  # type: ignore[override]
        return self.shown.stop

    def message(self, text: str) -> None:
        self.shown.message(text)

    def step(self, progress: Progress) -> None:
        self.shown.step(progress)

    def evaluated(self, record: Mapping[str, Any]) -> None:
        self.shown.evaluated(record)
        processor = self.before + time.process_time() / 60
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**record, "processor": processor, "memory": _peak_memory()}) + "\n")


def perform(job: Mapping[str, Any], listener: Listener) -> None:
    """Train a run of a comparison, or go on with it, measure it, and write its figures, or the error, beside it.

    Raises what went wrong, once it is written.
    """
    run = Path(job["run"])
    try:
        tagger = _trained(run, job["arguments"], _Recorder(listener, Path(f"{run}.jsonl")))
        write_json(Path(f"{run}.json"), _figures(run, job["split"], tagger))
    except Exception as error:
        known = isinstance(error, XmplugError)
        _write_error(run, str(error) if known else f"{type(error).__name__}: {error}")
        raise


def _trained(run: Path, arguments: Mapping[str, Any], listener: Listener) -> Tagger:
    files = arguments["plugin_files"]
    if not (run / MANIFEST).exists():
        shutil.rmtree(run, ignore_errors=True)  # of a process that was killed before it had begun
        Path(f"{run}.jsonl").unlink(missing_ok=True)
        return train(**arguments, out=run, listener=listener)
    return load(run, files) if read_manifest(run)["state"] == "complete" else resume(run, files, listener)


def _figures(run: Path, split: str, tagger: Tagger) -> dict[str, Any]:
    documents, name = split_of(run, None, split)
    texts = list(islice(documents.texts(), _SPEED_TEXTS))
    tagger.predict(texts[:32])
    begun = time.perf_counter()
    tagger.predict(texts)
    seconds = time.perf_counter() - begun
    content = read_manifest(run)
    course = _course(Path(f"{run}.jsonl"))
    if not course:
        raise RunError(f"{run}.jsonl does not say how the training went; remove {run}, so that it is trained again")
    return {
        "split": split,
        "evaluation": evaluate_documents(tagger, documents, name, KS).as_dict(),
        "dev": course,
        "minutes": max(line["minutes"] for line in course),
        "processor": max(line["processor"] for line in course),
        "memory": {
            kind: max(line["memory"][kind] for line in course if kind in line["memory"])
            for kind in course[-1]["memory"]
        },
        "disk": sum(path.stat().st_size for path in run.rglob("*") if path.is_file()),
        "speed": {"texts": len(texts), "seconds": seconds},
        "epochs": content["config"]["training"]["epochs"],
        "data": content["data"],
        "versions": content["versions"] | {each["distribution"]: each["version"] for each in content["plugins"]},
        "machine": _machine(),
    }


def _course(path: Path) -> list[dict[str, Any]]:
    """The evaluations on dev, none where there is no file. After a kill some were made again: the later one counts."""
    with suppress(OSError, ValueError, KeyError):
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return list({(line["level"], line.get("step")): line for line in lines}.values())
    return []


def _peak_memory() -> dict[str, int]:
    """The most memory of this process so far, in bytes."""
    memory = {"main": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    with suppress(OSError):  # where there is one: unlike ru_maxrss it does not begin with that of the parent process
        status = Path("/proc/self/status").read_text()
        memory["main"] = int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024
    if device().type == "cuda":
        memory["device"] = torch.cuda.max_memory_allocated()
    return memory


def _machine() -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    with suppress(OSError, IndexError):
        name = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[0]
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name() if device().type == "cuda" else "cpu",
        "vector_code": torch.backends.cpu.get_cpu_capability(),
    }


# What came out -------------------------------------------------------------------------------------------------------


def command_of(made: Plan, entry: Entry, seed: int = 0) -> str:
    """The command line that trains a run of an entry again."""
    arguments = made.arguments(entry, seed)
    words = ["xmplug", "train", "--plugin", entry.plugin]
    words += [word for file in made.plugin_files for word in ("--plugin-file", file)]
    words += ["--preset", entry.preset] if entry.preset else []
    for name, value in [*made.data.items(), *arguments["options"].items()]:
        section, dot, option = name.partition(".")
        words += ["--" + section.replace("_", "-") + dot + option, _word(value)]
    return shlex.join([*words, "--out", f"runs/{entry.name}-seed{seed}"])


def _word(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def results(made: Plan, command: str) -> dict[str, Any]:
    """Everything that came out so far, for comparison.json and the report. command: what was called."""
    entries, baseline, notes, machines = [], None, [], []
    versions: dict[str, list[str]] = {}
    for entry in made.entries:
        config = made.configs[entry.name]
        runs, errors = {}, {}
        for each, seed, run in made.jobs():
            figures = figures_of(run)
            if each is entry and _is_done(figures, made.split):
                runs[seed] = figures
                baseline, notes = figures["evaluation"]["popularity"], figures["evaluation"]["notes"]
                machines += [figures["machine"]] if figures["machine"] not in machines else []
                for name, version in figures["versions"].items():
                    known = versions.setdefault(name, [])
                    known += [version] if version not in known else []
            elif each is entry and "error" in figures:
                errors[seed] = figures["error"]
        entries.append(
            {
                "name": entry.name,
                "plugin": entry.plugin,
                "preset": entry.preset,
                "options": dict(entry.options),
                "summary": config.recipe.summary,
                "paper": None if config.recipe.paper is None else vars(config.recipe.paper),
                "components": {slot: component.id for slot, component in config.components.items()},
                "command": command_of(made, entry),
                "runs": runs,
                "errors": errors,
            }
        )
    dataset = made.dataset
    return {
        "command": command,
        "data": {
            **made.data,
            "name": dataset.name,
            "split": made.split,
            **{name: len(dataset.split(name)) for name in ("train", "dev", "test")},
            "labels": dataset.labels.num_trained,
        },
        "budget": {name: config.training.minutes for name, config in made.configs.items()},
        "metric": sorted({config.training.metric for config in made.configs.values()}),
        "options": dict(made.options),
        "seeds": made.seeds,
        "machines": machines,
        "versions": versions,
        "notes": notes,
        "baseline": baseline,
        "entries": entries,
    }
