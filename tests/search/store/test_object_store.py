"""A sweep directory in an object store, on a real S3 server (moto) on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anomtune.errors import StorageError
from anomtune.search.detector.saved import load_detector
from anomtune.search.results.tensorboard import CurveWriter
from anomtune.search.store import lock
from anomtune.search.store import storage as storage_module
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.storage import Storage
from tests.cluster.invariants import violations
from tests.driver import Driver
from tests.search.conftest import sweep_dict
from tests.search.object_store import (
    credentials,
    download,
    folder,
    hasten,
    proxy,
    running_proxy,
    server,
)
from tests.search.results.test_tensorboard import TOY_PLANS, toy_record

pytestmark = pytest.mark.slow

_ = server, credentials, running_proxy, proxy


@pytest.fixture(params=["obstore", "pyarrow"])
def place(request, monkeypatch, server, credentials) -> str:
    """The URI of a folder that nothing is in, opened with each of the libraries."""
    if request.param == "pyarrow":
        without_obstore(monkeypatch)
    return folder(server.address)


_WITHOUT = "obstore is not installed"


def without_obstore(monkeypatch) -> None:
    monkeypatch.setattr(
        storage_module, "tagged_objects", lambda *_, **__: "obstore is not installed"
    )


@pytest.fixture
def quick(monkeypatch) -> None:
    """Lets owners and those who wait for them do so faster."""
    for name in ("_BEAT", "_LEASE", "_PATIENCE", "_SETTLE"):
        monkeypatch.setattr(lock, name, getattr(lock, name) / 30)


def test_files(place):
    storage = Storage(place)
    assert storage.local_root is None
    assert storage.read("a/b.json") is None
    assert storage.list("a", "") == []
    storage.write("a/b.json", b"1")
    storage.write("a/b.json", b"2", durable=True)
    storage.write("a/c/d.json", b"3" * 12_000_000)  # more than one part
    storage.append("a/log", b"x", 0)
    storage.append("a/log", b"y", 1)
    assert storage.list("", ".json") == ["a/b.json", "a/c/d.json"]
    paths = ["a/log.00000", "a/log.00001", "a/b.json", "nothing", "a/c/d.json"]
    assert list(storage.read_many(paths)) == [b"x", b"y", b"2", None, b"3" * 12_000_000]
    for _ in range(2):
        storage.delete("a/log.00000")
        storage.delete("a/log.00001")
        storage.delete_folder("a/c")
        assert storage.list("", "") == ["a/b.json"]


def test_curves_are_added_to_without_reading_them(place, tmp_path, monkeypatch):
    storage, times = Storage(place), iter([0, 10, 30, 50, 60])
    writer = CurveWriter(storage, TOY_PLANS, clock=times.__next__)
    with monkeypatch.context() as nothing_read:
        nothing_read.setattr(Storage, "read_version", None)
        for steps in range(4):
            writer.update(toy_record(0, "RUNNING", steps))
        assert len(storage.list("tensorboard", "")) == 1, "one part in half a minute"
        writer.update(toy_record(0, "COMPLETE", 4))
    files = storage.list("tensorboard", "")
    assert len(files) == 2
    for file, content in zip(files, Storage(place).read_many(files), strict=True):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    found = EventAccumulator(str((tmp_path / files[0]).parent)).Reload()
    assert [event.step for event in found.Scalars("auroc/validation")] == [1, 2, 3, 4]


def test_a_reader_with_pyarrow_never_sees_half_an_object(server, credentials, monkeypatch):
    without_obstore(monkeypatch)
    place = folder(server.address)
    storage = Storage(place)
    storage.write("a", b"short")
    filesystem, replaced = storage._objects._fs, []

    class Slow:
        """Between what a reader asks first and what it asks then, the object is replaced."""

        def open_input_stream(self, path):
            stream = filesystem.open_input_stream(path)
            if not replaced:
                replaced.append(path)
                Storage(place).write("a", b"a longer one")
            return stream

    monkeypatch.setattr(storage._objects, "_fs", Slow())
    assert storage.read("a") == b"a longer one"


def test_moving_a_folder_replaces_another(place):
    storage = Storage(place)
    for path in ("from/x/config.yaml", "from/x/weights", "to/x/other", "from/y/config.yaml"):
        storage.write(path, path.encode())
    for _ in range(2):
        storage.move_folder("from/x", "to/x")
        assert storage.list("", "") == ["from/y/config.yaml", "to/x/config.yaml", "to/x/weights"]
    assert storage.read("to/x/weights") == b"from/x/weights"


def test_credentials_in_the_uri_are_refused_and_not_shown():
    for uri in ("s3://KEYNAME:WORD@bucket/a", "s3://bucket/a?secret_key=WORD"):
        with pytest.raises(StorageError, match="set them in the environment") as caught:
            Storage(uri)
        assert "WORD" not in str(caught.value)


def test_a_bucket_that_is_not_there(place):
    with pytest.raises(StorageError, match=r"cannot write: .*bucket does not exist"):
        Storage(place.replace("bucket/", "bukket/")).write("a", b"")


def test_one_owner_at_a_time(place, quick):
    storage = Storage(place)
    storage.write("sweep.yaml", b"")
    with DirectoryLock(storage) as owner, pytest.raises(StorageError, match="another sweep owns"):
        DirectoryLock(Storage(place)).__enter__()
    owner.check()  # its mark was renewed a moment ago
    notes: list[str] = []
    with DirectoryLock(storage, notes.append):
        pass
    assert ["locked by waiting" in note for note in notes] == [True] * (not storage.has_tags)
    assert "waiting" not in "".join(notes[1:]), "a released directory is free at once"


@pytest.mark.parametrize("machine", ["here", "elsewhere"])
def test_a_dead_owner_is_followed(place, quick, machine):
    storage = Storage(place)
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = {"machine": lock._machine()} if machine == "here" else {"machine": "elsewhere"}
    mark = {"host": "h", "pid": dead.pid, "token": "t", "beat": 7} | here
    storage.write("owner.json", json.dumps(mark).encode())
    notes: list[str] = []
    begin = time.monotonic()
    with DirectoryLock(storage, notes.append):
        waited = time.monotonic() - begin
        watched = any("to see whether it lives" in note for note in notes)
        assert watched == (machine == "elsewhere")
        assert waited >= (lock._PATIENCE if watched else 0)
    assert storage.list("", "") == []  # no sweep began


def keep_asking(owner: DirectoryLock) -> None:
    while True:
        owner.check()
        time.sleep(lock._BEAT)


def test_who_lost_the_directory_writes_no_more(place, quick):
    storage = Storage(place)
    with DirectoryLock(storage) as owner:
        owner.check()
        storage.write("owner.json", b'{"host": "other", "pid": 1, "token": "another"}')
        with pytest.raises(StorageError, match="process 1 on other"):
            keep_asking(owner)  # until it has looked again
    assert json.loads(storage.read("owner.json"))["token"] == "another"


def test_a_store_that_fails_for_a_while_is_forgiven(place, quick, monkeypatch):
    storage = Storage(place)
    with DirectoryLock(storage) as owner:

        def fail(*_, **__):
            raise StorageError("no network")

        for name in ("write", "replace"):
            monkeypatch.setattr(storage, name, fail)
        time.sleep(2 * lock._LEASE)
        with pytest.raises(StorageError, match="no network"):
            owner.check()
        monkeypatch.undo()
        owner.check()


class Sweep:
    """A small sweep of two categories, whose directory is in an object store.

    Args:
        place: The directory.
        file: Where the sweep file is to be.
        data: Of the two categories.
        address: Of Ray.
    """

    def __init__(self, place: str, file: Path, data: Path, address: str) -> None:
        config = sweep_dict(
            data,
            trials=3,
            rungs=2,
            concurrency=1,  # a driver that is stopped keeps its place in Ray
            confirm={"top": 1, "seeds": [1, 2]},
            methods={"toy": {"fixed": {"seconds": 0.03}}},
        )
        file.write_text(yaml.safe_dump(config))
        self._words = ["sweep", file, "--dir", place, "--address", address]
        self.place = place
        self.storage = Storage(place)

    def start(self) -> Driver:
        return Driver(*self._words, prepare=hasten)

    def ended(self) -> dict[str, bytes]:
        """Returns the records that have ended, by their paths."""
        paths = [p for p in self.storage.list("", ".json") if p.startswith(("trials/", "confirm/"))]
        contents = zip(paths, self.storage.read_many(paths), strict=True)
        return {path: b for path, b in contents if b and json.loads(b)["state"] != "RUNNING"}

    def until(self, driver: Driver, count: int) -> dict[str, bytes]:
        """Waits until so many records have ended, and returns them."""
        while len(found := self.ended()) < count:
            assert driver.poll() is None, driver.err
            time.sleep(0.05)
        return found


@pytest.fixture
def sweep(proxy, tmp_path, toy_data, ray_address) -> Sweep:
    return Sweep(folder(proxy.address), tmp_path / "sweep.yaml", toy_data, ray_address)


@pytest.mark.ray
def test_a_whole_sweep_is_throttled_and_killed_and_goes_on(proxy, sweep, tmp_path):
    proxy.set(slow_down=0.15, cut=0.05, latency=0.003)
    before: dict[str, bytes] = {}
    for count in (2, 7):  # the second while winners are confirmed
        driver = sweep.start()
        sweep.until(driver, count)
        driver.kill()
        after = sweep.ended()
        assert {path: after[path] for path in before} == before
        before = after
    driver = sweep.start()
    assert driver.wait() == 0, driver.err
    assert sweep.place in driver.out
    assert proxy.look()["refused"] > 50
    proxy.set(slow_down=0.0, cut=0.0, latency=0.0)
    assert [*violations(download(sweep.place, tmp_path / "copy"), before)] == []
    address, _, options = sweep.place.partition("?")
    for category in ("plate", "ring"):  # also reads what a move has copied
        load_detector(f"{address}/models/{category}/toy?{options}")


@pytest.mark.ray
def test_a_driver_that_was_stopped_and_followed_changes_nothing(sweep, tmp_path):
    first = sweep.start()
    before = sweep.until(first, 2)
    first.send_signal(signal.SIGSTOP)
    try:
        before |= sweep.ended()  # what was under way then may have come through
        second = sweep.start()
        assert second.wait() == 0, second.err
        finished = sweep.storage.stamps("", "")
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait() == 2
    assert "another sweep owns this directory" in first.err
    assert "Traceback" not in first.err
    assert sweep.storage.stamps("", "") == finished
    assert [*violations(download(sweep.place, tmp_path / "copy"), before)] == []
