"""The columns of the leaderboard, in one table: schema, rows, tables for people, documentation.

A column is added here and nowhere else, and one of held-out images by a metric
(`anomtune.search.metrics.metric`). Longer than 400 lines: each column says what it means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import mean, median
from typing import Any, Literal

import pyarrow as pa

from anomtune.models.scoring import score_rule
from anomtune.search.config import Sweep
from anomtune.search.decide.confirm import Confirmed
from anomtune.search.decide.scoring import doubt
from anomtune.search.metrics.image import Auroc
from anomtune.search.metrics.metric import BUILT_IN, Metric, metrics
from anomtune.search.results.column import NAME, TIME, Column, Row, as_time, plain
from anomtune.search.results.figures import figure, interval, signed
from anomtune.search.results.paper_results import paper_auroc
from anomtune.search.store.records import (
    AnyRecord,
    Facts,
    Rung,
    StudyKey,
    TrialRecord,
    canonical,
)


@dataclass(frozen=True)
class Standing:
    """What is known of a study when its row is made.

    Attributes:
        config: The sweep.
        key: The study.
        records: Its trials.
        best: The trial whose config it answers with.
        winner: What was confirmed of that config, if it is a confirmed one.
        default: What was confirmed beside it of the paper's own.
        held_out: Numbers of normal and anomalous held-out images; ``None`` if not known.
        rank: 1 = best of the category.
        tied: Whether it cannot be told from rank 1; ``None`` where that is not known.
        confirmed_interval: What the scores of the confirm runs say of their mean AUROC.
        completed: Number of completed trials, if ``records`` are not all.
    """

    config: Sweep
    key: StudyKey
    records: Sequence[TrialRecord]
    best: TrialRecord | None
    winner: Confirmed | None
    default: Confirmed | None
    held_out: tuple[int | None, int | None] = (None, None)
    rank: int = 0
    tied: bool | None = None
    confirmed_interval: Auroc | None = None
    completed: int | None = None

    @property
    def ranked_by(self) -> Literal["confirmed", "search"] | None:
        """Whose AUROC its rank is made of; ``None`` without a completed trial."""
        if self.winner is not None:
            return "confirmed"
        return None if self.last is None else "search"

    @property
    def order(self) -> tuple[int, float]:
        """By which it is sorted: the best of many trials does not compare with a confirmed mean."""
        if self.last is None:
            return 2, 0.0
        if self.winner is not None:
            return 0, self.scoring_error - self.winner.val_auroc
        return 1, self.scoring_error - self.last.auroc

    @property
    def scoring_error(self) -> float:
        """What ranks take off for the choice of its scoring; 0 for the paper's."""
        if self.last is None or not self.last.scoring_error:
            return 0.0
        completed = self.number("COMPLETE") if self.completed is None else self.completed
        return doubt(self.last.scoring_error, completed)

    @property
    def trainings(self) -> Sequence[AnyRecord]:
        """The trainings whose mean AUROC ranks it."""
        if self.winner is not None:
            return self.winner.runs
        return () if self.best is None else (self.best,)

    @property
    def last(self) -> Rung | None:
        """The last rung of the best trial."""
        return None if self.best is None or self.best.facts is None else self.best.curve[-1]

    @property
    def default_val_auroc(self) -> float | None:
        """AUROC of the paper's own config, with its own scoring, on the validation images."""
        return None if self.first is None else self.first.paper_value

    @property
    def first(self) -> TrialRecord | None:
        """Trial 0."""
        return next((record for record in self.records if record.number == 0), None)

    @property
    def gain(self) -> float | None:
        """What the best trial has over the paper's own config."""
        if self.last is None or self.default_val_auroc is None:
            return None
        return self.last.auroc - self.default_val_auroc

    @property
    def scoring_gain(self) -> float | None:
        """What the study's scoring gives the paper's own config."""
        if self.first is None or self.first.value is None or self.default_val_auroc is None:
            return None
        return self.first.value - self.default_val_auroc

    @property
    def shifted(self) -> dict[str, float | None]:
        """Mean AUROC on each shifted domain."""
        return {} if self.winner is None else self.winner.shifted_auroc

    def number(self, state: str) -> int:
        """Returns the number of trials in a state."""
        return sum(record.state == state for record in self.records)


def _best(get: Callable[[TrialRecord], Any]) -> Callable[[Standing], Any]:
    return lambda study: None if study.best is None or study.last is None else get(study.best)


def _facts(get: Callable[[Facts], Any]) -> Callable[[Standing], Any]:
    return _best(lambda record: None if record.facts is None else get(record.facts))


def _last(get: Callable[[Rung], Any]) -> Callable[[Standing], Any]:
    return lambda study: None if study.last is None else get(study.last)


def _winner(get: Callable[[Confirmed], Any]) -> Callable[[Standing], Any]:
    return lambda study: None if study.winner is None else get(study.winner)


def _image_ms(study: Standing) -> float | None:
    """Returns what was measured of its confirmed detectors, else what its trial estimates."""
    runs = () if study.winner is None else study.winner.runs
    known = [run.cost.image_ms for run in runs if run.cost.image_ms is not None]
    return median(known) if known else _best(lambda record: record.cost.image_ms)(study)


def _shifted_mean(study: Standing) -> float | None:
    known = [value for value in study.shifted.values() if value is not None]
    return mean(known) if known else None


def _optimism(winner: Confirmed) -> float | None:
    return None if winner.test_auroc is None else winner.val_auroc - winner.test_auroc


def _ended(study: Standing) -> datetime | None:
    ends = [record.cost.finished_at for record in study.records if record.cost.finished_at]
    return as_time(max(ends, default=None))


def _auroc(name: str) -> Callable[[Row], str]:
    return lambda row: figure(row[name])


def _spread(name: str) -> Callable[[Row], str]:
    """Returns a format of a mean over the seeds, with its standard deviation if there is one."""

    def show(row: Row) -> str:
        deviation = row.get(f"{name}_std")
        shown = figure(row[f"{name}_mean"])
        return shown if deviation is None else f"{shown} ±{deviation:.3f}"

    return show


def _signed(name: str) -> Callable[[Row], str]:
    return lambda row: "" if row[name] is None else signed(row[name])


def _number(name: str, digits: int, unit: str = "", per: float = 1) -> Callable[[Row], str]:
    return lambda row: "" if row[name] is None else f"{row[name] / per:.{digits}f}{unit}"


def _milliseconds(row: Row) -> str:
    value = row["image_ms"]
    return "" if value is None else f"{value:.2f}" if value < 1 else f"{value:.1f}"


def _rank(row: Row) -> str:
    return f"{'=' if row['tied'] else ''}{row['rank']}"


def _interval(name: str) -> Callable[[Row], str]:
    return lambda row: interval(row[f"{name}_low"], row[f"{name}_high"])


def _confirmed(get: Callable[[Auroc], float]) -> Callable[[Standing], float | None]:
    """Returns a source of an end of the interval; none where a score of a seed is missing."""
    return lambda study: None if study.confirmed_interval is None else get(study.confirmed_interval)


def ranked_by_both(rows: Iterable[Row]) -> bool:
    """Whether some rows are ranked by their confirmed AUROC and some by that of the search."""
    return {"confirmed", "search"} <= {row["ranked_by"] for row in rows}


def _trials(row: Row) -> str:
    extra = [f"{row[name]} {name}" for name in ("pruned", "failed") if row[name]]
    return f"{row['trials']}" + (f" ({', '.join(extra)})" if extra else "")


def _hidden(
    name: str, kind: pa.DataType, source: Callable[[Standing], Any], meaning: str
) -> Column[Standing]:
    """Returns a column that no table for people has."""
    return Column(name, kind, source, "", plain(name), meaning)


_COLUMN_OF_METRIC = re.compile(r"test_(\w+)_mean")


def _of_metric(metric: Metric) -> Column[Standing]:
    """Returns the column of a metric: its mean over the seeds on held-out images."""
    name = metric.name
    return Column(
        f"test_{name}_mean",
        pa.float64(),
        _winner(lambda winner: winner.test_mean(name)),
        "held out" if name == "auroc" else metric.title,
        _spread(f"test_{name}"),
        f"{metric.meaning} Of the held-out images, mean over the seeds.",
    )


# What is measured on held-out images is null until confirm runs open them.
_BEFORE_METRICS: tuple[Column[Standing], ...] = (
    _hidden("dataset", NAME, lambda study: study.config.dataset.name, "Name of the dataset."),
    Column("category", NAME, lambda study: study.key.category, "category", plain("category"),
           "Product or texture of the dataset."),
    Column("method", NAME, lambda study: study.key.method, "method", plain("method"),
           "Detector family."),
    Column("rank", pa.int32(), lambda study: study.rank, "rank", _rank,
           "Within the category: 1 = best. Confirmed rows come first, by confirmed_auroc_mean; "
           "the others follow, by val_auroc; of both scoring_error is taken off. = : it cannot be "
           "told from the best (tied)."),
    Column("ranked_by", NAME, lambda study: study.ranked_by, "ranked by", plain("ranked_by"),
           "What the rank is made of: confirmed (confirmed_auroc_mean, the mean over the seeds) or "
           "search (val_auroc, one training, the best of many). Null without a completed trial."),
    _hidden("tied", pa.bool_(), lambda study: study.tied,
            "Whether validation images and seeds cannot tell the row from rank 1: a paired DeLong "
            "test (5 %) of the mean AUROCs over the seeds, whose variance is that of images and "
            "seeds. Of rank 1, whether that holds of any other. Null where it is not known: "
            "without scores, if one of the two is confirmed and the other is not, and if there is "
            "one training of each and the images tell these apart: other seeds may not."),
    _hidden("params", pa.string(), _best(lambda record: canonical(record.params)),
            "The chosen config as JSON: all hyperparameters, scoring included."),
    _hidden("trial_number", pa.int32(), _best(lambda record: record.number),
            "Number of its trial; 0 is the paper's own config."),
    _hidden("paper_scoring", pa.bool_(), _best(lambda record: record.scoring == 0),
            "Whether the chosen scoring is the paper's own."),
    Column("val_auroc", pa.float64(), _last(lambda rung: rung.auroc), "AUROC", _auroc("val_auroc"),
           "Image AUROC of the search on the validation images."),
    Column("val_auroc_low", pa.float64(), _last(lambda rung: rung.auroc_low), "95 % interval",
           _interval("val_auroc"),
           "Lower end of the 95 % interval of val_auroc: this one training with other images "
           "(DeLong). It knows nothing of other seeds, nor of the choice among many trials."),
    _hidden("val_auroc_high", pa.float64(), _last(lambda rung: rung.auroc_high),
            "Upper end of that interval."),
    _hidden("n_val_normal", pa.int32(), _facts(lambda facts: facts.n_val_normal),
            "Normal validation images."),
    _hidden("n_val_anomalous", pa.int32(), _facts(lambda facts: facts.n_val_anomalous),
            "Anomalous validation images."),
    _hidden("default_val_auroc", pa.float64(), lambda study: study.default_val_auroc,
            "val_auroc of the paper's own config."),
    Column("gain", pa.float64(), lambda study: study.gain, "gain", _signed("gain"),
           "val_auroc over that of the paper's own config with its own scoring."),
    _hidden("scoring_error", pa.float64(),
            lambda study: None if study.last is None else study.scoring_error,
            "What ranks of methods take off, as the scoring was chosen among many: the standard "
            "error, over images, of what it has over the paper's on the chosen training, and as "
            "much again divided by the number of completed trials. 0 for the paper's."),
    Column("scoring_gain", pa.float64(), lambda study: study.scoring_gain, "of scoring",
           _signed("scoring_gain"),
           "The part of gain that the choice of a scoring gives the paper's own config, without "
           "training anything else; the rest is that of other training."),
    Column("confirmed_auroc_mean", pa.float64(), _winner(lambda winner: winner.val_auroc),
           "confirmed", _spread("confirmed_auroc"),
           "Image AUROC on the validation images when retrained, mean over the seeds."),
    _hidden("confirmed_auroc_std", pa.float64(), _winner(lambda winner: winner.val_std),
            "Its standard deviation over the seeds."),
    Column("confirmed_auroc_low", pa.float64(), _confirmed(lambda area: area.low),
           "confirmed 95 %", _interval("confirmed_auroc"),
           "Lower end of the 95 % interval of confirmed_auroc_mean: with other images and other "
           "seeds; with one seed, that training with other images."),
    _hidden("confirmed_auroc_high", pa.float64(), _confirmed(lambda area: area.high),
            "Upper end of that interval."),
)  # fmt: skip

_TEST_AUROC_STD = _hidden(
    "test_auroc_std", pa.float64(), _winner(lambda winner: winner.test_std),
    "Standard deviation of test_auroc_mean over the seeds.",
)  # fmt: skip

_AFTER_METRICS: tuple[Column[Standing], ...] = (
    Column("default_test_auroc_mean", pa.float64(),
           lambda study: study.default and study.default.paper_test_auroc,
           "paper, held out", _spread("default_test_auroc"),
           "test_auroc_mean of the paper's own config with its own scoring."),
    Column("shifted_auroc_mean", pa.float64(), _shifted_mean, "shifted", _spread("shifted_auroc"),
           "Image AUROC on the shifted domains, mean over domains and seeds."),
    _hidden("shifted_auroc", pa.string(),
            lambda study: json.dumps(study.shifted) if study.shifted else None,
            "The same of each domain, mean over the seeds, as JSON."),
    _hidden("n_test_normal", pa.int32(), lambda study: study.held_out[0],
            "Normal held-out images."),
    _hidden("n_test_anomalous", pa.int32(), lambda study: study.held_out[1],
            "Anomalous held-out images."),
    _hidden("n_seeds", pa.int32(), _winner(lambda winner: len(winner.runs)),
            "How many times the chosen config was retrained."),
    Column("optimism_gap", pa.float64(), _winner(_optimism), "optimism", _signed("optimism_gap"),
           "confirmed_auroc_mean minus test_auroc_mean."),
    _hidden("validation", NAME, lambda study: study.config.validation.protocol,
            "How validation images were chosen: labelled, synthetic or test."),
    _hidden("split_hash", pa.string(), _best(lambda record: record.split_hash),
            "Names the exact images of training and validation."),
    _hidden("score_rule", NAME, _best(lambda record: score_rule(record.params.get("scoring", {}))),
            "How an image's score is drawn from its map."),
    Column("trials", pa.int32(), lambda study: len(study.records), "trials", _trials,
           "Trials of the study, in whatever state."),
    _hidden("completed", pa.int32(), lambda study: study.number("COMPLETE"),
            "Those that ended with a value."),
    _hidden("pruned", pa.int32(), lambda study: study.number("PRUNED"),
            "Those that were stopped early."),
    _hidden("failed", pa.int32(), lambda study: study.number("FAIL"), "Those that failed."),
    Column("train_seconds", pa.float64(), _best(lambda record: record.cost.train_seconds),
           "train s", _number("train_seconds", 1), "Seconds that the chosen trial trained."),
    Column("peak_memory_bytes", pa.int64(), _best(lambda record: record.cost.peak_memory_bytes),
           "memory", _number("peak_memory_bytes", 1, " GiB", 2**30),
           "Bytes at its peak: of GPU memory, on a CPU of the worker's resident memory."),
    Column("parameters", pa.int64(), _facts(lambda facts: facts.parameters), "params",
           _number("parameters", 1, "M", 1e6), "Parameters of the network."),
    Column("image_ms", pa.float64(), _image_ms, "ms/image", _milliseconds,
           "Milliseconds from a decoded and resized image to its map and score, in batches of 8 on "
           "a CPU and of 32 on a GPU: the median of several calls after one that warms up, over "
           "the confirm runs. Without these an estimate of the chosen trial, from its validation "
           "batches of up to 32. Reading files is not in it. Runs share a machine, so it is rather "
           "too much: `anomtune bench MODEL_DIR` measures alone."),
    _hidden("paper_auroc", pa.float64(),
            lambda study: paper_auroc(study.config.dataset.name, *study.key),
            "Image AUROC that a paper published for this method and category."),
    _hidden("created_at", TIME, _ended, "When the last trial ended."),
)  # fmt: skip


def leaderboard_columns(recorded: Iterable[str] = ()) -> tuple[Column[Standing], ...]:
    """Returns the columns of the leaderboard.

    Args:
        recorded: Names of metrics that records hold. One that is not registered here has a column
            all the same.

    Raises:
        SweepError: If an installed metric cannot be used.
    """
    known = metrics()
    names = {metric.name for metric in known}
    return assemble(
        [
            *known,
            *(
                Metric(name, name, f"The metric {name}, which is not installed here.", _unknown)
                for name in sorted(set(recorded) - names)
            ),
        ]
    )


def assemble(listed: Sequence[Metric]) -> tuple[Column[Standing], ...]:
    """Returns the columns of a leaderboard with these metrics, of which AUROC is the first."""
    first, *others = map(_of_metric, listed)
    return (*_BEFORE_METRICS, first, _TEST_AUROC_STD, *others, *_AFTER_METRICS)


def _unknown(*_: Any) -> None:
    """Stands for the computation of a metric that only records know."""


def columns_named(names: Iterable[str]) -> dict[str, Column[Standing]]:
    """Returns the columns of a leaderboard that exists, by name.

    Args:
        names: Of its columns.
    """
    names = list(names)
    recorded = [found[1] for name in names if (found := _COLUMN_OF_METRIC.fullmatch(name))]
    by_name = {column.name: column for column in leaderboard_columns(recorded)}
    return {name: by_name[name] for name in names}


def is_of_plugin(name: str) -> bool:
    """Whether a column is that of a metric which is none of anomtune's own."""
    found = _COLUMN_OF_METRIC.fullmatch(name)
    return found is not None and found[1] not in {metric.name for metric in BUILT_IN}
