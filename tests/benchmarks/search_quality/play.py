"""Whole sweeps of one category, played in seconds on the recorded tables (`tables.py`).

Half of the test images, drawn anew for each split, are the validation images that a search sees;
the other half says what its answer is worth. The answer at a time is the config with the highest
validation AUROC so far, over all methods. The clock is the CPU time of the recorded trainings; a
config that was not recorded takes what the nearest recorded one gave. Searchers:

* paper: the mean of the paper's configs of all methods; and `paper, best`: of these the one with
  the highest validation AUROC.
* random, even: every method as many trials, random configs; smoothing and reduction are drawn with
  the config, as in version 0.1.
* TPE, even: version 0.1: Optuna's TPE with successive halving in each study.
* Optuna: TPE with its Hyperband in each study, in its defaults.
* FLAML: its BlendSearch or CFO over methods and their spaces as one, cost by seconds.
* anomtune: the real pool: a race of methods, all scorings judged by each training. Judging is
  charged with a tenth of the trial.

Run ``python tests/benchmarks/search_quality/play.py [--splits 50] [--set NAME ...]``.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from functools import cached_property, lru_cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from record import FIXED, RUNGS, SETS
from tables import Table, Training, load, names

from anomtune.models.ranges import Choice, FloatRange, IntRange
from anomtune.search.config import MethodConfig, parse_sweep
from anomtune.search.decide.plan import SearchPlan, plan_search
from anomtune.search.decide.pool import Pool
from anomtune.search.metrics.delong import errors_against_first, placements
from anomtune.search.store.judged import Judged
from anomtune.search.store.records import Cost, Facts, Rung, StudyKey

Figures = npt.NDArray[np.float64]
#: What a search has found by a time: seconds, validation and held-out AUROC of its answer.
Point = tuple[float, float, float]

#: Trials of each method that version 0.1's sweep has: the longest of all.
TRIALS = 12
#: Parts of its time at which answers are compared.
PARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
#: What judging all scorings adds to a trial.
_JUDGING = 0.1
_FACTS = Facts(n_val_normal=1, n_val_anomalous=1, parameters=1)


class Category:
    """A table and a split of its images into those that a search sees and those that it does not.

    Args:
        table: The recorded trainings.
        split: Number of the split.
    """

    def __init__(self, table: Table, split: int) -> None:
        self.table = table
        generator = np.random.default_rng(split)
        self.seen = np.zeros(len(table.labels), np.bool_)
        for label in (0, 1):
            images = generator.permutation(np.flatnonzero(table.labels == label))
            self.seen[images[: len(images) // 2]] = True
        self.labels = table.labels[self.seen]
        self._known: dict[tuple[str, int, int, bool], Figures] = {}
        self._errors: dict[tuple[str, int], Figures] = {}

    def aurocs(self, training: Training, rung: int, *, held_out: bool = False) -> Figures:
        """Returns the AUROC of each scoring ``(G,)`` at a rung, counted from 0."""
        key = training.method, training.number, rung, held_out
        if key not in self._known:
            part = ~self.seen if held_out else self.seen
            scores = training.ranks[rung][:, part].astype(np.float64)
            self._known[key] = placements(self.table.labels[part], scores)[2]
        return self._known[key]

    def errors(self, training: Training) -> Figures:
        """Returns the standard errors ``(G,)`` of what the scorings have over the paper's."""
        key = training.method, training.number
        if key not in self._errors:
            scores = training.ranks[-1][:, self.seen].astype(np.float64)
            self._errors[key] = errors_against_first(self.labels, scores)
        return self._errors[key]


@dataclasses.dataclass(frozen=True)
class TablePlan(SearchPlan):
    """A plan whose scorings are those that the table has kept."""

    kept: tuple[dict[str, Any], ...] = ()

    @cached_property
    def scorings(self) -> tuple[dict[str, Any], ...]:
        """The scorings that every training is judged with, the paper's first."""
        return self.kept


@lru_cache
def plan(name: str, method: str) -> TablePlan:
    """Returns how a method was searched when a table was recorded."""
    table = table_of(name)
    recorded = table.trainings[method][0]
    fixed = dict(FIXED[method])
    sides = sorted(
        {training.point.get("resolution") for training in table.trainings[method]} - {None}
    )
    if "epochs" in recorded.params:
        fixed["epochs"] = recorded.params["epochs"]
    space = {"resolution": {"choices": sides}} if sides else {}
    images = SETS[name]
    found = plan_search(
        method,
        MethodConfig(fixed=fixed, space=space),
        images.dataset,
        images.category,
        image_size=images.image_size,
    )
    searched = {key: item for key, item in found.space.items() if key in recorded.point}
    defaults = found.hyperparameters(recorded.point)
    return TablePlan(method, defaults, searched, None, tuple(table.scorings[method]))


@lru_cache
def table_of(name: str) -> Table:
    """Returns a table, read once."""
    return load(name)


def nearest(name: str, method: str, point: dict[str, Any]) -> Training:
    """Returns the recorded training whose config is nearest to a point of the space."""
    space = plan(name, method).space

    def distance(training: Training) -> float:
        return sum(
            _apart(item, point[key], training.point[key]) ** 2 for key, item in space.items()
        )

    return min(table_of(name).trainings[method], key=distance)


def _apart(item: Any, one: Any, other: Any) -> float:
    match item:
        case Choice():
            return float(one != other)
        case FloatRange() | IntRange():
            scale = math.log if item.log else float
            low, high = scale(item.low), scale(item.high)
            return abs(scale(one) - scale(other)) / (high - low or 1)


def rungs(training: Training) -> Iterator[tuple[int, int, float]]:
    """Yields the rungs of a training: number from 1, index, and the seconds up to it."""
    count, seconds = len(training.fit_seconds), 0.0
    for index in range(count):
        # A search scores half of the images that were scored.
        seconds += training.fit_seconds[index] + training.score_seconds[index] / 2
        yield RUNGS - count + index + 1, index, seconds


def anomtune(
    category: Category, seconds: float, seed: int, allocation: str = "race", **changes: Any
) -> list[Point]:
    """Plays the real pool."""
    table = category.table
    config = parse_sweep(
        {
            "name": "play",
            "dataset": {"name": "folder", "root": "/"},
            "methods": dict.fromkeys(table.trainings),
            "budget": {"hours": seconds / 3600},
            "allocation": allocation,
            "rungs": RUNGS,
            "confirm": 0,
            "seed": seed,
            **changes,
        },
        "play",
    )
    plans = {StudyKey("c", method): plan(table.name, method) for method in table.trainings}
    pool = Pool(config, plans, {"c": "split"}, {}, lambda record: None)
    clock, points, trained = 0.0, [], {}
    while clock < seconds and (record := pool.ask()):
        study = pool.studies[record.key]
        point = {name: record.params[name] for name in study.plan.space}
        training = nearest(table.name, record.method, point)
        trained[record.key, record.number] = training
        goes_on, spent = True, 0.0
        for step, index, so_far in rungs(training):
            spent = so_far * (1 + _JUDGING)
            values = category.aurocs(training, index)
            errors = category.errors(training) if step == RUNGS else None
            judged = Judged.of(category.labels, values, errors=errors)
            rung = Rung(step=step, auroc=float(values[0]), auroc_low=0, auroc_high=1, judged=judged)
            goes_on = pool.report(record.key, record.number, rung)
            if not goes_on and step < RUNGS:
                break
        state = "COMPLETE" if step == RUNGS else "PRUNED"
        pool.finish(record.key, record.number, state, facts=_FACTS, cost=Cost(train_seconds=spent))
        clock += spent
        if clock <= seconds:
            points.append((clock, *_answer(category, pool, trained)))
    return points


def _answer(category: Category, pool: Pool, trained: dict[Any, Training]) -> tuple[float, float]:
    best = max(
        (
            (value - study.handicap, -number, study)
            for study in pool.studies.values()
            for number, value in study.figures.items()
            if study.records[number].state == "COMPLETE"
        ),
        default=None,
        key=lambda item: item[:2],
    )
    if best is None:
        return 0.5, 0.5
    _, number, study = best
    training = trained[study.key, -number]
    return study.figures[-number], float(
        category.aurocs(training, -1, held_out=True)[study.scoring]
    )


# --- searchers that draw smoothing and reduction with the config, as version 0.1 did -------------


@lru_cache
def drawn(name: str, method: str) -> dict[str, list[Any]]:
    """Returns the smoothings and reductions that are drawn with a config."""
    scorings = _plain(name, method)
    return {
        f"scoring.{key}": list(dict.fromkeys(s[key] for s in scorings.values()))
        for key in ("sigma", "reduce")
    }


@lru_cache
def _plain(name: str, method: str) -> dict[int, dict[str, Any]]:
    """Returns the scorings that differ from the paper's in smoothing and reduction, by number."""
    kept = plan(name, method).kept
    same = ("scales", "normalise")
    return {
        number: scoring
        for number, scoring in enumerate(kept)
        if all(scoring[key] == kept[0][key] for key in same)
    }


def scoring_of(name: str, method: str, values: dict[str, Any]) -> int:
    """Returns the number of a scoring; of the mean, which no smoothing changes, there is one."""
    scorings = _plain(name, method)
    for number, scoring in scorings.items():
        if all(scoring[key] == values[f"scoring.{key}"] for key in ("sigma", "reduce")):
            return number
    reduce = values["scoring.reduce"]
    return next(n for n, scoring in scorings.items() if scoring["reduce"] == reduce)


def distributions(name: str, method: str) -> dict[str, Any]:
    """Returns the space of version 0.1: what training depends on, smoothing and reduction."""
    found = dict(plan(name, method).distributions)
    for key, choices in drawn(name, method).items():
        found[key] = optuna.distributions.CategoricalDistribution(choices)
    return found


def default(name: str, method: str) -> dict[str, Any]:
    """Returns the paper's config as a point of that space."""
    known = plan(name, method)
    drawn_too = {f"scoring.{key}": known.kept[0][key] for key in ("sigma", "reduce")}
    return known.anchor()[0] | drawn_too


def even(
    category: Category,
    seconds: float,
    seed: int,
    sampler: Callable[[int], Any],
    pruner: Callable[[], Any],
    trials: int = 1000,
) -> list[Point]:
    """Plays an Optuna study for each method, in turns."""
    name, methods = category.table.name, list(category.table.trainings)
    studies = {
        method: optuna.create_study(
            direction="maximize",
            sampler=sampler(_seed(seed, method)),
            pruner=pruner(),
        )
        for method in methods
    }
    for method, study in studies.items():
        study.enqueue_trial(default(name, method))
    clock, points, best = 0.0, [], (0.0, 0.5)
    for number in range(trials):
        for method, study in studies.items():
            if clock >= seconds:
                return points
            trial = study.ask(distributions(name, method))
            training = nearest(name, method, trial.params)
            scoring = scoring_of(name, method, trial.params)
            value = spent = 0.0
            pruned = False
            for step, index, so_far in rungs(training):
                spent = so_far
                value = float(category.aurocs(training, index)[scoring])
                trial.report(value, step)
                pruned = step < RUNGS and number > 0 and trial.should_prune()
                if pruned:
                    break
            state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE
            study.tell(trial, None if pruned else value, state=state)
            clock += spent
            if not pruned and value > best[0]:
                best = value, float(category.aurocs(training, -1, held_out=True)[scoring])
            if clock <= seconds:
                points.append((clock, *best))
    return points


def flaml_search(category: Category, seconds: float, seed: int) -> list[Point]:
    """Plays FLAML over all methods and their spaces as one."""
    from flaml import tune  # installed for this benchmark alone

    name, methods = category.table.name, list(category.table.trainings)

    def domain(item: Any) -> Any:
        match item:
            case optuna.distributions.FloatDistribution():
                return (tune.loguniform if item.log else tune.uniform)(item.low, item.high)
            case optuna.distributions.IntDistribution():
                return (tune.lograndint if item.log else tune.randint)(item.low, item.high + 1)
            case _:  # by name: choices of mixed types confuse it
                return tune.choice([str(choice) for choice in item.choices])

    def named(item: Any, value: Any) -> Any:
        return str(value) if hasattr(item, "choices") else value

    def meant(item: Any, value: Any) -> Any:
        choices = getattr(item, "choices", ())
        return next((choice for choice in choices if str(choice) == value), value)

    space = {"method": tune.choice(methods)}
    for method in methods:
        for key, item in distributions(name, method).items():
            space[f"{method}__{key}"] = domain(item)
    defaults = {
        f"{method}__{key}": named(distributions(name, method)[key], value)
        for method in methods
        for key, value in default(name, method).items()
    }
    first = [{"method": method, **defaults} for method in methods]
    clock, points, best = 0.0, [], (0.0, 0.5)

    def evaluate(config: dict[str, Any]) -> dict[str, float]:
        nonlocal clock, best
        method = config["method"]
        point = {
            key: meant(item, config[f"{method}__{key}"])
            for key, item in distributions(name, method).items()
        }
        training = nearest(name, method, point)
        scoring = scoring_of(name, method, point)
        *_, (_, _, spent) = rungs(training)
        value = float(category.aurocs(training, -1)[scoring])
        clock += spent
        if value > best[0]:
            best = value, float(category.aurocs(training, -1, held_out=True)[scoring])
        if clock > seconds:
            raise _TimeOver
        points.append((clock, *best))
        return {"auroc": value, "seconds": spent}

    with suppress(_TimeOver), redirect_stdout(io.StringIO()):
        tune.run(
            evaluate,
            config=space,
            metric="auroc",
            mode="max",
            num_samples=100_000,
            points_to_evaluate=first,
            cost_attr="seconds",
            use_ray=False,
            verbose=0,
        )
    return points


class _TimeOver(Exception):  # noqa: N818 - ends a search, is no error
    """The time of a search is over."""


def _seed(seed: int, method: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{method}".encode()).digest()[:4], "big")


def _tpe(seed: int) -> Any:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, min(10, TRIALS // 3)))


def _halving() -> Any:
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)


SEARCHERS: dict[str, Callable[[Category, float, int], list[Point]]] = {
    "random, even": lambda c, s, n: even(
        c, s, n, lambda seed: optuna.samplers.RandomSampler(seed=seed), optuna.pruners.NopPruner
    ),
    "TPE, even (0.1)": lambda c, s, n: even(c, s, n, _tpe, _halving),
    "Optuna, Hyperband": lambda c, s, n: even(
        c,
        s,
        n,
        lambda seed: optuna.samplers.TPESampler(seed=seed),
        lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=RUNGS),
    ),
    "FLAML": flaml_search,
    "anomtune, even": lambda c, s, n: anomtune(c, s, n, "even"),
    "anomtune": anomtune,
}


def paper(category: Category) -> tuple[float, float, float]:
    """Returns the held-out AUROC of the papers' configs, mean and of the best, and its optimism."""
    trained = [runs[0] for runs in category.table.trainings.values()]
    seen = [float(category.aurocs(run, -1)[0]) for run in trained]
    unseen = [float(category.aurocs(run, -1, held_out=True)[0]) for run in trained]
    best = int(np.argmax(seen))
    return float(np.mean(unseen)), unseen[best], seen[best] - unseen[best]


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


def play(task: tuple[str, int, tuple[str, ...]]) -> tuple[str, int, dict[str, Any]]:
    """Plays all searchers on one split of a set."""
    name, split, searchers = task
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    category = Category(table_of(name), split)
    seconds = whole_seconds(category.table)
    found: dict[str, Any] = {"paper": paper(category)}
    for searcher in searchers:
        points = SEARCHERS[searcher](category, seconds, split)
        found[searcher] = [at(points, part * seconds) for part in PARTS]
    return name, split, found


def interval(values: Figures) -> float:
    """Returns half the width of the 95 % interval of a mean over splits."""
    return float(1.96 * np.std(values, ddof=1) / math.sqrt(len(values)))


def main() -> None:
    """Prints held-out AUROC of the answers by searcher and time, and what is to be made of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--set", nargs="+", choices=names(), default=names(), dest="sets")
    parser.add_argument("--searcher", nargs="+", choices=SEARCHERS, default=list(SEARCHERS))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    searchers = tuple(arguments.searcher)
    tasks = [
        (name, split, searchers) for split in range(arguments.splits) for name in arguments.sets
    ]
    with get_context("spawn").Pool(arguments.processes) as workers:
        results = list(workers.imap_unordered(play, tasks))
    report(results, arguments.sets, searchers)


def report(results: list[Any], sets: list[str], searchers: tuple[str, ...]) -> None:
    """Prints the tables."""
    held = {
        (name, searcher): np.array(
            [[a[1] for a in r[searcher]] for n, _, r in results if n == name]
        )
        for name in sets
        for searcher in searchers
    }
    gaps = {
        searcher: np.mean([r[searcher][-1][0] - r[searcher][-1][1] for _, _, r in results])
        for searcher in searchers
    }
    papers = {name: np.array([r["paper"] for n, _, r in results if n == name]) for name in sets}
    print(f"| searcher | {' | '.join(f'{p:.3g} of the time' for p in PARTS)} | optimism |")
    print(f"|{'---|' * (len(PARTS) + 2)}")
    for column, label in ((0, "papers' configs, mean"), (1, "papers' configs, best on validation")):
        values = np.mean([papers[name][:, column] for name in sets], axis=0)
        cell = f"{values.mean():.3f} ± {interval(values):.3f}"
        print(f"| {label} | {' | '.join([cell] * len(PARTS))} | |")
    for searcher in searchers:
        values = np.mean([held[name, searcher] for name in sets], axis=0)
        cells = [f"{v.mean():.3f} ± {interval(v):.3f}" for v in values.T]
        print(f"| {searcher} | {' | '.join(cells)} | {gaps[searcher]:+.3f} |")
    print("\nBy set, at the end:\n")
    print(f"| searcher | {' | '.join(sets)} |\n|{'---|' * (len(sets) + 1)}")
    for column, label in ((0, "papers' configs, mean"), (1, "papers' configs, best on validation")):
        print(f"| {label} | {' | '.join(f'{papers[n][:, column].mean():.3f}' for n in sets)} |")
    for searcher in searchers:
        row = [f"{held[n, searcher][:, -1].mean():.3f}" for n in sets]
        print(f"| {searcher} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
