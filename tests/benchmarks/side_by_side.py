"""Runs the trainings of a benchmark side by side, and goes on where it was stopped."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")
S = TypeVar("S")


def run_all(
    train: Callable[[R], tuple[R, S]],
    runs: Sequence[R],
    result_type: Callable[..., S],
    *,
    processes: int,
    log: Path | None,
) -> dict[R, S]:
    """Returns the result of every run, in the order of the runs.

    Args:
        train: Importable by other processes; returns its argument and the result.
        runs: Frozen dataclasses of one type, of values that JSON has.
        result_type: A dataclass of such values.
        processes: How many runs at once.
        log: JSON lines: results are read from here and added to it.
    """
    results: dict[R, S] = {}
    if log is not None and log.exists():
        kind: Any = type(runs[0])
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            results[kind(**entry["run"])] = result_type(**entry["result"])
    left = [run for run in runs if run not in results]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for run, result in pool.imap_unordered(train, left):
            results[run] = result
            print(run, result, file=sys.stderr, flush=True)
            if log is not None:
                with log.open("a") as file:
                    file.write(json.dumps({"run": vars(run), "result": vars(result)}) + "\n")
    return {run: results[run] for run in runs}
