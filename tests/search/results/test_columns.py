"""The table of columns: what follows from it agrees with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomtune.registry import METRICS
from anomtune.search.decide.confirm import Confirmed
from anomtune.search.metrics.metric import BUILT_IN, register_metric
from anomtune.search.results.column import schema_of
from anomtune.search.results.columns import (
    Standing,
    columns_named,
    is_of_plugin,
    leaderboard_columns,
)
from anomtune.search.results.documentation import leaderboard_page
from anomtune.search.results.leaderboard import compile_leaderboard, write_tables
from anomtune.search.results.trial_columns import TRIAL_COLUMNS
from anomtune.search.store.directory import read_sweep
from anomtune.search.store.records import Cost
from tests.search.sample_sweep import write_sample_sweep

PAGE = Path(__file__).parents[3] / "docs/leaderboard.md"


@pytest.fixture
def register():
    yield lambda name: register_metric(name, title="AP", meaning="Average precision.")(max)
    METRICS._registered.clear()


@pytest.mark.parametrize("columns", [leaderboard_columns(), TRIAL_COLUMNS])
def test_every_column_has_a_name_of_its_own_and_a_meaning(columns):
    names = [column.name for column in columns]
    assert len(set(names)) == len(names)
    titles = [column.title for column in columns if column.title]
    assert len(set(titles)) == len(titles)
    for column in columns:
        assert column.meaning.endswith("."), column.name


def test_every_metric_has_its_column():
    names = [column.name for column in leaderboard_columns()]
    for metric in BUILT_IN:
        assert f"test_{metric.name}_mean" in names
        assert not is_of_plugin(f"test_{metric.name}_mean")


def test_files_carry_the_meaning_of_each_column(tmp_path):
    write_sample_sweep(tmp_path, methods=("padim",), categories=("bottle",), trials=2, confirm=0)
    write_tables(*read_sweep(tmp_path))
    for name, columns in (("leaderboard", leaderboard_columns()), ("trials", TRIAL_COLUMNS)):
        schema = pq.read_schema(tmp_path / f"{name}.parquet")
        assert schema.equals(schema_of(columns))
        for column in columns:
            assert schema.field(column.name).metadata[b"meaning"].decode() == column.meaning


def test_formats_show_rows_in_which_nothing_is_known():
    columns = leaderboard_columns()
    blank = dict.fromkeys(column.name for column in columns)
    for column in columns:
        assert column.format(blank) in {"", "-", "None"}, column.name


def test_the_page_of_the_documentation_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == leaderboard_page()


def test_the_documentation_does_not_depend_on_what_is_registered(register):
    before = leaderboard_page()
    register("average_precision")
    assert leaderboard_page() == before


def test_a_registered_metric_has_a_column_before_it_was_measured(register, tmp_path):
    register("average_precision")
    write_sample_sweep(tmp_path, methods=("padim",), categories=("bottle",), trials=2, confirm=0)
    board = compile_leaderboard(*read_sweep(tmp_path))
    assert board["test_average_precision_mean"].to_pylist() == [None]
    assert board.schema.field("test_average_precision_mean").type == pa.float64()


def test_a_metric_that_only_records_know_has_a_column_too(tmp_path):
    write_sample_sweep(tmp_path, methods=("padim",), categories=("bottle",), trials=2, confirm=1)
    config, store = read_sweep(tmp_path)
    (runs,) = store.read_confirmed().values()
    for run in runs:
        run.test.figures["elsewhere"] = 0.25
        store.write(run)
    board = compile_leaderboard(config, store)
    assert board["test_elsewhere_mean"].to_pylist() == [0.25]
    assert columns_named(board.schema.names)["test_elsewhere_mean"].title == "elsewhere"


@pytest.mark.parametrize(
    ("measured", "expected"),
    [((), 9.0), ((None,), 9.0), ((3.0,), 3.0), ((3.0, 50.0, None, 4.0), 4.0)],
)
def test_image_ms_is_what_confirm_runs_measured_else_the_trials_estimate(measured, expected):
    def record(value):
        return SimpleNamespace(cost=Cost(image_ms=value), facts=object(), curve=[object()])

    winner = Confirmed(0, tuple(map(record, measured))) if measured else None
    study = Standing(None, None, [], record(9.0), winner, None)
    assert columns_named(["image_ms"])["image_ms"].source(study) == expected
