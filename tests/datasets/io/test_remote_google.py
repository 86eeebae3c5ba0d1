"""``gs://`` roots: pyarrow's own client against what its requests need of Google's JSON API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from anomtune.datasets.io.remote import local_root
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.audit import inspect
from anomtune.errors import DataError


class Handler(BaseHTTPRequestHandler):
    """Lists and reads the objects of ``bucket``; an object is its content and its time."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, tuple[bytes, str]] = {}  # noqa: RUF012
    read: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        _, _, name = url.path.partition("/b/bucket/o")
        name = unquote(name.removeprefix("/"))
        if not url.path.startswith("/storage/v1/b/bucket/o"):
            self.answer(404, b"{}")
        elif not name:
            prefix = query.get("prefix", [""])[0]
            found = [self.describe(key) for key in self.objects if key.startswith(prefix)]
            self.answer(200, json.dumps({"kind": "storage#objects", "items": found}).encode())
        elif name not in self.objects:
            self.answer(404, b"{}")
        elif query.get("alt") == ["media"]:
            self.read.append(name)
            self.answer(200, self.objects[name][0])
        else:
            self.answer(200, json.dumps(self.describe(name)).encode())

    def describe(self, name: str) -> dict[str, str]:
        content, time = self.objects[name]
        return {
            "kind": "storage#object",
            "id": f"bucket/{name}/1",
            "bucket": "bucket",
            "name": name,
            "size": str(len(content)),
            "timeCreated": time,
            "updated": time,
        }

    def answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def place() -> Iterator[str]:
    Handler.objects.clear()
    Handler.read.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&retry_limit_seconds=5"
    server.shutdown()
    server.server_close()


def test_fetches_once_and_sees_changes(place: str, tree: Path) -> None:
    for path in tree.rglob("*.png"):
        name = f"data/{path.relative_to(tree)}"
        Handler.objects[name] = (path.read_bytes(), "2026-01-02T03:04:05.678Z")
    uri = f"gs://anonymous@bucket/data{place}"
    dataset = open_dataset("folder", uri)
    assert inspect(dataset) == inspect(open_dataset("folder", tree))
    assert sorted(Handler.read) == sorted(Handler.objects)
    assert open_dataset("folder", uri).root == dataset.root
    assert len(Handler.read) == len(Handler.objects)
    changed = "data/part/test/good/000.png"
    Handler.objects[changed] = (Handler.objects[changed][0], "2026-01-02T03:04:05.679Z")
    assert open_dataset("folder", uri).root != dataset.root
    assert Handler.read[len(Handler.objects) :] == [changed]


def test_nothing_there(place: str) -> None:
    with pytest.raises(DataError, match=r"gs://\*\*\*@bucket/no.*: no such bucket or folder"):
        local_root(f"gs://anonymous@bucket/no{place}")
    with pytest.raises(DataError, match="no such bucket or folder"):
        local_root(f"gs://anonymous@bukket/no{place}")


@pytest.mark.slow
def test_no_network() -> None:
    uri = "gs://anonymous@b/x?endpoint_override=127.0.0.1:1&scheme=http&retry_limit_seconds=1"
    with pytest.raises(DataError, match="cannot be reached; check the network"):
        local_root(uri)
