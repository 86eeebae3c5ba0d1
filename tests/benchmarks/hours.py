"""Whether a sweep of some hours ends in them, with confirmed winners; also killed twice in between.

The demo's images and methods with ``budget: {hours: 0.05}``, three minutes. All starts' wall-clock
times are added up, from the command to its end. Starts end by SIGKILL to the whole process group.

Run ``python tests/benchmarks/hours.py [--hours 0.05] [--kill SECOND ...]``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import anomtune as at


def start(directory: Path, hours: float, until: float | None) -> float:
    """Runs a start of the sweep, kills it after some seconds, and returns how long it ran."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "anomtune", "sweep", "--dir", str(directory)]
    for setting in (f"budget.hours={hours}", "trials=50"):
        command += ["--set", setting]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(until)
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return time.perf_counter() - begin


def play(hours: float, kills: list[float]) -> None:
    """Runs a sweep with kills and prints what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "sweep"
        times = [start(directory, hours, seconds) for seconds in [*kills, None]]
        result = at.open_sweep(directory)
        trials, runs = result.trials.num_rows, sum(len(s.confirm_runs) for s in result)
        told = " + ".join(f"{seconds:.1f}" for seconds in times)
        print(
            f"{told} = {sum(times):.1f} s, {sum(times) / hours / 3600:.3f} of the hours; finished: "
            f"{result.finished}; {trials} trials, {runs} confirm runs"
        )
        for category in result.categories:
            row = result.best(category).row
            print(f"  {category}: {row['method']}, {row['n_seeds']} seeds confirmed")


def main() -> None:
    """Runs one sweep undisturbed and one that is killed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=0.05)
    parser.add_argument("--kill", type=float, nargs="*", default=[50.0, 60.0])
    arguments = parser.parse_args()
    play(arguments.hours, [])
    play(arguments.hours, arguments.kill)


if __name__ == "__main__":
    main()
