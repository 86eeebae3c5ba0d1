"""The pool, on a simulated clock: which trial comes next, and that nothing is lost or run twice."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from anomtune.errors import SweepError
from anomtune.search.decide.samplers import startup_trials
from anomtune.search.store.records import Rung, TrialRecord
from tests.search.conftest import Simulation


def states(simulation: Simulation) -> Counter:
    return Counter(record["state"] for record in simulation.outcome().values())


@pytest.mark.parametrize(
    "sampler", ["tpe", "random", pytest.param("gp", marks=pytest.mark.slow), "cmaes"]
)
@pytest.mark.parametrize("pruner", ["successive_halving", "hyperband", "median", "none"])
def test_every_study_gets_exactly_its_trials(simulation, make_sweep, sampler, pruner):
    config = make_sweep(trials=9, sampler=sampler, pruner=pruner)
    pool = simulation.run(config, workers=3)
    assert pool.remaining == pool.running == 0
    assert [len(study.records) for study in pool.studies.values()] == [9, 9]
    assert set(states(simulation)) <= {"COMPLETE", "PRUNED"}
    assert (states(simulation)["PRUNED"] == 0) == (pruner == "none")


def test_trial_0_is_the_papers_config_and_is_never_pruned(simulation, make_sweep):
    worst = {"toy": {"space": {"quality": {"low": 0.6, "high": 1.0}}, "fixed": {"colour": "green"}}}
    simulation.run(make_sweep(trials=12, methods=worst), workers=2)
    for category in simulation.categories:
        record = simulation.outcome()[f"trials/{category}/toy/00000"]
        # 0.5 lies outside the searched range: it is run all the same, as the baseline of `gain`.
        assert record["params"]["quality"] == 0.5
        assert record["params"]["colour"] == "green"
        assert record["state"] == "COMPLETE"


def test_one_worker_gives_the_same_records_again(make_sweep):
    runs = []
    for _ in range(2):
        simulation = Simulation()
        simulation.run(make_sweep(trials=14))
        runs.append(simulation.outcome())
    assert runs[0] == runs[1]


@pytest.mark.parametrize("pruner", ["successive_halving", "hyperband", "median"])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_killed_sweep_goes_on_as_if_it_had_not_stopped(make_sweep, sampler, pruner):
    config = make_sweep(trials=14, rungs=8, sampler=sampler, pruner=pruner)
    whole, broken = Simulation(), Simulation()
    whole.run(config)
    generator = random.Random(0)
    while broken.run(config, events=generator.randrange(1, 25)).remaining:
        pass
    assert broken.outcome() == whole.outcome()


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_moment_with_many_workers(make_sweep, seed):
    generator = random.Random(seed)
    config = make_sweep(trials=10)
    simulation = Simulation()
    finished: dict[str, dict] = {}
    for _ in range(200):
        pool = simulation.run(
            config,
            workers=generator.randrange(1, 6),
            events=generator.randrange(1, 15),
            fail=lambda record: generator.random() < 0.05,
        )
        for path, record in finished.items():
            assert simulation.outcome()[path] == record, "a finished record has changed"
        finished = {p: r for p, r in simulation.outcome().items() if r["state"] != "RUNNING"}
        if not pool.remaining:
            break
    assert [sorted(study.records) for study in pool.studies.values()] == [list(range(10))] * 2


def test_more_trials_add_just_the_difference(simulation, make_sweep):
    simulation.run(make_sweep(trials=5))
    before = simulation.outcome()
    simulation.run(make_sweep(trials=8))
    after = simulation.outcome()
    assert {path: after[path] for path in before} == before
    assert len(after) == 16


def test_a_new_method_and_category_add_their_studies(simulation, make_sweep):
    simulation.run(make_sweep(trials=3))
    simulation.categories = ("a", "b", "c")
    simulation.run(make_sweep(trials=3))
    assert len(simulation.outcome()) == 9


def test_a_deleted_record_is_run_again(simulation, make_sweep):
    config = make_sweep(trials=6)
    simulation.run(config)
    del simulation.store["trials/a/toy/00002"], simulation.store["trials/b/toy/00000"]
    simulation.run(config)
    assert len(simulation.outcome()) == 12
    assert simulation.outcome()["trials/b/toy/00000"]["params"]["quality"] == 0.5


def test_studies_advance_together(simulation, make_sweep):
    simulation.run(make_sweep(trials=9, scoring="paper"), workers=2)
    started = [path.split("/")[1] for _, path in simulation.history]
    for position in range(len(started)):
        count = Counter(started[: position + 1])
        assert abs(count["a"] - count["b"]) <= 1


def test_random_start_up_trials_are_capped(make_sweep):
    config = make_sweep(trials=30)
    simulation = Simulation(categories=("a",), duration=lambda params: 1.0)
    simulation.run(config, workers=100)
    assert sum(at == 0.0 for at, _ in simulation.history) == startup_trials(config) == 10


def test_values_that_do_not_go_together_fail_without_a_worker(simulation, make_sweep, monkeypatch):
    from anomtune_toy import ToyHyperparameters
    from pydantic import ValidationError

    class Picky(ToyHyperparameters):
        def __init__(self, **values):
            if values.get("quality", 0.5) != 0.5:
                raise ValidationError.from_exception_data(
                    "Picky",
                    [{"type": "value_error", "loc": (), "ctx": {"error": "too good"}, "input": {}}],
                )
            super().__init__(**values)

    monkeypatch.setattr("anomtune_toy.Toy.Hyperparameters", Picky)
    pool = simulation.run(make_sweep(trials=4))
    assert pool.remaining == 0
    assert states(simulation) == {"COMPLETE": 2, "FAIL": 6}
    assert "too good" in simulation.outcome()["trials/a/toy/00001"]["error"]


def test_other_images_than_before_are_refused(simulation, make_sweep):
    simulation.run(make_sweep(trials=2))
    for path, text in simulation.store.items():
        record = TrialRecord.model_validate_json(text)
        simulation.store[path] = record.model_copy(update={"split_hash": "old"}).model_dump_json()
    with pytest.raises(SweepError, match="not those that the trials"):
        simulation.pool(make_sweep(trials=3))


def test_a_retried_trial_starts_its_curve_over_and_is_not_judged_twice(simulation, make_sweep):
    config = make_sweep(trials=3, pruner="successive_halving")
    pool = simulation.pool(config)
    first, second = pool.ask(), pool.ask()
    for step in (1, 2, 3, 4):
        pool.report(first.key, first.number, Simulation._rung(first, step, config, 1))
    assert first.key != second.key
    third = pool.ask()
    assert third.key == first.key
    good, bad = (
        Rung(step=1, auroc=auroc, auroc_low=0, auroc_high=1, loss=1) for auroc in (1.0, 0.0)
    )
    assert pool.report(third.key, third.number, good)
    assert pool.report(third.key, third.number, bad), "the same rung of the retry"
    assert [rung.auroc for rung in third.curve] == [0.0]


@pytest.mark.parametrize("pruner", ["successive_halving", "median"])
@pytest.mark.parametrize(("trials", "rungs", "first"), [(30, 8, 2), (12, 8, 4), (30, 4, 2)])
def test_the_first_look_is_later_with_few_trials_or_rungs(make_sweep, pruner, trials, rungs, first):
    simulation = Simulation(categories=("a",))
    simulation.run(make_sweep(trials=trials, rungs=rungs, pruner=pruner))
    ended = simulation.outcome().values()
    assert min(len(r["curve"]) for r in ended if r["state"] == "PRUNED") == first


@pytest.mark.parametrize(
    "space",
    [
        {"iterations": {"low": 9, "high": 100, "step": 25}},
        {"iterations": {"choices": ["9", "16"]}},
        {"quality": {"choices": ["0.25", 0.75]}},
        {"quality": {"low": 0.9, "high": 1}, "seconds": {"low": "1e-9", "high": 1e-8, "log": True}},
        {"colour": {"choices": ["green"]}},
    ],
)
def test_a_users_own_space_survives_a_restart(simulation, make_sweep, space):
    methods = {"toy": {"space": space}}
    simulation.run(make_sweep(trials=5, methods=methods), events=9)
    simulation.run(make_sweep(trials=7, methods=methods))
    assert len(simulation.outcome()) == 14


@pytest.mark.parametrize("change", [{"iterations": 7}, {"quality": 7.0}, {"other": 1}])
def test_records_of_another_version_of_the_method_are_refused(simulation, make_sweep, change):
    simulation.run(make_sweep(trials=2))
    path = "trials/a/toy/00001"
    record = TrialRecord.model_validate_json(simulation.store[path])
    simulation.save(record.model_copy(update={"params": record.params | change}))
    with pytest.raises(SweepError, match=f"{path}.json: was run with {next(iter(change))} = "):
        simulation.pool(make_sweep(trials=3))


def test_where_nothing_is_searched_one_trial_says_all(simulation, make_sweep):
    fixed = {"toy": {"fixed": {"quality": 0.3, "colour": "red"}}}
    simulation.run(make_sweep(trials=5, methods=fixed))
    assert len(simulation.outcome()) == 2
