"""Ray's processes in these tests are forks: their imports cost no test anything."""

from __future__ import annotations

import os
import sys

import psutil
import pytest


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process imports for itself")
def test_a_worker_and_rays_own_processes_are_forks(ray_session) -> None:
    @ray_session.remote
    def number() -> int:
        return os.getpid()

    worker = psutil.Process(ray_session.get(number.remote()))
    server = worker.parent()
    assert "server.py" in " ".join(server.cmdline())
    names = {process.name() for process in server.children()}
    assert {"ray::DashboardAg", "ray::RuntimeEnvA"} <= {name[:16] for name in names}, names
