"""Sweeps on a real Ray that others want as well, on GPUs that it only believes in.

Idle workers go, large runs have room among small ones, drivers share, types are told apart. How
long something waits is bounded by the length of a run, and `START`; without what is tested it would
wait to the end of a sweep that is many times longer, or for ever.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import ray
import yaml

from anomtune.search.run import handout
from anomtune.search.run.board import ray_board
from anomtune.search.run.claims import Claim, Held
from anomtune.search.run.ray_internals import live_nodes
from anomtune.search.run.sharing import BEAT, PATIENCE, QUANTUM
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import TrialRecord
from anomtune.search.store.storage import Storage
from anomtune.search.sweep import run
from tests.driver import Driver
from tests.search.conftest import parse_sweep, sweep_dict

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def wait_for(condition: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def three_gpus(ray_address) -> Iterator[None]:
    """Two nodes in the session's Ray that believe that they have two A100 and one T4."""
    nodes = []
    try:
        for cpus, gpus, name in ((4, 2, "A100"), (2, 1, "T4")):
            command = [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={ray_address}"),
                *("--block", f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--disable-usage-stats"),
                *("--resources", json.dumps({f"accelerator_type:{name}": 1})),
            ]
            quiet = subprocess.DEVNULL
            nodes.append(subprocess.Popen(command, stdout=quiet, stderr=quiet))
            # One after the other: they would give their sockets the same names.
            wait_for(lambda name=name: f"accelerator_type:{name}" in ray.cluster_resources())
        yield
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait()
        wait_for(lambda: len(live_nodes(ray.nodes())) == 1)


@pytest.fixture
def all_free(three_gpus) -> None:
    """What the test before has left is gone."""
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


def free(resource: str) -> float:
    return ray.available_resources().get(resource, 0.0)


def test_a_worker_with_nothing_to_do_gives_back_what_it_holds(tmp_path, toy_data, monkeypatch):
    """Of two methods one is done, the other has a long trial left."""
    monkeypatch.setattr(handout, "IDLE_SECONDS", 1.0)
    gate = tmp_path / "gate"
    config = parse_sweep(
        sweep_dict(
            toy_data,
            trials=1,
            methods={
                "toy": {},
                "anomtune_toy:Toy": {"fixed": {"behaviour": "wait", "marker": str(gate)}},
            },
            dataset={"name": "folder", "root": str(toy_data), "categories": ["ring"]},
            concurrency=2,
        ),
        "test",
    )
    wait_for(lambda: free("CPU") == ray.cluster_resources()["CPU"])
    before = free("CPU")
    results = []
    sweep = threading.Thread(target=lambda: results.append(run(config, tmp_path / "sweep")))
    sweep.start()
    try:
        wait_for(lambda: gate.exists() and free("CPU") == before - 2)
        wait_for(lambda: free("CPU") == before - 1, 30)
        assert sweep.is_alive(), "the sweep is over"
    finally:
        gate.with_name("gate.go").touch()
        sweep.join()
    assert results[0].finished
    wait_for(lambda: free("CPU") == before)


def trials(directory: Path) -> list[TrialRecord]:
    found = RecordStore(Storage(directory)).read_all() if directory.exists() else {}
    return [record for records in found.values() for record in records]


def ended(directory: Path) -> int:
    return sum(record.state != "RUNNING" for record in trials(directory))


#: Seconds in which a process has started, however slow the machine is.
START = 30.0
#: Trials of which a sweep has more than any test has time for.
MANY = 1000


@contextmanager
def drivers(directory: Path, ray_address: str) -> Iterator[Callable[[str, dict], None]]:
    """Yields what starts a sweep, by name, each with a driver and a directory of its own."""
    started: list[Driver] = []

    def start(name: str, config: dict) -> None:
        file = directory / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config))
        command = ("sweep", file, "--dir", directory / name, "--address", ray_address)
        started.append(Driver(*command))

    try:
        yield start
    finally:
        for driver in started:
            driver.kill()


def slow_toys(root: Path, gpu: float, trials: int = MANY) -> dict:
    """Returns a sweep whose runs take two seconds."""
    return sweep_dict(
        root,
        trials=trials,
        pruner="none",
        sampler="random",
        resources={"gpu": gpu},
        methods={"toy": {"fixed": {"seconds": 0.25}}},
    )


def seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def test_three_sweeps_share_gpus(tmp_path, toy_data, all_free, ray_address):
    """The first has all GPUs and more trials than the test has time for."""
    with drivers(tmp_path, ray_address) as start:
        start("first", slow_toys(toy_data, 1))
        wait_for(lambda: ended(tmp_path / "first") >= 3)
        assert free("GPU") == 0
        names = ("first", "second", "third")
        for name in names[1:]:
            start(name, slow_toys(toy_data, 1))
        # Alone it would keep its workers to its end, a quarter of an hour. A place in which there
        # was no room after all is left alone for a minute.
        wait_for(lambda: all(ended(tmp_path / name) for name in names), 240)
        counts = {name: ended(tmp_path / name) for name in names}
        wait_for(lambda: all(ended(tmp_path / name) > counts[name] for name in names), 240)
        assert ended(tmp_path / "first") < MANY / 2


def test_a_sweep_of_whole_gpus_has_one_of_those_that_small_runs_of_another_fill(
    tmp_path, toy_data, all_free, ray_address
):
    with drivers(tmp_path, ray_address) as start:
        start("small", slow_toys(toy_data, 1 / 2))
        wait_for(lambda: free("GPU") == 0 and ended(tmp_path / "small") >= 12)
        start("whole", slow_toys(toy_data, 1, trials=2))
        wait_for(lambda: any(trial.curve for trial in trials(tmp_path / "whole")), 150)
        now = datetime.now(UTC).isoformat()
        (whole, *_) = [trial for trial in trials(tmp_path / "whole") if trial.curve]
        costs = [trial.cost for trial in trials(tmp_path / "small") if trial.cost.finished_at]
    # Those that were handed out first have waited for their processes.
    costs = sorted(costs, key=lambda cost: cost.started_at)[6:]
    longest = max(seconds(cost.started_at, cost.finished_at) for cost in costs)
    bound = longest + PATIENCE + QUANTUM + 2 * BEAT + START
    assert seconds(whole.cost.started_at, now) < bound
    assert len(costs) < MANY / 2


class Gpus:
    """A sweep on GPUs that have memory, in a driver of its own; see `gpu_sweep.py`."""

    def __init__(self, directory: Path, ray_address: str, config: dict) -> None:
        self.directory, self.log = directory / "sweep", directory / "log"
        file = directory / "sweep.json"
        file.write_text(json.dumps(config))
        script = Path(__file__).with_name("gpu_sweep.py")
        command = [sys.executable, script, file, self.directory, self.log, ray_address]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[3])

    def runs(self) -> list[dict]:
        """Returns what its runs have said: where and with how much they began, and when."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        runs = {(line["run"], line["begin"]): line for line in map(json.loads, lines)}
        return sorted(runs.values(), key=lambda run: run["begin"])

    def under_way(self) -> list[dict]:
        return [run for run in self.runs() if "end" not in run]

    def __enter__(self) -> Gpus:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def gpu_toys(root: Path, marker: str, **changes) -> dict:
    """Returns a sweep whose runs share GPUs as their memory allows."""
    fixed = {"marker": marker, "seconds": 0.1}
    changes = {"trials": MANY, "pruner": "none", "sampler": "random"} | changes
    return sweep_dict(root, methods={"toy": {"fixed": fixed}}, **changes)


def test_a_run_that_needs_a_whole_gpu_has_one_among_small_runs_of_its_sweep(
    tmp_path, toy_data, all_free, ray_address
):
    """Two share each A100; then one runs out of memory, and is to be run again on a whole one."""
    # More than there is room for wait, so that none need end before it is handed out.
    config = gpu_toys(toy_data, "7", resources={"accelerator": "A100"}, concurrency=6)
    with Gpus(tmp_path, ray_address, config) as sweep:
        wait_for(
            lambda: (
                {(run["gpu"], run["share"]) for run in sweep.under_way()}
                == {("A100-0", 1 / 2), ("A100-1", 1 / 2)}
            )
        )
        sweep.log.with_suffix(".large").touch()

        wait_for(lambda: sum(run["large"] for run in sweep.runs()) == 2, 150)
        small, whole = (run for run in sweep.runs() if run["large"])
        wait_for(lambda: sum(run["begin"] > whole["begin"] for run in sweep.runs()) >= 4)
        runs = sweep.runs()
    assert (small["share"], whole["share"]) == (1 / 2, 1)
    before = [run for run in runs if "end" in run and run["begin"] < whole["begin"]]
    longest = max(run["end"] - run["begin"] for run in before)
    bound = longest + PATIENCE + 2 * BEAT + START
    assert whole["begin"] - small["end"] < bound
    on_it = [run for run in before if run["gpu"] == whole["gpu"]]
    assert max(run["end"] for run in on_it) <= whole["begin"]


def test_memory_and_speed_are_learned_of_each_type_of_gpu(
    tmp_path, toy_data, all_free, ray_address
):
    """Three runs have room on an A100. Two have on a T4, but there they slow each other down."""
    with Gpus(tmp_path, ray_address, gpu_toys(toy_data, "A100=5 T4=6 slow=T4")) as sweep:

        def shares(name: str) -> list[float]:
            ended = [run["share"] for run in sweep.runs() if run["type"] == name and "end" in run]
            return [share for share, _ in itertools.groupby(ended)]

        wait_for(lambda: shares("T4") == [1, 1 / 2, 1] and shares("A100") == [1, 1 / 3], 150)
        count = len(sweep.runs())
        wait_for(lambda: len(sweep.runs()) > count + 8)
        assert (shares("A100"), shares("T4")) == ([1, 1 / 3], [1, 1 / 2, 1])
        types = {run["run"]: run["type"] for run in sweep.runs()}
        costs = {trial.path: trial.cost for trial in trials(sweep.directory) if trial.curve}
    assert {path: cost.gpu_type for path, cost in costs.items()}.items() <= types.items()


def test_a_sweep_never_holds_more_than_it_may(tmp_path, toy_data, all_free, ray_address):
    """At first it holds a whole GPU. The runs that follow need less, and take other workers.

    Ray takes a moment to let go of what was given back, and meanwhile the next worker begins.
    """
    limited = {"accelerator": "A100", "max": {"gpu": 1}}
    config = gpu_toys(toy_data, "7", resources=limited, trials=8)
    longest, within = 0.0, time.monotonic()
    with Gpus(tmp_path, ray_address, config) as sweep:
        while sweep.process.poll() is None:
            now = time.monotonic()
            within = now if 3 - free("GPU") <= 1 else within
            longest = max(longest, now - within)
            time.sleep(0.05)
        runs = sweep.runs()
        assert sweep.process.returncode == 0
    assert longest < 1
    assert len(runs) == 16
    assert {run["share"] for run in runs} == {1, 1 / 2}


def test_drivers_see_each_others_claims_until_they_end(ray_session):
    claim = Claim(beat=3, cpu=2, waits=True, places=(Held(node="a", cpu=2),))
    with ray_board() as one, ray_board() as other:
        before = one.read().keys()  # of drivers that were killed
        one.write(claim)
        (name,) = other.read().keys() - before
        assert other.read()[name] == claim
        assert one.read().keys() == before
        one.write(claim.model_copy(update={"beat": 4}))
        assert other.read()[name].beat == 4
    with ray_board() as later:
        assert later.read().keys() == before
        for killed in before:
            later.remove(killed)
        assert dict(later.read()) == {}
