"""A sweep directory as objects."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from anomtune.errors import SweepError
from anomtune.search.detector.predict import Model
from anomtune.search.results.result import _below, open_sweep
from anomtune.search.store.records import ConfirmRecord, TrialRecord
from tests.search.sample_sweep import write_sample_sweep
from tests.search.toy_models import save_toy


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("sweep")
    write_sample_sweep(directory)
    return directory


def test_tables(directory):
    result = open_sweep(directory)
    assert isinstance(result.leaderboard, pa.Table)
    assert result.leaderboard.num_rows == 6
    assert result.trials.num_rows == 6 * 12
    assert set(result.trials["method"].to_pylist()) == set(result.methods)
    assert result.categories == ("bottle", "screw")
    assert result.finished


def test_studies_are_typed_records(directory):
    result = open_sweep(directory)
    study = result["bottle", "rd4ad"]
    assert [trial.number for trial in study.trials] == list(range(12))
    assert all(isinstance(trial, TrialRecord) for trial in study.trials)
    assert all(isinstance(run, ConfirmRecord) for run in study.confirm_runs)
    assert study.best.value == max(t.value for t in study.trials if t.value is not None)
    studies = list(result)
    assert len(studies) == 6
    assert study in studies
    with pytest.raises(SweepError, match=r"category 'botle': .*did you mean 'bottle'"):
        result["botle", "rd4ad"]
    with pytest.raises(SweepError, match=r"method 'rd4a': .*did you mean 'rd4ad'"):
        result["bottle", "rd4a"]


def test_the_best_of_a_category(directory):
    result = open_sweep(directory)
    rows = [row for row in result.leaderboard.to_pylist() if row["category"] == "screw"]
    best = result.best("screw")
    assert best.method == rows[0]["method"]
    assert best.row == rows[0]
    assert best.spec.found.trial == rows[0]["trial_number"]
    assert best.spec.split_hash == rows[0]["split_hash"]
    found = best.spec.found
    assert found.confirmed_auroc == rows[0]["confirmed_auroc_mean"]
    low, high = found.confirmed_interval
    assert low < found.confirmed_auroc < high
    only = result.best("screw", "padim")
    assert only.method == "padim"
    record = result["screw", "padim"].trials[only.spec.found.trial]
    assert only.hyperparameters == record.params
    with pytest.raises(SweepError, match="not in this sweep"):
        result.best("screw", "spr")


def test_the_detector_of_the_best(directory, toy_data):
    best = open_sweep(directory).best("bottle")
    shutil.rmtree(best.folder, ignore_errors=True)
    with pytest.raises(SweepError, match=r"no detector of bottle/\w+ there: .* not confirmed it"):
        best.load("cpu")
    save_toy(toy_data, Path(best.folder))
    assert isinstance(best.load("cpu"), Model)


def test_while_the_sweep_runs(tmp_path):
    """Each question reads the records anew."""
    write_sample_sweep(tmp_path)
    result = open_sweep(tmp_path)
    assert result.finished
    path = tmp_path / "trials/screw/padim/00003.json"
    record = TrialRecord.model_validate_json(path.read_text())
    path.write_text(record.model_copy(update={"state": "RUNNING"}).model_dump_json())
    assert result["screw", "padim"].trials[3].state == "RUNNING"
    assert not result.finished
    (study,) = (s for s in result.progress if s.key == ("screw", "padim"))
    assert (study.running, study.target - study.ended) == (1, 1)


def test_a_study_without_a_result(tmp_path):
    write_sample_sweep(tmp_path)
    for path in (tmp_path / "trials/screw/padim").glob("*.json"):
        path.unlink()
    result = open_sweep(tmp_path)
    assert result["screw", "padim"].best is None
    with pytest.raises(SweepError, match="screw/padim: no completed trial yet"):
        result.best("screw", "padim")


def test_what_is_no_sweep(tmp_path):
    with pytest.raises(SweepError, match=r"no sweep\.yaml there; give the directory of a sweep"):
        open_sweep(tmp_path)


@pytest.mark.parametrize(
    ("directory", "expected"),
    [
        ("sweeps/line-3", "sweeps/line-3/models/a/b"),
        ("sweeps/line-3/", "sweeps/line-3/models/a/b"),
        ("odd?name", "odd?name/models/a/b"),
        ("s3://bucket/x?scheme=http", "s3://bucket/x/models/a/b?scheme=http"),
    ],
)
def test_places_below_a_directory(directory, expected):
    assert _below(directory, "models/a/b") == expected
