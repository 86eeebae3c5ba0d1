"""The documentation of the tables, drawn from their columns: ``docs/leaderboard.md``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from anomtune.search.metrics.metric import BUILT_IN
from anomtune.search.results.column import Column
from anomtune.search.results.columns import assemble
from anomtune.search.results.trial_columns import TRIAL_COLUMNS

_TEXT = """# The tables of a sweep

Drawn by `anomtune.search.results.documentation` from the columns: edit them, not this page. In the
Parquet files each field has its meaning as metadata.

## leaderboard.parquet

One row per study, ranked within each category. What was not measured is null: figures of held-out
images before confirm runs have opened them, AUPRO without masks. A metric of a plug-in has a column
`test_<name>_mean` besides.

{leaderboard}

## trials.parquet

One row per trial, in order of study and number.

{trials}
"""


def leaderboard_page() -> str:
    """Returns ``docs/leaderboard.md``, in Markdown."""
    return _TEXT.format(leaderboard=_table(assemble(BUILT_IN)), trials=_table(TRIAL_COLUMNS))


def _table(columns: Iterable[Column[Any]]) -> str:
    columns = list(columns)
    titled = any(column.title for column in columns)
    rows = [("column", "type", *(["shown as"] if titled else []), "meaning")]
    rows.append(tuple("---" for _ in rows[0]))
    for column in columns:
        title = [column.title] if titled else []
        rows.append((f"`{column.name}`", _type_name(column.type), *title, column.meaning))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind):
        return f"list of {kind.value_type}"
    return str(kind)


if __name__ == "__main__":
    print(leaderboard_page(), end="")
