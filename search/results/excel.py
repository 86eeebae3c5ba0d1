"""The tables of a sweep as an Excel workbook.

Excel knows no time zones: times are those of UTC, and their headings say so. Text is written as
text, whatever it begins with, so that no name or message of anybody's becomes a formula, which is
what happens to it in a CSV file. Integers that Excel would round are text too.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from anomtune.errors import StorageError, SweepError
from anomtune.files import write_whole
from anomtune.search.results.result import open_sweep

if TYPE_CHECKING:
    import xlsxwriter

#: What a cell holds at most, and a sheet.
_LONGEST, _MOST_ROWS = 32_767, 1_048_576
#: Excel's numbers have 15 digits.
_LARGEST = 10**15
#: Characters of a column at least and at most; longer text is hidden by the next cell.
_NARROW, _WIDE = 8, 40

#: How numbers are shown, by what is in the name of their column; the cells hold all digits.
_FORMATS = (
    (("auroc", "aupro", "f1", "accuracy", "gain", "optimism", "scoring_error"), "0.0000"),
    (("seconds", "_ms"), "#,##0.0"),
    (("bytes", "parameters"), "#,##0"),
)
_TIME = "yyyy-mm-dd hh:mm:ss"


def write_workbook(
    directory: str | os.PathLike[str], path: str | os.PathLike[str]
) -> dict[str, int]:
    """Writes leaderboard and trials of a sweep, which may still run, and what the columns mean.

    Args:
        directory: The sweep directory, local or remote.
        path: The file, which is replaced.

    Returns:
        The number of rows of each table, by name.

    Raises:
        SweepError: If there is no such sweep, XlsxWriter is not installed, or the sweep has more
            trials than a sheet has rows; the old file is then as it was.
        StorageError: If the directory cannot be read, or the file not be written.
    """
    try:
        import xlsxwriter  # noqa: PLC0415 - optional
    except ImportError as error:
        raise SweepError(
            f"{error.name} is not installed, which an Excel workbook needs: "
            "pip install 'anomtune[excel]'"
        ) from None
    result = open_sweep(directory)
    tables = {"leaderboard": result.leaderboard, "trials": result.trials}
    for name, table in tables.items():
        if table.num_rows >= _MOST_ROWS:
            raise SweepError(
                f"{name}: {table.num_rows} rows are more than a sheet of Excel has; read "
                f"{name}.parquet"
            )
    buffer = io.BytesIO()
    with xlsxwriter.Workbook(buffer, {"in_memory": True}) as book:
        for name, table in tables.items():
            _write_table(book, name, table)
        _write_table(book, "columns", _meanings(tables))
    try:
        write_whole(Path(path), buffer.getvalue())
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from None
    return {name: table.num_rows for name, table in tables.items()}


def _write_table(book: xlsxwriter.Workbook, name: str, table: pa.Table) -> None:
    sheet = book.add_worksheet(name)
    bold = book.add_format({"bold": True})
    for number, field in enumerate(table.schema):
        heading = f"{field.name} (UTC)" if pa.types.is_timestamp(field.type) else field.name
        shown = book.add_format({"num_format": _number_format(field)})
        sheet.write_string(0, number, heading, bold)
        width = max(_NARROW, len(heading) + 3)  # the button of the filter
        for row, value in enumerate(table[field.name].to_pylist(), start=1):
            _write(sheet, row, number, value, shown)
            width = max(width, len(value) + 1) if isinstance(value, str) else width
        if pa.types.is_timestamp(field.type):
            width = max(width, len(_TIME) + 1)
        sheet.set_column(number, number, min(width, _WIDE))
    sheet.freeze_panes(1, 0)
    sheet.autofilter(0, 0, table.num_rows, table.num_columns - 1)


def _write(sheet: Any, row: int, column: int, value: Any, shown: Any) -> None:
    """Writes a cell; what was not measured is empty."""
    match value:
        case None:
            return
        case bool():
            sheet.write_boolean(row, column, value)
        case int() if abs(value) < _LARGEST:
            sheet.write_number(row, column, value, shown)
        case float() if math.isfinite(value):
            sheet.write_number(row, column, value, shown)
        case float():
            return
        case datetime():
            sheet.write_datetime(row, column, value.astimezone(UTC).replace(tzinfo=None), shown)
        case _:
            sheet.write_string(row, column, _text(value))


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _number_format(field: pa.Field) -> str:
    if pa.types.is_timestamp(field.type):
        return _TIME
    found = (shown for parts, shown in _FORMATS if any(part in field.name for part in parts))
    return next(found, "General")


def _meanings(tables: Mapping[str, pa.Table]) -> pa.Table:
    """Returns what every column of tables means."""
    rows = [
        {
            "table": name,
            "column": field.name,
            "meaning": (field.metadata or {})[b"meaning"].decode(),
        }
        for name, table in tables.items()
        for field in table.schema
    ]
    return pa.Table.from_pylist(rows)
