"""Text files, plain or packed as .gz or .xz: reading by line, and writing that leaves a whole file or
none."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn, TextIO, cast

from ..errors import DataError

PACKED = (".gz", ".xz")
Report = Callable[[DataError], None]


def fail(error: DataError) -> NoReturn:
    """A `Report` that does not go on."""
    raise error


def existing(path: str | Path) -> Path:
    """`path`, or DataError that says what is there instead."""
    path = Path(path)
    if path.exists():
        return path
    if path.parent.is_dir():
        raise DataError(f"does not exist; {contents(path.parent)}", path)
    raise DataError(f"does not exist, and neither does the folder {str(path.parent)!r}", path)


def contents(folder: Path) -> str:
    """What a folder holds, for a message."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"the folder {str(folder)!r} holds {shown or 'nothing'}"


def suffix(path: Path) -> str:
    """`.tsv` of `a.tsv` as well as of `a.tsv.xz`."""
    return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix


def lines(path: Path, report: Report = fail) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file without their ends, numbered from 1, without a byte order mark.

    A line that is not UTF-8 goes to `report` and is left out. Raises DataError for a file that cannot be
    read.
    """
    try:
        with opened(path) as file:
            for number, raw in enumerate(file, 1):
                raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                try:
                    line = raw.rstrip(b"\r\n").decode()
                except UnicodeDecodeError as error:
                    wrong = raw[error.start]
                    report(
                        DataError(
                            f"byte 0x{wrong:02x} is not UTF-8; convert the file, e.g. with iconv",
                            path,
                            number,
                        )
                    )
                else:
                    yield number, line
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"is no complete {path.suffix} file ({error}); get it anew", path) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path) from error


def opened(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked."""
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    return lzma.open(path) if path.suffix == ".xz" else open(path, "rb")


@contextmanager
def writing(path: str | Path) -> Iterator[TextIO]:
    """A UTF-8 file, packed by its name, that appears under `path` when the block ends without an error.

    Raises DataError when it cannot be written.
    """
    path = Path(path)
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        scratch = Path(name)
        with open(handle, "wb") as raw:
            os.fchmod(handle, 0o644)
            with _packing(raw, path.suffix) as file:
                yield file
            raw.flush()
            os.fsync(handle)
        scratch.replace(path)
    except OSError as error:
        raise DataError(
            f"cannot be written: {error.strerror}; choose another place or free some space", path
        ) from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


@contextmanager
def _packing(raw: IO[bytes], suffix: str) -> Iterator[TextIO]:
    packed: Any = raw
    if suffix == ".gz":
        packed = gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0)  # no name, no time: same bytes every time
    elif suffix == ".xz":
        packed = lzma.LZMAFile(raw, "wb")  # noqa: SIM115
    text = io.TextIOWrapper(packed, encoding="utf-8", newline="\n")
    try:
        yield text
    finally:
        text.flush()
        text.detach()
        if packed is not raw:
            packed.close()
