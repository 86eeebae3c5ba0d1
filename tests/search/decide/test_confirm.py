"""Confirm runs: which configs, when, by whom the winner is chosen, and what survives a kill."""

from __future__ import annotations

import json
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest
import yaml

from anomtune.search.config import ConfirmConfig, parse_sweep
from anomtune.search.decide.confirm import choose, summarise, to_confirm
from anomtune.search.decide.work import Confirmation, Work
from anomtune.search.results.leaderboard import compile_leaderboard
from anomtune.search.store.held_out import DomainFigures, Example
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import ConfirmRecord, ConfirmResult, Cost, Rung, TrialRecord
from anomtune.search.store.storage import Storage
from anomtune.search.sweep import run as run_sweep
from tests.driver import Driver
from tests.search.conftest import FACTS, sweep_dict


def trial(number: int, value: float | None, **params: float) -> TrialRecord:
    curve = [] if value is None else [Rung(step=1, auroc=value, auroc_low=0, auroc_high=1)]
    return TrialRecord(
        dataset="folder",
        category="a",
        method="toy",
        number=number,
        state="FAIL" if value is None else "COMPLETE",
        params=params or {"quality": number / 10},
        seed=0,
        split_hash="split",
        curve=curve,
    )


def held_out(auroc: float) -> DomainFigures:
    return DomainFigures(n_normal=3, n_anomalous=3, figures={"auroc": auroc})


def confirm_run(number: int, seed: int, value: float, test: float | None = None) -> ConfirmRecord:
    return ConfirmRecord(
        dataset="folder",
        category="a",
        method="toy",
        number=number,
        seed=seed,
        state="COMPLETE",
        params={"quality": number / 10},
        split_hash="split",
        val_auroc=value,
        test=None if test is None else held_out(test),
    )


def result(value: float) -> ConfirmResult:
    return ConfirmResult(
        val_auroc=value,
        test=held_out(1 - value),
        shifted={},
        facts=FACTS,
        cost=Cost(train_seconds=1),
    )


def test_the_best_different_configs_and_the_papers_own_are_confirmed() -> None:
    records = [
        trial(0, 0.5),
        trial(1, 0.9, quality=0.7),
        trial(2, 0.9, quality=0.7),  # the same config again
        trial(3, None),
        trial(4, 0.8),
        trial(5, 0.7),
    ]
    assert to_confirm(records, ConfirmConfig(top=2)) == [1, 4, 0]
    assert to_confirm(records, ConfirmConfig(top=4)) == [1, 4, 5, 0]
    assert to_confirm(records, ConfirmConfig(top=9)) == [1, 4, 5, 0]
    assert to_confirm(records, ConfirmConfig(top=0)) == []
    assert to_confirm([trial(0, None)], ConfirmConfig(top=2)) == []
    assert to_confirm([trial(0, None), trial(1, 0.6)], ConfirmConfig(top=2)) == [1]


def test_validation_alone_chooses_the_winner() -> None:
    records = [trial(0, 0.5), trial(1, 0.9), trial(2, 0.8)]
    runs = [
        *(confirm_run(1, seed, value, test=0.99) for seed, value in ((1, 0.95), (2, 0.65))),
        *(confirm_run(2, seed, value, test=0.01) for seed, value in ((1, 0.83), (2, 0.85))),
        *(confirm_run(0, seed, 0.5, test=1.0) for seed in (1, 2)),
    ]
    config = ConfirmConfig(top=2, seeds=(1, 2))
    chosen, winner = choose(records, runs, config)
    assert chosen is records[2]
    assert winner is not None
    assert winner.val_auroc == pytest.approx(0.84)
    assert winner.val_std == pytest.approx(0.01414, abs=1e-5)
    assert winner.test_auroc == pytest.approx(0.01)
    assert choose(records, [], config) == (records[1], None)
    assert choose([], [], config) == (None, None)


def test_only_configs_with_every_seed_are_compared() -> None:
    records = [trial(0, 0.5), trial(1, 0.9), trial(2, 0.8)]
    config = ConfirmConfig(top=2, seeds=(1, 2))
    failed = confirm_run(1, 2, 0.1).model_copy(update={"state": "FAIL", "val_auroc": None})
    runs = [confirm_run(1, 1, 0.99), failed, *(confirm_run(2, seed, 0.7) for seed in (1, 2))]
    assert summarise(records, runs, config).keys() == {2}
    assert choose(records, runs, config)[0] is records[2]


def test_the_papers_config_does_not_win_because_all_others_failed() -> None:
    records = [trial(0, 0.5), trial(1, 0.9)]
    failed = [confirm_run(1, s, 0.1).model_copy(update={"state": "FAIL"}) for s in (1, 2)]
    runs = [*failed, *(confirm_run(0, seed, 0.5) for seed in (1, 2))]
    assert choose(records, runs, ConfirmConfig(top=1, seeds=(1, 2))) == (records[1], None)


def test_old_confirm_runs_do_not_stand_in_the_way_of_a_new_best() -> None:
    records = [trial(0, 0.5), trial(1, 0.7), trial(2, 0.99)]
    runs = [confirm_run(1, 1, 0.7)]
    assert choose(records, runs, ConfirmConfig(top=0, seeds=(1,))) == (records[2], None)
    assert choose(records, runs, ConfirmConfig(top=1, seeds=(1,))) == (records[2], None)


def test_a_run_of_another_config_or_other_images_does_not_count() -> None:
    records = [trial(0, 0.5), trial(1, 0.7)]
    config = ConfirmConfig(top=1, seeds=(1,))
    for change in ({"params": {"quality": 0.9}}, {"split_hash": "other"}):
        runs = [confirm_run(1, 1, 0.7).model_copy(update=change)]
        assert choose(records, runs, config) == (records[1], None)


def test_a_confirm_run_of_another_config_is_made_again(simulation) -> None:
    config = sweep()
    simulation.run(config)
    pool, store = simulation.pool(config), Store()
    confirmation = Confirmation(config, pool, {}, store.save)
    while record := confirmation.ask():
        confirmation.finish(record, result(0.5))
    changed = {
        key: [run.model_copy(update={"params": {"quality": 0.123}}) for run in runs]
        for key, runs in store.read().items()
    }
    assert Confirmation(config, pool, store.read(), store.save).remaining == 0
    assert Confirmation(config, pool, changed, store.save).remaining == len(store.kept)


def sweep(**changes):
    return parse_sweep(sweep_dict(trials=3, confirm={"top": 2, "seeds": [1, 11]}, **changes), "t")


class Store:
    """Confirm records as a directory keeps them."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def save(self, record: ConfirmRecord) -> None:
        self.kept[record.path] = record.model_dump_json()

    def read(self) -> dict:
        found: dict = {}
        for text in self.kept.values():
            record = ConfirmRecord.model_validate_json(text)
            found.setdefault(record.key, []).append(record)
        return found


def test_runs_begin_when_their_study_has_ended_and_others_still_search(simulation) -> None:
    config = sweep()
    simulation.run(config, events=11)  # dies in the middle of the second study's trials
    pool = simulation.pool(config)
    work = Work(config, pool, Confirmation(config, pool, {}, Store().save))
    first, second = pool.studies.values()
    while pool.remaining > 0:
        record = work.ask()
        if isinstance(record, ConfirmRecord):
            break
        assert record is not None
        pool.report(record.key, record.number, Rung(step=4, auroc=0.5, auroc_low=0, auroc_high=1))
        pool.finish(record.key, record.number, "COMPLETE", facts=FACTS, cost=Cost())
    assert isinstance(record, ConfirmRecord)
    ended = [s for s in (first, second) if s.finished.total() == 3]
    assert record.key in [study.key for study in ended]
    assert pool.remaining > 0, "the other study still searches"


def test_every_run_is_made_once_whatever_is_killed(simulation) -> None:
    config = sweep()
    simulation.run(config)
    store, started = Store(), Counter()
    for _ in range(30):  # each start dies after two runs have been handed out, one of them done
        pool = simulation.pool(config)
        confirmation = Confirmation(config, pool, store.read(), store.save)
        if confirmation.remaining == 0:
            break
        done = confirmation.ask()
        confirmation.finish(done, result(0.5))
        started[done.path] += 1
        confirmation.ask()
    assert confirmation.remaining == 0
    assert confirmation.ask() is None
    records = [record for runs in store.read().values() for record in runs]
    assert {record.state for record in records} == {"COMPLETE"}
    assert set(started.values()) == {1}, "what is done is not done again"
    per_study = Counter(record.key for record in records)
    for study in pool.studies.values():
        assert per_study[study.key] == 2 * len(to_confirm(study.records.values(), config.confirm))


def test_without_confirm_there_is_nothing_to_do(simulation, make_sweep) -> None:
    config = make_sweep()
    simulation.run(config)
    pool = simulation.pool(config)
    confirmation = Confirmation(config, pool, {}, Store().save)
    assert confirmation.remaining == 0
    assert confirmation.ask() is None


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_sweep_ends_with_confirmed_figures_and_can_ask_for_more(tmp_path, toy_data) -> None:
    config = parse_sweep(
        sweep_dict(toy_data, concurrency=1, confirm={"top": 1, "seeds": [1, 2]}), "test"
    )
    board = run_sweep(config, tmp_path).leaderboard
    assert board.num_rows == 2
    for row in board.to_pylist():
        assert row["n_seeds"] == 2
        assert row["ranked_by"] == "confirmed"
        assert row["confirmed_auroc_low"] <= row["confirmed_auroc_mean"]
        assert row["confirmed_auroc_mean"] <= row["confirmed_auroc_high"]
        assert row["optimism_gap"] == pytest.approx(
            row["confirmed_auroc_mean"] - row["test_auroc_mean"]
        )
        assert row["default_test_auroc_mean"] is not None
        assert row["shifted_auroc"] is None
    store = RecordStore(Storage(tmp_path))
    before = {
        path: (tmp_path / path).read_bytes() for path in store.storage.list("confirm", ".json")
    }
    assert len(before) in (4, 6, 8)  # the winner and the default, which may be the same config
    # The same again does nothing; more configs add theirs and leave the others as they are.
    run_sweep(config, tmp_path)
    more = parse_sweep(
        sweep_dict(toy_data, concurrency=1, confirm={"top": 3, "seeds": [1, 2]}), "test"
    )
    run_sweep(more, tmp_path)
    after = {
        path: (tmp_path / path).read_bytes() for path in store.storage.list("confirm", ".json")
    }
    assert {path: after[path] for path in before} == before
    assert len(after) > len(before)
    again = compile_leaderboard(more, store)
    assert all(json.loads(row["params"]) for row in again.to_pylist())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_failing_confirm_run_is_a_record(tmp_path, toy_data, monkeypatch) -> None:
    """A config that the search could train, and that fails afterwards on the cluster."""
    marker = tmp_path / "marker"
    config = parse_sweep(
        sweep_dict(
            toy_data,
            trials=1,
            concurrency=1,
            dataset={"name": "folder", "root": str(toy_data), "categories": ["plate"]},
            methods={"toy": {"fixed": {"behaviour": "fail_later", "marker": str(marker)}}},
            confirm={"top": 1, "seeds": [5]},
        ),
        "test",
    )
    board = run_sweep(config, tmp_path / "sweep").leaderboard
    (runs,) = RecordStore(Storage(tmp_path / "sweep")).read_confirmed().values()
    assert [run.state for run in runs] == ["FAIL"]
    assert "broken by now" in runs[0].error
    (row,) = board.to_pylist()
    assert row["val_auroc"] is not None
    assert row["test_auroc_mean"] is None


def test_a_study_is_told_of_when_its_last_run_has_ended(simulation) -> None:
    config = sweep()
    simulation.run(config)
    pool, store, told = simulation.pool(config), Store(), []
    confirmation = Confirmation(config, pool, {}, store.save, told.append)
    assert told == []
    handed_out = []
    while record := confirmation.ask():
        handed_out.append(record)
    for number, record in enumerate(handed_out, start=1):
        confirmation.finish(record, result(0.5))
        left = {r.key for r in handed_out[number:]}
        assert set(told) == pool.studies.keys() - left
    assert sorted(told) == sorted(pool.studies), "each is told of once"
    again: list = []
    Confirmation(config, simulation.pool(config), store.read(), store.save, again.append)
    assert sorted(again) == sorted(pool.studies), "a driver that was killed before is made up for"


@pytest.mark.ray
def test_killed_while_it_confirms_it_ends_with_the_same_numbers(
    tmp_path, toy_data, ray_address
) -> None:
    file = tmp_path / "sweep.yaml"
    methods = {"toy": {"fixed": {"seconds": 0.05}}}
    confirm = {"top": 2, "seeds": [1, 2]}
    file.write_text(
        yaml.safe_dump(
            sweep_dict(toy_data, methods=methods, confirm=confirm, sampler="random", trials=2)
        )
    )

    def start(name: str) -> Driver:
        return Driver("sweep", file, "--dir", tmp_path / name, "--address", ray_address)

    def figures(name: str) -> dict:
        store = RecordStore(Storage(tmp_path / name))
        runs = [run for study in store.read_confirmed().values() for run in study]
        ended = [run for run in runs if run.state == "COMPLETE"]
        return {
            run.path: (run.model_dump(exclude={"cost"}), [*scores])
            for run, scores in zip(ended, store.read_scores(ended), strict=True)
        }

    assert start("undisturbed").wait() == 0
    killed = 0
    while killed < 3:
        known = figures("killed")
        driver = start("killed")
        while driver.poll() is None and len(figures("killed")) <= len(known):
            time.sleep(0.02)
        driver.kill()
        killed += 1
    assert 3 <= len(known) + 1 < len(figures("undisturbed")), "killed in the middle"
    assert start("killed").wait() == 0
    assert figures("killed") == figures("undisturbed")
    columns = ["rank", "tied", "confirmed_auroc_low", "test_auroc_mean", "optimism_gap", "params"]
    boards = [
        pq.read_table(tmp_path / name / "leaderboard.parquet").select(columns).to_pylist()
        for name in ("killed", "undisturbed")
    ]
    assert boards[0] == boards[1]
    for category in ("plate", "ring"):
        assert (tmp_path / "killed" / "models" / category / "toy" / "config.yaml").exists()


def test_the_record_names_the_examples_that_its_sheet_shows(simulation) -> None:
    config = sweep()
    simulation.run(config)
    store = Store()
    confirmation = Confirmation(config, simulation.pool(config), {}, store.save)
    record = confirmation.ask()
    assert record is not None
    example = Example(kind="missed", key="test/spot/000.png", defect="spot", score=0.1)
    confirmation.finish(record, result(0.5).model_copy(update={"examples": [example]}))
    assert [run.examples for run in store.read()[record.key]] == [[example]]
