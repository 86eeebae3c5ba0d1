"""`anomtune sweep` as a process that is killed with -9, interrupted, and started again."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from anomtune.search.run.checkpoint import SECONDS_VARIABLE
from tests.driver import Driver
from tests.search.conftest import sweep_dict

# The session's Ray comes first: what drivers are forked off keeps the token that it began with.
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

TRIALS, RUNGS = 5, 4


@pytest.fixture
def sweep_file(tmp_path, toy_data) -> Path:
    path = tmp_path / "sweep.yaml"
    methods = {"toy": {"fixed": {"seconds": 0.03}}}
    path.write_text(yaml.safe_dump(sweep_dict(toy_data, trials=TRIALS, methods=methods)))
    return path


def start(sweep_file: Path, directory: Path, address: str | None = None) -> Driver:
    """Starts the command: on a Ray of its own, which dies with it, or on one that stays."""
    return Driver(
        "sweep", sweep_file, "--dir", directory, *(("--address", address) if address else ())
    )


def read_records(directory: Path) -> dict[Path, dict]:
    """Reads every record and table as any reader might at this moment; each must be whole."""
    for table in directory.glob("*.parquet"):
        assert pq.read_table(table).num_rows > 0
    return {
        path: json.loads(path.read_text()) for path in sorted(directory.glob("trials/*/*/0*.json"))
    }


def wait_for(condition, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def processes_of(driver: int) -> list[psutil.Process]:
    return psutil.Process(driver).children(recursive=True)


def alive(family: list[psutil.Process]) -> list[str]:
    """Returns the command lines of processes that still run (nobody may have reaped the rest)."""
    found = []
    for process in family:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:100])
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until_changed(driver: Driver, directory: Path, before: dict) -> None:
    wait_for(lambda: driver.poll() is not None or read_records(directory) != before)


def test_killed_at_ten_random_moments(tmp_path, sweep_file, ray_address):
    generator = random.Random(7)
    directory = tmp_path / "sweep"
    finished: dict[Path, dict] = {}
    for kill in range(10):
        before = read_records(directory)
        if kill % 5:  # most kills while trials run, some while the driver still starts
            driver = start(sweep_file, directory, ray_address)
            wait_until_changed(driver, directory, before)
            time.sleep(generator.uniform(0, 0.6))
        else:
            driver = start(sweep_file, directory)
            time.sleep(generator.uniform(0, 5))
        driver.kill()
        records = read_records(directory)
        for path, record in finished.items():
            assert records[path] == record, "a finished record has changed"
        finished = {path: r for path, r in records.items() if r["state"] != "RUNNING"}
    driver = start(sweep_file, directory, ray_address)
    assert driver.wait() == 0, driver.err
    records = read_records(directory)
    for path, record in finished.items():
        assert records[path] == record
    for category in ("plate", "ring"):
        numbers = [r["number"] for r in records.values() if r["category"] == category]
        assert numbers == list(range(TRIALS))
    assert {record["state"] for record in records.values()} <= {"COMPLETE", "PRUNED"}
    assert "Next:" in driver.out


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_interrupted_orderly_and_no_process_left(tmp_path, sweep_file, send):
    """Also by what is sent to the whole process group, as `timeout` and Slurm do."""
    directory = tmp_path / "sweep"
    driver = start(sweep_file, directory)
    wait_for(lambda: any(r["curve"] for r in read_records(directory).values()))
    family = processes_of(driver.pid)
    assert family
    send(driver.pid, signal.SIGTERM)
    assert driver.wait() == 3, driver.err
    assert "goes on from here" in driver.err
    assert pq.read_table(directory / "leaderboard.parquet").num_rows == 2
    wait_for(lambda: not alive(family))


def test_interrupted_while_it_prepares(tmp_path, sweep_file):
    driver = start(sweep_file, tmp_path / "sweep")
    wait_for(lambda: "starting Ray" in driver.err)
    driver.send_signal(signal.SIGINT)
    assert driver.wait() == 3, driver.err
    assert "goes on from here" in driver.err


def test_a_directory_has_one_driver(tmp_path, sweep_file, ray_address):
    directory = tmp_path / "sweep"
    # Slow trials: the first must still be at it when the second has read its images.
    sweep_file.write_text(sweep_file.read_text().replace("seconds: 0.03", "seconds: 0.5"))
    first = start(sweep_file, directory, ray_address)
    wait_for(lambda: read_records(directory))
    second = start(sweep_file, directory, ray_address)
    assert second.wait() == 2
    assert f"process {first.pid}" in second.err
    assert len(second.err.strip().splitlines()) <= 6, second.err
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 3, first.err


def test_a_killed_driver_leaves_no_worker_and_the_next_goes_on(
    tmp_path, sweep_file, ray_address, monkeypatch
):
    directory = tmp_path / "sweep"
    with monkeypatch.context() as patched:
        patched.delenv("ANOMTUNE_TEST_SERVER", raising=False)  # workers that see to themselves
        driver = start(sweep_file, directory)
    wait_for(lambda: any(r["curve"] for r in read_records(directory).values()))
    family = processes_of(driver.pid)
    driver.kill()

    def left() -> list[str]:
        # Two small agents of Ray's own notice only after a minute that their node is gone.
        return [name for name in alive(family) if "Agent" not in name]

    # A worker that is just beginning tries ten times, a second each, to reach its node.
    wait_for(lambda: not left(), seconds=20)
    driver = start(sweep_file, directory, ray_address)
    assert driver.wait() == 0, driver.err
    assert len(read_records(directory)) == 2 * TRIALS


def test_a_killed_worker_goes_on_from_its_last_rung(tmp_path, toy_data, sweep_file, monkeypatch):
    monkeypatch.setenv(SECONDS_VARIABLE, "0")
    fixed = {"behaviour": "die_halfway", "marker": str(tmp_path / "died")}
    dataset = {"name": "folder", "root": str(toy_data), "categories": ["ring"]}
    config = sweep_dict(trials=1, methods={"toy": {"fixed": fixed}}, dataset=dataset, confirm=0)
    sweep_file.write_text(yaml.safe_dump(config))
    driver = start(sweep_file, tmp_path / "sweep")
    assert driver.wait(300) == 0, driver.err
    assert (tmp_path / "died").exists()
    (record,) = read_records(tmp_path / "sweep").values()
    assert record["state"] == "COMPLETE", "it began again, which this toy does not stand"
    assert [rung["step"] for rung in record["curve"]] == [1, 2, 3, 4]
    assert not (tmp_path / "sweep/checkpoints").exists()


def test_a_killed_confirm_run_goes_on_from_its_last_checkpoint(
    tmp_path, toy_data, sweep_file, monkeypatch
):
    monkeypatch.setenv(SECONDS_VARIABLE, "0")
    marker, directory = tmp_path / "died", tmp_path / "sweep"
    fixed = {"behaviour": "die_halfway", "marker": str(marker)}
    dataset = {"name": "folder", "root": str(toy_data), "categories": ["ring"]}
    config = sweep_dict(
        trials=1, methods={"toy": {"fixed": fixed}}, dataset=dataset, scoring="paper"
    )
    for confirm in (0, {"top": 1, "seeds": [1]}):
        marker.unlink(missing_ok=True)
        sweep_file.write_text(yaml.safe_dump(config | {"confirm": confirm}))
        driver = start(sweep_file, directory)
        assert driver.wait(300) == 0, driver.err
        assert marker.exists(), "nothing was killed"
    (trial,) = read_records(directory).values()
    (run,) = (json.loads(path.read_text()) for path in directory.glob("confirm/ring/toy/*.json"))
    assert run["state"] == "COMPLETE", "it began again, which this toy does not stand"
    assert run["val_auroc"] == trial["curve"][-1]["auroc"], "the toy knows no seed"
    assert run["test"]["n_normal"] == 3
    assert not (directory / "checkpoints").exists()
