"""Sweeps on a real Ray that others want as well: idle workers go, and three drivers share GPUs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import yaml

from anomtune.search.run import adapters
from anomtune.search.run.board import ray_board
from anomtune.search.run.claims import Claim, Held
from anomtune.search.run.ray_internals import live_nodes
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


@pytest.fixture
def three_gpus(ray_address) -> Iterator[None]:
    """A second node in the session's Ray, which believes that it has three GPUs."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={ray_address}"),
        *("--block", "--num-cpus=3", "--num-gpus=3", "--disable-usage-stats"),
    ]
    node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: ray.cluster_resources().get("GPU") == 3)
        yield
    finally:
        node.terminate()
        node.wait()
        wait_for(lambda: len(live_nodes(ray.nodes())) == 1)


def free(resource: str) -> float:
    return ray.available_resources().get(resource, 0.0)


def test_a_worker_with_nothing_to_do_gives_back_what_it_holds(tmp_path, toy_data, monkeypatch):
    """Of two methods one is done, the other has a long trial left."""
    monkeypatch.setattr(adapters, "IDLE_SECONDS", 1.0)
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


def test_three_sweeps_share_gpus(tmp_path, toy_data, three_gpus, ray_address):
    """The first has all GPUs and more trials than the test has time for."""
    long = {"trials": 400, "pruner": "none", "resources": {"gpu": 1}, "sampler": "random"}
    methods = {"toy": {"fixed": {"seconds": 0.25}}}
    for name in ("first", "second", "third"):
        config = sweep_dict(toy_data, **long, methods=methods)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    drivers: dict[str, Driver] = {}

    def start(name: str) -> None:
        command = ("sweep", tmp_path / f"{name}.yaml", "--dir", tmp_path / name)
        drivers[name] = Driver(*command, "--address", ray_address)

    try:
        start("first")
        wait_for(lambda: ended(tmp_path / "first") >= 3)
        assert free("GPU") == 0
        start("second")
        start("third")
        # Alone it would keep its workers to its end.
        wait_for(lambda: ended(tmp_path / "second") and ended(tmp_path / "third"))
        counts = {name: ended(tmp_path / name) for name in drivers}
        wait_for(lambda: all(ended(tmp_path / name) > count for name, count in counts.items()))
        assert ended(tmp_path / "first") < 100
    finally:
        for driver in drivers.values():
            driver.kill()
    wait_for(lambda: free("GPU") == 3)


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
