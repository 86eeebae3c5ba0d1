"""The checker of the campaign sees what is wrong: each thing is broken once in a finished sweep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomtune.search.config import parse_sweep
from anomtune.search.results import tensorboard_internals as events
from anomtune.search.sweep import run
from tests.cluster.invariants import differences, finished_records, violations
from tests.search.conftest import sweep_dict

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toy_data, ray_session) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "sweep"
    categories = {"name": "folder", "root": str(toy_data), "categories": ["plate"]}
    changes = {"dataset": categories, "trials": 2, "confirm": {"top": 1, "seeds": [1]}}
    run(parse_sweep(sweep_dict(**changes), "test"), directory)
    return directory


@pytest.fixture
def sweep(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "sweep"))


def _change_record(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _add_events(folder: Path) -> None:
    with next(folder.glob("*tfevents*")).open("ab") as file:
        file.write(events.encode([events.event([events.scalar("auroc/validation", 0.5)], 1)]))


def _swap_row(path: Path, name: str, value: object) -> None:
    table = pq.read_table(path)
    index = table.column_names.index(name)
    column = pa.array([value] * len(table), table.schema.field(index).type)
    pq.write_table(table.set_column(index, table.schema.field(index), column), path)


_RECORD = "trials/plate/toy/00001.json"
_BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a record is lost": (lambda d: (d / _RECORD).unlink(), "changed after it had ended"),
    "a record is changed": (lambda d: _change_record(d / _RECORD, seed=7), "changed after"),
    "a trial runs": (lambda d: _change_record(d / _RECORD, state="RUNNING"), "still RUNNING"),
    "a run is missing": (
        lambda d: next(d.glob("confirm/plate/toy/0*.json")).unlink(),
        "confirm runs",
    ),
    "something is left over": (lambda d: (d / "trials/.x.tmp").touch(), "left over"),
    "half a table": (
        lambda d: (d / "trials/plate/labels.npy").write_bytes(b"\x93NUMPY"),
        "not a whole file",
    ),
    "a rung is shown twice": (lambda d: _add_events(d / "tensorboard/plate/toy/00001"), "shows"),
    "a curve is missing": (
        lambda d: shutil.rmtree(d / "tensorboard/plate/toy/roc"),
        "the ROC curve",
    ),
    "the model is gone": (lambda d: shutil.rmtree(d / "models"), "cannot be loaded"),
    "the leaderboard is another": (
        lambda d: _swap_row(d / "leaderboard.parquet", "test_auroc_mean", 0.125),
        "compiled again it differs",
    ),
}


def test_a_whole_sweep_has_nothing_wrong(whole):
    assert list(violations(whole, finished_records(whole))) == []
    assert list(differences(whole, whole)) == []


@pytest.mark.parametrize("name", _BREAKS)
def test_what_is_broken_is_seen(sweep, name):
    before = finished_records(sweep)
    damage, expected = _BREAKS[name]
    damage(sweep)
    assert any(expected in found for found in violations(sweep, before))


def test_another_result_is_seen(sweep, whole):
    _swap_row(sweep / "leaderboard.parquet", "val_auroc", 0.125)
    assert any("val_auroc" in found for found in differences(sweep, whole))
    _change_record(sweep / _RECORD, seed=7)
    assert any(found.startswith("trials") for found in differences(sweep, whole))
