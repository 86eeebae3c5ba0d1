"""Datasets in an object store, against a real S3 server (moto) on loopback."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from anomtune.datasets.io import remote
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.io.remote import local_root
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import StorageError
from tests.datasets.io.uri_messages import KEY, SECRET, message

pytestmark = pytest.mark.slow

pytest.importorskip("moto.server", reason="needs moto[server], an S3 server for tests")

FETCHED = re.compile(r"GET /bucket/(\S+) HTTP")


class Requests(logging.Handler):
    """Counts what the server is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def fetched(self) -> list[str]:
        """The objects that were read since the last call."""
        found = [m[1] for line in self.lines if (m := FETCHED.search(line)) and "?" not in m[1]]
        self.lines.clear()
        return found


class Bucket:
    """The bucket ``bucket`` of a server."""

    def __init__(self, address: str, requests: Requests) -> None:
        import boto3

        self.address = address
        self.requests = requests
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://{address}",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket="bucket")

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket="bucket", Key=key, Body=content)

    def upload(self, folder: Path, prefix: str) -> list[str]:
        keys = []
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                keys.append(f"{prefix}/{path.relative_to(folder)}")
                self.put(keys[-1], path.read_bytes())
        return keys

    def uri(self, path: str, place: str = "bucket", secret: str = SECRET) -> str:
        return (
            f"s3://{KEY}:{quote(secret, safe='')}@{place}/{path}"
            f"?endpoint_override={self.address}&scheme=http"
        )


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Requests]]:
    from moto.server import ThreadedMotoServer

    logger, requests = logging.getLogger("werkzeug"), Requests()
    logger.addHandler(requests)
    logger.setLevel(logging.INFO)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"{host}:{port}", requests
    running.stop()
    logger.removeHandler(requests)


@pytest.fixture
def bucket(server: tuple[str, Requests], monkeypatch: pytest.MonkeyPatch) -> Bucket:
    # No request may leave this machine.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    address, requests = server
    post(f"http://{address}/moto-api/reset")
    made = Bucket(address, requests)
    requests.lines.clear()
    return made


def post(url: str, content: bytes = b"") -> None:
    headers = {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, content, headers, method="POST")).read()


def test_opens_a_category(bucket: Bucket, tree: Path) -> None:
    keys = bucket.upload(tree, "plant/data")
    dataset = open_dataset("folder", bucket.uri("plant/data"))
    assert sorted(bucket.requests.fetched()) == sorted(keys)
    assert dataset.categories() == ("part",)
    there = open_category(dataset, "part", 16)
    here = open_category(open_dataset("folder", tree), "part", 16)
    assert there.samples == here.samples
    assert there.pixel_hashes == here.pixel_hashes
    assert dataset.root is not None
    assert dataset.root.name == "data"
    split = load_search_split(dataset, "part", 16, Validation())
    plain = load_search_split(open_dataset("folder", tree), "part", 16, Validation())
    assert split.split_hash == plain.split_hash
    # The root can be the category itself: its name is the folder's.
    assert open_dataset("folder", bucket.uri("plant/data/part/")).categories() == ("part",)


def test_a_second_opening_fetches_nothing(bucket: Bucket, tree: Path) -> None:
    bucket.upload(tree, "data")
    root = local_root(bucket.uri("data"))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    bucket.requests.fetched()
    assert local_root(bucket.uri("data")) == root
    assert local_root(bucket.uri("data", secret="another")) == root  # the same place
    assert bucket.requests.fetched() == []
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_changed_object_is_seen_and_fetched_alone(bucket: Bucket, tree: Path) -> None:
    bucket.upload(tree, "data")
    old = local_root(bucket.uri("data"))
    bucket.requests.fetched()
    bucket.put("data/part/test/good/000.png", b"other")
    bucket.put("data/part/test/good/100.png", b"new")
    new = local_root(bucket.uri("data"))
    assert new != old
    assert (new / "part/test/good/000.png").read_bytes() == b"other"
    assert (old / "part/test/good/000.png").read_bytes() != b"other"
    assert sorted(bucket.requests.fetched()) == [
        "data/part/test/good/000.png",
        "data/part/test/good/100.png",
    ]
    bucket.client.delete_object(Bucket="bucket", Key="data/part/test/good/100.png")
    assert not (local_root(bucket.uri("data")) / "part/test/good/100.png").exists()
    assert bucket.requests.fetched() == []


def test_the_same_size_at_another_time_is_a_change(bucket: Bucket) -> None:
    import time

    bucket.put("data/a.png", b"one")
    assert (local_root(bucket.uri("data")) / "a.png").read_bytes() == b"one"
    time.sleep(1.1)  # S3 counts in seconds
    bucket.put("data/a.png", b"two")
    assert (local_root(bucket.uri("data")) / "a.png").read_bytes() == b"two"


def test_a_file_that_somebody_removed_is_put_back(bucket: Bucket, tree: Path) -> None:
    bucket.upload(tree, "data")
    root = local_root(bucket.uri("data"))
    victim = root / "part/test/good/000.png"
    content = victim.read_bytes()
    victim.unlink()
    bucket.requests.fetched()
    assert local_root(bucket.uri("data")) == root
    assert victim.read_bytes() == content
    assert bucket.requests.fetched() == []
    victim.write_bytes(b"cut")  # and with it the copy that it is linked to
    assert (local_root(bucket.uri("data")) / "part/test/good/000.png").read_bytes() == content
    assert bucket.requests.fetched() == ["data/part/test/good/000.png"]


def test_without_links_the_tree_alone_is_kept(
    bucket: Bucket, tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    keys = bucket.upload(tree, "data")
    root = local_root(bucket.uri("data"))
    assert sum(path.is_file() for path in root.rglob("*")) == len(keys)
    assert not [path for path in (cache / "objects").rglob("*") if path.is_file()]


CHILD = """
import os, sys
from anomtune.datasets.io import remote
limit, done, fetch = int(sys.argv[2]), [], remote._fetch
def counted(*args):
    if limit and len(done) >= limit:
        os._exit(9)
    done.append(fetch(*args))
remote._fetch = counted
remote._STREAMS = 2
print(remote.local_root(sys.argv[1]))
"""


def child(uri: str, limit: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, uri, str(limit)], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_fetch_goes_on_where_it_was(bucket: Bucket, tree: Path, cache: Path) -> None:
    keys = bucket.upload(tree, "data")
    killed = child(bucket.uri("data"), 10)
    assert killed.communicate()[0] == ""
    assert killed.returncode == 9
    assert [p.suffix for p in (cache / "remote").iterdir() if p.is_dir()] == [".tmp"]
    first = bucket.requests.fetched()
    assert 10 <= len(first) < len(keys)
    root = local_root(bucket.uri("data"))
    second = bucket.requests.fetched()
    # At most what was under way is fetched a second time.
    assert len(keys) <= len(first) + len(second) <= len(keys) + 2
    assert {f"data/{p.relative_to(root)}" for p in root.rglob("*") if p.is_file()} == set(keys)
    assert not list((cache / "remote").glob("*.tmp"))


def test_several_processes_fetch_once(bucket: Bucket, tree: Path) -> None:
    keys = bucket.upload(tree, "data")
    children = [child(bucket.uri("data")) for _ in range(3)]
    roots = {process.communicate()[0].strip() for process in children}
    assert roots == {str(local_root(bucket.uri("data")))}
    assert sorted(bucket.requests.fetched()) == sorted(keys)


def test_a_large_object_comes_in_pieces(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_CHUNK", 1000)
    content = os.urandom(4321)
    bucket.put("data/large.bin", content)
    bucket.put("data/empty.bin", b"")
    root = local_root(bucket.uri("data"))
    assert (root / "large.bin").read_bytes() == content
    assert (root / "empty.bin").read_bytes() == b""


@pytest.mark.parametrize(
    "name",
    ["part/../../../../escaped.png", "part/./a.png", "part//a.png", "../b.png", "n" * 256],
)
def test_unsafe_names_are_refused(bucket: Bucket, name: str, tmp_path: Path) -> None:
    bucket.put("data/part/fine.png", b"x")
    bucket.put(f"data/{name}", b"x")
    told = message(bucket.uri("data"))
    assert "cannot be a file here; rename or remove it" in told
    assert not list(tmp_path.rglob("escaped.png"))


def test_a_file_that_is_also_a_folder_is_refused(bucket: Bucket) -> None:
    bucket.put("data/a", b"x")
    bucket.put("data/a/b.png", b"x")
    assert "'a' is both a file and a folder; rename or remove one" in message(bucket.uri("data"))


def test_unusual_names(bucket: Bucket, picture: object) -> None:
    names = ["ä ö%20#?.png", "a\\b.png", "a@contrast-3", ".DS_Store", "-x", "日本.png"]
    for name in names:
        bucket.put(f"data/{name}", name.encode())
    root = local_root(bucket.uri("data"))
    assert sorted(p.name for p in root.iterdir()) == sorted(names)
    assert all(p.read_bytes() == p.name.encode() for p in root.iterdir())


def test_nothing_there(bucket: Bucket) -> None:
    bucket.put("data/a.png", b"x")
    told = message(bucket.uri("dta"))
    assert told.startswith("s3://***@bucket/dta?endpoint_override=127.0.0.1:")
    assert "no such bucket or folder; correct dataset.root" in told
    assert "no such bucket" in message(bucket.uri("data", place="bukket"))
    assert "no such bucket or folder" in message(bucket.uri("data/a.png"))
    assert "s3://bucket/folder" in message(bucket.uri("").replace("bucket/", ""))


def test_no_access(bucket: Bucket) -> None:
    bucket.put("data/a.png", b"x")
    post(f"http://{bucket.address}/moto-api/reset-auth", b"0")  # from now on keys are checked
    try:
        told = message(bucket.uri("data"))
    finally:
        post(f"http://{bucket.address}/moto-api/reset-auth", b"1000000")
    assert "access was refused; set credentials that may list and read there" in told
    assert "AWS_ACCESS_KEY_ID" in told


def test_an_object_that_cannot_be_read(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("data/a.png", b"x")
    listed = remote._Source.list

    def list_then_remove(self: remote._Source) -> list[remote._Object]:
        found = listed(self)
        bucket.client.delete_object(Bucket="bucket", Key="data/a.png")
        return found

    monkeypatch.setattr(remote._Source, "list", list_then_remove)
    assert "a.png: was removed while it was fetched; try again" in message(bucket.uri("data"))


@pytest.mark.parametrize("content", [b"longer", b"s"])
def test_an_object_that_changes_while_it_is_fetched(
    bucket: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    bucket.put("data/a.png", b"xyz")
    bucket.put("data/b.png", b"xyz")
    read = remote._Source.read

    def change_then_read(self: remote._Source, item: remote._Object) -> Iterator[bytes]:
        if item.path == "a.png":  # not also while it is read: moto's server stumbles over that
            bucket.put("data/a.png", content)
        return read(self, item)

    monkeypatch.setattr(remote._Source, "read", change_then_read)
    assert "changed while it was fetched; try again" in message(bucket.uri("data"))
    assert not [path for path in (cache / "remote").iterdir() if path.is_dir()]
    monkeypatch.setattr(remote._Source, "read", read)
    assert (local_root(bucket.uri("data")) / "a.png").read_bytes() == content


def test_a_short_object_is_not_kept(
    bucket: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("data/a.png", b"xyz")
    listed = remote._Source(bucket.uri("data")).list()
    bucket.put("data/a.png", b"x")
    monkeypatch.setattr(remote._Source, "list", lambda _: listed)
    assert "a.png changed while it was fetched; try again" in message(bucket.uri("data"))
    assert not [path for path in (cache / "objects").rglob("*") if path.is_file()]


def test_a_full_disk_is_the_caches_fault(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("data/a.png", b"xyz")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote.os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device.*ANOMTUNE_CACHE"):
        local_root(bucket.uri("data"))


def test_nothing_secret_is_written(bucket: Bucket, tree: Path, cache: Path) -> None:
    bucket.upload(tree, "data")
    dataset = open_dataset("folder", bucket.uri("data"))
    load_search_split(dataset, "part", 16, Validation())
    for path in cache.rglob("*"):
        text = str(path).encode() + (path.read_bytes() if path.is_file() else b"")
        for secret in (KEY, SECRET, quote(SECRET, safe="")):
            assert secret.encode() not in text
    assert KEY not in repr(dataset)
