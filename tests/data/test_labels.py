"""Labels: label files, the order of a label set, and what goes wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from xmplug.data import Label, LabelSet, read_labels, write_labels
from xmplug.errors import DataError

DECLARED = [
    Label("top", "The top"),
    Label("b", "Bee", ("buzzer",), ("top",)),
    Label("a", "Ay", (), ("top",)),
    Label("never", "Never used"),
]


def put(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_trained_labels_come_first_in_the_files_order() -> None:
    labels = LabelSet.build([["a"], ["b", "a", "a"], []], DECLARED)
    assert labels.ids == ["b", "a", "top", "never"]
    assert labels.names == ["Bee", "Ay", "The top", "Never used"]
    assert labels.alt == [["buzzer"], [], [], []]
    assert labels.broader == [[2], [2], [], []]
    assert labels.num_trained == 2
    assert labels.counts.tolist() == [1, 2, 0, 0]
    assert labels.num_documents == 3
    assert labels.encode(["never", "b", "b"]) == [0, 3]
    assert labels.index("top") == 2


def test_without_a_label_file_sorted_by_id() -> None:
    labels = LabelSet.build(iter([["z"], ["y", "x"]]))
    assert labels.ids == labels.names == ["x", "y", "z"]
    assert len(labels) == labels.num_trained == 3


def test_no_label_at_all() -> None:
    with pytest.raises(DataError, match="none of the 2 training documents has a label"):
        LabelSet.build([[], []], DECLARED)


def test_unknown_labels_are_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match="unknown label 'nevr'; did you mean 'never'"):
        LabelSet.build([["nevr"]], DECLARED)
    with pytest.raises(DataError, match="unknown label 'qqq'; none of the 1 known labels is like it"):
        LabelSet.build([["a"]]).index("qqq")


def test_saved_and_loaded(tmp_path: Path) -> None:
    labels = LabelSet.build([["a"], ["b", "a"], []], DECLARED)
    labels.save(tmp_path / "labels.jsonl")
    again = LabelSet.load(tmp_path / "labels.jsonl")
    for name in ("ids", "names", "alt", "broader", "num_trained", "num_documents"):
        assert getattr(again, name) == getattr(labels, name)
    assert again.counts.tolist() == labels.counts.tolist()
    assert [label.id for label in read_labels(tmp_path / "labels.jsonl")] == labels.ids


@pytest.mark.parametrize(
    ("content", "line", "part"),
    [
        ('{"id": "a"}\n', 1, '"documents" is None'),
        ('{"id": "a", "documents": 2}\n', 1, '"num_documents" is None'),
        ('{"id": "a", "documents": 0, "num_documents": 2}\n', 1, '"documents" is 0'),
        ('{"id": "a", "documents": 2, "num_documents": 1}\n', 1, '"num_documents" is 1'),
        (
            '{"id": "a", "documents": 2, "num_documents": 2}\n{"id": "b", "documents": 0}\n'
            '{"id": "c", "documents": 1}\n',
            3,
            '"documents" is 1',
        ),
    ],
)
def test_load_refuses_other_label_files(tmp_path: Path, content: str, line: int, part: str) -> None:
    with pytest.raises(DataError, match=part) as caught:
        LabelSet.load(put(tmp_path / "labels.jsonl", content))
    assert caught.value.line == line


def test_json_lines_round_trip(tmp_path: Path) -> None:
    write_labels(DECLARED, tmp_path / "labels.jsonl.xz")
    assert read_labels(tmp_path / "labels.jsonl.xz") == DECLARED


def test_json_lines_need_only_ids(tmp_path: Path) -> None:
    path = put(tmp_path / "labels.jsonl", '{"id": 5}\n\n{"id": "b", "name": "Bee", "broader": [5]}\n')
    assert read_labels(path) == [Label("5", "5"), Label("b", "Bee", (), ("5",))]


def test_tsv(tmp_path: Path) -> None:
    path = put(tmp_path / "labels.tsv", "a\tAy\r\n<http://x/b>\tBee\tnotation\r\n")
    assert read_labels(path) == [Label("a", "Ay"), Label("http://x/b", "Bee")]


def test_names_of_the_extreme_classification_repository(tmp_path: Path) -> None:
    assert read_labels(put(tmp_path / "Yf.txt", "Ay\nBee\n")) == [Label("0", "Ay"), Label("1", "Bee")]
    path = put(tmp_path / "lbl.json", '{"uid": "B01", "title": "Ay"}\n{"uid": "B02", "title": "Ay"}\n')
    assert read_labels(path) == [Label("0", "Ay"), Label("1", "Ay")]


TURTLE = """@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
@prefix x: <http://x/> .
x:a a skos:Concept ; skos:prefLabel "Affe"@de, "ape"@en ; skos:altLabel "monkey"@en, "Äffchen"@de ; skos:broader x:top .
x:b a skos:Concept ; skos:prefLabel "Biene"@de .
x:top a skos:Concept ; skos:prefLabel "animal" ; skos:narrower x:b .
x:c a skos:Concept ; skos:prefLabel "cat"@en ; skos:broader x:unnamed .
"""
CONCEPTS = [
    Label("http://x/a", "ape", ("monkey",), ("http://x/top",)),
    Label("http://x/b", "Biene", (), ("http://x/top",)),
    Label("http://x/c", "cat", (), ("http://x/unnamed",)),
    Label("http://x/top", "animal"),
    Label("http://x/unnamed", "http://x/unnamed"),
]


@pytest.mark.parametrize(("name", "format"), [("l.ttl", "turtle"), ("l.rdf", "xml"), ("l.nt", "nt")])
def test_skos(tmp_path: Path, name: str, format: str) -> None:
    import rdflib

    put(tmp_path / name, rdflib.Graph().parse(data=TURTLE, format="turtle").serialize(format=format))
    assert read_labels(tmp_path / name) == CONCEPTS


def test_skos_reads_no_other_file(tmp_path: Path) -> None:
    put(tmp_path / "secret", "hidden")
    path = put(
        tmp_path / "l.rdf",
        f"""<?xml version="1.0"?><!DOCTYPE r [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:s="http://www.w3.org/2004/02/skos/core#">
<s:Concept rdf:about="http://x/a"><s:prefLabel>a&x;</s:prefLabel></s:Concept></rdf:RDF>""",
    )
    assert "hidden" not in str(read_labels(path))


@pytest.mark.parametrize(
    ("name", "content", "line", "part"),
    [
        ("l.jsonl", '{"id": "a"}\n{"name": "b"}\n', 2, 'has no "id"'),
        ("l.jsonl", '{"id": "a"}\n{"id": "b", "alt": "c"}\n', 2, '"alt" must be a list'),
        ("l.jsonl", '{"id": "a"}\n{"id": "a"}\n', 2, "label 'a' is there twice, first on line 1"),
        (
            "l.jsonl",
            '{"id": "aaaa"}\n{"id": "b", "broader": ["aaab"]}\n',
            2,
            "unknown label 'aaab'; did you mean 'aaaa'",
        ),
        ("l.jsonl", '{"id": "a", "broader": ["b"]}\n{"id": "b", "broader": ["a"]}\n', None, "broader than themselves"),
        ("l.jsonl", "", None, "holds no labels"),
        ("l.tsv", "a\tAy\nb\n", 2, "found no tab"),
        ("l.ttl", "x:a a\n", None, "is no valid turtle"),
        ("l.docx", "", None, "is no label file by its name"),
    ],
)
def test_wrong_label_files(tmp_path: Path, name: str, content: str, line: int | None, part: str) -> None:
    path = put(tmp_path / name, content)
    with pytest.raises(DataError, match=part) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)
    if line is not None:
        assert caught.value.line == line
