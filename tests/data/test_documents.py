"""Documents: each format reads what it should, and errors name file and line."""

from __future__ import annotations

import errno
import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmplug.data import Document, detect_format, read_documents, read_svmlight, write_documents
from xmplug.data.documents import read_located
from xmplug.errors import DataError


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def error_of(path: Path, format: str | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_documents(path, format))
    return caught.value


TWO = [Document("1", "a red fox", ("x", "y")), Document("2", "", ())]


def two_documents(folder: Path, format: str) -> Path:
    """The documents of TWO in a format."""
    if format == "jsonl":
        return put(folder / "c.jsonl", '{"text": "a red fox", "labels": ["x", "y"]}\n{"text": "", "labels": []}\n')
    if format == "xmc":
        first = '{"uid": "1", "title": "a red", "content": "fox", "target_ind": [0, 7], "target_rel": [1.0, 1.0]}\n'
        return put(folder / "trn.json", first + '{"uid": "2", "title": "", "content": "", "target_ind": []}\n')
    if format == "attentionxml":
        put(folder / "train_labels.txt", "x y\n\n")
        return put(folder / "train_texts.txt", "a red fox\n\n")
    if format == "annif-tsv":
        return put(folder / "c.tsv", "a red fox\t<x> <y>\n\t\n")
    if format == "libmultilabel":
        return put(folder / "c.txt", "1\tx y\ta red fox\n2\t\t\n")
    put(folder / "docs" / "1.txt", "a red fox")
    put(folder / "docs" / "1.tsv", "<x>\tthe x\n<y>\tthe y\n")
    put(folder / "docs" / "2.txt", "")
    put(folder / "docs" / "2.key", "")
    return folder / "docs"


@pytest.mark.parametrize("format", ["jsonl", "xmc", "attentionxml", "annif-tsv", "libmultilabel", "annif"])
def test_reads_and_recognises(tmp_path: Path, format: str) -> None:
    path = two_documents(tmp_path, format)
    assert detect_format(path) == format
    expected = TWO
    if format == "xmc":
        expected = [Document("1", "a red\nfox", ("0", "7")), Document("2", "", ())]
    assert list(read_documents(path)) == expected
    assert list(read_documents(path, format)) == expected


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gz", "xz"])
@pytest.mark.parametrize("format", ["jsonl", "xmc", "annif-tsv", "libmultilabel"])
def test_packed_with_mark_and_crlf(tmp_path: Path, format: str, pack) -> None:
    plain = two_documents(tmp_path, format)
    expected = list(read_documents(plain))
    windows = b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n")
    end = ".gz" if pack is gzip.compress else ".xz"
    packed = put(tmp_path / "packed" / (plain.name + end), pack(windows))
    assert list(read_documents(packed)) == expected


def test_attentionxml_packed(tmp_path: Path) -> None:
    put(tmp_path / "test_labels.txt.gz", gzip.compress(b"x y\n"))
    path = put(tmp_path / "test_texts.txt.gz", gzip.compress(b"a red fox\n"))
    assert list(read_documents(path)) == TWO[:1]


def test_jsonl_numbers_are_ids_and_labels(tmp_path: Path) -> None:
    path = put(tmp_path / "c.jsonl", '{"id": 7, "text": "t", "labels": [3, "b"]}\n\n{"text": "u", "labels": []}\n')
    assert list(read_documents(path)) == [Document("7", "t", ("3", "b")), Document("3", "u", ())]


def test_labels_are_needed_unless_told(tmp_path: Path) -> None:
    path = put(tmp_path / "c.jsonl", '{"text": "t"}\n')
    assert list(read_documents(path, labelled=False)) == [Document("1", "t", ())]
    assert 'c.jsonl, line 1: has no "labels"' in str(error_of(path))


def test_libmultilabel_without_ids(tmp_path: Path) -> None:
    path = put(tmp_path / "c.txt", "x y\ta red fox\n")
    assert list(read_documents(path)) == TWO[:1]


def test_annif_uris_with_and_without_brackets(tmp_path: Path) -> None:
    path = put(tmp_path / "c.tsv", "text\t<http://a/1> http://a/2\n")
    assert next(read_documents(path, "annif-tsv")).labels == ("http://a/1", "http://a/2")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"text": "a", "labels": [}', "no valid JSON"),
        ('["text"]', "expected a JSON object, found a list"),
        ('{"labels": []}', 'has no "text"'),
        ('{"text": 3, "labels": []}', '"text" must be a string, found a number'),
        ('{"text": "a", "labels": "x"}', '"labels" must be a list, found a string'),
        ('{"text": "a", "labels": [null]}', 'every item of "labels" must be a string, found null'),
        ('{"text": "a", "labels": [true]}', "found a boolean"),
        ('{"text": "a\\ud800", "labels": []}', "surrogate"),
        ('{"text": "a", "labels": []} more', "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        (b'{"text": "caf\xe9", "labels": []}', "0xe9 is not UTF-8"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str | bytes, part: str) -> None:
    good = b'{"text": "fine", "labels": ["x"]}\n'
    bad = line.encode() if isinstance(line, str) else line
    path = put(tmp_path / "c.jsonl", good + good + bad + b"\n" + good)
    error = error_of(path)
    assert (error.path, error.line) == (path, 3)
    assert f"{path}, line 3: " in str(error)
    assert part in str(error)
    # with a report the others are read
    reported: list[DataError] = []
    assert len(list(read_located(path, report=reported.append))) == 3
    assert [each.line for each in reported] == [3]


@pytest.mark.parametrize(
    ("format", "content", "part"),
    [
        ("annif-tsv", "a\t<x>\nno tab\n", "found no tab"),
        ("libmultilabel", "x\ta\nno tab\n", "found 1 fields"),
        ("libmultilabel", "x\ta\n1\tx\ta\tb\n", "found 4 fields"),
        ("xmc", '{"title": "a", "target_ind": []}\n{"uid": "1", "target_ind": []}\n', 'neither "title" nor "content"'),
        ("xmc", '{"title": "a", "target_ind": []}\n{"title": "a"}\n', 'has no "target_ind"'),
    ],
)
def test_wrong_lines_of_other_formats(tmp_path: Path, format: str, content: str, part: str) -> None:
    path = put(tmp_path / "c.txt", content)
    error = error_of(path, format)
    assert error.line == 2
    assert part in str(error)


def test_text_and_label_files_of_unlike_length(tmp_path: Path) -> None:
    labels = put(tmp_path / "train_labels.txt", "x\n")
    error = error_of(put(tmp_path / "train_texts.txt", "a\nb\n"))
    assert error.path == labels
    assert "ends before line 2" in str(error)


def test_annif_text_without_labels(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", "a")
    put(tmp_path / "a.key", "x\n")
    put(tmp_path / "b.txt", "b")
    assert "b.txt: has neither a .tsv nor a .key file" in str(error_of(tmp_path))


def test_missing_file_says_what_is_there(tmp_path: Path) -> None:
    put(tmp_path / "train.tsv", "")
    assert "does not exist; the folder" in str(error_of(tmp_path / "train.jsonl"))
    assert "train.tsv" in str(error_of(tmp_path / "train.jsonl"))
    assert "neither does the folder" in str(error_of(tmp_path / "deep" / "train.jsonl"))


@pytest.mark.parametrize("name", ["c.jsonl.xz", "c.jsonl.gz"])
def test_cut_off_archive(tmp_path: Path, name: str) -> None:
    write_documents(TWO * 1000, tmp_path / name)
    path = put(tmp_path / ("cut" + name), (tmp_path / name).read_bytes()[:-20])
    assert "is no complete" in str(error_of(path))
    path = put(tmp_path / ("other" + name), b"this is not packed at all")
    assert "is no complete" in str(error_of(path))


@pytest.mark.parametrize(
    ("content", "part"),
    [("", "is empty"), ("plain words\n", "no known format"), ("3 5 2\n0 1:1.0\n", "holds features")],
)
def test_what_cannot_be_recognised(tmp_path: Path, content: str, part: str) -> None:
    assert part in str(error_of(put(tmp_path / "c.txt", content)))


def test_unknown_format_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = put(tmp_path / "c.jsonl", "{}\n")
    assert "did you mean 'jsonl'?" in str(error_of(path, "json"))


any_text = st.text(st.characters(exclude_categories=["Cs"]))
any_documents = st.lists(st.builds(Document, any_text, any_text, st.lists(any_text).map(tuple)))


@settings(max_examples=40, deadline=None)
@given(any_documents, st.sampled_from(["c.jsonl", "c.jsonl.gz", "c.jsonl.xz"]))
def test_what_is_written_is_read(tmp_path_factory, documents: list[Document], name: str) -> None:
    path = tmp_path_factory.mktemp("write") / name
    assert write_documents(documents, path) == len(documents)
    assert list(read_documents(path)) == documents


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.jsonl.xz"])
def test_writing_is_all_or_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_documents(TWO, path)
    before = path.read_bytes()

    def stops():
        yield TWO[0]
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match="cannot be written: No space left"):
        write_documents(stops(), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_same_documents_same_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_documents(TWO, tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert json.loads(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).splitlines()[0])["labels"] == ["x", "y"]


def test_svmlight(tmp_path: Path) -> None:
    path = put(tmp_path / "train.txt", "3 4 5\n4,1 0:0.5 3:2\n 2:1\n2 \n")
    features, labels = read_svmlight(path)
    np.testing.assert_array_equal(features.toarray(), [[0.5, 0, 0, 2], [0, 0, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(labels.toarray(), [[0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])
    assert features.has_sorted_indices
    assert labels.has_sorted_indices


@pytest.mark.parametrize(
    ("content", "line", "part"),
    [
        ("0 1:1\n", 1, "expected a first line"),
        ("1 2 2\n2 0:1\n", 2, "label 2 is outside 0..1"),
        ("1 2 2\n1 2:1\n", 2, "feature 2 is outside 0..1"),
        ("1 2 2\n1 0:x\n", 2, "expected labels"),
        ("2 2 2\n1 0:1\n", None, "announces 2 documents, found 1"),
    ],
)
def test_wrong_svmlight(tmp_path: Path, content: str, line: int | None, part: str) -> None:
    with pytest.raises(DataError, match=part) as caught:
        read_svmlight(put(tmp_path / "train.txt", content))
    assert caught.value.line == line
