"""Fetching, against a server on this machine."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from xmplug.data import Document, fetch, load_dataset
from xmplug.data.fetch import PUBLISHED
from xmplug.errors import FetchError


def archive() -> bytes:
    """Three documents for train and one each for dev and test, laid out as the published file is."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for number, split in enumerate(["train", "train", "train", "dev", "test"]):
            document = {
                "celex_id": f"3{number}",
                "type": "Decision",
                "title": f"Title {number}",
                "header": "THE COUNCIL\n",
                "recitals": "",
                "main_body": ["Article 1", "Article 2"],
                "concepts": ["10", "20"],
            }
            file.writestr(f"dataset/{split}/3{number}.json", json.dumps(document))
            file.writestr(f"__MACOSX/dataset/{split}/._3{number}.json", b"\x00\x05\x16")
    return content.getvalue()


DESCRIPTORS = {
    "10": {"concept_id": "10", "label": "fish", "alt_labels": ["fishes"], "parents": ["1", "outside"]},
    "1": {"concept_id": "1", "label": "animal", "alt_labels": [], "parents": []},
}


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut` stops the answers short after so many bytes; `seen` are the Range headers asked for."""

    daemon_threads = True
    files: dict[str, bytes]
    cut: int | None = None
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/datasets.zip": archive(), "/eurovoc_en.json": json.dumps(DESCRIPTORS).encode()}
        self.seen: list[tuple[str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        wanted = self.headers.get("Range")
        self.server.seen.append((self.path, wanted))
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("XMPLUG_CACHE", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        small = replace(
            PUBLISHED["eurlex57k"],
            url=f"http://127.0.0.1:{running.server_port}",
            documents={"train": 3, "dev": 1, "test": 1},
        )
        monkeypatch.setitem(PUBLISHED, "eurlex57k", small)
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def test_fetched_and_found_by_name(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    folder = fetch("eurlex57k", progress=lambda *step: told.append(step))
    assert folder == tmp_path / "data" / "eurlex57k"
    dataset = load_dataset("eurlex57k")
    assert [len(dataset.split(name)) for name in ("train", "dev", "test")] == [3, 1, 1]
    text = "Title 0\nTHE COUNCIL\nArticle 1\nArticle 2"
    assert next(iter(dataset.split("train"))) == Document("30", text, ("10", "20"))
    labels = dataset.labels
    assert (labels.ids, labels.names) == (["10", "20", "1"], ["fish", "20", "animal"])
    assert labels.broader == [[2], [], []]
    assert labels.alt[0] == ["fishes"]
    size = len(server.files["/datasets.zip"])
    assert ("datasets.zip", size, size) in told
    assert not (tmp_path / "downloads" / "eurlex57k").exists()
    asked = len(server.seen)
    assert fetch("eurlex57k") == folder
    assert len(server.seen) == asked


def test_a_broken_download_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut = 100
    with pytest.raises(FetchError, match=r"broke off at 100 of \d+ bytes; try again"):
        fetch("eurlex57k")
    assert not (tmp_path / "data" / "eurlex57k").exists()
    server.cut = None
    fetch("eurlex57k")
    assert ("/datasets.zip", "bytes=100-") in server.seen
    assert len(load_dataset("eurlex57k").split("train")) == 3


def test_a_server_that_cannot_go_on_begins_anew(server: Server) -> None:
    server.cut, server.ranges = 100, False
    with pytest.raises(FetchError):
        fetch("eurlex57k")
    server.cut = None
    fetch("eurlex57k")
    assert len(load_dataset("eurlex57k").split("train")) == 3


def test_all_bytes_were_there_already(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "downloads" / "eurlex57k" / "datasets.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.files["/datasets.zip"])
    fetch("eurlex57k")
    assert len(load_dataset("eurlex57k").split("train")) == 3


def test_a_damaged_archive_is_removed(server: Server, tmp_path: Path) -> None:
    whole = server.files["/datasets.zip"]
    server.files["/datasets.zip"] = whole[:60] + b"\x00\xff" + whole[62:]
    with pytest.raises(FetchError, match="damaged"):
        fetch("eurlex57k")
    assert list((tmp_path / "data").iterdir()) == []
    server.files["/datasets.zip"] = whole
    fetch("eurlex57k")


def test_another_checksum_than_published(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = replace(PUBLISHED["eurlex57k"], files={"datasets.zip": "0" * 64, "eurovoc_en.json": None})
    monkeypatch.setitem(PUBLISHED, "eurlex57k", strict)
    with pytest.raises(FetchError, match="SHA-256"):
        fetch("eurlex57k")


def test_fewer_documents_than_published(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    more = replace(PUBLISHED["eurlex57k"], documents={"train": 4, "dev": 1, "test": 1})
    monkeypatch.setitem(PUBLISHED, "eurlex57k", more)
    with pytest.raises(FetchError, match=r"'train': 3.*published were .*'train': 4"):
        fetch("eurlex57k")
    assert list((tmp_path / "data").iterdir()) == []


def test_offline_names_the_file_and_where_to_put_it(server: Server, tmp_path: Path) -> None:
    files = dict(server.files)
    server.files.clear()
    with pytest.raises(FetchError, match="404") as caught:
        fetch("eurlex57k")
    assert "place it at" in str(caught.value)
    by_hand = tmp_path / "downloads" / "eurlex57k"
    for name, content in files.items():
        (by_hand / name[1:]).write_bytes(content)
    fetch("eurlex57k")
    assert len(load_dataset("eurlex57k").split("train")) == 3


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    closed = replace(PUBLISHED["eurlex57k"], url="http://127.0.0.1:1/x")
    monkeypatch.setitem(PUBLISHED, "eurlex57k", closed)
    with pytest.raises(FetchError, match=r"http://127.0.0.1:1/x/datasets.zip: cannot be reached") as caught:
        fetch("eurlex57k", tmp_path)
    assert str(tmp_path / "downloads" / "eurlex57k" / "datasets.zip") in str(caught.value)


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="did you mean 'eurlex57k'"):
        fetch("eurlex", tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="cannot write there"):
        fetch("eurlex57k", tmp_path / "file")
