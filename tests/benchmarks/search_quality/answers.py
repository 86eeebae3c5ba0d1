"""How a category's answer is best chosen among noisy figures: rules side by side on the tables.

Every method has its first few recorded trainings, the paper's config among them. Half of the test
images, drawn anew for each split, choose a scoring for each method, a training for that scoring,
and a method; the other half says what the choice is worth. No rule sees how long anything took.

* caution: how many standard errors of what a scoring has over the paper's are taken off when the
  scoring of a method is chosen, by its mean over trainings and neighbours.
* handicap: how many of them are taken off when methods are compared; 1 + 1/n: and as much again
  divided by the number of trainings.
* config: how many standard errors of what a training has over trial 0's are taken off when the
  training is chosen.
* shrunk: figures of trainings are moved by half towards the mean of their method.
* rung: a training answers with its network at the rung with the highest AUROC, not at the last;
  "late": of the last two.
* paper's scoring: alone.
* own scoring: each training has the scoring with its own highest AUROC.

``answer`` is the held-out AUROC of the category's answer, ``methods`` the mean over methods of
theirs, ``optimism`` what the answer's validation AUROC is above its held-out one.

Run ``python tests/benchmarks/search_quality/answers.py [--splits 50] [--trainings 8]``.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from play import interval
from recorded import Category, plan, table_of
from tables import names

from anomtune.search.metrics.delong import errors_against_first

Figures = npt.NDArray[np.float64]


class Method(NamedTuple):
    """What one method's trainings say.

    Attributes:
        seen: Validation AUROC ``(T, G)`` by training and scoring.
        unseen: Held-out AUROC.
        smooth: Mean of the validation AUROC over trainings and neighbours ``(G,)``.
        errors: Mean standard error ``(G,)`` of what a scoring has over the paper's.
        config_errors: ``(T,)`` of what a training has over trial 0's, with a scoring.
        rungs: Validation and held-out AUROC ``(T, R, G)`` by rung; of methods of one rung, R is 1.
    """

    seen: Figures
    unseen: Figures
    smooth: Figures
    errors: Figures
    config_errors: Callable[[int], Figures]
    rungs: tuple[Figures, Figures]


class Choice(NamedTuple):
    """What a method answers with: for comparison with others, on validation, on held-out images."""

    compared: float
    seen: float
    unseen: float


Rule = Callable[[Method], Choice]


def pooled(
    caution: float, handicap: float, config: float = 0.0, shrink: float = 0.0, shared: float = 0.0
) -> Rule:
    """Returns a rule that gives all trainings of a method one scoring."""

    def choose(method: Method) -> Choice:
        scoring = int(np.argmax(method.smooth - caution * method.errors))
        figures = method.seen[:, scoring]
        taken = figures - config * method.config_errors(scoring) if config else figures
        best = int(np.argmax(taken))
        compared = figures[best] + shrink * (figures.mean() - figures[best])
        return Choice(
            compared - (handicap + shared / len(method.seen)) * method.errors[scoring],
            figures[best],
            method.unseen[best, scoring],
        )

    return choose


def at_rungs(last: int) -> Rule:
    """Returns the chosen rule, with the network at the best of so many last rungs."""

    def choose(method: Method) -> Choice:
        scoring = int(np.argmax(method.smooth - 0.25 * method.errors))
        seen, unseen = (part[:, -last:, scoring] for part in method.rungs)
        best = np.unravel_index(np.argmax(seen), seen.shape)
        taken = (1 + 1 / len(seen)) * method.errors[scoring]
        return Choice(seen[best] - taken, seen[best], unseen[best])

    return choose


def _papers(method: Method) -> Choice:
    best = int(np.argmax(method.seen[:, 0]))
    return Choice(method.seen[best, 0], method.seen[best, 0], method.unseen[best, 0])


def _own(method: Method) -> Choice:
    best = np.unravel_index(np.argmax(method.seen), method.seen.shape)
    return Choice(method.seen[best], method.seen[best], method.unseen[best])


RULES: dict[str, Rule] = {
    "paper's scoring": _papers,
    "own scoring": _own,
    "pooled": pooled(0, 0),
    "caution 1/4": pooled(0.25, 0),
    "caution 1": pooled(1, 0),
    "handicap 1": pooled(0, 1),
    "caution 1/4, handicap 1/2": pooled(0.25, 0.5),
    "caution 1/4, handicap 1": pooled(0.25, 1),
    "caution 1/4, handicap 2": pooled(0.25, 2),
    "caution 1/4, handicap 1 + 1/n (chosen)": pooled(0.25, 1, shared=1),
    "caution 1/2, handicap 1": pooled(0.5, 1),
    "caution 1, handicap 1": pooled(1, 1),
    "chosen, config 1/2": pooled(0.25, 1, config=0.5, shared=1),
    "chosen, config 1": pooled(0.25, 1, config=1, shared=1),
    "chosen, shrunk": pooled(0.25, 1, shrink=0.5, shared=1),
    "chosen, rung": at_rungs(99),
    "chosen, rung, late": at_rungs(2),
}


def play(task: tuple[str, int, int]) -> tuple[str, dict[str, tuple[float, float, float]]]:
    """Returns answer, mean over methods and optimism of each rule on one split of a set."""
    name, split, trainings = task
    category = Category(table_of(name), split)
    methods = []
    for method, runs in category.table.trainings.items():
        first = runs[:trainings]
        seen = np.array([category.aurocs(run, -1) for run in first])

        def config_errors(scoring: int, first: list = first) -> Figures:  # type: ignore[type-arg]
            scores = np.stack([run.ranks[-1][scoring][category.seen] for run in first])
            return errors_against_first(category.labels, scores.astype(np.float64))

        methods.append(
            Method(
                seen,
                np.array([category.aurocs(run, -1, held_out=True) for run in first]),
                plan(name, method).neighbours @ seen.mean(0),
                np.mean([category.errors(run) for run in first], axis=0),
                config_errors,
                tuple(
                    np.array(
                        [
                            [
                                category.aurocs(run, rung, held_out=held_out)
                                for rung in range(len(run.ranks))
                            ]
                            for run in first
                        ]
                    )
                    for held_out in (False, True)
                ),
            )
        )
    found = {}
    for rule, choose in RULES.items():
        choices = [choose(method) for method in methods]
        answer = max(choices)
        mean = float(np.mean([choice.unseen for choice in choices]))
        found[rule] = (answer.unseen, mean, answer.seen - answer.unseen)
    return name, found


def main() -> None:
    """Prints a row per rule."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--trainings", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args()
    sets = names()
    for trainings in arguments.trainings:
        tasks = [(name, split, trainings) for split in range(arguments.splits) for name in sets]
        found: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
        with get_context("spawn").Pool(2) as workers:
            for name, rules in workers.imap_unordered(play, tasks):
                for rule, values in rules.items():
                    found[rule, name].append(values)
        print(f"\nTrainings of each method: {trainings}\n")
        print(f"| rule | answer | methods | optimism | {' | '.join(sets)} |")
        print(f"|{'---|' * (len(sets) + 4)}")
        for rule in RULES:
            values = np.array([found[rule, name] for name in sets])
            means = values.mean((0, 1))
            half = interval(values[..., 0].mean(0))
            row = [f"{means[0]:.4f} ± {half:.4f}", f"{means[1]:.4f}", f"{means[2]:+.3f}"]
            row += [f"{value:.3f}" for value in values[..., 0].mean(1)]
            print(f"| {rule} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
