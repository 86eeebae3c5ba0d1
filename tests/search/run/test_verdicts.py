"""A verdict reaches its trial when the trial's record is safe; nobody else waits for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from anomtune.errors import StorageError
from anomtune.search.config import parse_sweep
from anomtune.search.decide.study import Study
from anomtune.search.run.adapters import PoolScheduler, PoolSearcher
from tests.search.conftest import Simulation, sweep_dict
from tests.search.run.test_gpu_sharing import Engine

CONTINUE, STOP, NOOP = PoolScheduler.CONTINUE, PoolScheduler.STOP, PoolScheduler.NOOP


class Tune:
    """Three workers as Tune sees them, and a storage that writes a record when it is let."""

    def __init__(self, simulation: Simulation, **changes: object) -> None:
        simulation.categories = ("a",)
        simulation.save = self._save
        config = parse_sweep(sweep_dict(concurrency=3, **changes), "test")
        self.engine = Engine(config, simulation, gpus=0)
        self.store = simulation.store
        self.records, self.searcher = self.engine.records, self.engine.searcher
        self.gates: dict[str, threading.Event] = {}
        self.broken = False
        self.went_on: list[str] = []
        self.stopped: list[str] = []
        self.events: list[bool] = []
        self._actor_manager = SimpleNamespace(next=lambda timeout: bool(self.events))
        self.get_trials = list

    def _save(self, record) -> None:
        path, text = record.path, record.model_dump_json()

        def write() -> None:
            assert self.gates.get(path) is None or self.gates[path].wait(10)
            if self.broken:
                raise StorageError("disk full")
            self.store[path] = text

        self.records.put(path, write)

    def hold(self, number: int) -> threading.Event:
        return self.gates.setdefault(f"trials/a/toy/{number:05d}", threading.Event())

    def start(self) -> list[str]:
        names = []
        while isinstance(self.searcher.suggest(str(self.engine.serial)), dict):
            names.append(str(self.engine.serial))
            self.engine.serial += 1
        assert self.engine.handout.failure is None
        return names

    def start_all(self) -> None:
        names: list[str] = []
        while len(names) < 3:
            names += self.start()

    def report(self, name: str) -> str:
        result = self.engine._result(name, 1, 1)
        return self.engine.scheduler.on_trial_result(self, SimpleNamespace(trial_id=name), result)

    def go_round(self) -> None:
        self.engine.scheduler.choose_trial_to_run(self)

    def _schedule_trial_train(self, trial) -> None:
        self.went_on.append(trial.trial_id)

    def stop_trial(self, trial) -> None:
        self.stopped.append(trial.trial_id)


@pytest.fixture
def tune(simulation) -> Iterator[Tune]:
    made = Tune(simulation, trials=30, rungs=4)
    try:
        with made.records:
            yield made
            for gate in made.gates.values():
                gate.set()
    except StorageError:
        assert made.broken


def safe(tune: Tune, name: str) -> None:
    while not tune.engine.handout.is_safe(tune.engine.handout.runs[name]):
        time.sleep(0.001)


def test_a_trial_starts_when_its_record_is_there_and_others_do_not_wait_for_it(tune):
    gate = tune.hold(1)
    names = []
    while len(names) < 2:
        names += tune.start()
    started = [tune.engine.handout.runs[name].record.number for name in names]
    assert started == [0, 2]
    assert tune.start() == []
    gate.set()
    while not (last := tune.start()):
        pass
    assert [tune.engine.handout.runs[name].record.number for name in last] == [1]


def test_with_nothing_else_to_do_the_first_record_is_waited_for(tune):
    gates = [tune.hold(number) for number in range(3)]
    threading.Timer(0.05, gates[0].set).start()
    assert tune.start() == ["0"], "Tune would sleep for a second"
    for gate in gates:
        gate.set()


def test_a_verdict_waits_for_its_own_record(tune):
    tune.start_all()
    for name in "012":
        safe(tune, name)
    gate = tune.hold(0)
    assert tune.report("0") == NOOP
    tune.go_round()
    assert tune.went_on == []
    if tune.report("1") == NOOP:
        safe(tune, "1")
        tune.go_round()
        assert tune.went_on == ["1"]
    gate.set()
    safe(tune, "0")
    tune.go_round()
    assert tune.went_on[-1] == "0"
    before = list(tune.went_on)
    tune.go_round()
    assert tune.went_on == before, "once"
    assert tune.stopped == []


def test_a_trial_is_stopped_when_the_rung_that_says_so_is_safe(tune, monkeypatch):
    report = Study.report
    monkeypatch.setattr(Study, "report", lambda *arguments: report(*arguments) or True)
    tune.start_all()
    for name in "012":
        safe(tune, name)
    gate = tune.hold(1)
    assert tune.report("1") == NOOP
    tune.go_round()
    assert tune.stopped == []
    gate.set()
    safe(tune, "1")
    tune.go_round()
    assert (tune.went_on, tune.stopped) == ([], ["1"])
    assert '"step":1' in tune.store["trials/a/toy/00001"]


def test_a_worker_that_dies_while_its_trial_waits_is_no_worry(tune):
    tune.start_all()
    gate = tune.hold(0)
    assert tune.report("0") == NOOP
    tune.searcher.on_trial_complete("0", error=True)
    gate.set()
    tune.records.drain()
    tune.go_round()
    assert (tune.went_on, tune.stopped) == ([], [])
    [again] = tune.start()
    assert tune.engine.handout.runs[again].record.number == 0


def test_storage_that_fails_stops_all_and_no_verdict_is_acted_on(tune):
    tune.start_all()
    for name in "012":
        safe(tune, name)
    gate, tune.broken = tune.hold(0), True
    assert tune.report("0") == NOOP
    gate.set()
    while not tune.records.idle:
        tune.go_round()
    tune.go_round()
    assert isinstance(tune.engine.handout.failure, StorageError)
    assert (tune.went_on, tune.stopped) == ([], ["0"])
    assert tune.report("1") == STOP
    assert tune.searcher.suggest("9") == PoolSearcher.FINISHED


def test_tunes_loop_goes_round_when_a_record_is_safe(tune):
    tune.start_all()
    for name in "012":
        safe(tune, name)
    tune.go_round()
    gate = tune.hold(0)
    tune.report("0")
    assert tune._actor_manager.next(timeout=0.02) is False
    threading.Timer(0.05, gate.set).start()
    begin = time.monotonic()
    assert tune._actor_manager.next(timeout=10) is True
    assert time.monotonic() - begin < 5
    tune.events.append(True)
    assert tune._actor_manager.next(timeout=0.02) is True
