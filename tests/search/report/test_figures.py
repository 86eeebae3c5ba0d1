"""The figures of the report: what is drawn, and when nothing is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from anomtune.models.ranges import Choice, FloatRange
from anomtune.search.report.accuracy_figures import pareto, roc
from anomtune.search.report.search_figures import (
    best_so_far,
    drawn_trials,
    history,
    importances,
    parallel,
    pruning,
    slice_of,
    time_unit,
)
from anomtune.search.report.traces import text
from anomtune.search.store.held_out import HeldOutScores
from anomtune.search.store.records import Rung, TrialRecord

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def trial(number, *aurocs, state="COMPLETE", **params) -> TrialRecord:
    curve = [
        Rung(step=step, auroc=value, auroc_low=0, auroc_high=1)
        for step, value in enumerate(aurocs, start=1)
    ]
    finished_at = (NEW_YEAR - timedelta(seconds=number)).isoformat()
    return TrialRecord(
        dataset="folder", category="plate", method="toy", number=number, state=state,
        params=params, seed=0, split_hash="s", curve=curve,
        cost={"train_seconds": 10, "finished_at": finished_at},
    )  # fmt: skip


TRIALS = [
    trial(0, 0.5, 0.6, lr=0.1, kind="x"),
    trial(1, 0.7, 0.9, lr=0.01, kind="y"),
    trial(2, 0.4, state="PRUNED", lr=0.9, kind="y"),
    trial(3, 0.8, 0.8, lr=0.02, kind="x"),
    trial(4, 0.3, state="FAIL", lr=0.5, kind="x"),
    trial(5, 0.2, state="RUNNING", lr=0.5, kind="x"),
]
SPACE = {"lr": FloatRange(low=0.01, high=1, log=True), "kind": Choice(choices=("x", "y", "z"))}


def by_name(figure) -> dict:
    return {trace["name"]: trace for trace in figure["data"]}


def test_search_curves():
    assert best_so_far(TRIALS, {0: 0, 1: 1, 2: 2, 3: 3}) == [(0, 0.6), (1, 0.9), (3, 0.9)]
    over_trials = by_name(history(TRIALS))
    assert over_trials["pruned"]["y"] == [0.4]
    assert over_trials["completed"]["x"] == [0, 1, 3]
    # In time, trials stand in the order of their end, which was the reverse; 10 s each.
    over_time = history(TRIALS, by_time=True)
    assert over_time["layout"]["xaxis"]["title"]["text"] == "compute (seconds)"
    best = by_name(over_time)["best so far"]
    assert (best["x"], best["y"]) == ([20, 40, 50], [0.8, 0.9, 0.9])
    assert history([]) is None
    assert history([TRIALS[5]]) is None
    assert history([TRIALS[4]]) is None


def test_of_many_trials_the_best_are_drawn():
    """However many there are: nobody may miss the best because a page must be small."""
    generator = np.random.default_rng(0)
    records = [
        trial(n, float(value), state="COMPLETE" if n % 3 else "PRUNED", lr=0.1)
        for n, value in enumerate(generator.uniform(0.5, 1, 4000))
    ]
    for record in records:  # ended in another order than they began
        ended = NEW_YEAR + timedelta(seconds=(record.number * 7919) % 4000)
        record.cost.finished_at = ended.isoformat()
    shown = drawn_trials(records)
    assert 200 < len(shown) <= 300
    completed = [record for record in records if record.state == "COMPLETE"]
    ranked = sorted(completed, key=lambda record: -record.value)
    assert {0, *(record.number for record in ranked[:50])} <= shown
    for order in (lambda r: r.number, lambda r: r.cost.finished_at):
        best = 0.0
        for record in sorted(completed, key=order):
            if record.value > best:
                best = record.value
                assert record.number in shown
    some = by_name(history(records, shown))
    assert len(some["completed"]["x"]) + len(some["pruned"]["x"]) == len(shown)
    assert some["best so far"] == by_name(history(records))["best so far"]
    assert drawn_trials(TRIALS) == set(range(6))


def test_trials_that_are_all_better_than_the_last_are_all_drawn():
    rising = [trial(number, number / 1000) for number in range(301)]
    assert drawn_trials(rising) == set(range(301))


def test_pruning_tells_the_trials_apart():
    traces = by_name(pruning(TRIALS))
    assert set(traces) == {"pruned", "failed", "running", "completed", "paper's config", "best"}
    assert traces["best"]["y"] == [0.7, 0.9, None]
    assert traces["completed"]["customdata"] == [3, 3, None]
    assert pruning([trial(0)]) is None


def test_slices_and_parallel_coordinates():
    kinds = slice_of(TRIALS, "kind", SPACE["kind"])
    assert kinds["layout"]["xaxis"]["categoryarray"] == ["x", "y", "z"]
    rates = by_name(slice_of(TRIALS, "lr", SPACE["lr"]))
    assert rates["best"]["x"] == [0.01]
    assert rates["pruned"]["x"] == [0.9]
    lines = by_name(parallel(TRIALS, SPACE, ["lr", "kind"]))
    assert lines["best"]["y"] == [0.0, 0.5, 1.0, None]
    assert parallel(TRIALS, SPACE, ["lr"]) is None
    assert parallel(TRIALS[4:], SPACE, ["lr", "kind"]) is None
    assert slice_of(TRIALS[4:], "lr", SPACE["lr"]) is None


def test_importances_need_trials_that_differ():
    import optuna

    distribution = optuna.distributions.FloatDistribution(0, 1)

    def study(values):
        built = optuna.create_study(direction="maximize")
        for index, value in enumerate(values):
            params = {"matters": value, "idle": index * 7 % 10 / 10}
            built.add_trial(
                optuna.trial.create_trial(
                    params=params, value=value, distributions=dict.fromkeys(params, distribution)
                )
            )
        return built

    shares = importances(study([index / 20 for index in range(20)]))
    assert next(iter(shares)) == "matters"
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(study([0.5] * 20)) is None
    assert importances(study([0.1, 0.2])) is None
    assert importances(study([])) is None


def test_pareto_and_units():
    points = [(3, 0.9), (1, 0.8), (2, 0.7), (4, 0.95), (3, 0.85), (5, 0.95)]
    assert pareto(points) == [(1, 0.8), (3, 0.9), (4, 0.95)]
    assert [time_unit(s)[1] for s in (50, 150, 8000, 200_000)] == [
        "seconds", "minutes", "hours", "days",
    ]  # fmt: skip


def test_roc_is_bounded_and_skips_what_cannot_be_drawn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 20_000).astype(np.int8)
    scores = (labels + generator.normal(size=20_000)).astype(np.float32)
    drawn = roc([(1, HeldOutScores(labels, scores))], "#000")
    assert 300 < len(drawn["data"][1]["x"]) <= 400
    assert drawn["data"][1]["x"][-1] == drawn["data"][1]["y"][-1] == 1
    assert roc([(1, HeldOutScores(labels * 0, scores))], "#000") is None
    assert roc([(1, HeldOutScores(labels, scores * np.nan))], "#000") is None


def test_names_are_text_for_plotly():
    assert text("<b>&") == "&lt;b&gt;&amp;"
