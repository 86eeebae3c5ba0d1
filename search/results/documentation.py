"""The documentation of the tables, drawn from their columns: ``docs/leaderboard.md``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from anomtune.search.metrics.metric import BUILT_IN
from anomtune.search.results.column import Column
from anomtune.search.results.columns import assemble
from anomtune.search.results.trial_columns import TRIAL_COLUMNS

_TEXT = """# Files and columns

Drawn by `make docs` from `search/results/`: edit that, not this page.

## Files

A sweep directory, by default `sweeps/NAME`:

```text
sweep.yaml                                       the resolved config
trials/<category>/<method>/<number>.json         a record per trial, replaced atomically: the truth
trials/<category>/<method>/<number>.npz          its validation scores
trials/<category>/labels.npy                     the labels of the validation images
confirm/<category>/<method>/<number>-<seed>.*    a record per confirm run, its scores, examples
models/<category>/<method>/                      the winner: config.yaml, weights.safetensors
trials.parquet, leaderboard.parquet              compiled from the records
tensorboard/<category>/<method>/<number>/        curves, hyperparameters, heat maps
scorings/, held_out.json, spent.json             what was judged, counted and spent
segments/                                        many records in one file, in an object store
loggers.json                                     what has been sent
searched.json                                    of each study, whether it searches anything
owner.json, .lock                                which process runs it
report.html                                      written by `anomtune report`
```

The tables open in pandas, polars, DuckDB and [Excel](results.md#excel); each field has its meaning
as metadata.

## leaderboard.parquet

One row per study, ranked within each category. What was not measured is null: figures of held-out
images before confirm runs have opened them, AUPRO without masks, `paper_auroc` where no paper has
published one. Figures on held-out images are means over the seeds. A metric of a plug-in has a
column `test_<name>_mean` besides.

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
