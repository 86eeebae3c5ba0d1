"""What the pool and the confirm runs still owe is what the records alone say."""

from __future__ import annotations

import pytest

from anomtune.search.config import parse_sweep
from anomtune.search.decide.progress import StudyProgress, sweep_progress
from anomtune.search.decide.work import Confirmation
from anomtune.search.store.records import StudyKey
from anomtune.search.store.spent import Spent
from tests.search.conftest import sweep_dict
from tests.search.decide.test_confirm import Store, result


def progress_of(config, simulation, store) -> dict[StudyKey, StudyProgress]:
    dataset = config.dataset.model_copy(update={"categories": simulation.categories})
    config = config.model_copy(update={"dataset": dataset})
    trials, runs = simulation.read(config), store.read()
    return sweep_progress(config, trials, runs, lambda key: True, Spent())


def owed(config, simulation, store) -> int:
    return sum(study.owed for study in progress_of(config, simulation, store).values())


@pytest.mark.parametrize("top", [0, 2])
@pytest.mark.parametrize("events", [0, 5, 13, 1000])
def test_one_rule_says_what_is_owed(simulation, top, events):
    config = parse_sweep(sweep_dict(trials=4, confirm={"top": top, "seeds": [1, 11, 11]}), "test")
    pool, store = simulation.run(config, events=events), Store()
    confirmation = Confirmation(config, pool, {}, store.save)
    assert pool.remaining + confirmation.remaining == owed(config, simulation, store)
    while record := confirmation.ask():
        assert pool.remaining + confirmation.remaining == owed(config, simulation, store)
        confirmation.finish(record, None if record.seed == 1 else result(0.5))
        assert pool.remaining + confirmation.remaining == owed(config, simulation, store)
    again = Confirmation(config, simulation.pool(config), store.read(), store.save)
    assert again.remaining == confirmation.remaining, "a failed run is not made again"


def test_a_run_that_was_begun_or_is_of_another_config_is_owed(simulation):
    config = parse_sweep(
        sweep_dict(trials=3, pruner="none", confirm={"top": 2, "seeds": [1]}), "test"
    )
    pool, store = simulation.run(config), Store()
    confirmation = Confirmation(config, pool, {}, store.save)
    while record := confirmation.ask():
        confirmation.finish(record, result(0.5))
    assert owed(config, simulation, store) == 0
    first, second = next(iter(store.read().values()))[:2]
    store.save(first.model_copy(update={"state": "RUNNING"}))
    store.save(second.model_copy(update={"params": {"quality": 0.123}}))
    assert owed(config, simulation, store) == 2
    again = Confirmation(config, simulation.pool(config), store.read(), store.save)
    assert sorted([again.ask().path, again.ask().path]) == sorted([first.path, second.path])


def test_confirm_runs_of_earlier_starts_make_up_for_no_trial():
    """Winners of a smaller sweep were confirmed, and the trials that extend it are owed."""
    study = StudyProgress(StudyKey("a", "toy"), 4, complete=3, confirmed=3, confirm_target=2)
    assert study.owed == 1


def test_confirm_runs_that_failed_are_counted_with_the_reason(simulation):
    config = parse_sweep(sweep_dict(trials=3, confirm={"top": 1, "seeds": [1, 11]}), "test")
    pool, store = simulation.run(config), Store()
    confirmation = Confirmation(config, pool, {}, store.save)
    while record := confirmation.ask():
        failed = record.seed == 11 and record.category == "a"
        confirmation.finish(record, None if failed else result(0.5), error="no \udcfc" * failed)
    found = progress_of(config, simulation, store)
    progress = {key.category: study for key, study in found.items()}
    failed, total = progress["a"].confirm_failed, progress["a"].confirm_target
    assert 0 < failed < total
    assert progress["a"].failed_runs == f"{failed} of {total} confirm runs failed: no \\xfc"
    assert progress["b"].failed_runs is None
