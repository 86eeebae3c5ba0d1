"""How far a sweep is, told by its records alone: no Ray, no lock, also while it runs elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from anomtune.errors import SweepError
from anomtune.search.config import MethodConfig, Sweep
from anomtune.search.decide.progress import StudyProgress, sweep_progress
from anomtune.search.decide.scoring import read_studies
from anomtune.search.decide.timeleft import RunTimes
from anomtune.search.results.duration import duration
from anomtune.search.store.lock import OwnerWatch
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import AnyRecord, StudyKey
from anomtune.search.store.spent import Spent, read_spent


@dataclass(frozen=True)
class SweepStatus:
    """How far a sweep is.

    Attributes:
        name: Of the sweep.
        studies: In the order of the sweep file.
        seconds_left: Estimate if as many runs go on at once as are under way now; ``None`` if
            none is, as after a kill, or how long one takes is not known yet. 0 = nothing is left.
        idle: Seconds since a run last ended; ``None`` if none has.
        overdue: Runs that take longer than was expected, by path of their records.
    """

    name: str
    studies: tuple[StudyProgress, ...]
    seconds_left: float | None
    idle: float | None
    overdue: tuple[str, ...] = ()


def sweep_status(config: Sweep, store: RecordStore, now: datetime) -> SweepStatus:
    """Returns how far a sweep is.

    Args:
        config: As in the sweep directory, categories spelled out.
        store: Its records.
        now: With a time zone.

    Raises:
        SweepError: If a record cannot be understood.
        StorageError: If the directory cannot be read.
    """
    trials, runs = read_studies(store), store.read_confirmed()
    searched = searched_studies(config, store)
    spent = read_spent(store.storage)
    progress = sweep_progress(config, trials, runs, searched.__getitem__, spent)
    studies = tuple(progress.values())
    records = [*_flat(trials.values()), *_flat(runs.values())]
    times = RunTimes(config.rungs)
    owner = OwnerWatch(store.storage).look()
    for record in records:
        # A driver that was killed has left records that say they run.
        if record.state != "RUNNING" or owner.alive is not False:
            times.add(record)
    since = None if owner.since is None else _time(owner.since)
    left = times.left(studies, now, since)
    ended = [_time(record.cost.finished_at) for record in records if record.cost.finished_at]
    return SweepStatus(
        name=config.name,
        studies=studies,
        seconds_left=within_hours(config, spent, left.seconds),
        idle=(now - max(ended)).total_seconds() if ended else None,
        overdue=left.overdue,
    )


def searched_studies(config: Sweep, store: RecordStore) -> dict[StudyKey, bool]:
    """Returns of each study whether it has hyperparameters to search.

    Args:
        config: As in the sweep directory, categories spelled out.
        store: Its records.

    Raises:
        StorageError: If the directory cannot be read.
    """
    kept = store.read_searched()
    planned: dict[str, bool] = {}
    found = {}
    for category in config.dataset.categories or ():
        for name, method in config.methods.items():
            key = StudyKey(category, name)
            if (searches := kept.get(str(key))) is None:
                if name not in planned:
                    planned[name] = _is_searched(config, name, method)
                searches = planned[name]
            found[key] = searches
    return found


def _is_searched(config: Sweep, name: str, method: MethodConfig) -> bool:
    # It brings torch, which a page that follows a sweep for days should not hold in memory.
    from anomtune.search.decide.plan import plan_search  # noqa: PLC0415

    try:
        return bool(plan_search(name, method, image_size=config.image_size).space)
    except SweepError:  # a plug-in that this machine has not got
        return True


def within_hours(config: Sweep, spent: Spent, seconds: float | None) -> float | None:
    """Returns an estimate of what is left, at most what the sweep has left of its hours."""
    if config.budget is None or config.budget.hours is None or seconds == 0:
        return seconds
    left = max(0.1, 3600 * config.budget.hours - spent.seconds)
    return left if seconds is None else min(left, seconds)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _flat(groups: Iterable[Sequence[AnyRecord]]) -> list[AnyRecord]:
    return [record for group in groups for record in group]


def status_line(status: SweepStatus) -> str:
    """Returns the status in a line."""
    studies = status.studies
    parts = [f"{sum(s.ended for s in studies)}/{sum(s.target for s in studies)} trials"]
    for word in ("running", "pruned", "failed"):
        number = sum(getattr(study, word) for study in studies)
        parts += [f"{number} {word}"] if number else []
    confirms = sum(study.confirm_target for study in studies)
    if confirms:
        failed = sum(study.confirm_failed for study in studies)
        told = f" ({failed} failed)" if failed else ""
        parts.append(f"{sum(study.confirmed for study in studies)}/{confirms} confirm runs{told}")
    if status.seconds_left == 0:
        parts.append("finished")
    elif status.seconds_left is not None:
        parts.append(f"about {duration(status.seconds_left)} left")
    if status.overdue and status.seconds_left:
        parts.append(f"{len(status.overdue)} running longer than expected")
    if status.idle is not None:
        parts.append(f"last result {duration(max(status.idle, 0))} ago")
    return ", ".join(parts)
