"""Whole sweeps of one category, played in minutes on the recorded tables (`tables.py`).

What a sweep answers with at a time is the config with the highest validation AUROC so far; on the
other half of the test images that answer is worth its held-out AUROC. The clock is the CPU time of
the recorded trainings. `searchers.py` says who searches. They are compared with the papers'
configs: the mean of all methods' own, and the one of these with the highest validation AUROC.

A sweep is over all methods, or, with ``--alone``, over one: the mean over the methods is printed.

Run ``python tests/benchmarks/search_quality/play.py [--alone] [--splits 50] [--set NAME ...]``.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import warnings
from collections import defaultdict
from multiprocessing import get_context

import numpy as np
import optuna
from recorded import Category, Figures, rungs, table_of
from searchers import SEARCHERS, TRIALS, Point
from tables import Table, names

#: Parts of its time at which answers are compared: of all methods, and of one, of which the first
#: training takes a twelfth.
PARTS = {False: (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0), True: (1 / 8, 1 / 4, 1 / 2, 1.0)}
#: The papers' configs: the mean over methods, and the one that validation likes best.
PAPERS = ("papers' configs, mean over methods", "papers' configs, the best on validation")


def paper(category: Category) -> list[tuple[float, float]]:
    """Returns validation and held-out AUROC of the papers' configs, as `PAPERS` says."""
    found = [
        (float(category.aurocs(run, -1)[0]), float(category.aurocs(run, -1, held_out=True)[0]))
        for run in (runs[0] for runs in category.table.trainings.values())
    ]
    seen, unseen = np.mean(found, axis=0)
    return [(float(seen), float(unseen)), max(found)]


def whole_seconds(table: Table) -> float:
    """Returns the seconds of version 0.1's sweep if none of its trials were cut short."""
    each = [
        np.mean([list(rungs(training))[-1][2] for training in trainings])
        for trainings in table.trainings.values()
    ]
    return TRIALS * float(np.sum(each))


def at(points: list[Point], seconds: float) -> tuple[float, float]:
    """Returns validation and held-out AUROC of the answer at a time."""
    found = [point for point in points if point[0] <= seconds]
    return found[-1][1:] if found else (0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Task:
    """One sweep on one split of a set.

    Attributes:
        name: Of the set.
        split: Number of the split.
        method: The only one; "": all.
        searchers: Who searches.
    """

    name: str
    split: int
    method: str
    searchers: tuple[str, ...]


def play(task: Task) -> tuple[Task, dict[str, Figures]]:
    """Returns validation and held-out AUROC by part of the time ``(P, 2)`` of each searcher."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = table_of(task.name)
    if task.method:
        table = dataclasses.replace(table, trainings={task.method: table.trainings[task.method]})
    category = Category(table, task.split)
    seconds = whole_seconds(table)
    parts = PARTS[bool(task.method)]
    found = {
        label: np.array([figures] * len(parts))
        for label, figures in zip(PAPERS, paper(category), strict=True)
    }
    for searcher in task.searchers:
        points = SEARCHERS[searcher](category, seconds, task.split)
        found[searcher] = np.array([at(points, part * seconds) for part in parts])
    return task, found


def interval(values: Figures) -> float:
    """Returns half the width of the 95 % interval of a mean over splits."""
    return float(1.96 * np.std(values, ddof=1) / math.sqrt(len(values)))


def main() -> None:
    """Prints held-out AUROC of the answers by searcher and time, and what is to be made of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--alone", action="store_true", help="one method at a time")
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--set", nargs="+", choices=names(), default=names(), dest="sets")
    parser.add_argument("--searcher", nargs="+", choices=SEARCHERS, default=list(SEARCHERS))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    tasks = [
        Task(name, split, method, tuple(arguments.searcher))
        for split in range(arguments.splits)
        for name in arguments.sets
        for method in (table_of(name).trainings if arguments.alone else ("",))
    ]
    results = defaultdict(list)
    with get_context("spawn").Pool(arguments.processes) as workers:
        for task, found in workers.imap_unordered(play, tasks):
            for searcher, figures in found.items():
                results[searcher, task.name, task.split].append(figures)
    # By searcher, set, split, part, and validation or held-out: the mean over methods.
    searchers = [*PAPERS[: 1 if arguments.alone else 2], *arguments.searcher]
    figures = np.array(
        [
            np.mean(results[searcher, name, split], axis=0)
            for searcher in searchers
            for name in arguments.sets
            for split in range(arguments.splits)
        ]
    ).reshape(len(searchers), len(arguments.sets), arguments.splits, -1, 2)
    report(figures, searchers, arguments.sets, PARTS[arguments.alone])


def report(
    figures: Figures, searchers: list[str], sets: list[str], parts: tuple[float, ...]
) -> None:
    """Prints the tables.

    Args:
        figures: AUROC by searcher, set, split, part of the time, and validation or held-out.
        searchers: Names, the papers' configs among them.
        sets: Names.
        parts: Of the time.
    """
    print(f"| searcher | {' | '.join(f'{p:.3g} of the time' for p in parts)} | optimism |")
    print(f"|{'---|' * (len(parts) + 2)}")
    for searcher, values in zip(searchers, figures, strict=True):
        held = values[..., 1].mean(0)
        cells = [f"{column.mean():.4f} ± {interval(column):.4f}" for column in held.T]
        optimism = np.mean(values[..., -1, 0] - values[..., -1, 1])
        print(f"| {searcher} | {' | '.join(cells)} | {optimism:+.3f} |")
    print("\nBy set, at the end:\n")
    print(f"| searcher | {' | '.join(sets)} |\n|{'---|' * (len(sets) + 1)}")
    for searcher, values in zip(searchers, figures, strict=True):
        row = [f"{value:.3f}" for value in values[..., -1, 1].mean(1)]
        print(f"| {searcher} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
