"""The searchers that `play.py` compares, each on the same recorded trainings.

* random, even: every method as many trials, random configs; smoothing and reduction are drawn with
  the config, as in version 0.1.
* TPE, even: version 0.1: Optuna's TPE with successive halving in each study.
* Optuna: TPE with its Hyperband in each study, in its defaults.
* FLAML: its BlendSearch or CFO over methods and their spaces as one, cost by seconds.
* anomtune: the real pool: a race of methods, all scorings judged by each training. Judging is
  charged with a tenth of the trial.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import lru_cache
from typing import Any

import optuna
from record import RUNGS
from recorded import Category, nearest, plan, rungs
from tables import Training

from anomtune.search.config import parse_sweep
from anomtune.search.decide.pool import Pool
from anomtune.search.store.judged import Judged
from anomtune.search.store.records import Cost, Facts, Rung, StudyKey

#: What a search has found by a time: seconds, validation and held-out AUROC of its answer.
Point = tuple[float, float, float]

#: Trials of each method that version 0.1's sweep has: the longest of all.
TRIALS = 12
#: What judging all scorings adds to a trial.
_JUDGING = 0.1
_FACTS = Facts(n_val_normal=1, n_val_anomalous=1, parameters=1)


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
