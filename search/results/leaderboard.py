"""The result of a sweep: one row per study, ranked within each category, and all trials.

Both tables are compiled from the records and can be compiled again at any time.
"""

from __future__ import annotations

import io
import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.metadata import version
from statistics import mean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anomtune.search.config import SweepConfig
from anomtune.search.decide.confirm import Confirmed, choose, summarise
from anomtune.search.metrics.image import paired_delong_p
from anomtune.search.results.paper_results import paper_auroc
from anomtune.search.store.records import (
    RecordStore,
    StudyKey,
    TrialRecord,
    canonical,
)

SCHEMA_VERSION = 1

_NAME = pa.dictionary(pa.int32(), pa.string())
_TIME = pa.timestamp("ms", tz="UTC")

#: One row per study. What is measured on held-out images is null until confirm runs open them.
#: ``confirmed_auroc`` is on the validation images, over the seeds; ``shifted_auroc`` is JSON, the
#: mean of each shifted domain.
LEADERBOARD_SCHEMA = pa.schema(
    [
        ("dataset", _NAME),
        ("category", _NAME),
        ("method", _NAME),
        ("rank", pa.int32()),
        ("tied", pa.bool_()),
        ("params", pa.string()),
        ("trial_number", pa.int32()),
        ("val_auroc", pa.float64()),
        ("val_auroc_low", pa.float64()),
        ("val_auroc_high", pa.float64()),
        ("n_val_normal", pa.int32()),
        ("n_val_anomalous", pa.int32()),
        ("default_val_auroc", pa.float64()),
        ("gain", pa.float64()),
        ("confirmed_auroc_mean", pa.float64()),
        ("confirmed_auroc_std", pa.float64()),
        ("test_auroc_mean", pa.float64()),
        ("test_auroc_std", pa.float64()),
        ("test_pixel_auroc_mean", pa.float64()),
        ("test_aupro_mean", pa.float64()),
        ("test_aupro_per_image_mean", pa.float64()),
        ("test_f1_mean", pa.float64()),
        ("test_accuracy_mean", pa.float64()),
        ("default_test_auroc_mean", pa.float64()),
        ("shifted_auroc_mean", pa.float64()),
        ("shifted_auroc", pa.string()),
        ("n_test_normal", pa.int32()),
        ("n_test_anomalous", pa.int32()),
        ("n_seeds", pa.int32()),
        ("optimism_gap", pa.float64()),
        ("validation", _NAME),
        ("split_hash", pa.string()),
        ("score_rule", _NAME),
        ("trials", pa.int32()),
        ("completed", pa.int32()),
        ("pruned", pa.int32()),
        ("failed", pa.int32()),
        ("train_seconds", pa.float64()),
        ("peak_memory_bytes", pa.int64()),
        ("parameters", pa.int64()),
        ("image_ms", pa.float64()),
        ("paper_auroc", pa.float64()),
        ("created_at", _TIME),
    ]
)

TRIALS_SCHEMA = pa.schema(
    [
        ("dataset", _NAME),
        ("category", _NAME),
        ("method", _NAME),
        ("number", pa.int32()),
        ("state", _NAME),
        ("params", pa.string()),
        ("seed", pa.int64()),
        ("split_hash", pa.string()),
        ("val_auroc", pa.float64()),
        ("val_auroc_low", pa.float64()),
        ("val_auroc_high", pa.float64()),
        ("rungs", pa.int32()),
        ("curve", pa.list_(pa.float64())),
        ("losses", pa.list_(pa.float64())),
        ("score_rule", _NAME),
        ("parameters", pa.int64()),
        ("train_seconds", pa.float64()),
        ("evaluate_seconds", pa.float64()),
        ("image_ms", pa.float64()),
        ("peak_memory_bytes", pa.int64()),
        ("started_at", _TIME),
        ("finished_at", _TIME),
        ("error", pa.string()),
    ]
)


def compile_leaderboard(
    config: SweepConfig,
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
    categories: dict[str, list[dict[str, Any]]] = defaultdict(list)
    winners: dict[StudyKey, TrialRecord] = {}
    for category in config.dataset.categories or ():
        for method in config.methods:
            key = StudyKey(category, method)
            records = studies.get(key, [])
            runs = confirmed.get(key, [])
            best, winner = choose(records, runs, config.confirm)
            if best is not None:
                winners[key] = best
            row = _row(config, key, records, best)
            if winner is not None:
                row |= _confirmed_figures(winner, summarise(records, runs, config.confirm).get(0))
            row["n_test_normal"], row["n_test_anomalous"] = counts.get(category, (None, None))
            categories[category].append(row)
    rows = []
    for category, entries in categories.items():
        entries.sort(key=lambda row: -row.get("confirmed_auroc_mean", row.get("val_auroc", -1.0)))
        for rank, row in enumerate(entries, start=1):
            row["rank"] = rank
        _mark_ties(store, category, entries, winners)
        rows += entries
    return pa.Table.from_pylist(rows, schema=LEADERBOARD_SCHEMA).replace_schema_metadata(
        _metadata(config)
    )


def compile_trials(config: SweepConfig, records: Iterable[TrialRecord]) -> pa.Table:
    """Returns one row per trial, in order of study and number."""
    rows = []
    for record in records:
        last = record.curve[-1] if record.curve else None
        row: dict[str, Any] = {
            name: getattr(record, name)
            for name in ("dataset", "category", "method", "number", "state", "seed", "split_hash")
        }
        row |= {
            "params": canonical(record.params),
            "val_auroc": last and last.auroc,
            "val_auroc_low": last and last.auroc_low,
            "val_auroc_high": last and last.auroc_high,
            "rungs": len(record.curve),
            "curve": [rung.auroc for rung in record.curve],
            "losses": [rung.loss for rung in record.curve],
            "error": record.error,
        }
        row |= record.cost.model_dump()
        row |= {
            "started_at": _time(record.cost.started_at),
            "finished_at": _time(record.cost.finished_at),
        }
        if record.facts is not None:
            row |= record.facts.model_dump(include={"score_rule", "parameters"})
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=TRIALS_SCHEMA).replace_schema_metadata(
        _metadata(config)
    )


def write_tables(config: SweepConfig, store: RecordStore) -> pa.Table:
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


def _row(
    config: SweepConfig,
    key: StudyKey,
    records: Sequence[TrialRecord],
    best: TrialRecord | None,
) -> dict[str, Any]:
    default = next((r.value for r in records if r.number == 0), None)
    states = [record.state for record in records]
    ends = [record.cost.finished_at for record in records if record.cost.finished_at is not None]
    row: dict[str, Any] = {
        "dataset": config.dataset.name,
        "category": key.category,
        "method": key.method,
        "default_val_auroc": default,
        "validation": config.validation.protocol,
        "trials": len(records),
        "completed": states.count("COMPLETE"),
        "pruned": states.count("PRUNED"),
        "failed": states.count("FAIL"),
        "paper_auroc": paper_auroc(config.dataset.name, *key),
        "created_at": _time(max(ends, default=None)),
    }
    if best is None or best.facts is None:
        return row
    last = best.curve[-1]
    return row | {
        "params": canonical(best.params),
        "trial_number": best.number,
        "val_auroc": last.auroc,
        "val_auroc_low": last.auroc_low,
        "val_auroc_high": last.auroc_high,
        "gain": None if default is None else last.auroc - default,
        "split_hash": best.split_hash,
        "train_seconds": best.cost.train_seconds,
        "peak_memory_bytes": best.cost.peak_memory_bytes,
        "image_ms": best.cost.image_ms,
        **best.facts.model_dump(),
    }


def _confirmed_figures(winner: Confirmed, default: Confirmed | None) -> dict[str, Any]:
    """Returns what confirm runs say of the chosen config, and of the paper's own."""
    test = winner.test_auroc
    shifted = winner.shifted_auroc
    known = [value for value in shifted.values() if value is not None]
    return {
        "confirmed_auroc_mean": winner.val_auroc,
        "confirmed_auroc_std": winner.val_std,
        "test_auroc_mean": test,
        "test_auroc_std": winner.test_std,
        "test_pixel_auroc_mean": winner.test_mean("pixel_auroc"),
        "test_aupro_mean": winner.test_mean("aupro"),
        "test_aupro_per_image_mean": winner.test_mean("aupro_per_image"),
        "test_f1_mean": winner.test_mean("f1"),
        "test_accuracy_mean": winner.test_mean("accuracy"),
        "default_test_auroc_mean": default and default.test_auroc,
        "shifted_auroc_mean": mean(known) if known else None,
        "shifted_auroc": json.dumps(shifted) if shifted else None,
        "n_seeds": len(winner.runs),
        "optimism_gap": None if test is None else winner.val_auroc - test,
    }


def _mark_ties(
    store: RecordStore,
    category: str,
    rows: Sequence[dict[str, Any]],
    winners: Mapping[StudyKey, TrialRecord],
) -> None:
    """Sets ``tied`` where a paired DeLong test could be made: not to be told from rank 1.

    Rank 1 itself is tied if any other row is.
    """
    labels = store.read_labels(category)
    chosen = [winners.get(StudyKey(category, row["method"])) for row in rows]
    scores = [None if record is None else store.read_scores(record) for record in chosen]
    if labels is None or not scores or scores[0] is None or len(scores[0]) != len(labels):
        return
    for row, other in zip(rows[1:], scores[1:], strict=True):
        if other is not None and len(other) == len(labels):
            row["tied"] = paired_delong_p(labels, scores[0], other) > 0.05
    tested = [row["tied"] for row in rows[1:] if "tied" in row]
    if tested:
        rows[0]["tied"] = any(tested)


def _metadata(config: SweepConfig) -> dict[str, str]:
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


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
