"""What goes wrong is said in one line, with an exit code, and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xmplug.cli import main

TRAIN = "train --plugin attentionxml --data {corpus} --out {out} "
ENSEMBLE = "ensemble {run} {copy} --out {out} "
QUICK = "--encoder.vectors random --encoder.hidden 4 --encoder.vector_size 4 --training.epochs 1 "


def _write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def _nothing(folder: Path) -> None:
    pass


def _line(text: str, *labels: str) -> str:
    return json.dumps({"text": text, "labels": labels}) + "\n"


GOOD = "".join(_line(f"text {at}", f"l{at % 3}") for at in range(30))

CASES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    # data
    "missing corpus": (_nothing, TRAIN.replace("{corpus}", "{tmp}/nowhere"), "nowhere"),
    "misspelt name of a corpus": (_nothing, TRAIN.replace("{corpus}", "debtag"), "debtag"),
    "folder without splits": (_write("c/notes.md", "hello"), TRAIN.replace("{corpus}", "{tmp}/c"), "train.jsonl"),
    "broken JSON": (_write("c/train.jsonl", GOOD + "{oops\n"), TRAIN.replace("{corpus}", "{tmp}/c"), "line 31"),
    "no text": (_write("c/train.jsonl", GOOD + '{"labels": []}\n'), TRAIN.replace("{corpus}", "{tmp}/c"), "line 31"),
    "labels no list": (
        _write("c/train.jsonl", GOOD + '{"text": "a", "labels": 3}\n'),
        TRAIN.replace("{corpus}", "{tmp}/c"),
        "line 31",
    ),
    "wrong encoding": (
        _write("c/train.jsonl", GOOD.encode() + b'{"text": "caf\xe9", "labels": ["l1"]}\n'),
        TRAIN.replace("{corpus}", "{tmp}/c"),
        "line 31",
    ),
    "empty file": (_write("c/train.jsonl", ""), TRAIN.replace("{corpus}", "{tmp}/c"), "no documents"),
    "no label anywhere": (
        _write("c/train.jsonl", _line("a") * 20),
        TRAIN.replace("{corpus}", "{tmp}/c"),
        "none of the 18 training documents has a label",
    ),
    "one document": (_write("c/train.jsonl", _line("a", "b")), TRAIN.replace("{corpus}", "{tmp}/c"), "one document"),
    "damaged archive": (
        _write("c/train.jsonl.xz", b"\xfd7zXZ\x00 not really"),
        TRAIN.replace("{corpus}", "{tmp}/c"),
        "train.jsonl.xz",
    ),
    "label file mismatch": (
        lambda folder: (_write("c/train.jsonl", GOOD)(folder), _write("c/labels.jsonl", '{"id": "x"}\n')(folder))[0],
        TRAIN.replace("{corpus}", "{tmp}/c"),
        "unknown label 'l0'",
    ),
    "missing label file": (_nothing, TRAIN + "--labels {tmp}/none.tsv", "none.tsv"),
    "unknown format": (_nothing, TRAIN + "--data-format csv", "csv"),
    "empty texts only": (
        _write("p.txt", b"\xff\xfe\x00 not utf-8"),
        "predict {run} --input {tmp}/p.txt",
        "p.txt",
    ),
    "missing input": (_nothing, "predict {run} --input {tmp}/none.txt", "none.txt"),
    "split that is not there": (
        _write("c/train.jsonl", GOOD),
        "evaluate {run} --data {tmp}/c --split test",
        "no test split",
    ),
    "corpus of other labels": (
        _write("c/test.jsonl", _line("a", "unheard of")),
        "evaluate {run} --data {tmp}/c",
        "no label of",
    ),
    # options
    "unknown method": (_nothing, TRAIN.replace("attentionxml", "atentionxml"), "did you mean 'attentionxml'"),
    "unknown preset": (_nothing, TRAIN + "--preset labtop", "did you mean 'laptop'"),
    "unknown option": (_nothing, TRAIN + "--training.epoch 3", "did you mean 'training.epochs'"),
    "unknown flag": (_nothing, TRAIN + "--epochs 3", "--epochs"),
    "value out of bounds": (_nothing, TRAIN + "--encoder.dropout 2", "encoder.dropout"),
    "value without bounds": (_nothing, TRAIN + "--training.clip_norm inf", "training.clip_norm"),
    "value of the wrong type": (_nothing, TRAIN + "--training.batch_size many", "training.batch_size"),
    "unknown component": (_nothing, TRAIN + "--loss core:bcd", "core:bce"),
    "option without value": (_nothing, TRAIN + "--training.epochs", "needs a value"),
    "no method": (_nothing, "train --data {corpus} --out {out}", "--plugin is missing"),
    "no data": (_nothing, "train --plugin attentionxml --out {out}", "--data is missing"),
    "unknown command": (_nothing, "trian --plugin attentionxml", "did you mean 'train'"),
    "missing config file": (_nothing, TRAIN + "--config {tmp}/none.json", "none.json"),
    "broken config file": (_write("c.json", "{"), TRAIN + "--config {tmp}/c.json", "not JSON"),
    "missing vectors": (_nothing, TRAIN + "--encoder.vectors {tmp}/glove.txt", "glove.txt"),
    "vectors that are none": (_write("v.txt", "hello\n"), TRAIN + "--encoder.vectors {tmp}/v.txt", "v.txt"),
    "missing plugin file": (_nothing, TRAIN + "--plugin-file {tmp}/mine.py", "mine.py"),
    "broken plugin file": (_write("badplug.py", "1/0"), TRAIN + "--plugin-file {tmp}/badplug.py", "ZeroDivisionError"),
    "k of nothing": (_nothing, "evaluate {run} --k 0", "ranks begin with 1"),
    "more memory than there is": (
        _nothing,
        TRAIN + "--encoder.vectors random --training.batch_size 1000000000",
        "training.batch_size",
    ),
    "component that is no name": (
        _write("c.json", '{"loss": {"component": 3}}'),
        TRAIN + "--config {tmp}/c.json",
        "loss.component",
    ),
    "seed out of bounds": (_nothing, TRAIN + "--training.seed 99999999999999999999", "training.seed"),
    "unlabelled texts that nobody reads": (
        _nothing,
        TRAIN + "--encoder.vectors random --encoder.unlabelled {tmp}/x",
        "unlabelled",
    ),
    "resume with options": (_nothing, "train --resume {run} --preset demo", "leave out the other options"),
    # runs
    "out that is a file": (_nothing, TRAIN.replace("{out}", "{run}/xmplug.json"), "is a file"),
    "members that are none": (lambda tmp: _edit(tmp, "members", value=[]), "predict {copy}", "as members"),
    "members outside": (lambda tmp: _edit(tmp, "members", value=[".."]), "predict {copy}", "as members"),
    "demo over another run": (_nothing, "demo --out {run}", "another run"),
    "out that is not empty": (_nothing, TRAIN.replace("{out}", "{run}"), "is not empty"),
    "no run": (_nothing, "predict {tmp}/norun", "norun"),
    "folder that is no run": (_write("norun/file", ""), "predict {tmp}/norun", "holds no xmplug.json"),
    "nothing to resume": (_nothing, "train --resume {run}", "is complete"),
    "corrupt manifest": (lambda tmp: _damage(tmp, "xmplug.json"), "predict {copy}", "xmplug.json"),
    "corrupt weights": (lambda tmp: _damage(tmp, "model.safetensors"), "predict {copy}", "model.safetensors"),
    "corrupt tokenizer": (lambda tmp: _damage(tmp, "encoder/tokenizer.json"), "predict {copy}", "tokenizer.json"),
    "corrupt labels": (lambda tmp: _damage(tmp, "labels.jsonl"), "predict {copy}", "labels.jsonl"),
    "corrupt tree": (
        lambda tmp: _damage(tmp, "label_structure/tree.safetensors"),
        "predict {copy}",
        "tree.safetensors",
    ),
    "weights missing": (lambda tmp: (tmp / "copy/model.safetensors").unlink(), "predict {copy}", "is missing"),
    "weights of another run": (lambda tmp: _resize(tmp), "predict {copy}", "does not fit"),
    "run of a missing plugin": (lambda tmp: _edit(tmp, "plugins", 1, "name", "acme"), "predict {copy}", "pip install"),
    "ensemble of one run": (_nothing, "ensemble {run} --out {out}", "two runs at least"),
    "ensemble with a missing run": (_nothing, "ensemble {run} {tmp}/none --out {out}", "no run at"),
    "ensemble in a folder in use": (_nothing, "ensemble {run} {run} --out {copy}", "choose another --out"),
    "ensemble without weights": (_nothing, "ensemble {run} {run} --out {out} --method weighted", "go together"),
    "weights that nothing reads": (_nothing, "ensemble {run} {run} --out {out} --weights 1,1", "go together"),
    "too few weights": (_nothing, ENSEMBLE + "--method weighted --weights 1", "give 2 numbers"),
    "negative weights": (_nothing, ENSEMBLE + "--method weighted --weights 2,-1", "of 0 or more"),
    "weights of 0": (_nothing, ENSEMBLE + "--method weighted --weights 0,0", "not all of them 0"),
    "weights that are no numbers": (_nothing, ENSEMBLE + "--method weighted --weights a,b", "list of numbers"),
    "unknown way to combine": (_nothing, ENSEMBLE + "--method median", "--method"),
    "members of other labels": (
        lambda tmp: _replace(tmp, "labels.jsonl", '"label0000"', '"labelX"'),
        ENSEMBLE,
        "know different labels",
    ),
    "members of other texts": (
        lambda tmp: _edit(tmp, "data", "fingerprint", "another"),
        ENSEMBLE + "--method fitted",
        "trained on different texts",
    ),
    "members trained by halves": (lambda tmp: _edit(tmp, "state", value="training"), ENSEMBLE, "has not finished"),
    "ensemble of an unknown method": (lambda tmp: _ensemble(tmp, method="median"), "predict {copy}/e", "median"),
    "ensemble with weights missing": (lambda tmp: _ensemble(tmp, weights=[]), "predict {copy}/e", "give 1 numbers"),
    "ensemble with weights that are none": (lambda tmp: _ensemble(tmp, weights=["a"]), "predict {copy}/e", "damaged"),
    "calibrating no run": (_nothing, "calibrate {tmp}/none", "no run at"),
    "calibrating on test": (_nothing, "calibrate {copy} --split test", "--split"),
    "calibrating on few texts": (
        _write("few.jsonl", _line("a", "label0") * 3),
        "calibrate {copy} --data {tmp}/few.jsonl",
        "are needed",
    ),
    "calibrating on a missing corpus": (_nothing, "calibrate {copy} --data {tmp}/none", "none"),
    "corrupt calibration": (_write("copy/calibration.json", '{"maps": ['), "predict {copy}", "calibration.json"),
    "calibration of nothing": (
        _write("copy/calibration.json", '{"method": "platt", "maps": []}'),
        "predict {copy}",
        "calibration.json is damaged",
    ),
    "calibration that falls": (
        _write(
            "copy/calibration.json",
            '{"method": "isotonic", "maps": [{"scores": [0, 1], "probabilities": [0.5, 0.1]}]}',
        ),
        "predict {copy}",
        "calibration.json is damaged",
    ),
    "run of a newer format": (lambda tmp: _edit(tmp, "format", value=99), "predict {copy}", "format 99"),
}


def _damage(tmp: Path, name: str) -> None:
    path = tmp / "copy" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace(tmp: Path, name: str, old: str, new: str) -> None:
    path = tmp / "copy" / name
    path.write_text(path.read_text().replace(old, new))


def _resize(tmp: Path) -> None:
    _replace(tmp, "xmplug.json", '"hidden": 24', '"hidden": 25')


def _ensemble(tmp: Path, **wrong: object) -> None:
    """In copy/e, an ensemble of the run and of what is wrong."""
    shutil.copytree(tmp / "copy", tmp / "e/member-0")
    shutil.move(tmp / "e", tmp / "copy/e")
    content = {"format": 1, "state": "complete", "members": ["member-0"], "method": "mean", "weights": [1], **wrong}
    (tmp / "copy/e/xmplug.json").write_text(json.dumps(content))


def _edit(tmp: Path, *keys: str | int, value: object = None) -> None:
    path = tmp / "copy/xmplug.json"
    content = json.loads(path.read_text())
    *outer, last = keys if value is not None else keys[:-1]
    target = content
    for key in outer:
        target = target[key]
    target[last] = keys[-1] if value is None else value
    path.write_text(json.dumps(content))


def _run(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["xmplug", *command.split()])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(
    case: str,
    corpus: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare, command, message = CASES[case]
    shutil.copytree(run, tmp_path / "copy")
    prepare(tmp_path)
    out = tmp_path / "out"
    before = sorted(run.rglob("*"))
    command = command.format(corpus=corpus, tmp=tmp_path, out=out, run=run, copy=tmp_path / "copy")
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115, the process ends with the test
    code = _run(command, monkeypatch)
    said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert code != 0
    assert len(said) == 1
    assert said[0].startswith("xmplug: error: ")
    assert message in said[0]
    assert not out.exists()
    assert sorted(run.rglob("*")) == before


def test_validate_finds_every_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    _write("train.jsonl", "{oops\n" + GOOD + '{"text": 3, "labels": []}\n')(tmp_path)
    assert _run(f"data validate {tmp_path}", monkeypatch) != 0
    said = capsys.readouterr().out
    assert "line 1" in said
    assert "line 32" in said


def test_a_corrupt_checkpoint(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    import xmplug
    from xmplug.training import Listener, Progress

    class _Stop(Listener):
        def step(self, progress: Progress) -> None:
            self.stop = True

    options = {"encoder.vectors": "random", "encoder.hidden": 4, "training.epochs": 1}
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("attentionxml", corpus, tmp_path / "run", options=options, listener=_Stop())
    path = tmp_path / "run/checkpoints/last.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert _run(f"train --resume {tmp_path / 'run'}", monkeypatch) != 0
    assert "last.safetensors is damaged" in capsys.readouterr().err


def test_changed_data_are_not_resumed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    import xmplug
    from xmplug.training import Listener, Progress

    class _Stop(Listener):
        def step(self, progress: Progress) -> None:
            self.stop = True

    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    with pytest.raises(KeyboardInterrupt):
        xmplug.train("attentionxml", data, tmp_path / "run", options={"encoder.vectors": "random"}, listener=_Stop())
    path = next(data.glob("train*"))
    path.write_text(path.read_text().replace("noise1", "noise2", 1))
    assert _run(f"train --resume {tmp_path / 'run'}", monkeypatch) != 0
    assert "the data have changed" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_full_disk(corpus: Path, tmp_path: Path) -> None:
    """On a file system of 1 MB, training says so and leaves what was there."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("this system does not let tests mount")
    try:
        command = (TRAIN + QUICK).format(corpus=corpus, out=small / "run").split()
        command += ["--encoder.hidden", "256"]
        done = subprocess.run([sys.executable, "-m", "xmplug.cli", *command], capture_output=True, text=True)
        assert done.returncode != 0
        (said,) = [line for line in done.stderr.splitlines() if "error:" in line]
        assert "free" in said
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)
