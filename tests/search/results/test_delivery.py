"""Nobody waits for a logger, none ends a sweep, and none is told twice by the next start."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from anomtune.search.logger_config import LoggerConfig
from anomtune.search.results import delivery
from anomtune.search.results.delivery import Loggers
from anomtune.search.results.logger import Logger, LoggerMaker
from anomtune.search.store.records import AnyRecord, Cost
from anomtune.search.store.sent import SentRecords
from anomtune.search.store.storage import Storage
from tests.search.results.test_tensorboard import toy_record


class Spy(Logger):
    """Notes what arrives; what it is given to do comes first."""

    def __init__(self, act: Callable[[AnyRecord], object] = lambda record: None) -> None:
        self.act = act
        self.seen: list[tuple[int, str, int]] = []
        self.closed = 0

    def update(self, record: AnyRecord) -> None:
        self.act(record)
        self.seen.append((record.number, record.state, len(record.curve)))

    def close(self) -> None:
        self.closed += 1


def ended(number: int, finished: int = 0) -> AnyRecord:
    cost = Cost(finished_at=f"2026-01-01T00:{finished:02d}:{number:02d}+00:00")
    return toy_record(number, "COMPLETE", 4).model_copy(update={"cost": cost})


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage(tmp_path)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def start(storage, notes):
    """Returns the loggers of a start of a sweep; names are told apart."""

    def start(*spies: Logger, make: Callable[[], Logger] | None = None) -> Loggers:
        makers = [
            LoggerMaker(LoggerConfig(name=f"lab:{number}"), make or (lambda spy=spy: spy))
            for number, spy in enumerate(spies)
        ]
        return Loggers(makers, SentRecords(storage), notes.append, pause=0.01)

    return start


def as_it_is(record: AnyRecord) -> AnyRecord:
    return record


def test_a_logger_sees_every_state_in_order_and_is_closed(start, notes):
    spy = Spy()
    arrived = threading.Semaphore(0)
    spy.act = lambda record: arrived.release()
    with start(spy) as loggers:
        for rungs in range(3):
            loggers.put(toy_record(0, "RUNNING", rungs))
            arrived.acquire()
        loggers.put(ended(0))
    assert spy.seen == [(0, "RUNNING", 0), (0, "RUNNING", 1), (0, "RUNNING", 2), (0, "COMPLETE", 4)]
    assert spy.closed == 1
    assert notes == []


def test_a_slow_logger_holds_up_nobody_and_is_given_the_newest(start):
    gate, begun = threading.Event(), threading.Event()

    def slow(record: AnyRecord) -> None:
        begun.set()
        gate.wait(10)

    spy, quick = Spy(slow), Spy()
    with start(spy, quick) as loggers:
        loggers.put(toy_record(9, "RUNNING", 0))
        begun.wait(10)
        for number in range(3):
            for rungs in range(500):
                loggers.put(toy_record(number, "RUNNING", rungs % 4))
            loggers.put(ended(number))
        assert spy.seen == []
        gate.set()
    assert spy.seen == [(9, "RUNNING", 0), *((number, "COMPLETE", 4) for number in range(3))]
    assert quick.seen[-1] == (2, "COMPLETE", 4)


@pytest.mark.parametrize("error", [OSError("away"), SystemExit(1), KeyboardInterrupt()])
def test_a_logger_that_raises_is_told_once_and_tried_again(start, notes, error):
    failures = []

    def fail_five_times(record: AnyRecord) -> None:
        if len(failures) < 5:
            failures.append(record.number)
            raise error

    spy, other, done = Spy(fail_five_times), Spy(), threading.Event()
    spy.close = done.set
    with start(spy, other) as loggers:
        for number in range(3):
            loggers.put(ended(number))
        end = time.monotonic() + 10
        while len(spy.seen) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    assert sorted(number for number, *_ in spy.seen) == [0, 1, 2]
    assert len(other.seen) == 3
    assert done.is_set()
    (note,) = notes
    assert note.startswith(f"logger lab:0: {type(error).__name__}")
    assert note.endswith("; the sweep goes on, and tries again")


def test_one_that_cannot_be_made_is_told_and_tried_again(start, notes):
    spy, attempts = Spy(), []

    def make() -> Logger:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError("no route to host")
        return spy

    with start(spy, make=make) as loggers:
        loggers.put(ended(0))
        end = time.monotonic() + 10
        while not spy.seen and time.monotonic() < end:
            time.sleep(0.01)
    assert [note.partition(";")[0] for note in notes] == [
        "logger lab:0: ConnectionError: no route to host"
    ]


def test_what_has_not_arrived_is_counted_and_sent_by_the_next_start(start, notes):
    def never(record: AnyRecord) -> None:
        if record.number in {1, 2}:
            raise OSError("away")

    records = [ended(number) for number in range(4)]
    spy = Spy(never)
    with start(spy) as loggers:
        loggers.put(records[0])
        while not spy.seen:
            time.sleep(0.01)
        loggers.put(records[1])
        loggers.put(records[2])
    assert len(notes) == 2
    assert notes[1].startswith("logger lab:0: 2 runs not logged; the same command")
    again = Spy()
    with start(again) as loggers:
        loggers.catch_up([*records, toy_record(5, "RUNNING", 2)], as_it_is)
    assert again.seen == [(number, "COMPLETE", 4) for number in (1, 2, 3)]
    last = Spy()
    with start(last) as loggers:
        loggers.catch_up(records, as_it_is)
        # One that was run again under the same number has not arrived.
        loggers.catch_up([ended(3, finished=1)], as_it_is)
    assert last.seen == [(3, "COMPLETE", 4)]


def test_a_new_logger_is_told_all_and_one_that_was_there_nothing(start):
    records = [ended(number) for number in range(3)]
    with start(Spy()) as loggers:
        loggers.catch_up(records, as_it_is)
    old, new = Spy(), Spy()
    with start(old, new) as loggers:
        loggers.catch_up(reversed(records), as_it_is)
    assert old.seen == []
    assert [number for number, *_ in new.seen] == [0, 1, 2]


def test_one_that_hangs_does_not_keep_a_sweep(start, notes, monkeypatch, storage):
    monkeypatch.setattr(delivery, "_PATIENCE", 0.3)
    monkeypatch.setattr(delivery, "_UNNOTICED", 0.05)
    gate = threading.Event()
    spy = Spy(lambda record: gate.wait(20))
    with start(spy) as loggers:
        loggers.put(ended(0))
        loggers.put(ended(1))
    assert notes[0] == "waiting for loggers, 0 s at most"
    assert notes[1].startswith("logger lab:0: 2 runs not logged")
    storage.delete("loggers.json")
    gate.set()
    while not spy.closed:
        time.sleep(0.01)
    time.sleep(0.05)
    assert storage.read("loggers.json") is None, "the directory may be another's by now"


def test_the_name_of_a_directory_stays(storage, start):
    with start(Spy()):
        first = SentRecords(storage).sweep_id
    assert first == SentRecords(storage).sweep_id
    storage.write("loggers.json", b"half a fi")
    assert SentRecords(storage).sweep_id != first


def test_a_sweep_without_loggers_keeps_nothing(storage, start):
    with start() as loggers:
        loggers.put(ended(0))
        loggers.catch_up([ended(0)], as_it_is)
    assert storage.list("", "") == []
