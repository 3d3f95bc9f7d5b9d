"""The bundled corpus, and the module that makes it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from xmplug.data import debtags, load_dataset, read_documents, read_labels
from xmplug.errors import DataError

BUNDLED = Path(debtags.__file__).parent / "bundled" / "debtags"


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("debtags")


def test_size(dataset) -> None:
    sizes = [len(dataset.split(name)) for name in debtags.SPLITS]
    assert sizes == [23_330, 2_956, 3_130]
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 3_000_000


def test_siblings_and_texts_are_in_one_split_only(dataset) -> None:
    families: dict[str, str] = {}
    texts: dict[str, str] = {}
    for split in debtags.SPLITS:
        for document in dataset.split(split):
            source = document.id.split("/")[0]
            assert families.setdefault(source, split) == split
            assert debtags.split_of(document.id) == split
            assert texts.setdefault(document.text, document.id) == document.id
            assert document.labels


def test_versions_of_a_source_stay_together() -> None:
    assert debtags.split_of("gcc-11/cpp-11") == debtags.split_of("gcc-12/gcc-12-doc")
    assert debtags.split_of("boost1.74/a") == debtags.split_of("boost1.81/b")
    assert debtags.split_of("2048/2048") in debtags.SPLITS
    assert len({debtags.split_of(f"{chr(97 + n // 26)}{chr(97 + n % 26)}/x") for n in range(100)}) == 3


def test_labels(dataset) -> None:
    labels = dataset.labels
    tags = [id for id in labels.ids if "::" in id]
    assert len(tags) == 598
    assert len(labels) == 629
    assert labels.num_trained == 593
    above = {labels.ids[n]: [labels.ids[b] for b in labels.broader[n]] for n in range(len(labels))}
    assert above["devel::lang:perl"] == ["devel"]
    assert above["game::board:chess"] == ["game::board"]
    assert above["devel"] == []
    assert labels.names[labels.index("devel::lang:perl")] == "Software Development: Perl Development"
    assert np.mean([len(document) for document in dataset.split("test").label_lists()]) == pytest.approx(
        3.71, abs=0.005
    )


def test_the_card_has_the_right_figures(dataset) -> None:
    card = (BUNDLED / "README.md").read_text()
    row = re.search(r"\| documents \|(.*)\|", card)
    assert row is not None
    figures = [int(figure.replace(",", "")) for figure in row.group(1).split("|")]
    sizes = [len(dataset.split(name)) for name in debtags.SPLITS]
    assert figures == [*sizes, sum(sizes)]


PACKAGES = """Package: libfoo1
Source: foo (1.2)
Description: foo library
Description-md5: 1
Tag: role::shared-lib,
 devel::{lang:c,library}

Package: foo-doc
Source: foo
Description-md5: 2
Tag: role::documentation

Package: foo-same
Source: foo
Description-md5: 3
Tag: made-of::html

Package: bar
Description-md5: 4
"""
TRANSLATIONS = """Package: libfoo1
Description-md5: 1
Description-en: foo library
 First line
 goes on.
 .
 Second:
  * one
  * two
 and the end.

Package: foo-doc
Description-md5: 2
Description-en: foo manual

Package: foo-same
Description-md5: 3
Description-en: foo manual

Package: bar
Description-md5: 4
Description-en: untagged
"""


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of four packages, read without apt."""
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "deb.debian.org_debian_dists_bookworm_main_binary-amd64_Packages").write_text(PACKAGES)
    (folder / "deb.debian.org_debian_dists_bookworm_main_i18n_Translation-en").write_text(TRANSLATIONS)
    (folder / "deb.debian.org_debian_dists_bookworm-updates_main_binary-amd64_Packages").write_text("broken")
    helper = tmp_path / "apt-helper"
    helper.write_text('#!/bin/sh\nexec cat "$2"\n')
    helper.chmod(0o755)
    monkeypatch.setattr(debtags, "APT_HELPER", str(helper))
    return folder


def test_build_from_an_index(lists: Path, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary"
    vocabulary.write_text(
        "Facet: devel\nDescription: Development\n More.\n\nTag: devel::library\nDescription: Libraries\n\n"
    )
    out = tmp_path / "out"
    counts = debtags.build(out, lists, vocabulary)
    assert sum(counts.values()) == 2
    assert counts[debtags.split_of("foo/x")] == 2
    documents = [document for name in debtags.SPLITS for document in read_documents(out / f"{name}.jsonl.xz")]
    assert documents == [
        ("foo/foo-doc", "foo manual", ("made-of::html", "role::documentation")),
        (
            "foo/libfoo1",
            "foo library\nFirst line goes on.\nSecond:\n* one\n* two\nand the end.",
            ("devel::lang:c", "devel::library", "role::shared-lib"),
        ),
    ]
    names = {label.id: label.name for label in read_labels(out / "labels.jsonl")}
    assert names["devel::library"] == "Development: Libraries"
    assert names["devel::lang:c"] == "Development: Lang c"
    assert names["made-of::html"] == "Made of: Html"


def test_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="apt-get -o Acquire::Languages=en update"):
        debtags.build(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
