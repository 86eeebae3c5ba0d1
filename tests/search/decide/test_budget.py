"""What a sweep may spend: trials of each category, or hours of the whole, on a simulated clock."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter

import pytest

from anomtune.errors import SweepError
from anomtune.registry import METHODS
from anomtune.search.config import parse_sweep
from anomtune.search.decide.budget import Hours, trial_targets
from anomtune.search.decide.confirm import to_confirm
from anomtune.search.decide.progress import sweep_progress
from anomtune.search.decide.work import Confirmation, Work
from anomtune.search.store.records import ConfirmRecord, Cost, Rung, StudyKey
from anomtune.search.store.spent import Spent
from tests.search.conftest import FACTS, Simulation, sweep_dict
from tests.search.decide.test_confirm import Store, result


def two_methods(trials=20, **changes):
    methods = {"toy": {}, "other": {}}
    return parse_sweep(sweep_dict(methods=methods, trials=trials, **changes), "test")


@pytest.fixture(autouse=True)
def other(monkeypatch):
    """A second method like the toy."""
    monkeypatch.setitem(METHODS._registered, "other", METHODS.get("toy"))


@pytest.mark.parametrize("allocation", ["race", "even"])
@pytest.mark.parametrize(("trials", "workers"), [(1, 1), (2, 3), (7, 1), (12, 4), (100, 2)])
def test_each_category_gets_its_trials(simulation, allocation, trials, workers):
    config = two_methods(budget={"trials": trials}, allocation=allocation)
    pool = simulation.run(config, workers)
    counts = Counter(key.category for key, found in simulation.records().items() for _ in found)
    assert counts == dict.fromkeys(simulation.categories, min(trials, 40))
    assert pool.remaining == 0
    assert all(pool.searched(study) for study in pool.studies.values())
    if allocation == "even":
        each = Counter(len(found) for found in simulation.records().values())
        assert max(each) - min(each) <= 1


@pytest.mark.parametrize("allocation", ["race", "even"])
def test_what_a_method_without_a_space_leaves_the_others_have(simulation, allocation):
    fixed = METHODS.get("toy").Hyperparameters().model_dump(exclude={"scoring"})
    config = parse_sweep(
        sweep_dict(
            methods={"toy": {}, "other": {"fixed": fixed}},
            trials=20,
            budget={"trials": 10},
            allocation=allocation,
        ),
        "test",
    )
    pool = simulation.run(config)
    assert pool.remaining == 0
    assert {key: len(found) for key, found in simulation.records().items()} == {
        StudyKey(category, method): count
        for category in simulation.categories
        for method, count in (("toy", 9), ("other", 1))
    }


def test_a_killed_sweep_keeps_to_its_trials(make_sweep):
    config = two_methods(budget={"trials": 9})
    simulation = Simulation()
    for _ in range(40):
        pool = simulation.run(config, workers=3, events=17)
        if pool.remaining == 0:
            break
    assert pool.remaining == 0
    counts = Counter(key.category for key, found in simulation.records().items() for _ in found)
    assert counts == {"a": 9, "b": 9}


def test_targets_add_up_to_what_is_shared():
    config = two_methods(budget={"trials": 9})
    keys = [StudyKey("a", "toy"), StudyKey("a", "other")]
    known = dict(zip(keys, (1, 5), strict=True))
    assert list(trial_targets(config, known, lambda key: True).values()) == [4, 5]
    assert list(trial_targets(config, known, lambda key: key == keys[1]).values()) == [1, 8]
    assert trial_targets(config, known, lambda key: True, closed=True) == known


class Clocked:
    """Runs searches and confirm runs of a sweep on a clock, until there is nothing left to do."""

    def __init__(self, config, duration=10.0, slots=2, categories=("a", "b")):
        self.config = config
        self.simulation = Simulation(categories)
        self.store = Store()
        self.spent = 0.0
        self.flags = Spent()
        self.duration = duration
        self.slots = slots

    def run(self, until=float("inf")):
        """Runs on; dies at a time of the sweep's clock."""
        begin, clock, serial = self.spent, 0.0, itertools.count()
        pool = self.simulation.pool(self.config)
        if self.flags.search_is_over(self.config):
            pool.close()
        confirmation = Confirmation(self.config, pool, self.store.read(), self.store.save)
        hours = Hours(self.config, lambda: begin + clock)
        hours.slots = self.slots
        limit = self.config.budget.hours
        work = Work(
            self.config,
            pool,
            confirmation,
            hours,
            closed=lambda: setattr(self.flags, "searched_for", limit),
            over=lambda: setattr(self.flags, "confirmed_for", limit),
        )
        queue = []
        while work.remaining:
            while len(queue) < self.slots and (record := work.ask()):
                rungs = 1 if isinstance(record, ConfirmRecord) else self.config.rungs
                end = clock + self._seconds(record) / rungs
                heapq.heappush(queue, (end, next(serial), record, 1))
            if not queue:
                break
            ended, _, record, step = heapq.heappop(queue)
            if begin + ended > until:
                self.spent = until
                return work
            clock = ended
            cost = Cost(train_seconds=self._seconds(record))
            if isinstance(record, ConfirmRecord):
                found = result(0.5)
                confirmation.finish(record, found.model_copy(update={"cost": cost}))
                continue
            value = min(1.0, record.params["quality"] * step / self.config.rungs)
            rung = Rung(step=step, auroc=value, auroc_low=0, auroc_high=1)
            so_far = Cost(train_seconds=cost.train_seconds * step / self.config.rungs)
            goes_on = work.report(record, rung, so_far)
            if step == self.config.rungs:
                pool.finish(record.key, record.number, "COMPLETE", facts=FACTS, cost=cost)
                work.take_in()
            elif not goes_on:
                pool.finish(record.key, record.number, "PRUNED", cost=cost)
                work.take_in()
            else:
                end = clock + self._seconds(record) / self.config.rungs
                heapq.heappush(queue, (end, next(serial), record, step + 1))
        self.spent = begin + clock
        return work

    def _seconds(self, record):
        seconds = self.duration(record) if callable(self.duration) else self.duration
        return 1.2 * seconds if isinstance(record, ConfirmRecord) else seconds

    def winners(self):
        """Returns the categories with a best config that is confirmed with every seed."""
        runs, found = self.store.read(), set()
        for key, trials in self.simulation.read(self.config).items():
            best = to_confirm(trials, self.config.confirm)[:1]
            seeds = {run.seed for run in runs.get(key, ()) if run.number in best}
            if seeds >= set(self.config.confirm.seeds):
                found.add(key.category)
        return found


def hours(seconds, **changes):
    changes = {"confirm": {"top": 1, "seeds": [1, 11]}, "pruner": "none"} | changes
    return two_methods(budget={"hours": seconds / 3600}, scoring="paper", trials=200, **changes)


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("seconds", [600, 1000])
def test_a_sweep_of_some_hours_ends_in_them_with_confirmed_winners(seconds, slots):
    sweep = Clocked(hours(seconds), slots=slots)
    work = sweep.run()
    assert work.remaining == 0
    assert 0.9 * seconds <= sweep.spent <= seconds or not sweep.flags.confirmed_for
    assert sweep.spent <= seconds
    assert sweep.winners() == {"a", "b"}


@pytest.mark.parametrize("kills", [(100, 300), (420, 500), (500, 530), (20, 21)])
def test_killed_in_between_it_still_does(kills):
    sweep = Clocked(hours(600))
    for moment in kills:
        assert sweep.run(until=moment).remaining
    work = sweep.run()
    assert work.remaining == 0
    assert 540 <= sweep.spent <= 600
    assert sweep.winners() == {"a", "b"}
    dataset = sweep.config.dataset.model_copy(update={"categories": ("a", "b")})
    config = sweep.config.model_copy(update={"dataset": dataset})
    trials, runs = sweep.simulation.read(config), sweep.store.read()
    progress = sweep_progress(config, trials, runs, lambda key: True, sweep.flags)
    assert all(study.owed == 0 and study.running == 0 for study in progress.values())
    assert sweep.run().remaining == 0, "a further start has nothing to do"
    assert sweep.run().pool.closed


def test_every_category_shows_something_though_confirm_runs_would_take_all_the_time():
    sweep = Clocked(hours(600, confirm={"top": 3, "seeds": [1, 2, 3, 4]}), duration=60.0)
    assert sweep.run().remaining == 0
    assert sweep.spent <= 600
    assert all(found[0].state == "COMPLETE" for found in sweep.simulation.records().values())


def test_more_hours_go_on_with_the_search():
    sweep = Clocked(hours(600))
    sweep.run()
    before = sum(map(len, sweep.simulation.records().values()))
    sweep.config = hours(1200)
    assert sweep.run().remaining == 0
    assert 1080 <= sweep.spent <= 1200
    assert sum(map(len, sweep.simulation.records().values())) > before + 10


def test_a_trial_that_takes_longer_than_expected_is_stopped_for_the_confirm_runs():
    sweep = Clocked(hours(600), duration=lambda r: 1000.0 if r.number == 9 else 10.0)
    assert sweep.run().remaining == 0
    states = Counter(r.state for runs in sweep.simulation.records().values() for r in runs)
    assert states["PRUNED"] >= 1
    assert sweep.winners() == {"a", "b"}


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "budget: set hours or trials, one of the two"),
        ({"hours": 1, "trials": 2}, "budget: set hours or trials, one of the two"),
        ({"hours": 0}, "budget.hours: Input should be greater than 0"),
        ({"trials": 0}, "budget.trials: Input should be greater than or equal to 1"),
        ({"hours": float("inf")}, "budget.hours: Input should be a finite number"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(budget, message):
    with pytest.raises(SweepError, match=message):
        two_methods(budget=budget)
