"""The result of a sweep: one row per study, ranked within each category, and all trials.

Both tables are compiled from the records and can be compiled again at any time.
"""

from __future__ import annotations

import io
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version

import pyarrow as pa
import pyarrow.parquet as pq

from anomtune.search.config import Sweep
from anomtune.search.decide.confirm import choose, summarise
from anomtune.search.metrics.image import paired_delong_p
from anomtune.search.results.column import row_of, schema_of
from anomtune.search.results.columns import Standing, leaderboard_columns
from anomtune.search.results.trial_columns import TRIAL_COLUMNS
from anomtune.search.store.records import ConfirmRecord, RecordStore, StudyKey, TrialRecord

SCHEMA_VERSION = 1


def compile_leaderboard(
    config: Sweep,
    store: RecordStore,
    studies: Mapping[StudyKey, Sequence[TrialRecord]] | None = None,
) -> pa.Table:
    """Returns the leaderboard of a sweep as its records are now.

    A study without a completed trial has a row too, with nulls and the last ranks.

    Args:
        config: The sweep.
        store: Its directory.
        studies: Its records, if they have been read already.
    """
    studies = store.read_all() if studies is None else studies
    confirmed = store.read_confirmed()
    counts = store.read_test_counts()
    columns = leaderboard_columns(_recorded_metrics(confirmed))
    rows = []
    for category in config.dataset.categories or ():
        standings = []
        for method in config.methods:
            key = StudyKey(category, method)
            records, runs = studies.get(key, []), confirmed.get(key, [])
            best, winner = choose(records, runs, config.confirm)
            default = summarise(records, runs, config.confirm).get(0) if winner else None
            held_out = counts.get(category, (None, None))
            standings.append(Standing(config, key, records, best, winner, default, held_out))
        standings.sort(key=lambda standing: -standing.ranked_by)
        for rank, (standing, tied) in enumerate(
            zip(standings, _ties(store, category, standings), strict=True), start=1
        ):
            rows.append(row_of(columns, replace(standing, rank=rank, tied=tied)))
    return pa.Table.from_pylist(rows, schema=schema_of(columns)).replace_schema_metadata(
        _metadata(config)
    )


def compile_trials(config: Sweep, records: Iterable[TrialRecord]) -> pa.Table:
    """Returns one row per trial, in order of study and number."""
    rows = [row_of(TRIAL_COLUMNS, record) for record in records]
    return pa.Table.from_pylist(rows, schema=schema_of(TRIAL_COLUMNS)).replace_schema_metadata(
        _metadata(config)
    )


def write_tables(config: Sweep, store: RecordStore) -> pa.Table:
    """Compiles both tables, writes them into the sweep directory and returns the leaderboard."""
    studies = store.read_all()
    board = compile_leaderboard(config, store, studies)
    records = [record for study in studies.values() for record in study]
    for name, table in (("leaderboard", board), ("trials", compile_trials(config, records))):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        # The same records give the same bytes: a finished sweep is left as it is.
        if store.storage.read(f"{name}.parquet") != buffer.getvalue():
            store.storage.write(f"{name}.parquet", buffer.getvalue(), durable=True)
    return board


def _recorded_metrics(runs: Mapping[StudyKey, Sequence[ConfirmRecord]]) -> set[str]:
    """Returns the names of all metrics that confirm runs have measured."""
    return {
        name
        for records in runs.values()
        for record in records
        if record.test is not None
        for name in record.test.figures
    }


def _ties(store: RecordStore, category: str, standings: Sequence[Standing]) -> list[bool | None]:
    """Returns of each study whether it cannot be told from the first by a paired DeLong test.

    ``None`` where the test could not be made. The first itself is tied if any other is.

    Args:
        store: Where labels and scores lie.
        category: Of the studies.
        standings: In order of rank.
    """
    ties: list[bool | None] = [None] * len(standings)
    labels = store.read_labels(category)
    scores = [None if s.best is None else store.read_scores(s.best) for s in standings]
    if labels is None or not scores or scores[0] is None or len(scores[0]) != len(labels):
        return ties
    for index, other in enumerate(scores[1:], start=1):
        if other is not None and len(other) == len(labels):
            ties[index] = paired_delong_p(labels, scores[0], other) > 0.05
    if any(tied is not None for tied in ties):
        ties[0] = any(ties)
    return ties


def _metadata(config: Sweep) -> dict[str, str]:
    return {
        "anomtune.schema_version": str(SCHEMA_VERSION),
        "anomtune.sweep_name": config.name,
        "anomtune.sweep_sha256": config.digest(),
        **_environment(),
    }


@cache
def _environment() -> dict[str, str]:
    libraries = ("ray", "optuna", "torch", "torchvision", "numpy", "pyarrow")
    hardware = {
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    return {
        "anomtune.code_version": version("anomtune"),
        "anomtune.library_versions": json.dumps({name: version(name) for name in libraries}),
        "anomtune.hardware": json.dumps(hardware),
    }
