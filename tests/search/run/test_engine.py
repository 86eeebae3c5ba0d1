"""Sweeps on real Ray: records, tables, curves, failing trials and dying workers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from anomtune.models.scoring import Scoring, score_rule
from anomtune.search.decide.scoring import read_studies
from anomtune.search.results.column import schema_of
from anomtune.search.results.columns import leaderboard_columns
from anomtune.search.results.trial_columns import TRIAL_COLUMNS
from anomtune.search.store.directory import read_sweep
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import StudyKey
from anomtune.search.store.storage import Storage
from anomtune.search.sweep import run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def records_without_cost(directory: Path) -> dict[str, dict]:
    store = RecordStore(Storage(directory))
    return {
        record.path: record.model_dump(exclude={"cost"})
        for study in store.read_all().values()
        for record in study
    }


#: Where it is not the subject that trials run side by side: a worker less to start.
ALONE = {"concurrency": 1}


def digests(directory: Path, pattern: str) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob(pattern))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, toy_data, ray_session):
    """A finished sweep of two categories and six trials each."""
    from tests.search.conftest import parse_sweep, sweep_dict

    directory = tmp_path_factory.mktemp("finished")
    config = parse_sweep(sweep_dict(toy_data, trials=6), "test")
    return directory, config, run(config, directory)


def test_a_sweep_leaves_its_whole_directory(finished):
    directory, _, outcome = finished
    assert outcome.finished
    assert all(study.best for study in outcome)
    files = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    for category in ("plate", "ring"):
        for number in range(6):
            assert f"trials/{category}/toy/{number:05d}.json" in files
            assert any(
                name.startswith(f"tensorboard/{category}/toy/{number:05d}/") for name in files
            )
    assert {"sweep.yaml", "leaderboard.parquet", "trials.parquet"} <= files
    assert not [name for name in files if Path(name).name.startswith(".") and name != ".lock"]


def test_tables_have_the_schema_and_open_everywhere(finished):
    directory, _, outcome = finished
    tables = {"leaderboard": leaderboard_columns(), "trials": TRIAL_COLUMNS}
    for name, columns in tables.items():
        path = str(directory / f"{name}.parquet")
        assert pq.read_schema(path).equals(schema_of(columns))
        rows = pq.read_table(path).num_rows
        assert rows == {"leaderboard": 2, "trials": 12}[name]
        assert len(pd.read_parquet(path)) == len(pl.read_parquet(path)) == rows
        assert duckdb.sql(f"select count(*) from '{path}'").fetchall() == [(rows,)]
    metadata = {k.decode(): v.decode() for k, v in outcome.leaderboard.schema.metadata.items()}
    assert metadata["anomtune.sweep_name"] == "toys"
    assert json.loads(metadata["anomtune.library_versions"])["ray"]
    for row in outcome.leaderboard.to_pylist():
        assert 0 <= row["val_auroc_low"] <= row["val_auroc"] <= row["val_auroc_high"] <= 1
        assert row["gain"] == pytest.approx(row["val_auroc"] - row["default_val_auroc"])
        assert row["scoring_gain"] is not None
        assert row["trials"] == 6 == row["completed"] + row["pruned"] + row["failed"]
        assert (row["n_test_normal"], row["n_val_normal"]) == (3, 3)
        assert row["test_auroc_mean"] is None
        assert row["parameters"] == 2
        scoring = json.loads(row["params"])["scoring"]
        assert row["score_rule"] == score_rule(scoring)
        assert row["paper_scoring"] == (scoring == Scoring().model_dump(mode="json"))


def test_scores_of_a_trial_give_its_auroc(finished):
    from sklearn.metrics import roc_auc_score

    directory, _, _ = finished
    _, store = read_sweep(directory)
    for key, study in read_studies(store).items():
        assert study[0].scoring > 0
        labels = store.read_labels(key.category)
        for record in study:
            if record.value is not None:
                area = roc_auc_score(labels, *store.read_scores([record]))
                assert area == pytest.approx(record.value)


def test_a_finished_sweep_is_left_as_it_is(finished):
    directory, config, outcome = finished
    before = digests(directory, "*")
    stamps = {path: path.stat().st_mtime_ns for path in directory.rglob("*.parquet")}
    again = run(config, directory)
    assert again.leaderboard.equals(outcome.leaderboard)
    after = digests(directory, "*")
    owner = str(directory / "owner.json")
    assert {k: v for k, v in after.items() if k != owner} == {
        k: v for k, v in before.items() if k != owner
    }
    assert stamps == {path: path.stat().st_mtime_ns for path in directory.rglob("*.parquet")}


def test_same_seed_and_one_worker_give_identical_records(tmp_path, toy_data, make_sweep):
    for name in ("one", "two"):
        run(make_sweep(toy_data, trials=6, **ALONE), tmp_path / name)
    one, two = (records_without_cost(tmp_path / name) for name in ("one", "two"))
    assert one == two
    scores = [list(digests(tmp_path / name, "*.npz").values()) for name in ("one", "two")]
    assert scores[0] == scores[1]


def test_extending_keeps_what_is_there(tmp_path, toy_data, make_sweep):
    small = {"name": "folder", "root": str(toy_data), "categories": ["plate"]}
    run(make_sweep(toy_data, trials=2, dataset=small, **ALONE), tmp_path)
    before = digests(tmp_path / "trials", "0*.json")
    assert len(before) == 2
    outcome = run(make_sweep(toy_data, trials=3, **ALONE), tmp_path)
    after = digests(tmp_path / "trials", "0*.json")
    assert len(after) == 6
    assert {path: after[path] for path in before} == before
    assert [row["trials"] for row in outcome.leaderboard.to_pylist()] == [3, 3]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("raise", "RuntimeError: this toy is broken"),
        ("diverge", "TrainingDivergedError: the loss is nan at iteration 2"),
        ("die", "worker process died"),
    ],
)
def test_a_failing_trial_is_a_record_and_the_sweep_goes_on(
    tmp_path, toy_data, make_sweep, behaviour, message
):
    methods = {
        "toy": {
            "space": {"behaviour": {"choices": ["work", behaviour]}},
            "fixed": {"quality": 0.9, "colour": "red"},
        }
    }
    dataset = {"name": "folder", "root": str(toy_data), "categories": ["plate"]}
    config = make_sweep(
        toy_data,
        trials=8,
        methods=methods,
        dataset=dataset,
        sampler="random",
        pruner="none",
        **ALONE,
    )
    outcome = run(config, tmp_path)
    records = RecordStore(Storage(tmp_path)).read_all()[StudyKey("plate", "toy")]
    assert [record.number for record in records] == list(range(8))
    for record in records:
        bad = record.params["behaviour"] != "work"
        assert record.state == ("FAIL" if bad else "COMPLETE")
        if bad:
            assert message in record.error
            assert (record.traceback is not None) == (behaviour == "raise")
    assert 0 < outcome.leaderboard.to_pylist()[0]["failed"] < 8


def test_a_killed_worker_is_retried_once(tmp_path, toy_data, make_sweep):
    fixed = {"behaviour": "die_once", "marker": str(tmp_path / "died")}
    dataset = {"name": "folder", "root": str(toy_data), "categories": ["ring"]}
    config = make_sweep(
        toy_data, trials=3, methods={"toy": {"fixed": fixed}}, dataset=dataset, **ALONE
    )
    outcome = run(config, tmp_path / "sweep")
    assert (tmp_path / "died").exists()
    row = outcome.leaderboard.to_pylist()[0]
    assert (row["trials"], row["failed"]) == (3, 0)


def test_a_study_without_a_usable_trial_is_reported(tmp_path, toy_data, make_sweep):
    methods = {"toy": {"fixed": {"behaviour": "diverge"}}}
    outcome = run(make_sweep(toy_data, trials=2, methods=methods, **ALONE), tmp_path)
    unusable = [(study.category, study.method) for study in outcome if study.best is None]
    assert unusable == [("plate", "toy"), ("ring", "toy")]
    assert [row["val_auroc"] for row in outcome.leaderboard.to_pylist()] == [None, None]


def test_data_that_vanishes_is_no_fault_of_the_configs(tmp_path, toy_data, make_sweep, monkeypatch):
    from anomtune.errors import DataError
    from anomtune.search import sweep

    data, away = tmp_path / "data", tmp_path / "away"
    shutil.copytree(toy_data, data)
    run_work = sweep.run_work

    def unplugged(*arguments):
        data.rename(away)
        run_work(*arguments)

    monkeypatch.setattr(sweep, "run_work", unplugged)
    config = make_sweep(data, trials=3, **ALONE)
    with pytest.raises(DataError, match="no such folder"):
        run(config, tmp_path / "sweep")
    monkeypatch.undo()
    states = {record["state"] for record in records_without_cost(tmp_path / "sweep").values()}
    assert states == {"RUNNING"}
    away.rename(data)
    outcome = run(config, tmp_path / "sweep")
    assert [row["failed"] for row in outcome.leaderboard.to_pylist()] == [0, 0]


def test_unreadable_scores_and_an_empty_record_stop_nothing(tmp_path, toy_data, make_sweep):
    config = make_sweep(toy_data, trials=2, **ALONE)
    run(config, tmp_path)
    for path in tmp_path.rglob("0*.npz"):
        path.write_bytes(b"")
    (tmp_path / "trials/ring/toy/00001.json").write_bytes(b"")
    (tmp_path / "trials/ring/toy/.00001.json.abc.tmp").write_bytes(b"half")
    outcome = run(config, tmp_path)
    assert [row["trials"] for row in outcome.leaderboard.to_pylist()] == [2, 2]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_ends_the_run_and_keeps_what_is_finished(
    tmp_path, toy_data, make_sweep, monkeypatch
):
    from anomtune.errors import StorageError
    from anomtune.search.store import storage

    real, writes = storage.write_whole, []

    def full_after_ten(target, content, *, durable=False):
        if Path(target).parent.name == "toy":
            writes.append(target)
        if len(writes) > 10:
            raise OSError(28, os.strerror(28))
        real(target, content, durable=durable)

    monkeypatch.setattr(storage, "write_whole", full_after_ten)
    config = make_sweep(toy_data, trials=4, **ALONE)
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        run(config, tmp_path)
    monkeypatch.undo()
    before = digests(tmp_path / "trials", "0*.json")
    kept = {p: d for p, d in before.items() if '"RUNNING"' not in Path(p).read_text()}
    assert kept
    assert run(config, tmp_path).finished
    after = digests(tmp_path / "trials", "0*.json")
    assert len(after) == 8
    assert {path: after[path] for path in kept} == kept
