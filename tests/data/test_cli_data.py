"""`xmplug data` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from xmplug.cli.data import command
from xmplug.data import Document, read_documents, synthetic_dataset
from xmplug.errors import DataError


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def test_stats(tmp_path: Path) -> None:
    synthetic_dataset(100, 8, folder=tmp_path)
    done = run("stats", tmp_path)
    assert done.exit_code == 0
    row = next(line for line in done.output.splitlines() if "documents" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["documents", "80", "10", "10"]
    assert "labels: 10, of them 8 with training texts" in done.output
    assert "hierarchy: 8 broader relations, 2 levels" in done.output


def test_validate(tmp_path: Path) -> None:
    synthetic_dataset(100, 8, folder=tmp_path)
    assert run("validate", tmp_path).exit_code == 0
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    lines[6] = lines[6][:-3]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    done = run("validate", tmp_path)
    assert done.exit_code == 1
    assert f"{tmp_path / 'train.jsonl'}, line 7: is no valid JSON" in done.output
    (tmp_path / "train.jsonl").write_text("no\n" * 50)
    assert len(run("validate", tmp_path).output.splitlines()) == 21


def test_convert(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a red fox\t<x> <y>\n")
    out = tmp_path / "a.jsonl.xz"
    done = run("convert", tmp_path / "a.tsv", "--format", "annif-tsv", "--out", out)
    assert done.exit_code == 0
    assert list(read_documents(out)) == [Document("1", "a red fox", ("x", "y"))]
    assert run("convert", tmp_path / "a.tsv", "--out", tmp_path / "a.csv").exit_code == 2
    (tmp_path / "bad.tsv").write_text("a red fox\t<x> <y>\nno tab\n")
    with pytest.raises(DataError, match=r"bad.tsv, line 2"):
        run("convert", tmp_path / "bad.tsv", "--format", "annif-tsv", "--out", tmp_path / "bad.jsonl")
    assert not (tmp_path / "bad.jsonl").exists()
