"""`xmplug compare`: what it measures, that it goes on after a stop, and that a failure stays alone."""

from __future__ import annotations

import base64
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from xmplug.comparison import entries_of, plan
from xmplug.data import synthetic_dataset
from xmplug.errors import RunError, XmplugError
from xmplug.evaluation import evaluate_run
from xmplug.report import lines, spread

pytest.importorskip("matplotlib", reason="the report needs it: pip install 'xmplug[report]'")

SMALL = {
    "encoder.vectors": "random",
    "encoder.vector_size": 16,
    "encoder.hidden": 8,
    "encoder.min_count": 1,
    "fusion.layers": [8],
    "training.learning_rate": 0.02,
    "training.checkpoint_every": 2,
}
MIXES: dict[str, Any] = {"small": {"plugin": "attentionxml", "options": SMALL}}

BROKEN = """
import os, signal
from xmplug import Component, ComponentConfig, hookimpl
from xmplug.components.bce import BCE

class Nothing(ComponentConfig):
    pass

@hookimpl
def xmplug_losses():
    return [Component("deadly", "broken:Deadly", Nothing, "ends its process")]

class Deadly(BCE):
    def forward(self, scores, shortlist, targets):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def _compare(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "xmplug.cli", "compare", "--out", "out", "--mixes", "mixes.json", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, text=True, **pipes)


def _finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two entries with two seeds each, compared."""
    folder = tmp_path_factory.mktemp("compared")
    synthetic_dataset(400, 20, seed=1, folder=folder / "planted")
    (folder / "mixes.json").write_text(json.dumps(MIXES))
    code, out, err = _finished(
        _compare(folder, "--plugins", "linear@flat", "--data", "planted", "--epochs", "3", "--seeds", "2")
    )
    assert code == 0, err
    assert "4/4  small, seed 1" in err and "report: out/report.html" in out
    return folder


def _result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "out/comparison.json").read_text())
    return result


def test_figures_are_those_of_the_runs(folder: Path) -> None:
    result = _result(folder)
    assert [entry["name"] for entry in result["entries"]] == ["linear@flat", "small"]
    for entry in result["entries"]:
        assert list(entry["runs"]) == ["0", "1"] and entry["errors"] == {}
        for seed, figures in entry["runs"].items():
            run = folder / "out/runs" / f"{entry['name']}-seed{seed}"
            assert figures["evaluation"] == json.loads(json.dumps(evaluate_run(run).as_dict()))
            dev = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            assert [{name: line[name] for name in dev[0]} for line in figures["dev"]] == dev
            assert 0 < figures["minutes"] == figures["dev"][-1]["minutes"] < 5
            assert 0 < figures["processor"] < 5
            assert 2**26 < figures["memory"]["main"] < 2**35
            assert figures["disk"] == sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
            assert figures["speed"]["texts"] == 40 and figures["speed"]["seconds"] > 0
    seeds = [run["evaluation"]["model"]["values"]["P@5"] for run in result["entries"][1]["runs"].values()]
    (line,) = [line for line in lines(result) if line.name == "P@5"]
    assert line.cells[2] == f"{100 * np.mean(seeds):.2f} ± {100 * np.std(seeds, ddof=1):.2f}"


def test_the_report_holds_every_figure_and_needs_nothing_else(folder: Path) -> None:
    result, page = _result(folder), (folder / "out/report.html").read_text()
    table = (folder / "out/table.md").read_text()
    for line in lines(result):
        for cell in (line.name, *line.cells):
            assert cell in page and cell in table
    for said in (
        "40 documents of test",
        "Test chose nothing",
        "2 seeds",
        "Machine: ",
        "torch 2",
        "xmplug-attentionxml",
    ):
        assert said in page and said in table
    assert result["command"].startswith("xmplug compare --out out --mixes mixes.json --plugins linear@flat")
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(images) == 2 and all(b"</svg>" in base64.b64decode(image) for image in images)
    assert len(re.findall(r"\bsrc=", page)) == 2 and not re.search(r"<(script|link|iframe)|@import|url\(", page)


@pytest.mark.parametrize("entry", [0, 1])
def test_the_command_line_of_an_entry_repeats_it(entry: int, folder: Path, tmp_path: Path) -> None:
    found = _result(folder)["entries"][entry]
    program, *arguments = shlex.split(found["command"])
    assert program == "xmplug" and arguments[-2:] == ["--out", f"runs/{found['name']}-seed0"]
    command = [sys.executable, "-m", "xmplug.cli", *arguments[:-1], str(tmp_path / "again")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first = folder / "out" / arguments[-1] / "model.safetensors"
    assert first.read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_a_stopped_comparison_goes_on(number: signal.Signals, folder: Path, tmp_path: Path) -> None:
    """What is finished is not trained again, what was begun goes on, and nothing is left running."""
    (tmp_path / "mixes.json").write_text(json.dumps(MIXES))
    arguments = ["--plugins", "linear@flat", "--data", str(folder / "planted"), "--seeds", "1", "--epochs", "20"]
    process = _compare(tmp_path, *arguments)
    course = tmp_path / "out/runs/small-seed0.jsonl"
    _wait(lambda: course.exists() and len(course.read_text().splitlines()) > 1)
    children = psutil.Process(process.pid).children()
    process.send_signal(number)
    code, _, err = _finished(process)
    assert len(children) == 1 and not psutil.wait_procs(children, timeout=30)[1]
    finished = tmp_path / "out/runs/linear@flat-seed0/model.safetensors"
    before = finished.stat().st_mtime_ns
    steps = len(course.read_text().splitlines())
    assert code == {signal.SIGKILL: -9, signal.SIGINT: 130}[number], err
    assert 1 < steps < 20 and not (tmp_path / "out/runs/small-seed0.json").exists()
    code, _, err = _finished(_compare(tmp_path, *arguments))
    assert code == 0, err
    assert "1/2  linear@flat, seed 0: there already" in err
    # The last epoch may have ended before its checkpoint was written; each one before has one.
    assert not any(f"epoch {epoch}:" in err for epoch in range(1, steps))
    assert finished.stat().st_mtime_ns == before
    (run,) = _result(tmp_path)["entries"][1]["runs"].values()
    assert [line["epoch"] for line in run["dev"]] == list(range(1, 21))
    minutes = [line["minutes"] for line in run["dev"]]
    processor = [line["processor"] for line in run["dev"]]
    assert minutes == sorted(minutes) and processor == sorted(processor)


def test_a_failure_stays_alone_and_is_tried_again(folder: Path, tmp_path: Path) -> None:
    wild = SMALL | {"training.learning_rate": 1e30, "training.precision": "float32"}
    mixes = {
        "dies": {"plugin": "attentionxml", "options": SMALL | {"loss": "broken:deadly"}},
        "diverges": {"plugin": "attentionxml", "options": wild},
    }
    (tmp_path / "mixes.json").write_text(json.dumps(mixes))
    (tmp_path / "broken.py").write_text(BROKEN)
    arguments = ["--plugins", "linear@flat", "--data", str(folder / "planted"), "--seeds", "1", "--epochs", "5"]
    arguments += ["--plugin-file", "broken.py", "--documents", "100"]
    code, out, err = _finished(_compare(tmp_path, *arguments))
    assert code == 1, err
    entries = {entry["name"]: entry for entry in _result(tmp_path)["entries"]}
    assert entries["linear@flat"]["runs"]["0"]["data"]["train"] == 100
    assert "exit code -9 (was there too little memory?)" in entries["dies"]["errors"]["0"]
    assert "lower training.learning_rate" in entries["diverges"]["errors"]["0"]
    for text in (err, (tmp_path / "out/table.md").read_text(), (tmp_path / "out/report.html").read_text()):
        assert all(re.search(f"ailed: {name}, seed 0: ", text) for name in ("dies", "diverges"))
    assert "0 of 1" in out
    mended = BROKEN.replace(
        "os.kill(os.getpid(), signal.SIGKILL)", "return super().forward(scores, shortlist, targets)"
    )
    (tmp_path / "broken.py").write_text(mended)
    (tmp_path / "mixes.json").write_text(json.dumps({"dies": mixes["dies"]}))
    code, _, err = _finished(_compare(tmp_path, *arguments))
    assert code == 0, err


def _wait(condition: Callable[[], bool]) -> None:
    wanted = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < wanted
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("methods", "mixes", "arguments", "message"),
    [
        ("lineer", None, {}, "entry 'lineer': .*did you mean 'linear'"),
        ("linear@flta", None, {}, "entry 'linear@flta': .*no preset 'flta'.*did you mean 'flat'"),
        ("linear,attentionxml@demo", None, {"options": {"encoder.ngrams": 2}}, "entry 'attentionxml@demo': .*ngrams"),
        ("linear", None, {"options": {"training.minutes": 0}}, "entry 'linear': option 'training.minutes' cannot be 0"),
        ("linear", None, {"data": "nowhere"}, "'nowhere' are no file, no folder and no known corpus"),
        ("linear", None, {"documents": 10**6}, "asked for 1000000 training documents"),
        ("linear,linear", None, {}, "two entries 'linear'"),
        (None, None, {}, "nothing to compare; give --plugins"),
        ("linear", {"../x": {"plugin": "linear"}}, {}, "an entry cannot be called '../x'"),
        ("linear", {"mine": {"options": {}}}, {}, "entry 'mine' needs a method"),
        ("linear", {"mine": {"plugin": "linear", "prest": "flat"}}, {}, "holds 'prest': did you mean 'preset'"),
        ("linear", {"mine": {"plugin": "linear", "options": {"loss": "core:bcd"}}}, {}, "'mine': .*core:bcd"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_trains(
    methods: str | None, mixes: Any, arguments: dict[str, Any], message: str, corpus: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mixes.json"
    file.write_text(json.dumps(mixes))
    given: dict[str, Any] = {"data": corpus, "out": tmp_path / "out"} | arguments
    with pytest.raises(XmplugError, match=message):
        plan(entries_of(methods, None, None if mixes is None else file), **given)
    assert not (tmp_path / "out").exists()


def test_a_preset_is_that_of_methods_that_name_none() -> None:
    entries = entries_of("gudn, linear@,attentionxml@demo", "laptop", None)
    assert [(entry.name, entry.plugin, entry.preset) for entry in entries] == [
        ("gudn", "gudn", "laptop"),
        ("linear", "linear", None),
        ("attentionxml@demo", "attentionxml", "demo"),
    ]


def test_runs_made_in_another_way_are_not_taken_for_these(folder: Path) -> None:
    entries = entries_of("linear@flat", None, None)
    given: dict[str, Any] = {"data": folder / "planted", "out": folder / "out", "seeds": 2}
    plan(entries, options={"training.epochs": "3"}, **given)
    with pytest.raises(RunError, match=r"linear@flat-seed0 was trained with other options or data; choose another"):
        plan(entries, options={"training.epochs": "4"}, **given)


def test_two_at_a_time_are_refused(folder: Path) -> None:
    import fcntl

    with open(folder / "out/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = _finished(_compare(folder, "--data", "planted", "--seeds", "1", "--epochs", "3"))
    assert code == 1 and "another comparison is at work in 'out'" in err


def test_spread() -> None:
    assert spread([]) == "-"
    assert spread([81.2]) == "81.20"
    assert spread([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0"
