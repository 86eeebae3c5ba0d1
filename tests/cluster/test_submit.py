"""A sweep as a job of a real Ray cluster that asks for a token: submitted, stopped, resumed."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from anomtune.cluster.connect import connect
from tests.conftest import PROJECT
from tests.search.conftest import sweep_dict

pytestmark = pytest.mark.ray


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait_for(happened: Callable[[], object], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The dashboard's address and the token of a cluster of one node, in a folder of its own."""
    token = secrets.token_hex(16)
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray puts sockets into it
    port, dashboard, agent, client = _free_ports(4)
    command = (
        f"ray start --head --block --port={port} --dashboard-port={dashboard} --num-cpus=1 "
        f"--dashboard-agent-listen-port={agent} --ray-client-server-port={client} "
        f"--temp-dir={temporary} --disable-usage-stats --object-store-memory=80000000"
    )
    log = (temporary / "start.log").open("w+")
    process = subprocess.Popen(
        command.split(),
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "OMP_NUM_THREADS": "1",
        },
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_for(
            lambda: process.poll() is not None or "runtime started" in _text(log.name), "the start"
        )
        assert process.poll() is None, _text(log.name)
        yield f"http://127.0.0.1:{dashboard}", token, temporary
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _text(path: str) -> str:
    return Path(path).read_text()


def test_a_sweep_is_submitted_stopped_and_resumed(head, run, toy_data, tmp_path, monkeypatch):
    address, token, temporary = head
    marker = tmp_path / "marker"
    fixed = {"behaviour": "wait", "marker": str(marker), "quality": 1.0, "colour": "red"}
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        yaml.safe_dump(sweep_dict(toy_data, methods={"toy": {"fixed": fixed}}, confirm=0))
    )
    results = tmp_path / "results"
    submit = ("submit", sweep, "--address", address, "--dir", results)

    assert "asks for a token" in run(*submit)[2]
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    code, out, err = run(*submit)
    assert code == 0, err
    first = out.strip()
    _wait_for(marker.exists, "the first trial")
    code, _, err = run(*submit)
    assert code == 2
    assert f"runs there already, as job {first}" in err
    assert "1 running" in run("status", results)[1]

    assert run("stop", first, "--address", address)[0] == 0
    code, out, _ = run("logs", first, "--address", address, "--follow")
    assert code == 3
    assert "Interrupted. The same command goes on from here." in out, out

    Path(f"{marker}.go").touch()
    code, out, err = run(*submit, "--wait")
    assert code == 0, out + err
    second = first.removesuffix("1") + "2"
    assert out.startswith(second)
    assert "plate" in out
    assert "2/2 trials, finished" in run("status", results)[1]
    code, out, _ = run("jobs", "--address", address)
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        [second, "SUCCEEDED"],
        [first, "STOPPED"],
    ]
    written = [path for folder in (results, temporary) for path in folder.rglob("*")]
    for path in written:
        if path.is_file() and path.suffix in {".json", ".yaml", ".log", ".out", ".err"}:
            assert token not in path.read_text(errors="replace"), path


def test_the_entrypoint_of_a_rayjob_stops_its_own_job_after_bad_input(head, tmp_path, monkeypatch):
    """A job that is STOPPED KubeRay leaves as it is; one that has FAILED it starts again."""
    address, token, _ = head
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    ray = tmp_path / "ray"  # as the image has it
    ray.write_text(f'#!/bin/bash\nexec {sys.executable} -m ray.scripts.scripts "$@"\n')
    ray.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    entrypoint = PROJECT / "cluster/kuberay/entrypoint.sh"
    client = connect(address)
    job = client.submit_job(
        entrypoint=shlex.join(["bash", str(entrypoint), "/no/such.yaml", str(tmp_path / "out")]),
        runtime_env={"env_vars": {"PATH": path, "RAY_JOB_STOP_WAIT_TIME_S": "60"}},
    )
    _wait_for(lambda: client.get_job_status(job).is_terminal(), "the end of the job", 90)
    log = client.get_job_logs(job)
    assert client.get_job_status(job) == "STOPPED", log
    assert "/no/such.yaml" in log
    assert "exit code 2: not started again" in log
