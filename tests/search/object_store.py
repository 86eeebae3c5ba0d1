"""An object store: a real S3 server (moto) on loopback. Tests import its fixtures."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from anomtune.search.store import lock, objects
from anomtune.search.store.storage import Storage
from tests.search import store_proxy

#: Leases are shorter where drivers are stopped for longer than theirs.
_FASTER = 8

_SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), sep=":", flush=True)
input()
"""


class Server:
    """A server in a process of its own: it would take turns with ours.

    Attributes:
        address: Host and port.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
        self.address = self._process.stdout.readline().strip()

    def requests(self) -> list[str]:
        """Returns what it was asked for, a line each."""
        time.sleep(0.03)  # a line is written when the answer has been sent
        return [line for line in self._log.read_text().splitlines() if " HTTP/1.1" in line]

    def end(self) -> None:
        self._process.communicate("")


class Proxy:
    """What stands before a server, in a process of its own; see `store_proxy`.

    Args:
        upstream: Host and port of the server.

    Attributes:
        address: Host and port.
    """

    def __init__(self, upstream: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, store_proxy.__file__, upstream],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self._process.stdout.readline().strip()

    def set(self, **changes: object) -> None:
        """Changes what it does; see its state."""
        requests.put(self._control, json=changes, timeout=10).raise_for_status()

    def look(self) -> dict[str, Any]:
        """Returns what it has seen since the last look."""
        found: dict[str, Any] = requests.get(self._control, timeout=10).json()
        return found

    @property
    def _control(self) -> str:
        return f"http://{self.address}{store_proxy.CONTROL}"

    def end(self) -> None:
        self._process.communicate("")


def make_bucket(address: str) -> None:
    """Makes the bucket that the tests use."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=f"http://{address}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    made = client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou
    with suppress(*made):  # by an earlier run, on a server that stays
        client.create_bucket(Bucket="bucket")


def folder(address: str) -> str:
    """Returns the URI of a folder that nothing is in."""
    return f"s3://bucket/{uuid.uuid4().hex}?endpoint_override={address}&scheme=http"


def hasten() -> None:
    """Lets the owners and newcomers of this process, and its patience with a store, go faster."""
    for name in ("_BEAT", "_LEASE", "_PATIENCE"):
        setattr(lock, name, getattr(lock, name) / _FASTER)
    objects._LONGEST = 0.3


def download(place: str, folder: Path) -> Path:
    """Puts all files of a sweep directory into a local folder, and returns that."""
    storage = Storage(place)
    paths = storage.list("", "")
    for path, content in zip(paths, storage.read_many(paths), strict=True):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content or b"")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server | SimpleNamespace]:
    if (address := os.environ.get("ANOMTUNE_TEST_S3")) is not None:
        make_bucket(address)
        yield SimpleNamespace(address=address)
        return
    pytest.importorskip("moto.server", reason="needs moto[server], an S3 server for tests")
    running = Server(tmp_path_factory.mktemp("s3") / "log")
    make_bucket(running.address)
    yield running
    running.end()


@pytest.fixture
def credentials(monkeypatch) -> None:
    """What the server takes."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # no request may leave this machine


@pytest.fixture
def place(server, credentials) -> str:
    """The URI of a folder that nothing is in."""
    return folder(server.address)


@pytest.fixture(scope="module")
def running_proxy(server) -> Iterator[Proxy]:
    running = Proxy(server.address)
    yield running
    running.end()


@pytest.fixture
def proxy(running_proxy, credentials) -> Proxy:
    """A proxy that only counts, from now on."""
    quiet = {"slow_down": 0.0, "status": 503, "cut": 0.0, "latency": 0.0}
    running_proxy.set(**quiet, conditional="atomic", seed=0)
    running_proxy.look()
    return running_proxy
