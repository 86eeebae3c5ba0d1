"""How far a sweep is, told by its records alone: no Ray, no lock, also while it runs elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import mean

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from anomtune.cli.monitor import duration
from anomtune.cli.tables import figure
from anomtune.errors import SweepError
from anomtune.search.config import MethodConfig, SweepConfig
from anomtune.search.decide.confirm import belongs, to_confirm
from anomtune.search.decide.study import plan_search
from anomtune.search.store.records import (
    AnyRecord,
    ConfirmRecord,
    RecordStore,
    StudyKey,
    TrialRecord,
    best_record,
)


@dataclass(frozen=True)
class StudyStatus:
    """How far one study is.

    Attributes:
        key: Category and method.
        total: How many trials it is to have.
        complete: Trials that ended with a value.
        pruned: Trials that were stopped early.
        failed: Trials that failed.
        running: Trials that were started and have not ended; after a kill, those of then.
        best: Highest validation AUROC of a completed trial, in [0, 1].
        default: That of the paper's own config.
        confirmed: Confirm runs that have ended.
        to_confirm: How many there are to be; while the search goes on, at most.
        confirming: Confirm runs that were started and have not ended.
    """

    key: StudyKey
    total: int
    complete: int
    pruned: int
    failed: int
    running: int
    best: float | None
    default: float | None
    confirmed: int
    to_confirm: int
    confirming: int

    @property
    def done(self) -> int:
        """Number of trials that have ended."""
        return self.complete + self.pruned + self.failed


@dataclass(frozen=True)
class SweepStatus:
    """How far a sweep is.

    Attributes:
        name: Of the sweep.
        studies: In the order of the sweep file.
        seconds_left: Estimate if as many runs go on at once as are under way now; ``None`` if
            none is, or none has ended yet. 0 = nothing is left.
        idle: Seconds since a run last ended; ``None`` if none has.
    """

    name: str
    studies: tuple[StudyStatus, ...]
    seconds_left: float | None
    idle: float | None


def sweep_status(config: SweepConfig, store: RecordStore, now: datetime) -> SweepStatus:
    """Returns how far a sweep is.

    Args:
        config: As in the sweep directory, categories spelled out.
        store: Its records.
        now: With a time zone.

    Raises:
        SweepError: If a record cannot be understood.
    """
    trials, runs = store.read_all(), store.read_confirmed()
    keys = [
        StudyKey(category, method)
        for category in config.dataset.categories or ()
        for method in config.methods
    ]
    studies = tuple(_study(config, key, trials.get(key, []), runs.get(key, [])) for key in keys)
    records = [*_flat(trials.values()), *_flat(runs.values())]
    ended = [_time(record.cost.finished_at) for record in records if record.cost.finished_at]
    return SweepStatus(
        name=config.name,
        studies=studies,
        seconds_left=_seconds_left(studies, trials, runs),
        idle=(now - max(ended)).total_seconds() if ended else None,
    )


def _study(
    config: SweepConfig, key: StudyKey, trials: Sequence[TrialRecord], runs: Sequence[ConfirmRecord]
) -> StudyStatus:
    states = Counter(record.state for record in trials)
    best = best_record(trials)
    total = max(_wanted(config, config.methods[key.method], key.method), len(trials))
    by_number = {record.number: record for record in trials}
    seeds = set(config.confirm.seeds)
    current = [
        run
        for run in runs
        if run.seed in seeds and run.number in by_number and belongs(run, by_number[run.number])
    ]
    if config.confirm.top == 0:
        configs = 0
    elif len(trials) - states["RUNNING"] < total:
        configs = config.confirm.top + 1  # and the paper's own
    else:
        chosen = to_confirm(trials, config.confirm)
        current = [run for run in current if run.number in chosen]
        configs = len(chosen)
    confirming = sum(run.state == "RUNNING" for run in current)
    return StudyStatus(
        key=key,
        total=total,
        complete=states["COMPLETE"],
        pruned=states["PRUNED"],
        failed=states["FAIL"],
        running=states["RUNNING"],
        best=best.value if best else None,
        default=by_number[0].value if 0 in by_number else None,
        confirmed=len(current) - confirming,
        to_confirm=configs * len(seeds),
        confirming=confirming,
    )


def _wanted(config: SweepConfig, method: MethodConfig, name: str) -> int:
    """Returns how many trials a study wants: one where nothing is searched (see `Pool.target`)."""
    try:
        return config.trials if plan_search(name, method).space else 1
    except SweepError:  # a plug-in that this machine has not got
        return config.trials


def _seconds_left(
    studies: Iterable[StudyStatus],
    trials: dict[StudyKey, list[TrialRecord]],
    runs: dict[StudyKey, list[ConfirmRecord]],
) -> float | None:
    usual_trial, usual_run = _usual(_flat(trials.values())), _usual(_flat(runs.values()))
    left, at_once = 0.0, 0
    known = True
    for study in studies:
        at_once += study.running + study.confirming
        for number, own, usual in (
            (study.total - study.done, _usual(trials.get(study.key, [])), usual_trial),
            (
                study.to_confirm - study.confirmed,
                _usual(runs.get(study.key, [])),
                usual_run or usual_trial,
            ),
        ):
            each = own or usual
            known &= number <= 0 or each is not None
            left += max(number, 0) * (each or 0)
    if known and left == 0:
        return 0.0
    return left / at_once if known and at_once else None


def _usual(records: Iterable[AnyRecord]) -> float | None:
    """Returns how many seconds a run takes on average; failures say nothing about that."""
    seconds = [
        (_time(record.cost.finished_at) - _time(record.cost.started_at)).total_seconds()
        for record in records
        if record.state in {"COMPLETE", "PRUNED"}
        and record.cost.finished_at
        and record.cost.started_at
    ]
    return mean(seconds) if seconds else None


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _flat(groups: Iterable[Sequence[AnyRecord]]) -> list[AnyRecord]:
    return [record for group in groups for record in group]


def status_table(status: SweepStatus) -> Group:
    """Returns the status as people read it in a terminal."""
    confirms = any(study.to_confirm for study in status.studies)
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("study", no_wrap=True)
    titles = ["trials", "running", "pruned", "failed", "best", "default"]
    for title in [*titles, *(["confirmed"] if confirms else [])]:
        table.add_column(title, justify="right")
    for study in status.studies:
        table.add_row(
            escape(str(study.key)),
            f"{study.done}/{study.total}",
            str(study.running or ""),
            str(study.pruned or ""),
            str(study.failed or ""),
            figure(study.best),
            figure(study.default),
            *([f"{study.confirmed}/{study.to_confirm}"] if confirms else []),
        )
    return Group(table, Text(status_line(status), style="bold"))


def status_line(status: SweepStatus) -> str:
    """Returns the status in a line."""
    studies = status.studies
    parts = [f"{sum(s.done for s in studies)}/{sum(s.total for s in studies)} trials"]
    for word in ("running", "pruned", "failed"):
        number = sum(getattr(study, word) for study in studies)
        parts += [f"{number} {word}"] if number else []
    confirms = sum(study.to_confirm for study in studies)
    if confirms:
        parts.append(f"{sum(study.confirmed for study in studies)}/{confirms} confirm runs")
    if status.seconds_left == 0:
        parts.append("finished")
    elif status.seconds_left is not None:
        parts.append(f"about {duration(status.seconds_left)} left")
    if status.idle is not None:
        parts.append(f"last result {duration(max(status.idle, 0))} ago")
    return ", ".join(parts)
