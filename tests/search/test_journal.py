"""Records are written at once, curves soon after; what a killed driver left is written anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anomtune.search.journal import Journal
from anomtune.search.results.delivery import Loggers
from anomtune.search.results.tensorboard import CurveWriter
from anomtune.search.store.behind import Behind
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.records import AnyRecord, Cost, RecordStore, TrialRecord
from anomtune.search.store.sent import SentRecords
from anomtune.search.store.storage import Storage
from tests.search.results.test_tensorboard import TOY_PLANS, toy_record


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


@contextmanager
def journal(storage: Storage, most: int = 32) -> Iterator[Journal]:
    with Behind(most) as behind:
        loggers = Loggers([], SentRecords(storage), print)
        yield Journal(storage, DirectoryLock(storage), behind, TOY_PLANS, loggers)


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
    assert shown == [0, 1, 2]


def test_what_a_killed_driver_left_behind_is_written_anew(storage):
    records = [ended(number) for number in range(9)]
    for record in records:
        RecordStore(storage).write(record)
    with journal(storage, most=3) as open_journal:
        # Whole, and not: they go on, or are left.
        half = CurveWriter(storage, TOY_PLANS)
        half.update(toy_record(7, "RUNNING", 2))
        half.update(records[8])
        whole = storage.read(storage.list("tensorboard/plate/toy/00008", "")[0])
        open_journal.catch_up([toy_record(9, "RUNNING", 2), *reversed(records)], as_it_is)
    written = {Path(file).parent.name for file in storage.list("tensorboard", "")}
    assert written == {f"{number:05d}" for number in (5, 6, 7, 8)}
    assert all(steps(storage, record) == [1, 2, 3, 4] for record in records[-4:])
    assert storage.read(storage.list("tensorboard/plate/toy/00008", "")[0]) == whole


def test_nothing_is_written_into_a_directory_that_is_lost(storage, monkeypatch):
    def lost(self: DirectoryLock) -> None:
        raise RuntimeError("another driver has it")

    monkeypatch.setattr(DirectoryLock, "check", lost)
    with pytest.raises(RuntimeError, match="another driver"), journal(storage) as open_journal:
        open_journal.catch_up([ended(0)], as_it_is)
    assert storage.list("", "") == []
