"""How long a sweep will still take: one estimate for the terminal, ``status`` and ``watch``.

A run that is under way has what is left of its length, not its length again: a last long trial
makes the estimate fall as it runs. Its length follows from its own rungs once it has reported one,
before that from the runs of its study that have ended. The sweep takes as long as its work shared
by the runs that go on at once, and no shorter than its longest run. Pure logic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from anomtune.search.decide.pace import seconds_of
from anomtune.search.decide.progress import StudyProgress
from anomtune.search.store.records import AnyRecord, StudyKey, TrialRecord

#: Part of its length that a run is taken to need still when it has taken longer than that. It
#: neither grows with the time that has passed, as the mean of what is longer would, nor is nothing.
_LAST = 0.02


@dataclass(frozen=True)
class TimeLeft:
    """An estimate of what is left.

    Attributes:
        seconds: Until the sweep ends, if as many runs go on at once as now. ``None`` if none runs,
            or how long one takes is not known yet. 0: nothing is left.
        overdue: Runs that take longer than was expected, by path of their records.
    """

    seconds: float | None
    overdue: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Ended:
    """Runs of one kind of a study that have ended.

    Attributes:
        seconds: What they took together.
        beside: Those of them in which they neither trained nor scored.
        count: How many.
    """

    seconds: float = 0.0
    beside: float = 0.0
    count: int = 0

    def plus(self, seconds: float, beside: float = 0.0) -> _Ended:
        return _Ended(self.seconds + seconds, self.beside + beside, self.count + 1)


#: Whether trials or confirm runs, and of which study.
_Group = tuple[bool, StudyKey]


class RunTimes:
    """Learns from records how long runs take, and which are under way.

    Args:
        rungs: At how many points a trial reports.
    """

    def __init__(self, rungs: int) -> None:
        self._rungs = rungs
        self._running: dict[str, AnyRecord] = {}
        self._ended: dict[_Group, _Ended] = {}

    def add(self, record: AnyRecord) -> None:
        """Takes in a run that has begun, reported or ended; of each its end once.

        A failure says nothing of how long a run takes.
        """
        if record.state == "RUNNING":
            self._running[record.path] = record
            return
        self._running.pop(record.path, None)
        if record.state != "FAIL" and record.cost.finished_at is not None:
            seconds, group = seconds_of(record), _group(record)
            known = self._ended.get(group, _Ended())
            self._ended[group] = known.plus(seconds, max(0.0, seconds - _inside(record)))

    def forget(self, key: StudyKey) -> None:
        """Forgets all runs of a study."""
        self._running = {path: one for path, one in self._running.items() if one.key != key}
        self._ended = {group: ended for group, ended in self._ended.items() if group[1] != key}

    def left(
        self, studies: Iterable[StudyProgress], now: datetime, since: datetime | None = None
    ) -> TimeLeft:
        """Returns how long what the studies still owe will take.

        Args:
            studies: How far each is.
            now: With a time zone.
            since: When the driver began: what its records say runs since before was interrupted.
        """
        running = list(self._running.values())  # another thread may add to them
        if since is not None:
            running = [record for record in running if _begun(record, now) >= since]
        lengths = [self._length(record, now) for record in running]
        usual = _Usual(self._with(running, lengths))
        work = longest = 0.0
        overdue = []
        known = True
        for record, length in zip(running, lengths, strict=True):
            expected = length or usual.seconds(_group(record))
            if expected is None:
                known = False
                continue
            # One that goes on from a checkpoint has what it took before, too.
            rest = expected - max(_elapsed(record, now), _inside(record))
            if rest < 0:
                overdue.append(record.path)
            rest = max(rest, _LAST * expected)
            work, longest = work + rest, max(longest, rest)
        for group, number in _waiting(studies, Counter(map(_group, running))):
            expected = usual.seconds(group)
            if expected is None:
                known = False
                continue
            work, longest = work + number * expected, max(longest, expected)
        if known and work == 0:
            return TimeLeft(0.0)
        if not known or not running:
            return TimeLeft(None, tuple(overdue))
        return TimeLeft(max(work / len(running), longest), tuple(overdue))

    def _length(self, record: AnyRecord, now: datetime) -> float | None:
        """Returns how long a trial that is under way will have taken, if its rungs tell."""
        inside = _inside(record)
        if not isinstance(record, TrialRecord) or not record.curve or inside <= 0:
            return None
        ended = self._ended.get(_group(record), _Ended())
        usual = ended.beside / ended.count if ended.count else 0.0
        beside = min(usual, max(0.0, _elapsed(record, now) - inside))
        return inside * self._rungs / record.curve[-1].step + beside

    def _with(
        self, running: Iterable[AnyRecord], lengths: Iterable[float | None]
    ) -> dict[_Group, _Ended]:
        """Returns what has ended, with what will have: short runs end first, and mislead."""
        found = dict(self._ended)
        for record, length in zip(running, lengths, strict=True):
            if length is not None:
                group = _group(record)
                found[group] = found.get(group, _Ended()).plus(length)
        return found


class _Usual:
    """How long runs usually take: of their own study, else of what is most like it."""

    def __init__(self, ended: Mapping[_Group, _Ended]) -> None:
        self._means: dict[object, float] = {}
        groups: dict[object, _Ended] = {}
        for (trial, key), one in ended.items():
            for name in ((trial, key), (trial, key.method), trial):
                sums = groups.get(name, _Ended())
                groups[name] = replace(
                    sums, seconds=sums.seconds + one.seconds, count=sums.count + one.count
                )
        self._means = {name: sums.seconds / sums.count for name, sums in groups.items()}

    def seconds(self, group: _Group) -> float | None:
        """Returns the mean of a kind of run; of a confirm run that of trials, if none has ended."""
        trial, key = group
        for kind in (trial,) if trial else (False, True):
            for name in ((kind, key), (kind, key.method), kind):
                if name in self._means:
                    return self._means[name]
        return None


def _waiting(
    studies: Iterable[StudyProgress], running: Mapping[_Group, int]
) -> Iterator[tuple[_Group, int]]:
    """Yields how many runs of each kind have not begun."""
    for study in studies:
        for trial, owed in (
            (True, study.target - study.ended),
            (False, study.confirm_target - study.confirmed),
        ):
            group = trial, study.key
            if owed > running.get(group, 0):
                yield group, owed - running.get(group, 0)


def _group(record: AnyRecord) -> _Group:
    return isinstance(record, TrialRecord), record.key


def _inside(record: AnyRecord) -> float:
    return record.cost.train_seconds + record.cost.evaluate_seconds


def _elapsed(record: AnyRecord, now: datetime) -> float:
    """Returns how long a run has been under way; clocks of two machines may differ."""
    return max(0.0, (now - _begun(record, now)).total_seconds())


def _begun(record: AnyRecord, now: datetime) -> datetime:
    started = record.cost.started_at
    return now if started is None else datetime.fromisoformat(started).astimezone(UTC)
