"""A Ray cluster on this machine whose processes may be killed, and that can be had anew."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import FORKS

_HEAD, _NODE = {"num_cpus": 2}, {"num_cpus": 1}
#: A dead node refuses an answer, a slow one only takes its time.
_QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 60000,
}
#: What a driver and the nodes wait for a GCS that is gone, in seconds; Ray's own is 60.
_GCS_PATIENCE = "6"


class LocalCluster:
    """A head with two CPUs, and further nodes with one for as long as they are wanted.

    Args:
        scratch: Where Ray keeps its files; a short path.
    """

    def __init__(self, scratch: Path) -> None:
        socket = scratch / "forks"
        os.environ |= {
            "ANOMTUNE_TEST_SERVER": str(socket),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(scratch),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_gcs_rpc_server_reconnect_timeout_s": _GCS_PATIENCE,
            "RAY_worker_niceness": "0",  # else another load on the machine starves the workers
        }
        self._server = subprocess.Popen(
            [sys.executable, FORKS / "server.py", socket, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(scratch / "forks.log").open("w"),
            start_new_session=True,
        )
        while not socket.exists():
            time.sleep(0.05)
        self._nodes: list[Any] = []
        self._start()

    def _start(self) -> None:
        from ray.cluster_utils import Cluster  # now that Ray can read all of the environment

        head = {**_HEAD, "_system_config": _QUICK, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add_node(self, *, wait: bool = True) -> None:
        self._nodes.append(self._cluster.add_node(**_NODE, wait=wait))

    def kill_node(self) -> None:
        """Takes the oldest of the further nodes away, with -9."""
        node = self._nodes.pop(0)
        _kill(node)
        self._cluster.worker_nodes.discard(node)

    def remove_nodes(self) -> None:
        """Leaves the head alone."""
        while self._nodes:
            self.kill_node()

    def kill_gcs(self) -> None:
        for info in self._cluster.head_node.all_processes["gcs_server"]:
            info.process.kill()
            info.process.wait()

    def kill(self) -> None:
        """Kills every process of the cluster with -9."""
        self.remove_nodes()
        _kill(self._cluster.head_node)

    def begin_anew(self) -> None:
        """Starts another cluster in the place of one that has been killed."""
        self._start()

    def close(self) -> None:
        self.kill()
        self._server.kill()
        self._server.wait()

    def workers(self, doing: str = "") -> list[psutil.Process]:
        """Returns the processes that run what drivers want, or what begins with a certain name.

        Those of Ray's own, and those that wait for a job, are not among them.
        """
        pattern = rf"^ray::(?!\w*Agent|IDLE){doing}"
        found = []
        for process in psutil.Process(self._server.pid).children():
            with suppress(psutil.NoSuchProcess):
                if re.search(pattern, " ".join(process.cmdline())):
                    found.append(process)
        return found


def _kill(node: Any) -> None:
    for infos in node.all_processes.values():
        for info in infos:
            info.process.kill()
            info.process.wait()
    node.all_processes.clear()
