"""Small sweeps on a real Ray cluster, each struck by random faults, restarted until it is finished.

A case has up to three faults, one for each start of the driver: the driver, a worker or a node is
killed with -9, a write fails, or all of them are slow. Then the sweep is started once more, and
what it leaves must hold (see `invariants.py`). A case is made by its seed alone.

Run: python tests/cluster/faults.py [--cases 100] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(PROJECT)]

import psutil  # noqa: E402

from tests.cluster.invariants import finished_records, violations  # noqa: E402
from tests.conftest import FORKS, PLUGIN, draw_category  # noqa: E402

FAULTS = ("driver", "worker", "node", "write", "slow")
INJECTED = Path(__file__).parent / "injected"
_NODE = {"num_cpus": 1}
#: Seconds that one start may take: many times what it needs.
_PATIENCE = 600.0


def drive(sweep: dict[str, Any], directory: str, address: str) -> None:
    """Is the driver: runs the sweep and ends the process as the command does."""
    from anomtune.errors import AnomtuneError
    from anomtune.search.config import parse_sweep
    from anomtune.search.sweep import run

    os.setsid()
    sys.stderr = sys.stdout = open(f"{directory}.log", "a")  # noqa: SIM115
    try:
        run(parse_sweep(sweep, "case"), directory, address=address)
    except AnomtuneError as error:
        print(error, flush=True)
        os._exit(2)
    except KeyboardInterrupt:
        os._exit(3)
    os._exit(0)


class Campaign:
    """A cluster of a head and two more nodes, on which cases are run one after the other."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.plan = scratch / "plan.json"
        os.environ |= {
            "ANOMTUNE_CACHE": str(scratch / "cache"),
            "ANOMTUNE_CHECKPOINT_SECONDS": "0.05",
            "ANOMTUNE_TEST_FAULTS": str(self.plan),
            "PYTHONPATH": os.pathsep.join(map(str, (INJECTED, PLUGIN, FORKS))),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(scratch),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # else another load on the machine starves the workers
        }
        for index, name in enumerate(("plate", "ring")):
            draw_category(scratch / "data" / name, seed=index)
        from ray.cluster_utils import Cluster  # now that Ray can read all of it

        # Drivers are forked off a process that has imported everything already.
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["anomtune.search.sweep"])
        # A dead node refuses an answer, a slow one only takes its time.
        quick = {
            "health_check_initial_delay_ms": 1000,
            "health_check_period_ms": 1000,
            "health_check_timeout_ms": 60000,
        }
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={**_NODE, "_system_config": quick, "include_dashboard": False},
        )
        self._nodes = [self._cluster.add_node(**_NODE) for _ in range(2)]

    def close(self) -> None:
        self._cluster.shutdown()

    def run_case(self, seed: str) -> tuple[list[str], list[str]]:
        """Returns the faults of a case and what was wrong in the end."""
        generator = random.Random(seed)
        sweep = self._draw_sweep(generator)
        directory = self.scratch / "sweeps" / seed.replace("/", "-")
        directory.parent.mkdir(exist_ok=True)
        before: dict[str, bytes] = {}
        wrong: list[str] = []
        struck = []
        for fault in [*generator.choices(FAULTS, k=generator.randint(1, 3)), None, None]:
            code = self._start(sweep, directory, fault, generator)
            struck.append(f"{fault or 'none'}:{code}")
            after = finished_records(directory)
            wrong += [
                f"{path}: changed after it had ended"
                for path, content in before.items()
                if after.get(path) != content
            ]
            before = after
            if code == 0 or (fault is None and code != 2):
                break
        wrong += self._unsafe()
        if code != 0:
            wrong.append(f"the last start ended with {code}")
        else:
            wrong += violations(directory, before)
        return struck, wrong

    def _unsafe(self) -> list[str]:
        """Returns what workers were told before their record was safe."""
        told = self.plan.with_name("plan.json.unsafe")
        found = told.read_text().splitlines() if told.exists() else []
        told.unlink(missing_ok=True)
        return found

    def _draw_sweep(self, generator: random.Random) -> dict[str, Any]:
        methods = {"toy": {"fixed": {"seconds": generator.choice([0.0, 0.01, 0.04])}}}
        return {
            "name": "case",
            "dataset": {
                "name": "folder",
                "root": str(self.scratch / "data"),
                "categories": generator.choice([["plate"], ["plate", "ring"]]),
            },
            "image_size": 32,
            "trials": generator.randint(2, 5),
            "rungs": generator.randint(1, 4),
            "methods": methods,
            "sampler": generator.choice(["tpe", "random"]),
            "pruner": generator.choice(["successive_halving", "median", "none"]),
            "confirm": {
                "top": generator.randint(0, 2),
                "seeds": generator.choice([[1], [1, 11]]),
            },
        }

    def _start(
        self, sweep: dict[str, Any], directory: Path, fault: str | None, generator: random.Random
    ) -> int | None:
        """Runs the driver once with a fault; returns its exit code."""
        plan = {
            "write": {"fail_at": generator.randint(1, 40)},
            "slow": {"slow": generator.uniform(0.01, 0.1)},
        }.get(fault or "", {})
        self.plan.with_name("plan.json.count").unlink(missing_ok=True)
        self.plan.write_text(json.dumps(plan))
        driver = self._processes.Process(
            target=drive, args=(sweep, str(directory), self._cluster.address)
        )
        driver.start()
        wait, written = generator.uniform(0, 1), generator.randint(0, 12)
        if fault in ("driver", "worker", "node"):
            self._wait_for_records(driver, directory, written)
            time.sleep(wait)
            self._strike(fault, driver, generator)
        driver.join(_PATIENCE)
        if driver.is_alive():
            driver.kill()
            driver.join()
            return None
        return driver.exitcode

    def _wait_for_records(self, driver: BaseProcess, directory: Path, count: int) -> None:
        """Waits until so many records have been written since the start."""
        begin = time.time()
        while driver.is_alive():
            records = [
                *directory.glob("trials/*/*/0*.json"),
                *directory.glob("confirm/*/*/0*.json"),
            ]
            if sum(_modified(path) > begin for path in records) >= count:
                return
            time.sleep(0.02)

    def _strike(self, fault: str, driver: BaseProcess, generator: random.Random) -> None:
        if fault == "driver":
            driver.kill()
        elif fault == "worker":
            workers = [
                worker
                for raylet in self._raylets()
                for worker in raylet.children()
                # Not the agents: without them a node gives up, and with the head's the cluster.
                if re.search(r"^ray::(?!\w*Agent)|/setup_worker.py", _command(worker))
            ]
            if workers:
                generator.choice(workers).send_signal(signal.SIGKILL)
        else:
            node = self._nodes.pop(generator.randrange(len(self._nodes)))
            node.kill_raylet(check_alive=False)
            self._cluster.remove_node(node, allow_graceful=False)
            self._nodes.append(self._cluster.add_node(**_NODE, wait=False))

    def _raylets(self) -> list[psutil.Process]:
        nodes = [self._cluster.head_node, *self._nodes]
        return [
            psutil.Process(info.process.pid)
            for node in nodes
            for info in node.all_processes["raylet"]
        ]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def main() -> None:
    """Runs the cases and prints their count, their faults and every violation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wrong, struck = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        campaign = Campaign(Path(scratch))
        try:
            for case in range(options.first, options.first + options.cases):
                begin = time.monotonic()
                faults, found = campaign.run_case(f"{options.seed}/{case}")
                struck.update(fault.partition(":")[0] for fault in faults)
                wrong += len(found)
                seconds = time.monotonic() - begin
                print(f"case {case}: {' '.join(faults)} in {seconds:.0f} s", flush=True)
                for violation in found:
                    print(f"    {violation}", flush=True)
        finally:
            campaign.close()
    del struck["none"]
    print(f"{options.cases} cases, {struck.total()} faults {dict(struck)}: {wrong} violations")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
