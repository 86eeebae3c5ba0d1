"""Follows a sweep directory: reads what is new in it, and keeps what a picture of it needs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from anomtune.errors import AnomtuneError, SweepError
from anomtune.search.config import Sweep
from anomtune.search.decide.budget import trial_targets
from anomtune.search.decide.progress import StudyProgress, study_progress
from anomtune.search.decide.timeleft import RunTimes, TimeLeft
from anomtune.search.results.columns import Standing
from anomtune.search.results.leaderboard import rank_category
from anomtune.search.results.status import searched_studies, within_hours
from anomtune.search.store.changes import RecordChanges
from anomtune.search.store.directory import SWEEP_FILE, read_config
from anomtune.search.store.lock import Owner, OwnerWatch
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import AnyRecord, StudyKey
from anomtune.search.store.spent import Spent, read_spent
from anomtune.search.store.storage import Storage
from anomtune.search.watch.study import FollowedStudy, Neighbours

#: ``waiting`` for a sweep to begin, ``reading`` what there is, ``running``, ``silent`` (whether it
#: runs cannot be told from here), ``stopped`` before its end, ``finished``, ``gone`` (the directory
#: is not there any more).
Phase = Literal["waiting", "reading", "running", "silent", "stopped", "finished", "gone"]


@dataclass
class Followed:
    """A sweep as far as it has been read.

    Attributes:
        location: Its directory, as it was given.
        phase: Where it is.
        config: What was asked for; ``None`` before it begins.
        studies: What is known of each study.
        progress: How far each is.
        standings: The studies of each category, in order of rank.
        left: How long it will take.
        since: When its driver began; what ran before was interrupted.
        spent: What it has spent of its hours.
        trouble: Why the last look failed, in one line.
        news: How often records of each category, or what follows from them, have changed.
        drawn: Each category in the last picture, with what it was drawn from.
    """

    location: str
    phase: Phase = "waiting"
    config: Sweep | None = None
    studies: dict[StudyKey, FollowedStudy] = field(default_factory=dict)
    progress: dict[StudyKey, StudyProgress] = field(default_factory=dict)
    standings: dict[str, list[Standing]] = field(default_factory=dict)
    left: TimeLeft = field(default_factory=lambda: TimeLeft(None))
    since: datetime | None = None
    spent: Spent = field(default_factory=Spent)
    trouble: str | None = None
    news: Counter[str] = field(default_factory=Counter)
    drawn: dict[str, tuple[object, dict[str, Any]]] = field(default_factory=dict)

    def is_running(self, record: AnyRecord) -> bool:
        """Whether a run whose record says so is under way: its driver lives and has begun it."""
        if self.phase in {"stopped", "finished", "gone"}:
            return False
        started = record.cost.started_at
        return self.since is None or (
            started is not None and datetime.fromisoformat(started) >= self.since
        )


class SweepFollower:
    """Follows a sweep directory that others write. It writes nothing.

    Args:
        directory: Local path or pyarrow filesystem URI; the sweep may not have begun.

    Raises:
        SweepError: If there is no sweep, and none is about to begin, or another version made it.
        StorageError: If the directory cannot be read.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.store = RecordStore(Storage(directory))
        self._storage = self.store.storage
        self.state = Followed(self._storage.location)
        self._owner = OwnerWatch(self._storage)
        self._raw: bytes | None = None
        self._begin(None, {})
        if read_config(self._storage) is None and self._owner.look().alive is False:
            raise SweepError(f"{directory}: no {SWEEP_FILE} there; give the directory of a sweep")

    def poll(self, now: datetime | None = None) -> Iterator[Followed]:
        """Looks at what is new; yields what is known again and again while much is read.

        Nothing that is wrong with the directory ends it: what is known stays, with the trouble.

        Args:
            now: With a time zone.
        """
        now = now or datetime.now(UTC)
        try:
            owner = self._owner.look()
            if self._find_config():
                yield from self._read()
            self._conclude(owner, now)
            self.state.trouble = None
        except (AnomtuneError, TypeError, ValueError) as error:
            self.state.trouble = str(error)
        yield self.state

    def _begin(self, config: Sweep | None, searched: Mapping[StudyKey, bool]) -> None:
        """Forgets all, to follow a sweep.

        Args:
            config: What was asked for, if it has begun.
            searched: Whether each study has hyperparameters to search.
        """
        self.state = Followed(self._storage.location, config=config)
        self._searched = searched
        self._changes = RecordChanges(self.store)
        self._near = Neighbours()
        self._dirty: set[StudyKey] = set()
        self._stale: set[str] = set()
        #: What the ranks of each category followed from.
        self._ranked: dict[str, dict[StudyKey, tuple[object, ...]]] = {}
        #: Whether there was no more time to search, and to confirm.
        self._ends = False, False
        if config is None:
            return
        self._times = RunTimes(config.rungs)
        self.state.studies = {
            key: FollowedStudy(key, self._times, config.confirm)
            for category in config.dataset.categories or ()
            for key in (StudyKey(category, method) for method in config.methods)
        }
        self._dirty = set(self.state.studies)
        self.state.phase = "reading"

    def _find_config(self) -> bool:
        """Reads the sweep file if it has changed; whether there is one."""
        raw = self._storage.read(SWEEP_FILE)
        if raw is None:
            self.state.phase = "waiting" if self.state.config is None else "gone"
            return False
        if raw != self._raw:
            config = read_config(self._storage)
            if config is not None and config != self.state.config:
                self._begin(config, searched_studies(config, self.store))
            self._raw = raw
        elif self.state.phase == "gone":
            self.state.phase = "silent"
        return True

    def _read(self) -> Iterator[Followed]:
        state = self.state
        again = set()
        for changes in self._changes.poll(state.studies):
            study = state.studies[changes.key]
            self._dirty.add(changes.key)
            self._stale.add(changes.key.category)
            if not study.take(changes):
                again.add(changes.key)
            if state.phase == "reading":
                self._count()
                yield state
        for key in again:
            self._changes.again(key)
        if again:
            yield from self._read()
            return
        self._count()
        if state.phase == "reading":
            state.phase = "silent"
        for category in sorted(self._stale):
            self._rank(category)
            self._stale.discard(category)

    def _count(self) -> None:
        """Counts anew what has changed."""
        state = self.state
        assert state.config is not None
        config = state.config
        if config.budget is not None and config.budget.hours is not None:
            state.spent = read_spent(self._storage)
        closed, over = state.spent.search_is_over(config), state.spent.confirm_is_over(config)
        if not self._dirty and self._ends == (closed, over):
            return
        for key in self._dirty:
            state.studies[key].refresh(self.store, self._near)
        known = {key: study.states.total() for key, study in state.studies.items()}
        targets = trial_targets(config, known, self._searched.__getitem__, closed=closed)
        for key, study in state.studies.items():
            before = state.progress.get(key)
            ends = before is None or before.target != targets[key] or self._ends[1] != over
            if ends or key in self._dirty:
                state.progress[key] = study_progress(
                    config,
                    key,
                    study.trials,
                    study.confirm_runs,
                    target=targets[key],
                    over=over,
                    states=study.states,
                )
                state.news[key.category] += 1
        self._dirty.clear()
        self._ends = closed, over

    def _rank(self, category: str) -> None:
        """Ranks a category, if what its ranks follow from has changed."""
        state = self.state
        assert state.config is not None
        studies = {key: one for key, one in state.studies.items() if key.category == category}
        ranked = {key: one.ranked_by for key, one in studies.items()}
        if self._ranked.get(category) == ranked:
            return
        state.standings[category] = rank_category(
            state.config,
            self.store,
            category,
            {key: one.trials for key, one in studies.items()},
            {key: one.confirm_runs for key, one in studies.items()},
            completed={key: one.states["COMPLETE"] for key, one in studies.items()},
        )
        self._ranked[category] = ranked
        state.news[category] += 1

    def _conclude(self, owner: Owner, now: datetime) -> None:
        """Says where the sweep is, and how long it will take."""
        state = self.state
        state.since = None if owner.since is None else datetime.fromisoformat(owner.since)
        if state.config is None or state.phase == "gone":
            return
        if all(study.owed == 0 for study in state.progress.values()):
            state.phase = "finished"
        elif owner.alive is None:
            state.phase = "silent"
        else:
            state.phase = "running" if owner.alive else "stopped"
        state.left = TimeLeft(None)
        if state.phase in {"running", "silent"}:
            left = self._times.left(state.progress.values(), now, state.since)
            seconds = within_hours(state.config, state.spent, left.seconds)
            state.left = TimeLeft(seconds, left.overdue)
