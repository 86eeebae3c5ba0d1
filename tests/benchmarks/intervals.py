"""How often the 95 % interval of an AUROC holds, and how often equal methods are told apart.

Two methods of the same AUROC are trained with S seeds each and score the same images, thousands of
times. The intervals must cover the true AUROC in at least 93 of 100, and the paired test must tell
the two apart in at most 6.5 of 100, whatever the number of images, their balance, the AUROC, the
number of seeds and what a seed does. The functions are those of the leaderboard.

    python tests/benchmarks/intervals.py [--quick]

Writes docs/intervals.md; --quick looks at a few cells, with less work, and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from anomtune.search.metrics.delong import intervals, p_values

PAGE = Path(__file__).parents[2] / "docs" / "intervals.md"

IMAGES = (20, 60, 200)
#: Anomalous images among all.
SHARES = {"1:1": 1 / 2, "1:3": 1 / 4}
AUROCS = (0.7, 0.9, 0.97)
#: Standard deviation of the true AUROC between trainings with other seeds.
EFFECTS = (0.0, 0.01, 0.03)
SEEDS = (1, 3, 5)

LEAST_COVERED, MOST_TOLD = 0.93, 0.065

#: What the variance of a score is made of: the image's own difficulty, what a method makes of the
#: image, what a training of that method makes of it.
DIFFICULTY, METHOD, TRAINING = 0.3, 0.6, 0.1

#: Runs times seeds of a cell, and how many runs are held in memory at once.
WORK, CHUNK = 9_000, 500

TEXT = """# How often intervals and ties are right

Written by `tests/benchmarks/intervals.py`, which says how: two methods of equal AUROC, trained with
S seeds each, score the same images, {work} / S times. A seed moves all anomalous images together,
so that the true AUROC of a training has the standard deviation (SD) given; the AUROC of the method
is its mean. A cell reads *covered / told apart*: of 100 intervals of 95 %, how many hold the true
AUROC (at least 93 are asked for), and of 100 pairs, how many the test at 5 % tells apart (at most
6.5). The standard error of a figure is about 0.5.

With three or five seeds, images and seeds are both part of the interval and of the test. With few
images or an AUROC near 1 there is little that could differ: the test then finds nothing, true or
not.

{several}

Lowest coverage {covered:.1f}, highest share told apart {told:.1f}.

## One seed

A single training says nothing of other seeds. Its interval is of *that training* with other images,
and holds as such (first column). Of the method it is too narrow as soon as seeds matter, and a test
of two trainings finds differences between equal methods: the other columns, in which the AUROC is
that of the method. Therefore `tied` is never `false` where there is one training of each: what the
images cannot tell apart is tied, what they can is not known.

{single}
"""


class Cell(NamedTuple):
    """What is simulated."""

    images: int
    balance: str
    auroc: float
    effect: float
    seeds: int


@dataclass(frozen=True)
class Shares:
    """Of a cell: how many intervals cover the truth, how many pairs are told apart."""

    covered: float
    told: float
    runs: int

    def __str__(self) -> str:
        return f"{100 * self.covered:.1f} / {100 * self.told:.1f}"


def distance_of(auroc: float, effect: float) -> tuple[float, float]:
    """Returns mean and deviation over seeds of the distance between the classes.

    Scores have variance 1, so that a training at distance d has the AUROC Phi(d / sqrt 2).

    Args:
        auroc: The mean over seeds of the true AUROC.
        effect: Its standard deviation.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def centre(deviation: float) -> float:
        return float(ndtri(auroc) * np.sqrt(2 + deviation**2))

    def excess(deviation: float) -> float:
        areas = ndtr((centre(deviation) + deviation * points) / np.sqrt(2))
        return float(np.sqrt(weights @ (areas - auroc) ** 2) - effect)

    deviation = float(brentq(excess, 1e-6, 20)) if effect else 0.0
    return centre(deviation), deviation


def draw(
    cell: Cell, labels: npt.NDArray[np.int8], runs: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Returns scores ``(runs, 2 methods, seeds, images)``."""
    centre, deviation = distance_of(cell.auroc, cell.effect)
    normal = generator.standard_normal
    scores = np.sqrt(DIFFICULTY) * normal((runs, 1, 1, cell.images))
    scores = scores + np.sqrt(METHOD) * normal((runs, 2, 1, cell.images))
    scores = scores + np.sqrt(TRAINING) * normal((runs, 2, cell.seeds, cell.images))
    distances = centre + deviation * normal((runs, 2, cell.seeds, 1))
    return scores + labels * distances


def simulate(cell: Cell, work: int) -> Shares:
    """Returns how often interval and test are right, in ``work / seeds`` runs."""
    generator = np.random.default_rng([int(1000 * float(x)) for x in cell if x != cell.balance])
    labels = np.zeros(cell.images, np.int8)
    labels[: round(cell.images * SHARES[cell.balance])] = 1
    runs = work // cell.seeds
    covered = told = 0
    for start in range(0, runs, CHUNK):
        scores = draw(cell, labels, min(CHUNK, runs - start), generator)
        found = intervals(labels, scores)
        covered += int(((found.low <= cell.auroc) & (cell.auroc <= found.high)).sum())
        told += int((p_values(labels, scores[:, 0], scores[:, 1]) <= 0.05).sum())
    return Shares(covered / (2 * runs), told / runs, runs)


def table(
    results: dict[Cell, Shares], columns: Sequence[tuple[int, float]], aurocs: Sequence[float]
) -> str:
    """Returns results in Markdown; a column is a number of seeds and what a seed does."""
    titles = [f"S = {seeds}, SD {effect:g}" for seeds, effect in columns]
    lines = [f"| images | anomalous : normal | AUROC | {' | '.join(titles)} |"]
    lines.append("| --- " * (3 + len(columns)) + "|")
    for images, balance, auroc in itertools.product(IMAGES, SHARES, aurocs):
        cells = [results[Cell(images, balance, auroc, effect, seeds)] for seeds, effect in columns]
        lines.append(f"| {images} | {balance} | {auroc:g} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def wrong(results: dict[Cell, Shares], slack: float = 0.0) -> Iterator[str]:
    """Yields the cells that are out of bounds, but for some standard errors.

    Of one seed only those where a seed does nothing: nothing is claimed of the others.
    """
    for cell, shares in results.items():
        if cell.seeds == 1 and cell.effect:
            continue
        allowed = slack * np.sqrt(0.05 * 0.95 / shares.runs)
        if shares.covered < LEAST_COVERED - allowed or shares.told > MOST_TOLD + allowed:
            yield f"{cell}: {shares}"


def page(results: dict[Cell, Shares]) -> str:
    """Returns ``docs/intervals.md``."""
    several = [shares for cell, shares in results.items() if cell.seeds > 1]
    return TEXT.format(
        work=f"{WORK:,}",
        several=table(results, list(itertools.product(SEEDS[1:], EFFECTS)), AUROCS),
        single=table(results, [(1, effect) for effect in EFFECTS], AUROCS),
        covered=100 * min(shares.covered for shares in several),
        told=100 * max(shares.told for shares in several),
    )


def main() -> None:
    """Simulates all cells, writes the page and says whether the bounds hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few cells, no page")
    quick = parser.parse_args().quick
    cells = [Cell(*values) for values in itertools.product(IMAGES, SHARES, AUROCS, EFFECTS, SEEDS)]
    if quick:
        cells = [cell for cell in cells if cell.images != 60 and cell.auroc != 0.9]
        cells = [cell for cell in cells if cell.seeds != 5 and cell.effect != 0.01]
    begin = time.perf_counter()
    results = {cell: simulate(cell, 2_000 if quick else WORK) for cell in cells}
    seconds = time.perf_counter() - begin
    several = [shares for cell, shares in results.items() if cell.seeds > 1]
    print(
        f"{len(cells)} cells in {seconds:.0f} s; with several seeds at least "
        f"{100 * min(s.covered for s in several):.1f} % of the intervals cover, at most "
        f"{100 * max(s.told for s in several):.1f} % of equal pairs are told apart"
    )
    if failures := list(wrong(results, slack=3.0 if quick else 0.0)):
        sys.exit("\n".join(["out of bounds:", *failures]))
    if not quick:
        PAGE.write_text(page(results), encoding="utf-8")
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
