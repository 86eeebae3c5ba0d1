"""Records are written in order, curves behind them; what a killed driver left is written anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anomtune.errors import StorageError
from anomtune.search import journal as journal_module
from anomtune.search.journal import Journal
from anomtune.search.results.tensorboard import CurveWriter
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import AnyRecord, Cost, TrialRecord
from anomtune.search.store.storage import Storage
from tests.search.results.test_tensorboard import TOY_PLANS, toy_record


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


@contextmanager
def journal(storage: Storage, told: list | None = None) -> Iterator[Journal]:
    tell = (lambda record: None) if told is None else told.append
    lock = DirectoryLock(storage)
    with Journal(RecordStore(storage, lock), lock, TOY_PLANS, tell) as opened:
        yield opened


def steps(storage: Storage, record: TrialRecord) -> list[int]:
    folder = storage.local_root / "tensorboard" / str(record.key) / f"{record.number:05d}"
    found = EventAccumulator(str(folder)).Reload()
    return [event.step for event in found.Scalars("auroc/validation")]


def ended(number: int) -> TrialRecord:
    finished = f"2026-01-01T00:00:{number:02d}+00:00"
    return toy_record(number, "COMPLETE", 4).model_copy(
        update={"cost": Cost(finished_at=finished), "params": {"quality": 0.5, "colour": "green"}}
    )


def as_it_is(record: AnyRecord) -> AnyRecord:
    return record


def test_a_record_does_not_wait_for_curves(storage, monkeypatch):
    gate, update = threading.Event(), CurveWriter.update

    def slow(self: CurveWriter, record: TrialRecord) -> None:
        gate.wait(10)
        update(self, record)

    monkeypatch.setattr(CurveWriter, "update", slow)
    record = toy_record(0, "RUNNING", 0)
    with journal(storage) as open_journal:
        for rung in toy_record(0, "RUNNING", 3).curve:
            record.curve.append(rung)
            open_journal.write(record, record)
        open_journal.records.drain()
        read = RecordStore(storage).read_trials(record.key)
        assert [len(one.curve) for one in read] == [3]
        assert storage.list("tensorboard", "") == []
        gate.set()
    assert steps(storage, record) == [1, 2, 3]


def test_a_change_is_shown_as_it_was(storage, monkeypatch):
    shown: list[int] = []
    monkeypatch.setattr(CurveWriter, "update", lambda self, one: shown.append(len(one.curve)))
    record = toy_record(0, "RUNNING", 0)
    with journal(storage) as open_journal:
        for rung in toy_record(0, "RUNNING", 3).curve:
            open_journal.write(record, record)
            record.curve.append(rung)
            open_journal.drain()
    assert shown == [0, 1, 2]


def test_what_a_killed_driver_left_behind_is_written_anew(storage, monkeypatch):
    for name in ("_UNSAFE", "_BEHIND"):
        monkeypatch.setattr(journal_module, name, 2)
    records = [ended(number) for number in range(9)]
    for record in records:
        RecordStore(storage).write(record)
    with journal(storage) as open_journal:
        # Whole, and not: they go on, or are left.
        half = CurveWriter(storage, TOY_PLANS)
        half.update(toy_record(7, "RUNNING", 2))
        half.update(records[8])
        whole = storage.read(storage.list("tensorboard/plate/toy/00008", "")[0])
        open_journal.catch_up([toy_record(9, "RUNNING", 2), *reversed(records)], as_it_is)
    written = {Path(file).parent.name for file in storage.list("tensorboard", "")}
    assert written == {f"{number:05d}" for number in (4, 5, 6, 7, 8)}
    assert all(steps(storage, record) == [1, 2, 3, 4] for record in records[-5:])
    assert storage.read(storage.list("tensorboard/plate/toy/00008", "")[0]) == whole


def test_nothing_is_written_into_a_directory_that_is_lost(storage, monkeypatch):
    def lost(self: DirectoryLock) -> None:
        raise RuntimeError("another driver has it")

    monkeypatch.setattr(DirectoryLock, "check", lost)
    with pytest.raises(RuntimeError, match="another driver"), journal(storage) as open_journal:
        open_journal.catch_up([ended(0)], as_it_is)
    assert storage.list("", "") == []


@pytest.fixture
def held(storage, monkeypatch) -> Iterator[Callable[[str], threading.Event]]:
    """Lets the writing of records wait for an event of their own."""
    gates: dict[str, threading.Event] = {}
    write = RecordStore.write

    def slow(self: RecordStore, record: AnyRecord) -> None:
        if record.path in gates:
            assert gates[record.path].wait(10)
        write(self, record)

    monkeypatch.setattr(RecordStore, "write", slow)
    yield lambda path: gates.setdefault(path, threading.Event())
    for gate in gates.values():
        gate.set()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_record_waits_for_itself_alone(storage, held):
    slow, quick = toy_record(1, "RUNNING", 2), toy_record(2, "RUNNING", 2)
    gate = held(slow.path)
    with journal(storage) as open_journal:
        open_journal.write(slow, slow)
        open_journal.write(quick, quick)
        wait_for(lambda: open_journal.records.is_done(quick.path))
        assert not open_journal.records.is_done(slow.path)
        gate.set()
        wait_for(lambda: open_journal.records.is_done(slow.path))


def test_what_begins_is_not_there_before_what_had_ended(storage, held):
    done, begun = ended(1), toy_record(2, "RUNNING", 0)
    on_its_way = toy_record(3, "RUNNING", 1)
    gate = held(done.path)
    with journal(storage) as open_journal:
        open_journal.write(done, done)
        open_journal.write(begun, begun)
        open_journal.write(on_its_way, on_its_way)
        wait_for(lambda: open_journal.records.is_done(on_its_way.path))
        assert storage.list("trials", ".json") == [f"{on_its_way.path}.json"]
        gate.set()
        open_journal.drain()
    assert len(storage.list("trials", ".json")) == 3


def test_changes_are_told_in_order_and_when_they_are_safe(storage, held):
    slow, quick = toy_record(1, "RUNNING", 2), toy_record(2, "RUNNING", 2)
    gate, told = held(slow.path), []
    with journal(storage, told) as open_journal:
        open_journal.write(slow, slow)
        open_journal.write(quick, quick)
        wait_for(lambda: open_journal.records.is_done(quick.path))
        open_journal.records.settle()
        assert told == []
        gate.set()
        open_journal.drain()
        assert [record.number for record in told] == [1, 2]


def test_what_follows_is_done_when_all_before_it_is_safe(storage, held):
    record = ended(1)
    gate, found = held(record.path), []
    with journal(storage) as open_journal:
        open_journal.write(record, record)
        open_journal.follow("x", lambda: found.extend(storage.list("trials", ".json")))
        open_journal.records.settle()
        assert found == []
        gate.set()
        open_journal.drain()
    assert found == [f"{record.path}.json"]


def test_a_full_disk_is_told_to_whoever_asks(storage, monkeypatch):
    def full(self: RecordStore, record: AnyRecord) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr(RecordStore, "write", full)
    record, told = toy_record(1, "RUNNING", 2), []

    def write_and_ask() -> None:
        with journal(storage, told) as open_journal:
            open_journal.write(record, record)
            while not open_journal.records.is_done(record.path):
                open_journal.records.settle()

    with pytest.raises(StorageError, match="disk full"):
        write_and_ask()
    assert told == []
    assert storage.list("", "") == []
