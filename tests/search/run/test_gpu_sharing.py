"""Runs that share GPUs: what the engine hands out, and a sweep on GPUs that are not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from anomtune.search.decide.work import Confirmation, Work
from anomtune.search.detector import devices
from anomtune.search.detector.devices import gpu_memory, limit_memory
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.run import trial as trial_module
from anomtune.search.run.adapters import PoolScheduler, PoolSearcher
from anomtune.search.run.capacity import Capacity
from anomtune.search.run.handout import IDLE_SECONDS, Handout
from anomtune.search.run.messages import (
    Assignment,
    Failed,
    OutOfMemory,
    TrialReport,
    from_result,
    to_result,
)
from anomtune.search.run.packing import CONTEXT_BYTES, SHARES, memory_limit
from anomtune.search.run.sharing import Sharing
from anomtune.search.run.trial import TrialResult, TrialSpec, open_trial
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import Cost, Rung, StudyKey
from anomtune.search.store.storage import Storage
from anomtune.search.store.writer import OrderedWriter
from tests.search.conftest import FACTS, sweep_dict

GIB = 1 << 30


class Engine:
    """The engine's adapters as Tune uses them, on a node that exists only here."""

    def __init__(self, config, simulation, gpus=2, records=None):
        self.simulation = simulation
        pool = simulation.pool(config)
        work = Work(config, pool, Confirmation(config, pool, {}, lambda record: None))
        nodes = [{"CPU": 16.0, "GPU": float(gpus)}] if isinstance(gpus, int) else gpus
        capacity = Capacity(config, lambda: nodes)
        self.records = records or OrderedWriter(2, 100)
        self.handout = Handout(config, work, self._spec, capacity, self.records)
        self.searcher, self.scheduler = PoolSearcher(self.handout), PoolScheduler(self.handout)
        self.serial = 0

    def _spec(self, record, gpu):
        training = TrainingSpec(
            dataset={"name": "folder"},
            category=record.category,
            method=record.method,
            hyperparameters=record.params,
        )
        return TrialSpec(
            training=training,
            directory="/nowhere",
            record_path=record.path,
            rungs=4,
            threads=1,
            gpu=gpu,
        )

    def start(self) -> dict[str, TrialSpec]:
        """Starts all that can start now."""
        started = self.start_what_can()
        assert self.handout.failure is None
        return started

    def start_what_can(self) -> dict[str, TrialSpec]:
        started = {}
        self.handout.look()
        while isinstance(suggestion := self.searcher.suggest(str(self.serial)), dict):
            assignment = Assignment.of(suggestion)
            assert assignment.shape.get("GPU", 0) == assignment.spec.gpu
            started[str(self.serial)] = assignment.spec
            self.serial += 1
        return started

    def report(self, name: str, peak: float, step: int = 1) -> None:
        result = self._result(name, peak, step)
        self.scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), result)

    def complete(self, name: str, peak: float, seconds: float = 1.0, device: int = 16) -> None:
        result = self._result(name, peak, 4, facts=FACTS, seconds=seconds, device=device)
        self.searcher.on_trial_complete(name, result)
        assert self.handout.failure is None

    def run_out(self, name: str) -> None:
        self.searcher.on_trial_complete(name, to_result(OutOfMemory()))
        assert self.handout.failure is None

    def record(self, number: int):
        return self.simulation.records()[StudyKey("a", "toy")][number]

    def _result(self, name, peak, step, *, facts=None, seconds=1.0, device=16):
        cost = Cost(
            train_seconds=seconds * step,
            iterations=step,
            peak_memory_bytes=int(peak * GIB),
            gpu=self.handout.runs[name].gpu,
            gpu_memory_bytes=device * GIB,
        )
        rung = Rung(step=step, auroc=0.5, auroc_low=0, auroc_high=1)
        return to_result(TrialReport(result=TrialResult(rung=rung, cost=cost, facts=facts)))


@pytest.fixture
def engine(make_sweep, simulation):
    simulation.categories = ("a",)

    def make(gpus=2, **changes):
        changes = {"trials": 30, "confirm": 0, "sampler": "random"} | changes
        return Engine(make_sweep(**changes), simulation, gpus)

    return make


def gpus(started: dict[str, TrialSpec]) -> list[float]:
    return [spec.gpu for spec in started.values()]


def numbers(started: dict[str, TrialSpec]) -> list[int]:
    return [int(spec.record_path.rpartition("/")[2]) for spec in started.values()]


def test_the_first_runs_have_whole_gpus_and_the_next_what_they_need(engine):
    sweep = engine()
    first = sweep.start()
    assert gpus(first) == [1, 1]
    sweep.report("0", peak=2)
    assert sweep.start() == {}  # both are taken
    sweep.complete("0", peak=2)
    assert gpus(sweep.start()) == [1 / 4] * 4
    assert sweep.record(0).cost.gpu == 1


class HoldsBack(Sharing):
    """Others want the room, until ``wanted`` is taken away."""

    wanted = contended = True

    def holds_back(self, shape, beside=()):
        return self.wanted


def test_a_run_that_is_held_back_is_the_next_and_no_other_is_begun(engine):
    sweep = engine(gpus=3)
    sweep.handout.sharing = sharing = HoldsBack()
    for _ in range(3):
        assert sweep.start() == {}
    assert [record.number for record in sweep.simulation.records()[StudyKey("a", "toy")]] == [0]
    sharing.wanted = False
    assert numbers(sweep.start()) == [0, 1, 2]


def test_a_run_that_is_taken_back_is_begun_again_and_has_lost_nothing(engine):
    sweep = engine()
    assert numbers(sweep.start()) == [0, 1]
    sweep.handout.sharing = sharing = HoldsBack()
    stopped = []

    def stop_trial(trial) -> None:
        stopped.append(trial.trial_id)
        sweep.searcher.on_trial_complete(trial.trial_id)

    shape = sweep.handout.capacity.shape(1.0)
    sweep.handout.actors.without_room = lambda: [(SimpleNamespace(trial_id="1"), shape)]
    sweep.scheduler._share(SimpleNamespace(stop_trial=stop_trial))
    assert stopped == ["1"]
    assert sweep.record(1).state == "RUNNING"
    assert sweep.start() == {}
    sharing.wanted = False
    again = sweep.start()
    assert numbers(again) == [1]
    assert sweep.handout.runs[next(iter(again))].deaths == 0


def test_a_sweep_takes_no_more_gpus_than_it_may(engine):
    sweep = engine(gpus=4, resources={"max": {"gpu": 1}})
    assert gpus(sweep.start()) == [1]
    sweep.complete("0", peak=2)
    assert gpus(sweep.start()) == [1 / 4] * 4


def test_idle_actors_of_another_shape_go_when_there_may_be_no_more(engine):
    sweep = engine(gpus=4, resources={"max": {"gpu": 1}})
    sweep.start()
    sweep.complete("0", peak=2)
    handout = sweep.handout
    held = {"whole": handout.capacity.shape(1.0)}
    handout.actors.held = lambda: held
    assert handout._stays("whole", 5.0)
    assert sweep.start() == {}
    handout.look()
    assert handout._stays("whole", 0.1), "it may be taken yet"
    assert not handout._stays("whole", 5.0)
    held.clear()
    assert gpus(sweep.start()) == [1 / 4] * 4
    held |= dict.fromkeys("abcd", handout.capacity.shape(1 / 4))
    assert handout._stays("a", 5.0)
    assert not handout._stays("a", IDLE_SECONDS)


def test_a_later_start_goes_on_packed(engine):
    sweep = engine()
    sweep.start()
    sweep.complete("0", peak=2)
    again = engine()
    assert gpus(again.start()) == [1 / 4] * 8


def test_a_run_without_memory_is_retried_in_the_next_larger_share_and_its_record_stays(engine):
    sweep = engine(gpus=1)
    sweep.start()
    sweep.complete("0", peak=2)
    sharing = sweep.start()
    assert gpus(sharing) == [1 / 4] * 4
    unlucky = numbers(sharing)[0]
    sweep.run_out("1")
    assert sweep.record(unlucky).state == "RUNNING"
    assert sweep.start() == {}  # it is the next, and wants more than is left
    sweep.complete("2", peak=2)
    retried = sweep.start()
    assert (gpus(retried), numbers(retried)) == ([1 / 3], [unlucky])
    sweep.complete("5", peak=4)
    cost = sweep.record(unlucky).cost
    assert (cost.gpu, cost.ran_out_with) == (1 / 3, 1 / 4)
    assert gpus(sweep.start()) == [1 / 3]


def test_a_config_that_no_gpu_holds_fails_with_its_reason_and_changes_nothing(engine):
    sweep = engine(gpus=1, trials=6)
    sweep.start()
    sweep.complete("0", peak=2)
    sharing = sweep.start()
    unlucky = numbers(sharing)[0]
    for share in (1 / 4, 1 / 3, 1):
        [name] = [name for name, run in sweep.handout.runs.items() if run.record.number == unlucky]
        assert sweep.handout.runs[name].gpu == share
        assert sweep.record(unlucky).state == "RUNNING"
        sweep.run_out(name)
        for other in list(sweep.handout.runs):
            sweep.complete(other, peak=2)
        sweep.start()
    failed = sweep.record(unlucky)
    assert failed.state == "FAIL"
    assert failed.error == "out of GPU memory with 1/3 of a GPU, and again with a whole GPU"
    assert failed.traceback is None
    assert sweep.handout.packer.smallest() == 1 / 4


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        ("auto", "out of GPU memory with a whole GPU"),
        (0.5, "out of GPU memory with 1/2 of a GPU; resources.gpu can give it more"),
        (2, "out of GPU memory with 2 GPUs"),
    ],
)
def test_there_is_no_retry_where_there_is_no_larger_share(engine, gpu, reason):
    sweep = engine(resources={"gpu": gpu})
    started = sweep.start()
    sweep.run_out("0")
    assert sweep.record(numbers(started)[0]).error == reason


SMALL = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:T4": 1.0}
LARGE = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:A100": 1.0}


def types(sweep: Engine) -> list[str | None]:
    return [run.gpu_type for run in sweep.handout.runs.values()]


def test_each_type_of_gpu_is_tried_and_has_its_own_share(engine):
    sweep = engine(gpus=[SMALL, LARGE])
    assert gpus(sweep.start()) == [1, 1]
    assert sorted(types(sweep)) == ["A100", "T4"]
    memory = {"A100": 80, "T4": 16}
    for name, run in list(sweep.handout.runs.items()):
        slow = 2.0 if run.gpu_type == "A100" else 1.0
        sweep.complete(name, peak=5, device=memory[run.gpu_type], seconds=slow)
    sweep.start()
    shares = {(run.gpu_type, run.gpu) for run in sweep.handout.runs.values()}
    assert shares == {("A100", 1 / 8), ("T4", 1 / 2)}
    assert types(sweep).count("T4") == 2


def test_records_name_the_type_and_a_later_start_goes_on_packed_by_type(engine):
    sweep = engine(gpus=[SMALL, LARGE])
    sweep.start()
    memory = {"A100": 80, "T4": 16}
    for name, run in list(sweep.handout.runs.items()):
        number = run.record.number
        sweep.report(name, peak=5)
        assert sweep.record(number).cost.gpu_type == run.gpu_type
        slow = 2.0 if run.gpu_type == "A100" else 1.0
        sweep.complete(name, peak=5, device=memory[run.gpu_type], seconds=slow)
        assert sweep.record(number).cost.gpu_type == run.gpu_type
    again = engine(gpus=[SMALL, LARGE])
    again.start()
    shares = {(run.gpu_type, run.gpu) for run in again.handout.runs.values()}
    assert shares == {("A100", 1 / 8), ("T4", 1 / 2)}


def test_a_run_that_a_small_gpu_does_not_hold_is_retried_on_a_larger_type(engine):
    sweep = engine(gpus=[SMALL, LARGE])
    sweep.start()
    memory = {"A100": 80, "T4": 16}
    for name, run in list(sweep.handout.runs.items()):
        sweep.complete(name, peak=12, device=memory[run.gpu_type])
    started = sweep.start()
    name = next(n for n, run in sweep.handout.runs.items() if run.gpu_type == "T4")
    number = int(started[name].record_path.rpartition("/")[2])
    sweep.run_out(name)
    assert sweep.record(number).state == "RUNNING"
    for other, run in list(sweep.handout.runs.items()):
        sweep.complete(other, peak=12, device=memory[run.gpu_type])
    again = sweep.start()
    (name,) = [n for n, spec in again.items() if spec.record_path.endswith(f"{number:05}")]
    assert sweep.handout.runs[name].slot == (1, "A100")
    sweep.run_out(name)
    assert sweep.record(number).state == "FAIL"


def test_one_config_without_memory_does_not_end_the_packing_of_others(engine):
    sweep = engine()
    sweep.start()
    sweep.run_out("0")
    sweep.complete("1", peak=2)
    assert gpus(sweep.start()) == [1 / 4] * 8


def test_runs_that_slow_each_other_stop_sharing(engine):
    sweep = engine(gpus=1)
    sweep.start()
    sweep.complete("0", peak=5)
    pair = sweep.start()
    assert gpus(pair) == [1 / 2] * 2
    for name in pair:
        sweep.complete(name, peak=5, seconds=3)
    assert gpus(sweep.start()) == [1]


def test_without_gpus_nothing_is_shared(engine):
    sweep = engine(gpus=0)
    assert gpus(sweep.start()) == [0.0] * 10  # the study's random ones, on 16 cores
    assert all(run.kind is None for run in sweep.handout.runs.values())


def test_a_share_is_enforced(monkeypatch):
    limits = []
    fake = SimpleNamespace(
        is_available=lambda: True,
        get_device_properties=lambda device: SimpleNamespace(total_memory=16 * GIB),
        set_per_process_memory_fraction=limits.append,
        reset_peak_memory_stats=lambda device: None,
    )
    monkeypatch.setattr(devices.torch, "cuda", fake)
    monkeypatch.setattr(trial_module.torch, "set_num_threads", lambda number: None)
    opened = []
    monkeypatch.setattr(trial_module, "open_detector", lambda spec, device: opened.append(device))

    def open_with(gpu: float) -> None:
        open_trial(TrialSpec.model_construct(gpu=gpu, threads=1, training=None))

    assert gpu_memory(torch.device("cuda")) == 16 * GIB
    open_with(1.0)
    assert limits == []
    open_with(0.25)
    assert limits == [pytest.approx(0.25 - CONTEXT_BYTES / (16 * GIB))]
    open_with(0.0)
    limit_memory(torch.device("cpu"), GIB)
    assert gpu_memory(torch.device("cpu")) is None
    assert len(limits) == 1
    assert [device.type for device in opened] == ["cuda", "cuda", "cpu"]


@pytest.mark.parametrize(
    ("error", "gpu", "retry"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 0.5, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), 0.5, True),
        (RuntimeError("CUDA error: out of memory"), 1.0, True),
        (RuntimeError("shapes do not match"), 0.5, False),
        (ValueError("out of memory"), 0.5, False),
        (torch.OutOfMemoryError("CUDA out of memory"), 0.0, False),
    ],
)
def test_a_worker_tells_memory_from_other_failures(error, gpu, retry):
    from anomtune.search.run.worker import TrialActor

    def failing():
        raise error
        yield

    actor = object.__new__(TrialActor)
    actor._spec = TrialSpec.model_construct(gpu=gpu)
    actor._results = failing()
    result = actor.step()
    assert isinstance(from_result(result), OutOfMemory if retry else Failed)
    assert result["done"]


def test_a_process_whose_gpu_refuses_further_work_is_not_used_again():
    from anomtune.search.run.worker import TrialActor

    def failing():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
        yield

    actor = object.__new__(TrialActor)
    actor._spec = TrialSpec.model_construct(gpu=1.0)
    actor._results = failing()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        actor.step()  # Tune ends the process, and the engine begins the run again in another


@pytest.mark.ray
def test_a_sweep_on_gpus_that_are_not_there(tmp_path, toy_data):
    methods = {
        "toy": {
            # GiB that the run is to need; trial 0 has none, which means 2.
            "space": {"marker": {"choices": ["2", "5", "40"]}},
            # As fast in a share as on a whole GPU: without it microseconds would be compared.
            "fixed": {"seconds": 0.02},
        }
    }
    sweep = sweep_dict(
        toy_data, trials=12, confirm=0, sampler="random", pruner="none", methods=methods,
        resources={"accelerator": "T4"},
        dataset={"name": "folder", "root": str(toy_data), "categories": ["plate"]},
    )  # fmt: skip
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    script = Path(__file__).parent / "gpu_sweep.py"
    command = [sys.executable, script, *(tmp_path / name for name in ("sweep.json", "out", "log"))]
    # In a process of its own: the session's Ray has no GPUs.
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])

    records = RecordStore(Storage(tmp_path / "out")).read_all()[StudyKey("plate", "toy")]
    assert len(records) == 12
    for record in records:
        if record.params["marker"] == "40":
            assert record.state == "FAIL"
            assert record.error.startswith("out of GPU memory with ")
            assert record.error.endswith("a whole GPU")
        else:
            assert record.state == "COMPLETE", record.error
            assert record.cost.gpu in SHARES
            assert record.cost.gpu_type == "T4"
            limit = memory_limit(record.cost.gpu, 16 * GIB)
            assert int(record.params["marker"] or 2) * GIB <= limit
    assert any(" and again with a whole GPU" in record.error for record in records if record.error)

    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    runs = [line for line in lines if "end" in line]
    assert {run["share"] for run in runs} > {1.0}
    assert {run["gpu"] for run in runs} == {"T4-0", "T4-1"}
    for gpu in ("T4-0", "T4-1"):
        on_it = [run for run in runs if run["gpu"] == gpu]
        for moment in [run["begin"] for run in on_it]:
            there = [run["share"] for run in on_it if run["begin"] <= moment < run["end"]]
            assert sum(there) <= 1 + 1e-3
    assert any(
        one["gpu"] == two["gpu"] and one["begin"] < two["begin"] < one["end"]
        for one in runs
        for two in runs
    )
