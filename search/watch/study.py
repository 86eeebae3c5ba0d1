"""What is kept in memory of a study while it is followed: little of many trials, all of a few."""

from __future__ import annotations

from bisect import insort
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anomtune.errors import SweepError
from anomtune.search.config import ConfirmConfig
from anomtune.search.decide.pace import seconds_of
from anomtune.search.decide.scoring import Judgements, neighbours, read_with
from anomtune.search.decide.timeleft import RunTimes
from anomtune.search.store.changes import Changes
from anomtune.search.store.judged import Judged
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import (
    AnyRecord,
    ConfirmRecord,
    State,
    StudyKey,
    TrialRecord,
    canonical,
)

#: Of so many trials that ended last the curves are kept, and of so many failures the reasons.
_RECENT, _FAILURES = 4, 12
#: Different reasons that are counted; further ones are counted together.
_REASONS, OTHER_REASONS = 100, "other reasons"


class Failure(NamedTuple):
    """A run that failed.

    Attributes:
        number: Of the trial.
        seed: Of a confirm run.
        at: When, UTC, ISO 8601.
        error: Why.
    """

    number: int
    seed: int | None
    at: str | None
    error: str


class _Brief(NamedTuple):
    """What is kept of every trial.

    Attributes:
        state: How it is.
        cost: Tells one end of it from another: a hash of what it took.
        config: A hash of its params.
        value: AUROC with the paper's scoring, of a completed one.
        steps: With ``aurocs`` that with every scoring, see `Judged`.
        aurocs: The same.
    """

    state: State
    cost: int
    config: int
    value: float | None
    steps: int
    aurocs: str | None

    def read_with(self, scoring: int) -> float:
        """Returns the AUROC of a completed trial with a scoring: that of `read_with`."""
        assert self.value is not None
        if scoring == 0 or self.aurocs is None:
            return self.value
        return float(Judged(steps=self.steps, aurocs=self.aurocs).values()[scoring])


class FollowedStudy:
    """A study as its records have told it so far.

    Args:
        key: The study.
        times: Is told how long runs take.
        confirm: How many of its configs are to be confirmed.

    Attributes:
        trials: Those trials that rank the study, are to be confirmed or have been, or are shown, in
            order of number, as the scoring of the study reads them. All that follows from the
            trials of a study but for their number follows from these.
        runs: The confirm runs by number and seed.
        states: How many trials are in each state.
        running: What runs, or ran when its driver was killed, by path.
        seconds: What ended runs took, by state, and all confirm runs as ``CONFIRM``.
        failures: Those that failed last.
        reasons: How many failed for each reason.
        unreadable: Why files could not be understood, by path.
        last: When a run ended last.
    """

    def __init__(self, key: StudyKey, times: RunTimes, confirm: ConfirmConfig) -> None:
        self.key = key
        self._times = times
        self._most = max(1, confirm.top)
        self.unreadable: dict[str, str] = {}
        self._clear()

    def _clear(self) -> None:
        self.trials: list[TrialRecord] = []
        self.runs: dict[tuple[int, int], ConfirmRecord] = {}
        self.states: Counter[State] = Counter()
        self.seconds: dict[str, float] = defaultdict(float)
        self.failures: deque[Failure] = deque(maxlen=_FAILURES)
        self.reasons: Counter[str] = Counter()
        self.running: dict[str, AnyRecord] = {}
        self.last: str | None = None
        self._briefs: dict[int, _Brief] = {}
        #: Whole records, as they are kept in the directory, and as the scoring reads them.
        self._whole: dict[int, TrialRecord] = {}
        self._read: dict[int, TrialRecord] = {}
        #: Those whose curves are shown.
        self._drawn: set[int] = set()
        self._recent: deque[int] = deque(maxlen=_RECENT)
        self._scorings: Sequence[Mapping[str, Any]] | None = None
        self._judgements: Judgements | None = None
        self._scoring = 0
        #: Completed trials: those that have been judged, the best first, and those that have not.
        self._order: list[tuple[float, int]] = []
        self._new: list[int] = []

    def take(self, changes: Changes) -> bool:
        """Takes in what has changed; `refresh` then says what follows.

        Args:
            changes: Of trials or of confirm runs.

        Returns:
            Whether that was possible; else the study is empty, and all of it must be read again:
            what had ended is there no more, or is something else.
        """
        for path in changes.gone:
            self.unreadable.pop(f"{path}.json", None)
        if changes.gone or any(map(self._is_another, changes.records)):
            self._clear()
            self._times.forget(self.key)
            return False
        self.unreadable |= changes.unreadable
        for record in changes.records:
            self.unreadable.pop(f"{record.path}.json", None)
            if not self._has_ended(record):
                self._add(record)
        return True

    def _has_ended(self, record: AnyRecord) -> bool:
        return self._known(record)[0] not in {None, "RUNNING"}

    def _is_another(self, record: AnyRecord) -> bool:
        """Whether a run that had ended is not what it was."""
        return self._has_ended(record) and self._known(record) != (record.state, _cost(record))

    def _known(self, record: AnyRecord) -> tuple[State | None, int]:
        """Returns the state of a run as it has been taken in, and what tells its end apart."""
        if isinstance(record, TrialRecord):
            brief = self._briefs.get(record.number)
            return (None, 0) if brief is None else (brief.state, brief.cost)
        run = self.runs.get((record.number, record.seed))
        return (None, 0) if run is None else (run.state, _cost(run))

    def _add(self, record: AnyRecord) -> None:
        if isinstance(record, TrialRecord):
            record = _bare(record)
            self._add_trial(record)
        else:
            self.runs[record.number, record.seed] = record
        self._times.add(record)
        if record.state == "RUNNING":
            self.running[record.path] = record
            return
        self.running.pop(record.path, None)
        trial = isinstance(record, TrialRecord)
        if trial:
            self._recent.append(record.number)
        self.seconds[record.state if trial else "CONFIRM"] += seconds_of(record)
        self.last = max(self.last or "", record.cost.finished_at or "") or None
        if record.state == "FAIL":
            error = record.error or "no reason is known"
            seed = None if isinstance(record, TrialRecord) else record.seed
            self.failures.append(Failure(record.number, seed, record.cost.finished_at, error))
            known = error in self.reasons or len(self.reasons) < _REASONS
            self.reasons[error if known else OTHER_REASONS] += 1

    def _add_trial(self, record: TrialRecord) -> None:
        number = record.number
        if (before := self._briefs.get(number)) is not None:
            self.states[before.state] -= 1
        self.states[record.state] += 1
        self._briefs[number] = _brief(record)
        self._whole[number] = record
        self._read.pop(number, None)
        if record.value is not None:
            self._new.append(number)

    def refresh(self, store: RecordStore, near: Neighbours) -> None:
        """Reads the trials with the scoring that is best by now.

        It may be called again after an error of the storage.

        Args:
            store: The sweep directory.
            near: Knows how scorings are related.
        """
        if not self._briefs:
            return
        if self._scorings is None:
            scorings = store.read_scorings(self.key)
            self._judgements = Judgements(near(scorings)) if scorings else None
            self._scorings = scorings
        self._judge()
        leading = self._leading()
        running = (one.number for one in self.running.values() if isinstance(one, TrialRecord))
        self._drawn = {0, *leading[:1], *self._recent, *running}
        wanted = self._drawn | {*leading, *(number for number, _ in self.runs)}
        wanted &= self._briefs.keys()
        for number in wanted - self._whole.keys():  # another scoring has chosen it
            self._fetch(number, store)
        for known in (self._whole, self._read):
            for number in known.keys() - wanted:
                del known[number]
        for number in self._whole.keys() - self._read.keys():
            record = self._whole[number]
            self._read[number] = read_with(record, self._scoring, self._scorings)
        self.trials = [self._read[number] for number in sorted(self._read)]

    def _judge(self) -> None:
        """Takes in what has been completed since; all are sorted again by another scoring."""
        new, self._new = self._new, []
        if self._judgements is not None:
            for number in new:
                self._judgements.add(self._whole[number])
            if self._judgements.best != self._scoring:
                self._scoring = self._judgements.best
                self._read.clear()
                self._order.clear()
                new = [number for number, one in self._briefs.items() if one.value is not None]
        for number in new:
            insort(self._order, (-self._briefs[number].read_with(self._scoring), number))

    def _leading(self) -> list[int]:
        """Returns the best trials of different configs, the best first."""
        found: dict[int, int] = {}
        for _, number in self._order:
            found.setdefault(self._briefs[number].config, number)
            if len(found) == self._most:
                break
        return list(found.values())

    def _fetch(self, number: int, store: RecordStore) -> None:
        path = f"trials/{self.key}/{number:05d}.json"
        if content := store.storage.read(path):
            with suppress(SweepError):  # it has been spoilt since: the next look says so
                self._whole[number] = _bare(store.parse(path, content, TrialRecord))

    def curves(self) -> list[TrialRecord]:
        """Returns the trials whose curves are shown, in order of number."""
        return [record for record in self.trials if record.number in self._drawn]

    @property
    def ranked_by(self) -> tuple[object, ...]:
        """What its rank and intervals follow from: as long as it is the same, so are they."""
        doubted = self.states["COMPLETE"] if self._scoring else 0
        numbers = {0, *self._leading()} & self._briefs.keys()
        briefs = {number: self._briefs[number] for number in numbers}
        completed = {number: one for number, one in briefs.items() if one.value is not None}
        return self._scoring, doubted, completed, _ended(self.runs)

    @property
    def confirm_runs(self) -> list[ConfirmRecord]:
        """The confirm runs, in order of number and seed."""
        return [self.runs[run] for run in sorted(self.runs)]


class Neighbours:
    """How scorings are related: see `neighbours`, computed once for all studies of a method."""

    def __init__(self) -> None:
        self._known: dict[str, npt.NDArray[np.float64]] = {}

    def __call__(self, scorings: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float64]:
        """Returns what each scoring's neighbours weigh."""
        name = str(scorings)
        if name not in self._known:
            self._known[name] = neighbours(scorings)
        return self._known[name]


def _brief(record: TrialRecord) -> _Brief:
    judged = record.curve[-1].judged if record.value is not None else None
    return _Brief(
        record.state,
        _cost(record),
        hash(canonical(record.params)),
        record.value,
        judged.steps if judged else 0,
        judged.aurocs if judged else None,
    )


def _cost(record: AnyRecord) -> int:
    return hash(tuple(value for _, value in record.cost))


def _ended(runs: Mapping[tuple[int, int], ConfirmRecord]) -> list[object]:
    return [(run, one.state, _cost(one)) for run, one in runs.items() if one.state != "RUNNING"]


def _bare(record: TrialRecord) -> TrialRecord:
    """Returns a trial without what is not shown."""
    curve = [rung.model_copy(update={"figures": {}, "histograms": {}}) for rung in record.curve]
    return record.model_copy(update={"curve": curve, "traceback": None})
