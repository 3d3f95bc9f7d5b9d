"""Datasets: labelled documents in splits, read lazily."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from ..errors import DataError, nearest
from .documents import Document, Located, detect_format, read_located
from .fetch import PUBLISHED, cache_dir
from .files import contents, existing, suffix
from .labels import LABEL_FILES, Label, LabelSet, read_labels, unknown_label

BUNDLED = Path(__file__).parent / "bundled"
SPLITS = {"train": ("train", "trn"), "dev": ("dev", "valid", "val"), "test": ("test", "tst")}
"""The names of the splits' files, without their ends; `trn` and `tst` are those of the Extreme Classification
Repository."""


class _Source:
    """Where documents come from. `scan` reads them once and keeps their labels, not their texts."""

    def __init__(self, read: Callable[[], Iterator[Located]], name: str, declared: Sequence[Label] | None = None):
        self.read, self.name = read, name
        self.declared = None if declared is None else {label.id for label in declared}

    @cached_property
    def scan(self) -> _Scan:
        codes: dict[str, int] = {}
        flat, ends, digest = array("i"), array("q", [0]), hashlib.sha256()
        for document, path, line in self.read():
            for label in document.labels:
                if label not in codes:
                    if self.declared is not None and label not in self.declared:
                        raise DataError(f"{unknown_label(label, self.declared)} (of the label file)", path, line)
                    codes[label] = len(codes)
                flat.append(codes[label])
            ends.append(len(flat))
            for part in (document.text, *document.labels):
                data = part.encode()
                digest.update(struct.pack("<q", len(data)) + data)
            digest.update(b"\0")
        if len(ends) == 1:
            raise DataError("holds no documents", self.name)
        return _Scan(list(codes), np.array(flat, dtype=np.int32), np.array(ends), digest.hexdigest())


class _Scan(NamedTuple):
    """ids: the labels in use. flat: places in `ids`; those of document i are flat[ends[i]:ends[i + 1]]. digest: of
    texts and labels."""

    ids: list[str]
    flat: np.ndarray
    ends: np.ndarray
    digest: str


class Documents:
    """Documents of a split, in order. Iterating reads the file anew, one document at a time."""

    def __init__(self, source: _Source | None = None, places: Callable[[], np.ndarray] | None = None):
        self._source, self._chosen = source, places

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Documents:
        """Documents in memory."""
        kept = list(documents)
        place = Path("memory")
        return cls(_Source(lambda: (Located(document, place, None) for document in kept), "memory") if kept else None)

    @cached_property
    def _places(self) -> np.ndarray:
        """(N,) int64: places of these documents in the source, ascending."""
        assert self._source is not None
        return np.arange(len(self._source.scan.ends) - 1) if self._chosen is None else self._chosen()

    def __len__(self) -> int:
        return 0 if self._source is None else len(self._places)

    def __iter__(self) -> Iterator[Document]:
        """Raises DataError when the file has become shorter since it was first read."""
        if self._source is None:
            return
        wanted = iter(self._places.tolist())
        place = next(wanted, None)
        for at, located in enumerate(self._source.read()):
            if at == place:
                yield located.document
                place = next(wanted, None)
                if place is None:
                    return
        if place is not None:
            raise DataError("has become shorter while it was in use; start again", self._source.name)

    def texts(self) -> Iterator[str]:
        for document in self:
            yield document.text

    def label_lists(self) -> Iterator[list[str]]:
        """The labels of each document, without reading the texts again."""
        if self._source is None:
            return
        scan = self._source.scan
        for place in self._places.tolist():
            yield [scan.ids[code] for code in scan.flat[scan.ends[place] : scan.ends[place + 1]].tolist()]

    def targets(self, labels: LabelSet) -> csr_matrix:
        """(N, L') int8, indices sorted: 1 where a document has a label. L' is len(labels) and one column more
        for each label of these documents that `labels` does not have."""
        if self._source is None:
            return csr_matrix((0, len(labels)), dtype=np.int8)
        scan = self._source.scan
        lengths = np.diff(scan.ends)[self._places]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        # where each label of each chosen document stands in scan.flat
        at = np.repeat(scan.ends[:-1][self._places] - ends[:-1], lengths) + np.arange(ends[-1])
        used = np.unique(scan.flat[at])
        column = np.full(len(scan.ids), -1, dtype=np.int64)
        unseen = []
        for code in used.tolist():
            known = labels.places.get(scan.ids[code])
            if known is None:
                unseen.append(code)
            else:
                column[code] = known
        for offset, code in enumerate(sorted(unseen, key=scan.ids.__getitem__)):
            column[code] = len(labels) + offset
        shape = (len(self), len(labels) + len(unseen))
        matrix = csr_matrix((np.ones(ends[-1], np.int8), column[scan.flat[at]], ends), shape=shape)
        matrix.sum_duplicates()
        matrix.data[:] = 1
        return matrix

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the texts and labels, in order."""
        if self._source is None:
            return hashlib.sha256().hexdigest()
        digest = hashlib.sha256(self._source.scan.digest.encode())
        if self._chosen is not None:
            digest.update(self._places.astype("<i8").tobytes())
        return digest.hexdigest()


class Dataset:
    """A corpus in splits.

    name: for people. spec: what `load_dataset` finds it by from any working directory. declared: the labels
    of the label file, in its order, or None. The label set is built from the training documents, those of dev
    left out.
    """

    def __init__(
        self,
        name: str,
        train: Documents,
        dev: Documents | None = None,
        test: Documents | None = None,
        *,
        declared: Sequence[Label] | None = None,
        spec: str | None = None,
    ):
        self.name, self.spec, self.declared = name, spec or name, declared
        self._splits = {
            "train": train,
            "dev": Documents() if dev is None else dev,
            "test": Documents() if test is None else test,
        }

    def split(self, name: str) -> Documents:
        """The split "train", "dev" or "test"; one that the data do not have is empty."""
        if name not in self._splits:
            raise DataError(f"asked data {self.name!r} for split {name!r}; {nearest(name, self._splits)}")
        return self._splits[name]

    @property
    def fingerprint(self) -> str:
        """Changes with everything that training reads, the order of the labels included."""
        parts = [self._splits["train"].fingerprint, self._splits["dev"].fingerprint, *self.labels.ids]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @cached_property
    def labels(self) -> LabelSet:
        """Raises DataError when there are no training documents, or none of them has a label."""
        train = self._splits["train"]
        if not len(train):
            raise DataError(f"data {self.name!r} have no training documents; add a file train.jsonl")
        try:
            return LabelSet.build(train.label_lists(), self.declared)
        except DataError as error:
            raise DataError(f"data {self.name!r}: {error}") from error


def load_dataset(
    spec: str | Path,
    *,
    format: str | None = None,
    labels: str | Path | None = None,
    dev_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """A corpus by name or place.

    spec: the name of a bundled or fetched corpus, e.g. "debtags"; a folder with train.*, dev.*, test.* and a
    label file labels.*, all but train optional; or one file, all of it for training. format: one of
    `FORMATS`, where the files do not tell. labels: label file. dev_fraction, seed: without dev, that share of
    train is drawn as dev; test is left alone.

    Texts are read when they are asked for. Raises DataError for data that are not there or not of one form.
    """
    if not 0 < dev_fraction < 1:
        raise DataError(f"asked for a dev fraction of {dev_fraction}; it lies between 0 and 1")
    path, named = _find(spec)
    files = _split_files(path, format)
    label_file = labels if labels is not None else _label_file(path)
    declared = None if label_file is None else read_labels(label_file)
    splits = {name: Documents(_source(file, format, declared)) for name, file in files.items()}
    if "train" in splits and "dev" not in splits:
        source = _source(files["train"], format, declared)
        splits["train"] = Documents(source, partial(_drawn, source, dev_fraction, seed, False))
        splits["dev"] = Documents(source, partial(_drawn, source, dev_fraction, seed, True))
    train = splits.pop("train", Documents())
    return Dataset(path.name, train, **splits, declared=declared, spec=path.name if named else str(path))


def problems(spec: str | Path, *, format: str | None = None, labels: str | Path | None = None) -> Iterator[DataError]:
    """All that is wrong with a corpus, with file and line. The arguments are those of `load_dataset`."""
    declared = None
    try:
        path, _ = _find(spec)
        files = _split_files(path, format)
        label_file = labels if labels is not None else _label_file(path)
    except DataError as error:
        yield error
        return
    try:
        declared = None if label_file is None else {label.id for label in read_labels(label_file)}
    except DataError as error:
        yield error
    for split, file in files.items():
        found: list[DataError] = []
        documents = labelled = 0
        try:
            for document, place, line in read_located(file, format, report=found.append):
                documents += 1
                labelled += bool(document.labels)
                if declared is not None:
                    unknown = [label for label in document.labels if label not in declared]
                    found += [DataError(unknown_label(label, declared), place, line) for label in unknown]
                yield from found
                found.clear()
        except DataError as error:
            found.append(error)
        if not documents and not found:
            found.append(DataError("holds no documents", file))
        elif split == "train" and documents and not labelled:
            found.append(DataError(f"none of its {documents} documents has a label", file))
        yield from found


def _find(spec: str | Path) -> tuple[Path, bool]:
    """The place of a corpus, and whether it was found by its name. A name comes before a file of that
    name."""
    name = str(spec)
    if Path(name).name == name:
        for folder in (BUNDLED / name, cache_dir() / "data" / name):
            if folder.is_dir():
                return folder, True
        if not Path(name).exists():
            if name in PUBLISHED:
                raise DataError(f"data {name!r} are not here yet; run `xmplug data fetch {name}`")
            known = {folder.name for folder in BUNDLED.iterdir()} | set(PUBLISHED)
            raise DataError(f"data {name!r} are no file, no folder and no known corpus; {nearest(name, known)}")
    return existing(spec).absolute(), False


def _split_files(path: Path, format: str | None) -> dict[str, Path]:
    if path.is_file():
        return {"train": path}
    found = {}
    for split, stems in SPLITS.items():
        names = stems + tuple(f"{stem}_texts" for stem in stems)
        files = [entry for entry in sorted(path.iterdir()) if entry.name.split(".")[0] in names]
        if len(files) > 1:
            raise DataError(f"has more than one {split} file: {', '.join(file.name for file in files)}; keep one", path)
        if files:
            found[split] = files[0]
    if not found:
        if format == "annif" or (any(path.glob("*.txt")) and detect_format(path) == "annif"):
            return {"train": path}
        raise DataError(f"has no train, dev or test file, e.g. train.jsonl; {contents(path)}", path)
    return found


def _label_file(path: Path) -> Path | None:
    if not path.is_dir():
        return None
    files = [
        entry
        for entry in sorted(path.iterdir())
        if (entry.name.split(".")[0] == "labels" and suffix(entry) in LABEL_FILES)
        or entry.name in ("Yf.txt", "lbl.json", "lbl.json.gz")
    ]
    if len(files) > 1:
        raise DataError(f"has more than one label file: {', '.join(file.name for file in files)}; keep one", path)
    return files[0] if files else None


def _source(path: Path, format: str | None, declared: Sequence[Label] | None) -> _Source:
    return _Source(partial(read_located, path, format or detect_format(path)), str(path), declared)


def _drawn(source: _Source, fraction: float, seed: int, dev: bool) -> np.ndarray:
    """Places of the documents that are drawn as dev, or of all others; at least one of each."""
    total = len(source.scan.ends) - 1
    if total < 2:
        raise DataError("holds one document; training needs one and dev another", source.name)
    size = min(max(round(total * fraction), 1), total - 1)
    order = np.argsort(np.random.default_rng(seed).random(total), kind="stable")
    return np.sort(order[:size] if dev else order[size:])
