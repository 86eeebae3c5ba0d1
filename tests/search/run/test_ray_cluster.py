"""What is said when a cluster lets nobody in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anomtune.errors import SweepError
from anomtune.search.run import ray_cluster as module
from anomtune.search.run.ray_cluster import ray_cluster
from anomtune.search.run.ray_internals import HEAD_PATIENCE


@pytest.mark.parametrize(
    ("address", "where"), [("10.0.0.1:6379", "--address 10.0.0.1:6379"), (None, "Ray on this")]
)
def test_a_missing_token_is_one_line_with_its_remedy(monkeypatch, address, where):
    import ray
    from ray.exceptions import AuthenticationError

    def init(**_):
        raise AuthenticationError("Unauthenticated")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(SweepError) as caught, ray_cluster(address):
        pass
    assert str(caught.value).startswith(where)
    assert "RAY_AUTH_TOKEN_PATH" in str(caught.value)


def test_ray_itself_says_it_so(tmp_path):
    """The installed Ray raises what the test above stands for, before it starts anything."""
    code = "import ray; ray.init(address='10.255.255.1:6379')"
    environment = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "AuthenticationError" in done.stderr


@pytest.fixture
def started(monkeypatch):
    """What Ray is started with, without starting it."""
    import ray

    seen = {}

    def init(**arguments):
        folder = arguments["_temp_dir"]
        seen["folder"] = folder
        seen["mode"] = None if folder is None else Path(folder).parent.stat().st_mode & 0o777
        if folder is not None:
            Path(folder).mkdir()
            Path(folder, "left over").touch()
        seen["starter"] = module.services.ConsolePopen.keywords
        seen["command"] = module.utils.get_entrypoint_name()

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return seen


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("name", ["long" * 30, os.fsdecode(b"M\xfc")])
def test_sockets_lie_in_a_short_private_folder(monkeypatch, started, tmp_path, variable, name):
    monkeypatch.setenv(variable, str(tmp_path / name))
    environment = dict(os.environ)
    with ray_cluster(None):
        pass
    folder = Path(started["folder"])
    assert len(os.fsencode(folder)) < 40
    assert started["mode"] == 0o700
    assert not folder.parent.exists()
    assert dict(os.environ) == environment


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_else_ray_chooses_its_folder(monkeypatch, started, tmp_path, address):
    monkeypatch.setenv("TMPDIR", "/tmp" if address is None else str(tmp_path / ("long" * 30)))
    with ray_cluster(address):
        pass
    assert started["folder"] is None


def test_without_a_short_folder_the_remedy_is_named(monkeypatch, started):
    monkeypatch.setenv("TMPDIR", "/" + "long" * 30)
    monkeypatch.setattr(module, "_SHORT", ("/no/such/folder",))
    with pytest.raises(SweepError, match=r"TMPDIR is /long.*set RAY_TMPDIR"), ray_cluster(None):
        pass
    assert started == {}


def test_ray_is_as_it_was_when_it_has_started(monkeypatch, started):
    before = module.services.ConsolePopen, module.utils.get_entrypoint_name
    monkeypatch.setattr(module.utils, "get_entrypoint_name", lambda: "M\udcfc")
    with ray_cluster(None):
        assert module.services.ConsolePopen is before[0]
    assert started["command"] == "M\\xfc"
    assert started["starter"] == {"process_group": 0}


@pytest.fixture
def head(monkeypatch):
    """A head that can go away, and the exit codes of this process that it brings about."""
    import ray

    exits: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(module.os, "_exit", exits.append)
    monkeypatch.setenv(HEAD_PATIENCE[0], "1")
    yield listener, exits
    listener.close()


def test_a_process_whose_head_goes_away_ends_as_interrupted(head, capsys):
    listener, exits = head
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    with ray_cluster(address):
        time.sleep(0.7)
        assert exits == []
        listener.close()
        end = time.monotonic() + 30
        while not exits and time.monotonic() < end:
            time.sleep(0.01)
    assert exits == [3]
    assert f"the head of the Ray cluster at {address} has gone" in capsys.readouterr().err


def test_a_head_that_goes_away_while_ray_connects_is_missed(head, monkeypatch):
    listener, exits = head
    monkeypatch.setattr(module.ray, "init", lambda **_: listener.close())
    with ray_cluster(f"127.0.0.1:{listener.getsockname()[1]}"):
        end = time.monotonic() + 30
        while not exits and time.monotonic() < end:
            time.sleep(0.01)
    assert exits == [3]


@pytest.mark.parametrize("own", [True, False])
def test_a_head_that_never_was_there_is_not_missed(head, own):
    listener, exits = head
    port = listener.getsockname()[1]
    listener.close()
    with ray_cluster(None if own else f"127.0.0.1:{port}"):
        time.sleep(0.7)
    assert exits == []
