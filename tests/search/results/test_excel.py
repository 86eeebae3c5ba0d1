"""Leaderboard and trials in Excel: numbers are numbers, times are UTC, and text is only text."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from anomtune.errors import StorageError, SweepError
from anomtune.search.results import excel
from anomtune.search.results.excel import write_workbook
from anomtune.search.results.result import open_sweep
from tests.search.sample_sweep import write_sample_sweep

openpyxl = pytest.importorskip("openpyxl")
pytest.importorskip("xlsxwriter", reason="needs anomtune[excel]")

EVIL = "=cmd|' /C calc'!A0"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    reason = lambda record: "+1, -1, @x" if record.number == 2 else None  # noqa: E731
    write_sample_sweep(
        directory,
        categories=[EVIL, "Prüfteil"],
        methods=["padim", "ssae"],
        trials=4,
        confirm=1,
        seeds=(1, 2**62),
        seed=2**60 + 1,
        fails=reason,
    )
    return directory


@pytest.fixture(scope="module")
def book(sweep, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "tables.xlsx"
    assert write_workbook(sweep, path) == {"leaderboard": 4, "trials": 16}
    return openpyxl.load_workbook(path)


def expected(name: str, value):
    """Returns what a cell of Excel can hold of a value of a table."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None)
    if isinstance(value, list):
        return json.dumps(value)
    return str(value) if isinstance(value, int) and abs(value) >= 10**15 else value


@pytest.mark.parametrize("name", ["leaderboard", "trials"])
def test_every_cell_is_that_of_the_table(sweep, book, name):
    table = getattr(open_sweep(sweep), name)
    headings, *rows = book[name].iter_rows()
    titles = [cell.value.removesuffix(" (UTC)") for cell in headings]
    assert titles == table.schema.names
    assert len(rows) == table.num_rows
    for row, truth in zip(rows, table.to_pylist(), strict=True):
        for column, cell in zip(titles, row, strict=True):
            assert (
                cell.value == pytest.approx(expected(column, truth[column]), abs=0, rel=1e-15)
                if isinstance(truth[column], float)
                else cell.value == expected(column, truth[column])
            )
            assert cell.data_type != "f", "a formula"
            if isinstance(truth[column], float):
                assert cell.data_type == "n"


def test_what_people_see_of_it(sweep, book):
    board, trials = book["leaderboard"], book["trials"]
    titles = [cell.value for cell in board[1]]
    assert "created_at (UTC)" in titles
    assert "started_at (UTC)" in [cell.value for cell in trials[1]]
    at = {title: number for number, title in enumerate(titles)}
    assert board[2][at["val_auroc"]].number_format == "0.0000"
    assert board[2][at["created_at (UTC)"]].number_format == "yyyy-mm-dd hh:mm:ss"
    assert board[2][at["params"]].value.startswith("{")
    assert board[2][at["paper_auroc"]].value is None
    assert {row[at["category"]].value for row in board.iter_rows(min_row=2)} == {EVIL, "Prüfteil"}
    for sheet in (board, trials, book["columns"]):
        assert sheet.freeze_panes == "A2"
        assert sheet.auto_filter.ref.startswith("A1:")
        assert all(cell.font.bold for cell in sheet[1])
    meanings = {(row[0], row[1]): row[2] for row in book["columns"].values}
    assert meanings["leaderboard", "gain"].startswith("val_auroc over that")


def test_values_that_excel_has_not(tmp_path):
    """NaN and infinity are empty, long text is cut, large integers keep their digits."""
    xlsxwriter = pytest.importorskip("xlsxwriter")
    table = pa.table(
        {
            "auroc": [float("nan"), float("inf"), 0.5],
            "text": ["x" * 40_000, "@SUM(A1)", "a\tb\x07\nhttp://x"],
            "seed": pa.array([2**62 + 1, -5, None]),
            "tied": [True, None, False],
        }
    )
    buffer = io.BytesIO()
    with xlsxwriter.Workbook(buffer, {"in_memory": True}) as book:
        excel._write_table(book, "t", table)
    sheet = openpyxl.load_workbook(io.BytesIO(buffer.getvalue()))["t"]
    rows = [list(row) for row in sheet.iter_rows(min_row=2, values_only=True)]
    assert [row[0] for row in rows] == [None, None, 0.5]
    assert rows[0][1] == "x" * 32_764 + "..."
    assert rows[1][1] == "@SUM(A1)"
    assert rows[2][1].endswith("\nhttp://x")
    assert [row[2] for row in rows] == [str(2**62 + 1), -5, None]
    assert [row[3] for row in rows] == [True, None, False]


def test_what_is_wrong_is_one_line(sweep, tmp_path, monkeypatch, run):
    code, out, err = run("export", sweep, "--xlsx", tmp_path / "t.xlsx")
    assert (code, err) == (0, "")
    assert out == f"{tmp_path / 't.xlsx'}: 4 leaderboard, 16 trials\n"
    before = (tmp_path / "t.xlsx").read_bytes()
    assert run("export", tmp_path, "--xlsx", tmp_path / "t.xlsx")[0] == 2
    assert run("export", sweep, "--xlsx", tmp_path)[0] == 2
    assert run("export", sweep, "--xlsx", tmp_path / "t.xlsx", "--onnx", "x")[0] == 2
    assert run("export", sweep, "--xlsx", tmp_path / "t.xlsx", "--follow")[0] == 2
    monkeypatch.setattr(excel, "_MOST_ROWS", 16)
    with pytest.raises(SweepError, match=r"trials: 16 rows are more .*; read trials\.parquet"):
        write_workbook(sweep, tmp_path / "t.xlsx")
    monkeypatch.undo()
    with pytest.raises(StorageError, match="cannot be written"):
        write_workbook(sweep, "/proc/t.xlsx")
    monkeypatch.setitem(__import__("sys").modules, "xlsxwriter", None)
    with pytest.raises(SweepError, match=r"xlsxwriter is not .*pip install 'anomtune\[excel\]'"):
        write_workbook(sweep, tmp_path / "t.xlsx")
    assert (tmp_path / "t.xlsx").read_bytes() == before


def test_pandas_writes_what_the_documentation_says(sweep, tmp_path):
    board = open_sweep(sweep).leaderboard.to_pandas()
    with pytest.raises(ValueError, match="timezone"):
        board.to_excel(tmp_path / "board.xlsx", engine="openpyxl")
    # docs/results.md
    for name in board.select_dtypes("datetimetz"):
        board[name] = board[name].dt.tz_convert("UTC").dt.tz_localize(None)
    board.to_excel(tmp_path / "board.xlsx", engine="openpyxl", index=False)
    assert openpyxl.load_workbook(tmp_path / "board.xlsx").active.max_row == 5
