"""What a column of a table of results is, and what follows from a list of columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import pyarrow as pa

S = TypeVar("S")

#: A row of a table, by column.
Row = Mapping[str, Any]

NAME = pa.dictionary(pa.int32(), pa.string())
TIME = pa.timestamp("ms", tz="UTC")


@dataclass(frozen=True)
class Column(Generic[S]):
    """A column of a table of results.

    Attributes:
        name: Its name.
        type: Its Arrow type.
        source: Draws its value from what a row is made of; ``None`` for null.
        title: What people read above it; "" if no table for people has it.
        format: Its text in such a table, from the whole row.
        meaning: What it says, for documentation and tooltips.
    """

    name: str
    type: pa.DataType
    source: Callable[[S], Any]
    title: str
    format: Callable[[Row], str]
    meaning: str


def schema_of(columns: Iterable[Column[Any]]) -> pa.Schema:
    """Returns the Arrow schema of a table; each field carries its meaning."""
    return pa.schema(
        [
            pa.field(column.name, column.type, metadata={"meaning": column.meaning})
            for column in columns
        ]
    )


def row_of(columns: Iterable[Column[S]], source: S) -> dict[str, Any]:
    """Returns a row of a table."""
    return {column.name: column.source(source) for column in columns}


def plain(name: str) -> Callable[[Row], str]:
    """Returns a format that shows a value as it is."""
    return lambda row: "" if row[name] is None else str(row[name])


def as_time(text: str | None) -> datetime | None:
    """Returns a time of a record."""
    return None if text is None else datetime.fromisoformat(text)
