"""Documents, and the file formats they come in.

    jsonl          lines of {"text": ..., "labels": [...]}, optionally with "id"
    xmc            raw text of the Extreme Classification Repository: lines of {"uid", "title", "content",
                   "target_ind"}
    attentionxml   NAME_texts.txt with a text on each line, NAME_labels.txt with its labels on the same line
    annif-tsv      lines of text, tab, <uri> <uri> ...
    annif          a folder of NAME.txt with NAME.tsv (<uri>, tab, label) or NAME.key (a label on each line)
    libmultilabel  lines of labels, tab, text; or of id, tab, labels, tab, text

All are UTF-8, with or without byte order mark, ended by LF or CRLF, plain or packed as .gz or .xz. They are
read one document at a time. `read_svmlight` reads the repository's feature form, which has no texts.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DataError, nearest
from .files import Report, contents, existing, fail, lines, suffix, writing

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class Document(NamedTuple):
    """A text and the ids of its labels."""

    id: str
    text: str
    labels: tuple[str, ...]


class Located(NamedTuple):
    """A document and where it was read; line counts from 1, None for a file that holds one document."""

    document: Document
    path: Path
    line: int | None


def read_documents(path: str | Path, format: str | None = None, *, labelled: bool = True) -> Iterator[Document]:
    """The documents of a file, or of a folder in Annif's form, one at a time.

    format: one of `FORMATS`, found by `detect_format` when None. labelled: whether JSON lines must have
    "labels". Documents without an id are numbered by their line. Raises DataError, with file and line, for
    all that is not as the format has it.
    """
    for located in read_located(path, format, labelled=labelled):
        yield located.document


def read_located(
    path: str | Path, format: str | None = None, *, labelled: bool = True, report: Report = fail
) -> Iterator[Located]:
    """As `read_documents`, with the place of each. A wrong record goes to `report` and is left out; the
    default raises it."""
    path = existing(path)
    format = detect_format(path) if format is None else format
    if format not in FORMATS:
        raise DataError(f"asked for format {format!r}; {nearest(format, FORMATS)}", path)
    return FORMATS[format](path, report, labelled)


def detect_format(path: str | Path) -> str:
    """The format of a file or folder, by its name and its first lines. Raises DataError where it cannot be
    told."""
    path = existing(path)
    if path.is_dir():
        if any(path.glob("*.txt")) and (any(path.glob("*.tsv")) or any(path.glob("*.key"))):
            return "annif"
        raise DataError(f"is a folder without documents (.txt with .tsv or .key); {contents(path)}", path)
    if suffix(path) == ".jsonl":
        return "jsonl"
    if _labels_beside(path) is not None:
        return "attentionxml"
    first = [line for _, line in islice(lines(path), 20) if line.strip()]
    if not first:
        raise DataError("is empty; give a file with documents", path)
    if first[0].lstrip().startswith("{"):
        return "xmc" if '"target_ind"' in first[0] else "jsonl"
    if all("\t" in line for line in first):
        annif = all(re.fullmatch(r"(<[^<>]*>\s*)*", line.rsplit("\t", 1)[1]) for line in first)
        return "annif-tsv" if annif else "libmultilabel"
    if re.fullmatch(r"\d+ \d+ \d+\s*", first[0]):
        raise DataError("holds features (N D L), not texts; use the raw text form of the corpus", path, 1)
    raise DataError(f"is in no known format; give one with --format: {', '.join(FORMATS)}", path, 1)


def write_documents(documents: Iterable[Document], path: str | Path) -> int:
    """Write JSON lines, packed when the name ends in .gz or .xz, and return their number.

    The file appears complete or not at all. Raises DataError when it cannot be written.
    """
    count = 0
    with writing(path) as file:
        for document in documents:
            file.write(json.dumps(document._asdict(), ensure_ascii=False) + "\n")
            count += 1
    return count


class Wrong(ValueError):
    """What is wrong with one record."""


def _each_line(
    parse: Callable[[str, str, bool], Document],
) -> Callable[[Path, Report, bool], Iterator[Located]]:
    """A reader of files with a document on each line that is not blank, from `parse(line, number, labelled)`."""

    def read(path: Path, report: Report, labelled: bool) -> Iterator[Located]:
        for number, line in lines(path, report):
            if not line.strip(" "):
                continue
            try:
                document = parse(line, str(number), labelled)
            except Wrong as error:
                report(DataError(str(error), path, number))
            else:
                yield Located(document, path, number)

    return read


def json_object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise Wrong(f"is no valid JSON: {error.msg} at column {error.colno}") from error
    except (RecursionError, ValueError) as error:
        raise Wrong(f"is no valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise Wrong(f"expected a JSON object, found {_kind(record)}")
    return record


def _value(record: dict[str, Any], key: str, default: Any = None) -> Any:
    if key in record:
        return record[key]
    if default is None:
        raise Wrong(f'has no "{key}"; its keys are {", ".join(map(repr, record)) or "none"}')
    return default


def string(value: Any, what: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Wrong(f"{what} must be a string, found {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Wrong(f"{what} holds half of a surrogate pair, {value[error.start]!a}; remove it") from error
    return value


def strings(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Wrong(f'"{what}" must be a list, found {_kind(value)}')
    return tuple(string(item, f'every item of "{what}"') for item in value)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise Wrong(f'"{what}" must be a string, found {_kind(value)}')
    return string(value, f'"{what}"')


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _jsonl(line: str, number: str, labelled: bool) -> Document:
    record = json_object(line)
    text = _text(_value(record, "text"), "text")
    labels = strings(_value(record, "labels", default=None if labelled else []), "labels")
    return Document(string(record.get("id", number), '"id"'), text, labels)


def _xmc(line: str, number: str, labelled: bool) -> Document:
    record = json_object(line)
    parts = [_text(record[key], key) for key in ("title", "content") if key in record]
    if not parts:
        raise Wrong('has neither "title" nor "content"')
    labels = strings(_value(record, "target_ind", default=None if labelled else []), "target_ind")
    return Document(string(record.get("uid", number), '"uid"'), "\n".join(filter(None, parts)), labels)


def _annif_tsv(line: str, number: str, labelled: bool) -> Document:
    text, tab, labels = line.partition("\t")
    if not tab:
        raise Wrong("expected text, tab, <uri> <uri> ...; found no tab")
    return Document(number, text, tuple(_uri(label) for label in labels.split()))


def _libmultilabel(line: str, number: str, labelled: bool) -> Document:
    fields = line.split("\t")
    if len(fields) not in (2, 3):
        raise Wrong(f"expected labels, tab, text or id, tab, labels, tab, text; found {len(fields)} fields")
    return Document(fields[0] if len(fields) == 3 else number, fields[-1], tuple(fields[-2].split()))


def _uri(label: str) -> str:
    return label.removeprefix("<").removesuffix(">")


def _labels_beside(path: Path) -> Path | None:
    """NAME_labels.txt of NAME_texts.txt."""
    if "_texts." not in path.name:
        return None
    beside = path.with_name(path.name.replace("_texts.", "_labels."))
    return beside if beside.exists() else None


def _attentionxml(path: Path, report: Report, labelled: bool) -> Iterator[Located]:
    beside = _labels_beside(path)
    if beside is None:
        raise DataError("expected NAME_texts.txt with NAME_labels.txt beside it; the second is missing", path)
    for text, labels in zip_longest(lines(path), lines(beside)):
        if text is None or labels is None:
            shorter, number = (path, labels[0]) if text is None else (beside, text[0])
            raise DataError(
                f"ends before line {number}, which the file beside it has; they must be of one length",
                shorter,
            )
        yield Located(Document(str(text[0]), text[1], tuple(labels[1].split())), path, text[0])


def _annif(path: Path, report: Report, labelled: bool) -> Iterator[Located]:
    if not path.is_dir():
        raise DataError("expected a folder of .txt files with .tsv or .key files", path)
    for file in sorted(path.glob("*.txt")):
        text = "\n".join(line for _, line in lines(file, report))
        keys = next((file.with_suffix(end) for end in (".tsv", ".key") if file.with_suffix(end).exists()), None)
        if keys is None and labelled:
            report(DataError("has neither a .tsv nor a .key file beside it", file))
            continue
        found = [] if keys is None else [line.split("\t")[0].strip() for _, line in lines(keys, report)]
        yield Located(Document(file.stem, text, tuple(_uri(label) for label in found if label)), file, None)


FORMATS: dict[str, Callable[[Path, Report, bool], Iterator[Located]]] = {
    "jsonl": _each_line(_jsonl),
    "xmc": _each_line(_xmc),
    "attentionxml": _attentionxml,
    "annif-tsv": _each_line(_annif_tsv),
    "annif": _annif,
    "libmultilabel": _each_line(_libmultilabel),
}


def read_svmlight(path: str | Path) -> tuple[csr_matrix, csr_matrix]:
    """Features (N, D) float32 and labels (N, L) int8 of the Extreme Classification Repository's feature form.

    Its first line is `N D L`; each further line is `l,l,... f:v f:v ...`, counted from 0. Raises DataError,
    with file and line, when the file does not keep to that.
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    path = existing(path)
    source = lines(path)
    _, header = next(source, (1, ""))
    if not re.fullmatch(r"\d+ \d+ \d+\s*", header):
        raise DataError(
            f"expected a first line with the numbers of documents, features and labels, found {header[:60]!r}",
            path,
            1,
        )
    rows, width, num_labels = map(int, header.split())
    features, values, labels = array("q"), array("f"), array("q")
    feature_ends, label_ends = array("q", [0]), array("q", [0])
    for number, line in source:
        if not line.strip() and len(feature_ends) > rows:
            continue  # a blank line at the end; elsewhere it is a document without features and labels
        head, _, tail = line.partition(" ")
        if ":" in head:
            head, tail = "", line
        try:
            labels.extend(int(label) for label in head.split(",") if label)
            for pair in tail.split():
                feature, _, value = pair.partition(":")
                features.append(int(feature))
                values.append(float(value))
        except (ValueError, OverflowError) as error:
            raise DataError(f"expected labels l,l,... and features f:v, found {line[:60]!r}", path, number) from error
        for what, ids, ends, size in (
            ("label", labels, label_ends, num_labels),
            ("feature", features, feature_ends, width),
        ):
            wrong = [i for i in ids[ends[-1] :] if not 0 <= i < size]
            if wrong:
                raise DataError(f"{what} {wrong[0]} is outside 0..{size - 1}, as the first line has it", path, number)
            ends.append(len(ids))
    if len(feature_ends) != rows + 1:
        raise DataError(f"the first line announces {rows} documents, found {len(feature_ends) - 1}", path)
    truth = csr_matrix(
        (np.ones(len(labels), np.int8), np.array(labels), np.array(label_ends)), shape=(rows, num_labels)
    )
    found = csr_matrix((np.array(values), np.array(features), np.array(feature_ends)), shape=(rows, width))
    for matrix in (truth, found):
        matrix.sum_duplicates()
    truth.data[:] = 1
    return found, truth
