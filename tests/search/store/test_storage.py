"""A sweep directory: whole files, one owner, nothing outside it."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from anomtune.errors import StorageError
from anomtune.files import temporary_name
from anomtune.search.store import lock
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.objects import ChangedError
from anomtune.search.store.storage import Storage


def _write_for_ever(root: str) -> None:
    storage = Storage(root)
    for index in range(10**9):
        storage.write("record.json", b"%d" % (index % 10) * 100_000)


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    for delay in (0.05, 0.013, 0.021, 0.034, 0.008):
        writer = multiprocessing.get_context("fork").Process(
            target=_write_for_ever, args=(str(tmp_path),)
        )
        writer.start()
        while not (tmp_path / "record.json").exists():
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        content = (tmp_path / "record.json").read_bytes()
        assert len(content) == 100_000
        assert len(set(content)) == 1


@pytest.mark.slow
def test_a_reader_never_sees_half_a_file(tmp_path):
    writer = multiprocessing.get_context("fork").Process(
        target=_write_for_ever, args=(str(tmp_path),)
    )
    writer.start()
    try:
        storage = Storage(tmp_path)
        for _ in range(2000):
            content = storage.read("record.json")
            assert content is None or len(set(content)) == 1
    finally:
        writer.kill()
        writer.join()


def test_read_list_append_delete(tmp_path):
    storage = Storage(tmp_path)
    assert storage.read("a/b.json") is None
    assert storage.list("a", ".json") == []
    storage.write("a/b.json", b"1")
    storage.write("a/c/d.json", b"2", durable=True)
    storage.append("a/log", b"x", 0)
    storage.append("a/log", b"y", 1)
    assert storage.read("a/log") == b"xy"
    assert storage.list("a", ".json") == ["a/b.json", "a/c/d.json"]
    storage.delete_folder("a/c")
    storage.delete_folder("a/c")
    assert storage.list("", ".json") == ["a/b.json"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x"])
def test_no_path_leaves_the_root(tmp_path, path):
    with pytest.raises(StorageError, match="leaves the sweep directory"):
        Storage(tmp_path / "sweep").write(path, b"")


def test_other_filesystems_are_uris(tmp_path):
    storage = Storage((tmp_path / "sweep").as_uri())
    storage.write("a.json", b"1")
    assert (tmp_path / "sweep/a.json").read_bytes() == b"1"
    with pytest.raises(StorageError, match="not a usable directory"):
        Storage("nonsense://bucket/x")


def test_one_owner_at_a_time(tmp_path):
    storage = Storage(tmp_path)
    with DirectoryLock(storage), pytest.raises(StorageError, match=f"process {os.getpid()} on"):
        DirectoryLock(Storage(tmp_path)).__enter__()
    with DirectoryLock(storage):
        pass


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks, where everything takes no time."""

    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    quick = {"_BEAT": 0.05, "_LEASE": 0.15, "_PATIENCE": 0.25, "_SETTLE": 0.01}
    for name, seconds in quick.items():
        monkeypatch.setattr(lock, name, seconds)
    # As on different machines, where nobody can see whether the other's process lives.
    monkeypatch.setattr(lock, "_machine", lambda: None)


@pytest.mark.usefixtures("no_locks")
def test_a_file_system_without_locks_has_one_owner_all_the_same(tmp_path):
    another = DirectoryLock(Storage(tmp_path / "sweep"))
    with DirectoryLock(Storage(tmp_path / "sweep")) as owner:
        owner.check()
        with pytest.raises(StorageError, match="another sweep owns"):
            another.__enter__()
    assert list((tmp_path / "sweep").iterdir()) == []


@pytest.mark.usefixtures("no_locks")
def test_an_owner_that_was_stopped_notices_though_the_clock_was_set_back(tmp_path, monkeypatch):
    monkeypatch.setattr(lock._Lease, "_beat", lambda self: None)
    real = time.time
    with DirectoryLock(Storage(tmp_path)) as owner, DirectoryLock(Storage(tmp_path)):
        monkeypatch.setattr(time, "time", lambda: real() - 3600)
        with pytest.raises(StorageError, match="another sweep owns"):
            owner.check()


@pytest.mark.usefixtures("no_locks")
def test_an_owner_that_was_followed_leaves_what_its_follower_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(lock._Lease, "_beat", lambda self: None)
    writes = tmp_path / temporary_name("a record")
    with DirectoryLock(Storage(tmp_path)):
        follower = DirectoryLock(Storage(tmp_path))
        follower.__enter__()
        writes.touch()
    assert writes.exists()
    follower.__exit__(None, None, None)
    assert not writes.exists()


def _come_late(root: str, stop_at: tuple[object, str], outcome) -> None:
    """Is a newcomer that is stopped before it calls something for the first time."""
    place, name = stop_at
    call = getattr(place, name)

    def stop(*arguments):
        setattr(place, name, call)
        os.kill(os.getpid(), signal.SIGSTOP)
        return call(*arguments)

    setattr(place, name, stop)
    try:
        with DirectoryLock(Storage(root)):
            outcome.put("owns")
    except StorageError as error:
        outcome.put(str(error))


_MARKS = {
    "none": None,
    "expired": {"host": "h", "pid": 1, "token": "t", "beat": 7},
    "let go of": {"host": "h", "pid": 1},
}
_STOPS = {
    "take": (lock._Lease, "_take"),
    "move": (Path, "rename"),
    "make": (os, "link"),
    "make without links": (os, "no link"),
}


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(
    ("mark", "stop_at"),
    [
        pytest.param(mark, stop_at, id=f"{found}, {name}")
        for found, mark in _MARKS.items()
        for name, stop_at in _STOPS.items()
        if (found, name) != ("none", "move")
    ],
)
def test_a_newcomer_that_was_stopped_takes_nothing_from_its_owner(
    tmp_path, monkeypatch, mark, stop_at
):
    if stop_at == (os, "no link"):
        monkeypatch.setattr(os, "link", _no_link)
        stop_at = (os, "link")
    (tmp_path / "sweep.yaml").touch()
    if mark is not None:
        (tmp_path / "owner.json").write_text(json.dumps(mark))
    fork = multiprocessing.get_context("fork")
    outcome = fork.SimpleQueue()
    late = fork.Process(target=_come_late, args=(str(tmp_path), stop_at, outcome))
    late.start()
    os.waitid(os.P_PID, late.pid, os.WSTOPPED | os.WNOWAIT)
    written = set()
    with DirectoryLock(Storage(tmp_path)) as owner:
        os.kill(late.pid, signal.SIGCONT)
        while late.is_alive():
            with suppress(FileNotFoundError, ValueError):
                written.add(json.loads((tmp_path / "owner.json").read_bytes())["token"])
        assert "another sweep owns" in outcome.get()
        owner._lock.renew()
        assert written == {owner._lock._mark["token"]}
    assert {path.name for path in tmp_path.iterdir()} == {"owner.json", "sweep.yaml"}


@pytest.mark.usefixtures("no_locks")
def test_a_mark_that_is_away_for_a_moment_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(lock._Lease, "_beat", lambda self: None)
    (tmp_path / "sweep.yaml").touch()
    with DirectoryLock(Storage(tmp_path)) as owner:
        monkeypatch.setattr(lock, "_SETTLE", 0.3)
        mark, aside = tmp_path / "owner.json", tmp_path / "aside"
        mark.rename(aside)
        threading.Timer(0.1, aside.rename, [mark]).start()
        owner._lock.renew()
        mark.unlink()
        with pytest.raises(StorageError, match="another sweep owns"):
            owner._lock.renew()


def _no_link(*_) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_is_not_what_was_seen_stays(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", _no_link)
    storage = Storage(tmp_path)
    storage.replace_seen("a", b"1", None)
    for seen in (None, b"0", b""):
        with pytest.raises(ChangedError):
            storage.replace_seen("a", b"2", seen)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"1"]
    storage.replace_seen("a", b"2", b"1")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"2"]
    storage.delete("a")
    with pytest.raises(ChangedError):
        storage.replace_seen("a", b"3", b"2")
    assert [*tmp_path.iterdir()] == []


def test_what_cannot_be_tidied_hides_no_error_and_holds_no_lock(tmp_path, monkeypatch):
    def unlink(path, **_):
        raise OSError(errno.EIO, "Input/output error", str(path))

    (tmp_path / ".a.tmp").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(StorageError, match="is full"), DirectoryLock(Storage(tmp_path)):
            raise StorageError("the disk is full")
    with DirectoryLock(Storage(tmp_path)):
        assert not (tmp_path / ".a.tmp").exists()


def test_errors_name_file_reason_and_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/a.json: cannot write: .*start again"):
        Storage(tmp_path / "file").write("a.json", b"")
