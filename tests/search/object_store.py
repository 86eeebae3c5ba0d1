"""An object store: a real S3 server (moto) on loopback. Tests import its fixtures."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    pytest.importorskip("moto.server", reason="needs moto[server], an S3 server for tests")
    import boto3

    running = Server(tmp_path_factory.mktemp("s3") / "log")
    boto3.client(
        "s3",
        endpoint_url=f"http://{running.address}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    ).create_bucket(Bucket="bucket")
    yield running
    running.end()


@pytest.fixture
def place(server, monkeypatch) -> str:
    """The URI of a folder that nothing is in."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # no request may leave this machine
    return f"s3://bucket/{uuid.uuid4().hex}?endpoint_override={server.address}&scheme=http"
