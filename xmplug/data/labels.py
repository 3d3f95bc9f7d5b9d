"""Labels: their ids and names, which are broader, and how often each was in training. Label files.

JSON lines     {"id": ..., "name": ..., "alt": [...], "broader": [id, ...]}; only the id is needed
TSV            id, tab, name; the id also as <uri>, as in Annif's vocabularies
SKOS           Turtle, N-Triples or RDF/XML: prefLabel and altLabel in English where there is one, broader
Yf.txt         of the Extreme Classification Repository: a name on each line, the id is its place from 0
lbl.json       of the same: lines of {"uid": ..., "title": ...}, the id is the place from 0
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from .documents import Wrong, json_object, string, strings
from .files import existing, lines, opened, suffix, writing

_RDF = {".ttl": "turtle", ".nt": "nt", ".rdf": "xml", ".xml": "xml", ".skos": "xml"}
LABEL_FILES = (".jsonl", ".tsv", *_RDF)


class Label(NamedTuple):
    """A line of a label file. broader: ids of the labels directly above."""

    id: str
    name: str
    alt: tuple[str, ...] = ()
    broader: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LabelSet:
    """Ordered labels: first the `num_trained` that have a training document, then those known only from a
    label file.

    ids, names, alt: of each label its id, its name and its other names. broader: of each label the places of
    those directly above; there are no cycles. counts (L,) int64: training documents of each label.
    num_documents: training documents in all.
    """

    ids: list[str]
    names: list[str]
    alt: list[list[str]]
    broader: list[list[int]]
    num_trained: int
    counts: np.ndarray
    num_documents: int

    @classmethod
    def build(cls, train: Iterable[Iterable[str]], declared: Iterable[Label] | None = None) -> LabelSet:
        """From the labels of each training document, and of a label file where there is one.

        Trained labels stand in the order of `declared`, or else sorted by id. Raises DataError when no
        document has a label, or one has a label that is not declared.
        """
        num_documents = 0
        counts: Counter[str] = Counter()
        for labels in train:
            counts.update(set(labels))
            num_documents += 1
        if not counts:
            raise DataError(f"none of the {num_documents} training documents has a label")
        known = (
            {label.id: label for label in declared}
            if declared is not None
            else {id: Label(id, id) for id in sorted(counts)}
        )
        for id in counts:
            if id not in known:
                raise DataError(f"a training document has an {unknown_label(id, known)}")
        ordered = [label for label in known.values() if label.id in counts]
        ordered += [label for label in known.values() if label.id not in counts]
        return cls._of(ordered, [counts[label.id] for label in ordered], num_documents)

    @classmethod
    def _of(cls, labels: list[Label], counts: list[int], num_documents: int) -> LabelSet:
        place = {label.id: at for at, label in enumerate(labels)}
        return cls(
            ids=[label.id for label in labels],
            names=[label.name for label in labels],
            alt=[list(label.alt) for label in labels],
            broader=[[place[above] for above in label.broader] for label in labels],
            num_trained=sum(count > 0 for count in counts),
            counts=np.array(counts, dtype=np.int64),
            num_documents=num_documents,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The place of each id."""
        return {id: at for at, id in enumerate(self.ids)}

    def index(self, id: str) -> int:
        """The place of a label. Raises DataError for an unknown one."""
        if id not in self.places:
            raise DataError(unknown_label(id, self.places))
        return self.places[id]

    def encode(self, labels: Iterable[str]) -> list[int]:
        """The places of labels, sorted, each once. Raises DataError for an unknown one."""
        return sorted({self.index(label) for label in labels})

    def save(self, path: str | Path) -> None:
        """Write a label file with "documents", the number of training documents, for each label; the first
        line also has "num_documents"."""
        with writing(path) as file:
            for at, id in enumerate(self.ids):
                record: dict[str, Any] = {
                    "id": id,
                    "name": self.names[at],
                    "alt": self.alt[at],
                    "broader": [self.ids[above] for above in self.broader[at]],
                    "documents": int(self.counts[at]),
                }
                if at == 0:
                    record["num_documents"] = self.num_documents
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> LabelSet:
        """Read what `save` wrote. Raises DataError for anything else."""
        path = existing(path)
        labels = read_labels(path)
        records = [(number, json.loads(line)) for number, line in lines(path) if line.strip()]
        counts: list[int] = []
        for number, record in records:
            count = record.get("documents")
            first, before = not counts, counts[-1] if counts else 1
            if type(count) is not int or count < first or (count > 0 and before == 0):
                raise DataError(
                    f'"documents" is {count!r}; expected numbers of documents, 0 only at the end',
                    path,
                    number,
                )
            counts.append(count)
        num_documents = records[0][1].get("num_documents")
        if type(num_documents) is not int or num_documents < max(counts):
            raise DataError(f'"num_documents" is {num_documents!r}; expected the number of training documents', path, 1)
        return cls._of(labels, counts, num_documents)


def unknown_label(id: str, known: Iterable[str]) -> str:
    """A message about a label that is not `known`, with the nearest one."""
    names = sorted(known)
    close = get_close_matches(id, names, n=1) if len(names) <= 100_000 else []
    hint = f"did you mean {close[0]!r}?" if close else f"none of the {len(names)} known labels is like it"
    return f"unknown label {id!r}; {hint}"


def write_labels(labels: Iterable[Label], path: str | Path) -> None:
    """Write a label file as JSON lines. Raises DataError when it cannot be written."""
    with writing(path) as file:
        for label in labels:
            file.write(json.dumps(label._asdict(), ensure_ascii=False) + "\n")


def read_labels(path: str | Path) -> list[Label]:
    """The labels of a label file, in its order.

    Raises DataError, with file and line, for a broken file, a repeated id, a broader label that the file does
    not have, and labels that are broader than themselves.
    """
    path = existing(path)
    numbered = list(_reader(path))
    line_of: dict[str, int | None] = {}
    for number, label in numbered:
        if label.id in line_of:
            raise DataError(f"label {label.id!r} is there twice, first on line {line_of[label.id]}", path, number)
        line_of[label.id] = number
    if not line_of:
        raise DataError("holds no labels; give a label file, or leave it out", path)
    for number, label in numbered:
        for above in label.broader:
            if above not in line_of:
                raise DataError(f"{label.id!r} has broader an {unknown_label(above, line_of)}", path, number)
    try:
        TopologicalSorter({label.id: label.broader for _, label in numbered}).prepare()
    except CycleError as error:
        raise DataError(
            f"labels are broader than themselves: {' < '.join(error.args[1])}; break the circle", path
        ) from error
    return [label for _, label in numbered]


def _reader(path: Path) -> Iterator[tuple[int | None, Label]]:
    kind = suffix(path)
    if path.name == "Yf.txt":
        return ((number, Label(str(number - 1), name)) for number, name in lines(path))
    if path.name.startswith("lbl.json"):
        return _parsed(path, _titled)
    if kind in _RDF:
        return _skos(path, _RDF[kind])
    if kind == ".tsv":
        return _parsed(path, _tsv)
    if kind == ".jsonl":
        return _parsed(path, _json)
    raise DataError(f"is no label file by its name; expected one that ends in {', '.join(LABEL_FILES)}", path)


def _parsed(path: Path, parse: Any) -> Iterator[tuple[int, Label]]:
    for number, line in lines(path):
        if line.strip():
            try:
                yield number, parse(line, number)
            except Wrong as error:
                raise DataError(str(error), path, number) from error


def _json(line: str, number: int) -> Label:
    record = json_object(line)
    if "id" not in record:
        raise Wrong(f'has no "id"; its keys are {", ".join(map(repr, record)) or "none"}')
    id = string(record["id"], "id")
    name = string(record.get("name", id), "name")
    return Label(id, name, strings(record.get("alt", []), "alt"), strings(record.get("broader", []), "broader"))


def _titled(line: str, number: int) -> Label:
    record = json_object(line)
    return Label(str(number - 1), string(record.get("title", str(number - 1)), "title"))


def _tsv(line: str, number: int) -> Label:
    id, tab, rest = line.partition("\t")
    if not tab:
        raise Wrong("expected id, tab, name; found no tab")
    return Label(id.removeprefix("<").removesuffix(">"), rest.split("\t")[0])


def _skos(path: Path, format: str) -> Iterator[tuple[None, Label]]:
    import rdflib
    from rdflib.namespace import RDF, SKOS

    graph = rdflib.Graph()
    try:
        with opened(path) as file:
            graph.parse(file, format=format)
    except Exception as error:  # each of rdflib's parsers has errors of its own
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"is no valid {format}: {reason}", path, getattr(error, "lines", None)) from error

    def text(literals: Iterable[Any]) -> list[str]:
        found = [(getattr(value, "language", None), str(value)) for value in literals]
        languages = {language for language, _ in found}
        best = min(
            languages,
            key=lambda language: (language != "en", language is not None, language or ""),
            default=None,
        )
        return sorted(name for language, name in found if language == best)

    above: dict[Any, set[Any]] = {}
    for narrow, broad in graph.subject_objects(SKOS.broader):
        above.setdefault(narrow, set()).add(broad)
    for broad, narrow in graph.subject_objects(SKOS.narrower):
        above.setdefault(narrow, set()).add(broad)
    concepts = set(graph.subjects(RDF.type, SKOS.Concept))
    concepts |= above.keys() | {broad for broads in above.values() for broad in broads}
    for concept in sorted(concepts, key=str):
        names = text(graph.objects(concept, SKOS.prefLabel))
        alt = text(graph.objects(concept, SKOS.altLabel))
        id = str(concept)
        yield (
            None,
            Label(id, names[0] if names else id, tuple(alt), tuple(sorted(map(str, above.get(concept, ()))))),
        )
