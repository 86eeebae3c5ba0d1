"""A driver that dies at any write: nothing finished is lost or run twice, nothing goes on early.

The adapters, the pool and the journal are real; workers take no time, and whatever is not written
when the driver dies never will be.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from anomtune.errors import StorageError
from anomtune.search.config import Sweep
from anomtune.search.journal import Journal
from anomtune.search.run.adapters import PoolScheduler
from anomtune.search.run.messages import TrialReport, to_result
from anomtune.search.run.trial import TrialResult
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import AnyRecord, Cost, TrialRecord
from anomtune.search.store.storage import Storage
from tests.search.conftest import FACTS, Simulation
from tests.search.run.test_gpu_sharing import Engine


class Workers:
    """Stands where Tune's controller does."""

    def __init__(self, engine: Engine, config: Sweep, store: RecordStore, seed: int) -> None:
        self.engine, self.config, self.store = engine, config, store
        self.handout = engine.handout
        self.generator = random.Random(seed)
        self.steps: dict[str, int] = {}
        self._actor_manager = self
        self.get_trials = list

    def run(self) -> None:
        """Runs until nothing is left, or until the driver dies."""
        while self.handout.work.remaining and self.handout.failure is None:
            for name, spec in self.engine.start_what_can().items():
                assert self.on_disk(spec.record_path) == 0
                self.steps[name] = 1
            self.engine.scheduler.choose_trial_to_run(self)
            self._actor_manager.next(timeout=0.1)
        if self.handout.failure is not None:
            raise self.handout.failure

    def next(self, timeout: float) -> bool:
        if not self.steps:
            time.sleep(min(timeout, 0.001))
            return False
        name = self.generator.choice(sorted(self.steps))
        record = self.handout.runs[name].record
        step, scorings = self.steps.pop(name), len(self.plan(record).scorings)
        rung = Simulation._rung(record, step, self.config, scorings)
        facts = FACTS if step == self.config.rungs else None
        result = to_result(TrialReport(result=TrialResult(rung=rung, cost=Cost(), facts=facts)))
        trial = SimpleNamespace(trial_id=name, last_result=result, step=step)
        if facts is not None:
            self.stop_trial(trial)
            return True
        verdict = self.engine.scheduler.on_trial_result(self, trial, result)
        if verdict == PoolScheduler.CONTINUE:
            self._schedule_trial_train(trial)
        elif verdict == PoolScheduler.STOP:
            self.stop_trial(trial)
        return True

    def plan(self, record: AnyRecord):
        return self.handout.work.pool.studies[record.key].plan

    def on_disk(self, path: str) -> int | None:
        """Returns the last rung of the record on the disk, if it says that it runs."""
        content = self.store.storage.read(f"{path}.json")
        record = TrialRecord.model_validate_json(content or b"")
        assert record.state == "RUNNING"
        return record.curve[-1].step if record.curve else 0

    def _schedule_trial_train(self, trial) -> None:
        assert self.on_disk(self.handout.runs[trial.trial_id].record.path) == trial.step
        self.steps[trial.trial_id] = trial.step + 1

    def stop_trial(self, trial) -> None:
        if trial.step < self.config.rungs and self.handout.failure is None:
            assert self.on_disk(self.handout.runs[trial.trial_id].record.path) == trial.step
        self.engine.searcher.on_trial_complete(trial.trial_id, trial.last_result)


def ended(directory: Path) -> dict[str, str]:
    files = {str(path): path.read_text() for path in directory.glob("trials/*/*/0*.json")}
    return {path: text for path, text in files.items() if '"state": "RUNNING"' not in text}


@pytest.fixture
def start(tmp_path, monkeypatch, make_sweep) -> Callable[..., bool]:
    """Starts a driver that dies after so many writes; returns whether it came to the end."""
    write = RecordStore.write

    def begin(seed: int, writes: float, workers: int) -> bool:
        config = make_sweep(trials=8, concurrency=workers)
        storage, simulation, generator = Storage(tmp_path), Simulation(), random.Random(seed)
        written: list[str] = []

        def mortal(store: RecordStore, record: AnyRecord) -> None:
            time.sleep(generator.random() * 2e-3)
            written.append(record.path)
            if len(written) > writes:
                raise StorageError("killed")
            if record.state == "RUNNING" and not record.curve:
                # What it is may follow from all that the pool had been told by then.
                assert known[record.path] <= {str(tmp_path / path) for path in ended(tmp_path)}
            write(store, record)

        known: dict[str, set[str]] = {}

        def save(record: TrialRecord) -> None:
            if record.state == "RUNNING" and not record.curve:
                known[record.path] = {
                    str(tmp_path / f"{other.path}.json")
                    for study in engine.handout.work.pool.studies.values()
                    for other in study.records.values()
                    if other.state != "RUNNING"
                }
            journal.write(record, record)

        monkeypatch.setattr(RecordStore, "write", mortal)
        simulation.save, simulation.records = save, RecordStore(storage).read_all
        try:
            lock = DirectoryLock(storage)
            with Journal(RecordStore(storage, lock), lock, simulation.plans(config)) as journal:
                engine = Engine(config, simulation, gpus=0, records=journal.records)
                Workers(engine, config, RecordStore(storage), seed).run()
        except StorageError:
            return False
        return True

    return begin


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_write(tmp_path, start, seed):
    generator, before = random.Random(seed), {}
    finished, starts = False, 0
    while not finished:
        finished = start(generator.random(), generator.randrange(1, 40), generator.randint(1, 6))
        after = ended(tmp_path)
        assert {path: after.get(path) for path in before} == before, "a finished record changed"
        before, starts = after, starts + 1
    assert starts > 1
    assert sorted(Path(path).stem for path in after) == [
        name for number in range(8) for name in [f"{number:05d}"] * 2
    ]


def test_killed_with_one_worker_it_comes_to_the_same(tmp_path, start):
    def records() -> dict[str, dict]:
        found = RecordStore(Storage(tmp_path)).read_all()
        return {r.path: r.model_dump(exclude={"cost"}) for all_ in found.values() for r in all_}

    assert start(0, float("inf"), 1)
    whole = records()
    for path in tmp_path.glob("trials/*/*/0*.json"):
        path.unlink()
    generator = random.Random(1)
    while not start(generator.random(), generator.randrange(1, 20), 1):
        pass
    assert records() == whole
