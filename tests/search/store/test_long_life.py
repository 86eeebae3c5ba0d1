"""Directories of formats before this one, checked in as they were written, are read and gone on.

A format is raised by adding a directory here (`make_format.py`), never by changing one.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from anomtune.search.config import load_sweep
from anomtune.search.report import write_report
from anomtune.search.results.result import open_sweep
from anomtune.search.store.directory import FORMAT, OLDEST
from anomtune.search.sweep import run as run_sweep
from tests.search.store.make_format import IMAGES

HERE = Path(__file__).parent
FORMATS = sorted(int(re.sub(r"\D", "", path.name)) for path in HERE.glob("format_*"))


@pytest.fixture(params=FORMATS)
def directory(request, tmp_path) -> Path:
    """A sweep directory of a format, with its images where its config says."""
    shutil.copytree(HERE / f"format_{request.param}", tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("*.yaml"):
        path.write_text(path.read_text().replace(IMAGES, str(tmp_path / "images")))
    made_by = yaml.safe_load((tmp_path / "sweep/sweep.yaml").read_text())["made_by"]
    assert made_by["format"] == request.param
    return tmp_path / "sweep"


def test_every_format_that_is_written_is_kept_here():
    assert FORMAT in FORMATS, "run make_format.py, and check in what it writes"
    assert FORMATS[0] >= OLDEST


def test_it_is_read(directory):
    result = open_sweep(directory)
    assert result.categories == ("cup", "plate")
    states = [trial.state for study in result for trial in study.trials]
    assert len(states) == 16
    assert {"COMPLETE", "FAIL", "RUNNING"} <= set(states)
    for row in result.leaderboard.to_pylist():
        best = result[row["category"], "toy"].trials[row["trial_number"]]
        assert row["val_auroc"] is not None
        assert row["val_auroc"] == pytest.approx(best.value, abs=1e-12)
        assert (row["test_auroc_mean"] is not None) == (row["n_seeds"] is not None)
    assert any(row["test_auroc_mean"] is not None for row in result.leaderboard.to_pylist())
    assert not result.finished
    write_report(directory)
    assert "cup" in (directory / "report.html").read_text()


def test_its_detector_is_loaded(directory):
    image = next((directory.parent / "images/cup/test/spot").iterdir())
    best = open_sweep(directory).best("cup")
    (prediction,) = best.load("cpu").predict([image])
    assert prediction.score is not None


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_it_is_gone_on_with(directory):
    """What had ended stays as it was, to the byte; what was left is run, and more."""
    ended = {
        path: path.read_bytes()
        for path in directory.rglob("*.json")
        if '"state": "RUNNING"' not in path.read_text() and path.parent.name == "toy"
    }
    assert len(ended) >= 15
    config = load_sweep(directory / "sweep.yaml", ["trials=9"])
    result = run_sweep(config, directory)
    assert result.finished
    assert all(len(study.trials) == 9 for study in result)
    assert all(trial.state != "RUNNING" for study in result for trial in study.trials)
    assert {path: path.read_bytes() for path in ended} == ended
    made_by = yaml.safe_load((directory / "sweep.yaml").read_text())["made_by"]
    assert made_by["format"] == FORMAT
