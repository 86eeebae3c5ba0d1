"""Configs that won elsewhere are tried right after trial 0, and the records say where from."""

from __future__ import annotations

import pytest

from anomtune.registry import METHODS
from anomtune.search.config import ConfirmConfig, parse_sweep
from anomtune.search.decide.pool import Pool
from anomtune.search.decide.transfer import Transfer, Winner, winners_of
from anomtune.search.store.records import PAPER, SAMPLER, Rung, StudyKey, TrialRecord
from tests.search.conftest import Simulation, sweep_dict

KEY = StudyKey("a", "toy")


@pytest.fixture
def config():
    return parse_sweep(sweep_dict(trials=12, scoring="paper", pruner="none"), "test")


def record(number, value=None, quality=0.5, category="a", origin=SAMPLER):
    return TrialRecord(
        dataset="toys",
        category=category,
        method="toy",
        number=number,
        state="COMPLETE",
        params={"quality": quality},
        seed=0,
        split_hash="split",
        origin=PAPER if number == 0 else origin,
        curve=[] if value is None else [Rung(step=1, auroc=value, auroc_low=0, auroc_high=1)],
    )


def winner(quality, category="c", gain=0.1, sweep="/line-2"):
    params = METHODS.get("toy").Hyperparameters().model_dump() | {"quality": quality}
    return Winner(category, {**params, "elsewhere": 3}, gain, sweep)


def run(simulation, config, winners):
    pool = Pool(
        config,
        {key: study.plan for key, study in simulation.pool(config).studies.items()},
        dict.fromkeys(simulation.categories, "split"),
        simulation.records(),
        simulation.save,
        winners={"toy": winners},
    )
    simulation.pool = lambda config: pool
    simulation.run(config)
    return simulation.records()


def test_they_come_right_after_trial_0_the_same_category_first(config):
    winners = [winner(0.31), winner(0.32, gain=0.2), winner(0.33, category="a", gain=0.01)]
    found = run(Simulation(("a",)), config, winners)[KEY]
    assert [r.params["quality"] for r in found[1:3]] == [0.33, 0.32]
    assert found[0].origin == "paper"
    assert [r.origin for r in found[1:3]] == ["category a of /line-2", "category c of /line-2"]
    assert found[3].origin == "sampler"
    later = [r.number for r in found if r.params["quality"] == 0.31]
    assert later == [4], "one more with every four trials"


def test_what_does_not_lie_in_the_space_or_was_tried_is_not_moved(config):
    winners = [winner(7.0), Winner("c", {"other": 1}, 0.1, "/line-2"), winner(0.25)]
    found = run(Simulation(("a",)), config, [*winners, winner(0.25)])[KEY]
    moved = [r for r in found if r.origin not in (PAPER, SAMPLER)]
    assert [r.params["quality"] for r in moved] == [0.25]


def test_categories_learn_from_each_other(config):
    simulation = Simulation(("a", "b"))
    simulation.run(config)
    moved = [r for runs in simulation.records().values() for r in runs if "category" in r.origin]
    assert moved
    for one in moved:
        other = StudyKey("b" if one.category == "a" else "a", "toy")
        assert one.origin == f"category {other.category}"
        known = [r.params["quality"] for r in simulation.records()[other]]
        assert one.params["quality"] in known


def test_a_killed_sweep_keeps_what_it_moved(config):
    simulation = Simulation(("a", "b"))
    for _ in range(60):
        if simulation.run(config, events=9).remaining == 0:
            break
    records = [r for runs in simulation.records().values() for r in runs]
    assert len(records) == 24
    assert {r.number for r in records if r.origin == "paper"} == {0}


def test_less_than_luck_is_no_win():
    transfer = Transfer({})
    space = {"quality": None}
    transfer.learn(StudyKey("b", "toy"), {"quality": 0.4}, 0.001)
    assert transfer.next(KEY, space, [record(0)]) is None
    transfer.learn(StudyKey("b", "other"), {"quality": 0.4}, 0.1)
    assert transfer.next(KEY, space, [record(0)]) is None, "another method's"
    transfer.learn(KEY, {"quality": 0.4}, 0.1)
    assert transfer.next(KEY, space, [record(0)]) is None, "its own"


def test_winners_of_a_sweep_are_what_beat_trial_0():
    trials = {
        StudyKey("a", "toy"): [record(0, 0.8), record(1, 0.9, 0.7)],
        StudyKey("b", "toy"): [record(0, 0.8), record(1, 0.801, 0.7)],
        StudyKey("c", "toy"): [record(0), record(1, 0.9)],
        StudyKey("d", "toy"): [],
    }
    found = winners_of("/line-2", trials, {}, ConfirmConfig())
    assert list(found) == ["toy"]
    (one,) = found["toy"]
    assert (one.category, one.params, one.origin) == (
        "a", {"quality": 0.7}, "category a of /line-2",
    )  # fmt: skip
    assert one.gain == pytest.approx(0.1)
