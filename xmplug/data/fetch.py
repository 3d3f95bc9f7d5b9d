"""Corpora that others publish: download, check, convert, keep."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ..errors import FetchError, nearest
from .documents import Document, write_documents
from .files import writing
from .labels import Label, write_labels

Progress = Callable[[str, int, "int | None"], None]
"""Told the name of the file, the bytes that are here, and the bytes of the whole where the server says."""
_TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Published:
    """files: name below `url`, and its SHA-256 where the publisher tells it. documents: number in each split.
    convert: reads the files from one folder and writes our layout into another, returns the numbers of
    documents."""

    url: str
    files: dict[str, str | None]
    documents: dict[str, int]
    convert: Callable[[Path, Path], dict[str, int]]


def cache_dir() -> Path:
    """Where fetched corpora and tokens are kept: $XMPLUG_CACHE, else ~/.cache/xmplug."""
    return Path(os.environ.get("XMPLUG_CACHE") or Path.home() / ".cache" / "xmplug")


def fetch(name: str, cache: str | Path | None = None, progress: Progress | None = None) -> Path:
    """The folder of a published corpus, downloaded and converted the first time; then `load_dataset(name)`
    finds it.

    cache: instead of `cache_dir()`. A download that was cut off goes on where it stopped. Raises FetchError
    when a file cannot be had or is not what was published; nothing half-made is left under the corpus' name.
    """
    if name not in PUBLISHED:
        raise FetchError(f"asked to fetch {name!r}; {nearest(name, PUBLISHED)}")
    published = PUBLISHED[name]
    root = Path(cache) if cache is not None else cache_dir()
    target, downloads = root / "data" / name, root / "downloads" / name
    if target.is_dir():
        return target
    scratch = None
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        origin = {}
        for file, sha256 in published.files.items():
            url = f"{published.url}/{file}"
            _download(url, downloads / file, progress or (lambda *_: None))
            origin[url] = _checked(downloads / file, sha256)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
        found = _converted(published, downloads, scratch)
        if found != published.documents:
            raise FetchError(
                f"has {found} documents, published were {published.documents}; remove it and try again",
                downloads,
            )
        with writing(scratch / "origin.json") as note:
            json.dump({"sha256": origin}, note, indent=2)
        scratch.chmod(0o755)
        scratch.replace(target)
    except OSError as error:
        raise FetchError(f"cannot write there: {error.strerror}; free some space or set XMPLUG_CACHE", root) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(downloads, ignore_errors=True)
    return target


def _download(url: str, path: Path, progress: Progress) -> None:
    """Get `url` to `path` by way of a .part file, which a later call carries on."""
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    here = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={here}-"} if here else {})
    try:
        with closing(urlopen(request, timeout=_TIMEOUT)) as response:
            if response.status != 206:
                here = 0  # the server begins anew
            length = response.headers.get("Content-Length")
            total = None if length is None else here + int(length)
            with open(part, "ab" if here else "wb") as file:
                while chunk := response.read(1 << 16):
                    file.write(chunk)
                    here += len(chunk)
                    progress(path.name, here, total)
                file.flush()
                os.fsync(file.fileno())
    except HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{here}":
            part.replace(path)  # all of it was here already
            return
        if error.code == 416:
            part.unlink()
        raise FetchError(f"{url}: the server answers {error.code} {error.reason}; {_by_hand(path)}") from error
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        begun = f" after {here} bytes, which are kept" if here else ""
        raise FetchError(f"{url}: cannot be reached{begun} ({reason}); try again, or {_by_hand(path)}") from error
    if total is not None and here != total:
        raise FetchError(f"{url}: broke off at {here} of {total} bytes; try again, it goes on from there")
    part.replace(path)


def _by_hand(path: Path) -> str:
    return f"get it in another way, place it at {path} and try again"


def _checked(path: Path, sha256: str | None) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if sha256 not in (None, digest.hexdigest()):
        path.unlink()
        raise FetchError(f"has SHA-256 {digest.hexdigest()}, published was {sha256}; removed it, try again", path)
    return digest.hexdigest()


def _converted(published: Published, downloads: Path, out: Path) -> dict[str, int]:
    try:
        return published.convert(downloads, out)
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, AttributeError, TypeError) as error:
        shutil.rmtree(downloads)
        raise FetchError(f"what came is damaged ({error}); removed it, try again", downloads) from error


def _eurlex57k(downloads: Path, out: Path) -> dict[str, int]:
    """EURLEX57K: a zip file with a JSON file for each document, and the EuroVoc descriptors."""
    descriptors = json.loads((downloads / "eurovoc_en.json").read_bytes())
    labels = {
        id: Label(
            id,
            entry["label"],
            tuple(entry.get("alt_labels") or ()),
            tuple(parent for parent in entry.get("parents") or () if parent in descriptors),
        )
        for id, entry in descriptors.items()
    }

    def documents(archive: zipfile.ZipFile, members: list[str]) -> Iterator[Document]:
        for member in members:
            entry = json.loads(archive.read(member))
            parts = [entry["title"], entry["header"], entry["recitals"], *entry["main_body"]]
            for concept in entry["concepts"]:
                labels.setdefault(concept, Label(concept, concept))
            text = "\n".join(part.strip() for part in parts if part.strip())
            yield Document(entry["celex_id"], text, tuple(entry["concepts"]))

    found = {}
    with zipfile.ZipFile(downloads / "datasets.zip") as archive:
        for split in ("train", "dev", "test"):
            members = sorted(
                name
                for name in archive.namelist()
                if re.search(rf"(^|/){split}/[^/.][^/]*\.json$", name) and "__MACOSX" not in name
            )
            found[split] = write_documents(documents(archive, members), out / f"{split}.jsonl.xz")
    write_labels(labels.values(), out / "labels.jsonl")
    return found


PUBLISHED = {
    # Chalkidis, Fergadiotis, Malakasiotis and Androutsopoulos, ACL 2019; CC BY-SA 4.0
    "eurlex57k": Published(
        "http://nlp.cs.aueb.gr/software_and_datasets/EURLEX57K",
        {"datasets.zip": None, "eurovoc_en.json": None},
        {"train": 45_000, "dev": 6_000, "test": 6_000},
        _eurlex57k,
    )
}
