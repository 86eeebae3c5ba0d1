"""Whether one driver stays as it is over 20,000 trials: memory, file handles, processes, speed.

The whole engine runs on a Ray of its own; trials train nothing, so that nothing else is seen. After
every thousand a line says what the driver, Ray's own processes and the workers hold. A driver keeps
the record of every trial, so that its memory grows with them by a few kB each; nothing else may.

Run: python tests/benchmarks/soak.py [--trials 20000] [--every 1000] [--slots 2]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from anomtune.search.config import Sweep, parse_sweep
from anomtune.search.events import Event, TrialEnded
from anomtune.search.sweep import run
from tests.conftest import draw_category  # also makes the toy method known

#: Trials of a study: more would make a study that nobody searches, whose sampler takes its time.
PER_STUDY = 500


@dataclass(frozen=True)
class Look:
    """What is there at one moment. Memory is resident, in MB.

    Attributes:
        trials: How many have ended.
        driver: Memory of the driver.
        handles: Its open files and sockets.
        threads: Its threads.
        workers: Memory of all workers.
        worker_handles: Their open files and sockets.
        ray: Memory of Ray's own processes.
        ray_handles: Their open files and sockets.
        processes: How many processes there are below the driver.
        all_threads: Threads of all of these.
        ms: Milliseconds per trial since the look before.
    """

    trials: int
    driver: float
    handles: int
    threads: int
    workers: float
    worker_handles: int
    ray: float
    ray_handles: int
    processes: int
    all_threads: int
    ms: float


def look(trials: int, ms: float) -> Look:
    """Returns what is there now."""
    driver = psutil.Process()
    workers: list[tuple[float, int]] = []
    others: list[tuple[float, int]] = []
    threads = 0
    for process in driver.children(recursive=True):
        try:
            is_worker = " ".join(process.cmdline()).startswith("ray::")
            held = process.memory_info().rss / 1e6, process.num_fds()
            threads += process.num_threads()
        except psutil.NoSuchProcess:
            continue
        (workers if is_worker else others).append(held)
    return Look(
        trials=trials,
        driver=driver.memory_info().rss / 1e6,
        handles=driver.num_fds(),
        threads=driver.num_threads(),
        workers=sum(memory for memory, _ in workers),
        worker_handles=sum(handles for _, handles in workers),
        ray=sum(memory for memory, _ in others),
        ray_handles=sum(handles for _, handles in others),
        processes=len(workers) + len(others),
        all_threads=threads,
        ms=ms,
    )


def sweep(root: Path, trials: int, slots: int) -> Sweep:
    """Returns a sweep of the toy method: one rung, no sleep, nothing to learn."""
    names = [f"category-{index:03}" for index in range(-(-trials // PER_STUDY))]
    for seed, name in enumerate(names):
        draw_category(root / name, train=2, good=4, bad=4, seed=seed)
    return parse_sweep(
        {
            "name": "soak",
            "dataset": {"name": "folder", "root": str(root), "categories": names},
            "image_size": 32,
            "trials": -(-trials // len(names)),
            "rungs": 1,
            "methods": {"toy": {}},
            "confirm": 0,
            "concurrency": slots,
        },
        "benchmark",
    )


def soak(trials: int, every: int, slots: int, show: Callable[[Look], None]) -> list[Look]:
    """Runs so many trials, so many at once, and looks after every so many of them."""
    looks: list[Look] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        os.environ["ANOMTUNE_CACHE"] = str(root / "cache")
        config = sweep(root / "data", trials, slots)
        ended, since = 0, time.perf_counter()

        def on_event(event: Event) -> None:
            nonlocal ended, since
            if not isinstance(event, TrialEnded):
                return
            assert event.state == "COMPLETE", event
            ended += 1
            if ended % every:
                return
            looks.append(look(ended, (time.perf_counter() - since) * 1e3 / every))
            show(looks[-1])
            since = time.perf_counter()

        run(config, root / "sweep", on_event=on_event)
    return looks


def growth(looks: list[Look]) -> dict[str, float]:
    """Returns of each figure what a thousand trials add, in the second half of the looks.

    The last look does not count: by then the workers may have ended.
    """
    second = looks[len(looks) // 2 : -1]
    trials = [one.trials / 1000 for one in second]
    return {
        field.name: float(np.polyfit(trials, [getattr(one, field.name) for one in second], 1)[0])
        for field in fields(Look)
        if field.name != "trials"
    }


def main() -> None:
    """Prints a line after every so many trials, and what they add."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=2)
    given = parser.parse_args()
    names = [field.name for field in fields(Look)]
    print("  ".join(names), flush=True)

    def show(one: Look) -> None:
        cells = (f"{getattr(one, name):>{len(name)}.0f}" for name in names)
        print("  ".join(cells), flush=True)

    looks = soak(given.trials, given.every, given.slots, show)
    print("what a thousand trials add, in the second half:")
    for name, slope in growth(looks).items():
        print(f"  {name:<15}{slope:+9.3f}")


if __name__ == "__main__":
    main()
