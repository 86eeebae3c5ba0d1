"""A sweep on a cluster whose nodes come and go, each with an address of its own.

The nodes are network namespaces that are joined by a bridge in another one: nothing of it reaches
any other network. Needs Linux and the right to make namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.cluster.invariants import finished_records, violations
from tests.search.conftest import sweep_dict

pytestmark = pytest.mark.ray

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # nobody else is on the network
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "ANOMTUNE_CHECKPOINT_SECONDS": "0",  # every trial is a long one
    # A dead node refuses an answer, a slow one only takes its time.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "60000",
}


def ip(*arguments: object) -> str:
    command = ["ip", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Cluster:
    """Ray nodes in network namespaces; the first one is the head."""

    def __init__(self) -> None:
        self.name = f"at{uuid.uuid4().hex[:6]}"
        self.namespaces: list[str] = []
        # Not where others find this cluster for theirs; short, as names of sockets must be.
        self._scratch = Path(tempfile.mkdtemp(prefix=self.name))
        self._environment = os.environ | ENVIRONMENT | {"RAY_TMPDIR": str(self._scratch)}
        self._switch = self._namespace("s")
        ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self._switch, "link", "set", "br0", "up")

    def _namespace(self, suffix: object) -> str:
        name = f"{self.name}{suffix}"
        ip("netns", "add", name)
        self.namespaces.append(name)
        ip("-n", name, "link", "set", "lo", "up")
        return name

    def add_node(self) -> str:
        """Starts a node with one CPU; returns its namespace."""
        number = len(self.namespaces)
        name = self._namespace(number)
        near, far, address = f"{name}a", f"{name}b", f"10.77.0.{number}"
        ip("-n", name, "link", "add", near, "type", "veth", "peer", far, "netns", self._switch)
        ip("-n", self._switch, "link", "set", far, "master", "br0", "up")
        ip("-n", name, "address", "add", f"{address}/24", "dev", near)
        ip("-n", name, "link", "set", near, "up")
        where = (
            ["--head", "--port=6379", "--include-dashboard=false"]
            if number == 1
            else ["--address=10.77.0.1:6379"]
        )
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1"]
        self.run(name, [*ray, f"--node-ip-address={address}", "--disable-usage-stats", *where])
        return name

    def run(self, name: str, command: list[str]) -> None:
        """Runs a command in a namespace to its end."""
        done = subprocess.run(
            ["ip", "netns", "exec", name, *command],
            capture_output=True,
            text=True,
            env=self._environment,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start_driver(self, sweep: Path, directory: Path) -> subprocess.Popen:
        """Starts `anomtune sweep` on the head; what it says goes into a file."""
        command = [sys.executable, "-m", "anomtune", "sweep", str(sweep)]
        with sweep.with_suffix(".log").open("w") as log:
            return subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.namespaces[1]),
                    *(*command, "--dir", str(directory), "--address", "10.77.0.1:6379"),
                ],
                stdout=log,
                stderr=log,
                env=self._environment,
            )

    def processes(self, name: str) -> list[psutil.Process]:
        found = []
        for pid in ip("netns", "pids", name).split():
            try:
                found.append(psutil.Process(int(pid)))
            except psutil.NoSuchProcess:
                continue
        return found

    def works(self, name: str) -> bool:
        """Whether a node has a process that runs a trial now."""
        for process in self.processes(name):
            try:
                if "Trainable.train" in " ".join(process.cmdline()):
                    return True
            except psutil.Error:
                continue
        return False

    def kill(self, name: str) -> None:
        """Takes a node away: all of its processes at once, with -9."""
        processes = self.processes(name)
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=10)

    def close(self) -> None:
        for name in reversed(self.namespaces):
            self.kill(name)
            ip("netns", "delete", name)
        shutil.rmtree(self._scratch, ignore_errors=True)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    try:
        made = Cluster()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to make network namespaces: {error}")
    try:
        for _ in range(3):
            made.add_node()
        yield made
    finally:
        made.close()


def wait_for(condition, driver: subprocess.Popen, seconds: float = 300.0) -> None:
    """Waits while the driver runs; the limit is only there to end a test that hangs."""
    end = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, f"the driver ended with {driver.returncode}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_nodes_go_and_come_and_the_driver_is_killed(cluster, tmp_path, toy_data):
    _, head, second, third = cluster.namespaces
    # After half of its rungs every trial waits for a file. Tune does not start a process on a new
    # node for trials so short that another node has room again before it runs.
    gate = tmp_path / "gate"
    fixed = {"seconds": 0.05, "behaviour": "wait_halfway", "marker": str(gate)}

    def begun(times: int) -> bool:
        """Whether rungs began at these iterations, and that of the checkpoint so many times."""
        starts = Counter(gate.read_text().split()) if gate.exists() else Counter()
        assert starts["0"] <= 3, "a trial began again that has a checkpoint"
        return starts == Counter({"0": 3, "2": 3, "4": times})

    config = sweep_dict(
        toy_data,
        trials=8,
        confirm={"top": 1, "seeds": [1]},
        methods={"toy": {"fixed": fixed}},
        concurrency=3,  # a dead node counts for a moment beside the one that replaces it
    )
    sweep, directory = tmp_path / "sweep.yaml", tmp_path / "sweep"
    sweep.write_text(yaml.safe_dump(config))
    driver = cluster.start_driver(sweep, directory)
    try:
        wait_for(lambda: all(map(cluster.works, (head, second, third))), driver)
        wait_for(lambda: begun(3), driver)
        cluster.kill(third)
        fourth = cluster.add_node()
        wait_for(lambda: begun(4), driver)  # from its last rung, on the node that has come
        assert cluster.works(fourth)
        cluster.kill(fourth)  # the same trial is lost once more
        fifth = cluster.add_node()
        wait_for(lambda: begun(5), driver)
        assert cluster.works(fifth)
        assert finished_records(directory) == {}
        gate.with_name("gate.go").touch()
        wait_for(lambda: len(finished_records(directory)) >= 3, driver)
    finally:
        driver.kill()
        driver.wait()
    before = finished_records(directory)
    assert len(before) < 16
    driver = cluster.start_driver(sweep, directory)
    try:
        driver.wait(timeout=300)
    finally:
        driver.kill()
    assert driver.returncode == 0, sweep.with_suffix(".log").read_text()
    assert list(violations(directory, before)) == []
    records = finished_records(directory)
    assert sum(path.startswith("trials/") for path in records) == 16
    assert b'"FAIL"' not in b"".join(records.values()), "a lost node is no fault of a config"
