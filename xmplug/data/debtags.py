"""Make the debtags corpus anew from the package index of a Debian machine.

    apt-get -o Acquire::Languages=en update && apt-get install debtags
    python -m xmplug.data.debtags --out DIR

Texts are the English package descriptions, labels the tags that people gave to the packages, in facets such
as `devel` or `works-with`. A document is a distinct description, its labels are all tags of the packages that
share it. Splits are by source package, so that libfoo1 and libfoo-dev stay together; version numbers in the
source's name do not count, so that gcc-11 and gcc-12 stay together, too.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .documents import Document, write_documents
from .labels import Label, write_labels

APT_HELPER = "/usr/lib/apt/apt-helper"
LISTS = Path("/var/lib/apt/lists")
VOCABULARY = Path("/usr/share/debtags/vocabulary")
SPLITS = ("train", "dev", "test")


def build(out: str | Path, lists: str | Path = LISTS, vocabulary: str | Path = VOCABULARY) -> dict[str, int]:
    """Write train, dev, test.jsonl.xz and labels.jsonl into `out`; returns the number of documents of each
    split.

    lists: apt's folder of indices, with Packages and Translation-en of one release. vocabulary: the file of
    that name in the package debtags, which names facets and tags; without it, they are named by their ids.
    Raises DataError when the indices are not there.
    """
    translations = {
        stanza["Description-md5"]: stanza["Description-en"]
        for stanza in _index(Path(lists), "main_i18n_Translation-en*")
    }
    texts: dict[str, str] = {}  # a document's id, by its text
    tags: dict[str, set[str]] = {}
    for stanza in sorted(_index(Path(lists), "main_binary-*_Packages*"), key=lambda stanza: stanza["Package"]):
        found = _tags(stanza.get("Tag", ""))
        text = _plain(translations.get(stanza.get("Description-md5", ""), ""))
        if found and text:
            source = stanza.get("Source", stanza["Package"]).split()[0]
            texts.setdefault(text, f"{source}/{stanza['Package']}")
            tags.setdefault(text, set()).update(found)
    documents = sorted(Document(id, text, tuple(sorted(tags[text]))) for text, id in texts.items())
    if not documents:
        raise DataError(
            "holds no package with tags; run `apt-get -o Acquire::Languages=en update` on a Debian machine",
            lists,
        )
    out = Path(out)
    counts = {}
    for split in SPLITS:
        chosen = [document for document in documents if split_of(document.id) == split]
        counts[split] = write_documents(chosen, out / f"{split}.jsonl.xz")
    write_labels(_labels(set().union(*tags.values()), Path(vocabulary)), out / "labels.jsonl")
    return counts


def split_of(id: str) -> str:
    """The split of a document, a pure function of its source package; `id` is source/package."""
    source = id.partition("/")[0]
    family = re.sub(r"[-.]?\d[\d.]*", "", source) or source
    place = int.from_bytes(hashlib.sha256(family.encode()).digest()[:8], "big") % 10
    return "test" if place == 9 else "dev" if place == 8 else "train"


def _index(folder: Path, name: str) -> Iterator[dict[str, str]]:
    """Stanzas of Debian's own indices of this name. The updates and security suites are left out: they repeat
    packages."""
    found = [
        path for path in sorted(folder.glob(f"*_dists_*_{name}")) if re.search(r"_debian_dists_[a-z]+_main_", path.name)
    ]
    if not found:
        raise DataError(
            f"holds no index *_{name} of a Debian release; run `apt-get -o Acquire::Languages=en update`",
            folder,
        )
    for path in found:
        # apt keeps its indices plain or packed, also in ways that Python cannot unpack
        try:
            done = subprocess.run([APT_HELPER, "cat-file", str(path)], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise DataError(f"cannot be read with apt-helper: {error}", path) from error
        yield from _stanzas(done.stdout.decode())


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    for block in re.split(r"\n\n+", text.strip("\n")):
        stanza: dict[str, str] = {}
        field = ""
        for line in block.split("\n"):
            if line[:1] in (" ", "\t"):
                stanza[field] += "\n" + line
            else:
                field, _, value = line.partition(":")
                stanza[field] = value.strip()
        yield stanza


def _tags(field: str) -> list[str]:
    """The tags of a field `devel::lang:perl, role::{program,data}`."""
    found = []
    for facet, braced, plain in re.findall(r"([^\s,:{}]+)::(?:\{([^}]*)\}|([^\s,{}]+))", field):
        found += [f"{facet}::{value.strip()}" for value in (braced or plain).split(",")]
    return found


def _plain(description: str) -> str:
    """The short description on a line of its own, then paragraphs on a line each (Debian Policy, section
    5.6.13)."""
    short, *rest = description.split("\n")
    paragraphs = [short.strip()]
    flowing = False  # whether the next line of prose goes on with the last paragraph
    for line in rest:
        prose = not line.startswith("  ")
        line = line.strip()
        if line in ("", "."):
            flowing = False
        elif flowing and prose:
            paragraphs[-1] += " " + line
        else:
            paragraphs.append(line)
            flowing = prose
    return "\n".join(paragraphs)


def _labels(tags: set[str], vocabulary: Path) -> Iterator[Label]:
    """The tags and their facets, with names, each under the one above it."""
    names = {}
    if vocabulary.exists():
        for stanza in _stanzas(vocabulary.read_text(encoding="utf-8")):
            names[stanza.get("Tag") or stanza["Facet"]] = stanza["Description"].split("\n")[0]
    for id in sorted(tags | {tag.partition("::")[0] for tag in tags}):
        facet, _, value = id.partition("::")
        name = names.get(facet, facet.replace("-", " ").capitalize())
        if not value:
            yield Label(id, name)
        else:
            name += ": " + names.get(id, re.sub("[-:]", " ", value).capitalize())
            above = id.rpartition(":")[0]
            yield Label(id, name, broader=(above if above in tags else facet,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for the corpus")
    parser.add_argument("--lists", default=LISTS, help="apt's indices [%(default)s]")
    parser.add_argument("--vocabulary", default=VOCABULARY, help="names of the tags [%(default)s]")
    given = parser.parse_args()
    try:
        counts = build(given.out, given.lists, given.vocabulary)
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    for split, count in counts.items():
        print(f"{split}: {count} documents")


if __name__ == "__main__":
    main()
