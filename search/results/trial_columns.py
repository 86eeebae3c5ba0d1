"""The columns of the table of all trials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from anomtune.models.scoring import score_rule
from anomtune.search.results.column import NAME, TIME, Column, as_time, plain
from anomtune.search.store.records import Rung, TrialRecord, canonical


def _column(
    name: str, kind: pa.DataType, meaning: str, source: Callable[[TrialRecord], Any] | None = None
) -> Column[TrialRecord]:
    """Returns a column; where no source is given it is the record's field of that name."""
    return Column(
        name, kind, source or (lambda record: getattr(record, name)), "", plain(name), meaning
    )


def _last(get: Callable[[Rung], Any]) -> Callable[[TrialRecord], Any]:
    return lambda record: get(record.curve[-1]) if record.curve else None


TRIAL_COLUMNS: tuple[Column[TrialRecord], ...] = (
    _column("dataset", NAME, "Name of the dataset."),
    _column("category", NAME, "Product or texture of the dataset."),
    _column("method", NAME, "Detector family."),
    _column("number", pa.int32(), "Of the trial within its study; 0 is the paper's own config."),
    _column("origin", pa.string(),
            "Where the config comes from: paper, sampler, or the category and sweep where it won."),
    _column("state", NAME, "RUNNING, COMPLETE, PRUNED or FAIL."),
    _column("params", pa.string(), "All hyperparameters as JSON.",
            lambda record: canonical(record.params)),
    _column("seed", pa.int64(), "What it was trained with."),
    _column("split_hash", pa.string(), "Names the exact images of training and validation."),
    _column("val_auroc", pa.float64(),
            "Image AUROC on the validation images at its last rung, with the study's scoring.",
            _last(lambda rung: rung.auroc)),
    _column("paper_scoring_auroc", pa.float64(), "The same with the paper's scoring.",
            _last(lambda rung: rung.auroc if rung.paper_auroc is None else rung.paper_auroc)),
    _column("val_auroc_low", pa.float64(), "Lower end of its 95 % DeLong interval.",
            _last(lambda rung: rung.auroc_low)),
    _column("val_auroc_high", pa.float64(), "Upper end.", _last(lambda rung: rung.auroc_high)),
    _column("rungs", pa.int32(), "How many rungs it reached.", lambda record: len(record.curve)),
    _column("curve", pa.list_(pa.float64()), "Image AUROC on the validation images at each rung.",
            lambda record: [rung.auroc for rung in record.curve]),
    _column("losses", pa.list_(pa.float64()), "Mean training loss up to each rung.",
            lambda record: [rung.loss for rung in record.curve]),
    _column("score_rule", NAME, "How an image's score is drawn from its map.",
            lambda record: score_rule(record.params.get("scoring", {}))),
    _column("parameters", pa.int64(), "Parameters of the network.",
            lambda record: record.facts and record.facts.parameters),
    _column("train_seconds", pa.float64(), "Training time in seconds.",
            lambda record: record.cost.train_seconds),
    _column("evaluate_seconds", pa.float64(), "Time spent scoring validation images, in seconds.",
            lambda record: record.cost.evaluate_seconds),
    _column("image_ms", pa.float64(),
            "Estimate of the milliseconds from a decoded image to its score, in its batches.",
            lambda record: record.cost.image_ms),
    _column("peak_memory_bytes", pa.int64(),
            "Peak of GPU memory, on a CPU of the worker's resident memory, in bytes.",
            lambda record: record.cost.peak_memory_bytes),
    _column("started_at", TIME, "When it began.", lambda record: as_time(record.cost.started_at)),
    _column("finished_at", TIME, "When it ended.",
            lambda record: as_time(record.cost.finished_at)),
    _column("error", pa.string(), "Why it failed, in one line."),
)  # fmt: skip
