"""Which study a free slot goes to. Pure logic.

Studies advance together, as shares of what they are to have. Near the end those with long trials
come first: a trial that begins last of all and takes an hour would keep one slot busy and leave all
others idle for that hour.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import NamedTuple

from anomtune.search.store.records import AnyRecord, StudyKey, TrialRecord

#: So many runs are too few to say what a run takes beside training and scoring.
_FIRST_RUNS = 5


class Candidate(NamedTuple):
    """A study that may be given the next slot.

    Attributes:
        key: The study.
        target: How many trials it is to have.
        started: How many of them have been handed out.
        running: How many of these have not ended.
        may_start: Whether another can be handed out now.
        figures: AUROCs of those that ended with one or were stopped early.
        handicap: What is taken off them where methods are compared.
    """

    key: StudyKey
    target: int
    started: int
    running: int
    may_start: bool
    figures: Collection[float] = ()
    handicap: float = 0.0


@dataclass
class _Durations:
    """Seconds of the trials of a method that have ended: all of them, and those not cut short."""

    all_seconds: float = 0.0
    all_trials: int = 0
    whole_seconds: float = 0.0
    whole_trials: int = 0


def seconds_of(record: AnyRecord) -> float:
    """Returns how long a run took, with what was done for it beside training and scoring."""
    cost = record.cost
    inside = cost.train_seconds + cost.evaluate_seconds
    if cost.started_at is None or cost.finished_at is None:
        return inside
    begin, end = map(datetime.fromisoformat, (cost.started_at, cost.finished_at))
    return max(inside, (end - begin).total_seconds())


class Pace:
    """Learns how long trials take, and says whose turn it is."""

    def __init__(self) -> None:
        self._methods: dict[str, _Durations] = defaultdict(_Durations)
        #: Of each run, the seconds that are neither training nor scoring; and their median so far,
        #: if it has been asked for since the last one was learnt: each decision asks for it.
        self._beside: list[float] = []
        self._median: float | None = None

    def learn(self, record: TrialRecord) -> None:
        """Learns from a trial that has ended."""
        seconds = record.cost.train_seconds + record.cost.evaluate_seconds
        known = self._methods[record.method]
        known.all_seconds += seconds
        known.all_trials += 1
        if record.state == "COMPLETE":
            known.whole_seconds += seconds
            known.whole_trials += 1
        if record.cost.finished_at is not None:
            self._beside.append(max(0.0, seconds_of(record) - seconds))
            self._median = None

    def run_seconds(self, method: str) -> float:
        """Returns how long a trial that is not cut short keeps its slot; 0 if not known.

        Of a method without one, as long as the longest of the others.
        """
        known = self._whole_seconds()
        if not known:
            return 0.0
        # The first runs also start processes, which later ones find running.
        beside = self._usually_beside() if len(self._beside) > _FIRST_RUNS else 0.0
        return known.get(method, max(known.values())) + beside

    def _usually_beside(self) -> float:
        if self._median is None:
            self._beside.sort()  # of a sorted list with one more this is quick, of any other not
            self._median = median(self._beside)
        return self._median

    def seconds(self, method: str) -> float:
        """Returns how long a trial of a method takes; 0 while that is not known.

        Those cut short count, as the next one may be.
        """
        known = self._methods.get(method)
        return known.all_seconds / known.all_trials if known else 0.0

    def choose(self, studies: Sequence[Candidate]) -> StudyKey | None:
        """Returns the study that starts the next trial; ``None`` if none can.

        Every study is to hand out its last trial so early that it ends with the sweep: what it
        has still to start is spread over the time left less the length of a whole trial.

        Args:
            studies: All of the sweep, in its order, which settles ties.
        """
        ready = [study for study in studies if study.may_start]
        if not ready:
            return None
        whole = self._whole_seconds()
        longest = max(whole.values(), default=0.0)
        left = self._seconds_left(studies, longest)

        def urgency(study: Candidate) -> tuple[bool, float]:
            waiting = 1 - study.started / study.target
            length = whole.get(study.key.method, longest)
            late = left > 0 and length >= left
            return late, length if late else waiting / ((left - length) or 1)

        return max(ready, key=urgency).key

    def _whole_seconds(self) -> dict[str, float]:
        return {
            name: known.whole_seconds / known.whole_trials
            for name, known in self._methods.items()
            if known.whole_trials
        }

    def _seconds_left(self, studies: Sequence[Candidate], longest: float) -> float:
        """Returns how long the sweep goes on if as many trials run at once as now."""
        slots, work = 1, 0.0
        for study in studies:
            known = self._methods.get(study.key.method)
            seconds = known.all_seconds / known.all_trials if known else longest
            work += seconds * (study.target - study.started + study.running / 2)
            slots += study.running
        return work / slots
