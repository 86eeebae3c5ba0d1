"""`anomtune sweep` as a process that is killed with -9, interrupted, and started again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from anomtune.search.run.checkpoint import SECONDS_VARIABLE
from tests.search.conftest import sweep_dict

pytestmark = pytest.mark.ray

TRIALS, RUNGS = 5, 4


@pytest.fixture
def sweep_file(tmp_path, toy_data) -> Path:
    path = tmp_path / "sweep.yaml"
    methods = {"toy": {"fixed": {"seconds": 0.03}}}
    path.write_text(yaml.safe_dump(sweep_dict(toy_data, trials=TRIALS, methods=methods)))
    return path


def start(sweep_file: Path, directory: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "anomtune", "sweep", str(sweep_file)]
    return subprocess.Popen(
        [*command, "--dir", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
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


def wait_until_changed(driver: subprocess.Popen, directory: Path, before: dict) -> None:
    wait_for(lambda: driver.poll() is not None or read_records(directory) != before)


def test_killed_at_ten_random_moments(tmp_path, sweep_file):
    generator = random.Random(7)
    directory = tmp_path / "sweep"
    finished: dict[Path, dict] = {}
    kills = 0
    while kills < 10:
        before = read_records(directory)
        driver = start(sweep_file, directory)
        if kills % 5:  # most kills while trials run, some while the driver still starts
            wait_until_changed(driver, directory, before)
            time.sleep(generator.uniform(0, 0.6))
        else:
            time.sleep(generator.uniform(0, 5))
        driver.kill()
        driver.communicate()
        kills += 1
        records = read_records(directory)
        for path, record in finished.items():
            assert records[path] == record, "a finished record has changed"
        finished = {path: r for path, r in records.items() if r["state"] != "RUNNING"}
    driver = start(sweep_file, directory)
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 0, err
    records = read_records(directory)
    for path, record in finished.items():
        assert records[path] == record
    for category in ("plate", "ring"):
        numbers = [r["number"] for r in records.values() if r["category"] == category]
        assert numbers == list(range(TRIALS))
    assert {record["state"] for record in records.values()} <= {"COMPLETE", "PRUNED"}
    assert "Next:" in out


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_interrupted_orderly_and_no_process_left(tmp_path, sweep_file, send):
    """Also by what is sent to the whole process group, as `timeout` and Slurm do."""
    directory = tmp_path / "sweep"
    driver = start(sweep_file, directory)
    wait_for(lambda: any(r["curve"] for r in read_records(directory).values()))
    family = processes_of(driver.pid)
    assert family
    send(driver.pid, signal.SIGTERM)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 3, err
    assert "goes on from here" in err
    assert pq.read_table(directory / "leaderboard.parquet").num_rows == 2
    wait_for(lambda: not alive(family))


def test_interrupted_while_it_prepares(tmp_path, sweep_file):
    driver = start(sweep_file, tmp_path / "sweep")
    for line in driver.stderr:
        if "starting Ray" in line:
            break
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 3, err
    assert "goes on from here" in err


def test_a_directory_has_one_driver(tmp_path, sweep_file):
    directory = tmp_path / "sweep"
    # Slow trials: the first must still be at it when the second has read its images.
    sweep_file.write_text(sweep_file.read_text().replace("seconds: 0.03", "seconds: 0.5"))
    first = start(sweep_file, directory)
    wait_for(lambda: read_records(directory))
    second = start(sweep_file, directory)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"process {first.pid}" in err
    assert len(err.strip().splitlines()) <= 6, err
    first.terminate()
    first.communicate(timeout=60)
    assert first.returncode == 3


def test_a_killed_driver_leaves_no_worker(tmp_path, sweep_file):
    directory = tmp_path / "sweep"
    driver = start(sweep_file, directory)
    wait_for(lambda: any(r["curve"] for r in read_records(directory).values()))
    family = processes_of(driver.pid)
    driver.kill()
    driver.communicate()
    psutil.wait_procs(family, timeout=10)
    # Two small agents of Ray's own notice only after a minute that their node is gone.
    left = [name for name in alive(family) if "Agent" not in name]
    assert left == []


def test_a_killed_worker_goes_on_from_its_last_rung(tmp_path, toy_data, sweep_file, monkeypatch):
    monkeypatch.setenv(SECONDS_VARIABLE, "0")
    fixed = {"behaviour": "die_halfway", "marker": str(tmp_path / "died")}
    dataset = {"name": "folder", "root": str(toy_data), "categories": ["ring"]}
    config = sweep_dict(trials=1, methods={"toy": {"fixed": fixed}}, dataset=dataset, confirm=0)
    sweep_file.write_text(yaml.safe_dump(config))
    driver = start(sweep_file, tmp_path / "sweep")
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert (tmp_path / "died").exists()
    (record,) = read_records(tmp_path / "sweep").values()
    assert record["state"] == "COMPLETE", "it began again, which this toy does not stand"
    assert [rung["step"] for rung in record["curve"]] == [1, 2, 3, 4]
    assert not (tmp_path / "sweep/checkpoints").exists()
