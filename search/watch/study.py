"""What is kept in memory of a study while it is followed: little of many trials, all of a few."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from anomtune.search.decide.pace import seconds_of
from anomtune.search.decide.scoring import Judgements, neighbours, read_with
from anomtune.search.decide.timeleft import RunTimes
from anomtune.search.store.changes import Changes
from anomtune.search.store.records import (
    AnyRecord,
    ConfirmRecord,
    RecordStore,
    StudyKey,
    TrialRecord,
    best_record,
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


class FollowedStudy:
    """A study as its records have told it so far.

    Args:
        key: The study.
        times: Is told how long runs take.

    Attributes:
        trials: The trials, in order of number, as the scoring of the study reads them. Of their
            curves only the last rung is kept.
        runs: The confirm runs by number and seed.
        running: What runs, or ran when its driver was killed, by path.
        seconds: What ended runs took, by state, and all confirm runs as ``CONFIRM``.
        failures: Those that failed last.
        reasons: How many failed for each reason.
        unreadable: Why files could not be understood, by path.
        last: When a run ended last.
    """

    def __init__(self, key: StudyKey, times: RunTimes) -> None:
        self.key = key
        self._times = times
        self.unreadable: dict[str, str] = {}
        self._clear()

    def _clear(self) -> None:
        self.trials: list[TrialRecord] = []
        self.runs: dict[tuple[int, int], ConfirmRecord] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.failures: deque[Failure] = deque(maxlen=_FAILURES)
        self.reasons: Counter[str] = Counter()
        self.running: dict[str, AnyRecord] = {}
        self.last: str | None = None
        #: By number: as they are kept in the directory, with the last rung alone.
        self._kept: dict[int, TrialRecord] = {}
        self._shown: dict[int, TrialRecord] = {}
        #: Those whose curves are kept.
        self._whole: dict[int, TrialRecord] = {}
        self._recent: deque[int] = deque(maxlen=_RECENT)
        self._scorings: Sequence[Mapping[str, Any]] | None = None
        self._judgements: Judgements | None = None
        self._scoring = 0

    def take(self, changes: Changes, store: RecordStore, near: Neighbours) -> bool:
        """Takes in what has changed.

        Args:
            changes: Of trials or of confirm runs.
            store: The sweep directory.
            near: Knows how scorings are related.

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
        self._read_anew(store, near)
        return True

    def _has_ended(self, record: AnyRecord) -> bool:
        known = self._known(record)
        return known is not None and known.state != "RUNNING"

    def _is_another(self, record: AnyRecord) -> bool:
        """Whether a run that had ended is not what it was."""
        known = self._known(record)
        return (
            known is not None
            and known.state != "RUNNING"
            and (known.state, known.cost) != (record.state, record.cost)
        )

    def _known(self, record: AnyRecord) -> AnyRecord | None:
        if isinstance(record, TrialRecord):
            return self._kept.get(record.number)
        return self.runs.get((record.number, record.seed))

    def _add(self, record: AnyRecord) -> None:
        if isinstance(record, TrialRecord):
            self._whole[record.number] = record
            record = _slim(record)
            self._kept[record.number] = record
            self._shown.pop(record.number, None)
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

    def _read_anew(self, store: RecordStore, near: Neighbours) -> None:
        """Reads the trials with the scoring that is best by now."""
        new = [record for number, record in self._kept.items() if number not in self._shown]
        if not new:
            return
        if self._scorings is None:
            self._scorings = store.read_scorings(self.key)
            self._judgements = Judgements(near(self._scorings)) if self._scorings else None
        if self._judgements is not None:
            for record in new:
                self._judgements.add(record)
            if self._judgements.best != self._scoring:
                self._scoring = self._judgements.best
                new = list(self._kept.values())
        for record in new:
            self._shown[record.number] = read_with(record, self._scoring, self._scorings)
        self.trials = [self._shown[number] for number in sorted(self._shown)]
        self._forget_curves(store)

    def _forget_curves(self, store: RecordStore) -> None:
        """Keeps the curves of those trials that are shown."""
        best = best_record(self.trials)
        running = (one.number for one in self.running.values() if isinstance(one, TrialRecord))
        wanted = {0, *self._recent, *running, *([] if best is None else [best.number])}
        if best is not None and best.number not in self._whole:  # another scoring has chosen it
            path = f"{best.path}.json"
            content = store.storage.read(path)
            if content:
                self._whole[best.number] = store.parse(path, content, TrialRecord)
        self._whole = {n: record for n, record in self._whole.items() if n in wanted}

    def curves(self) -> list[TrialRecord]:
        """Returns the trials whose curves are kept, in order of number, read as the others are."""
        assert self._scorings is not None or not self._whole
        return [
            read_with(self._whole[number], self._scoring, self._scorings or ())
            for number in sorted(self._whole)
        ]

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


def _slim(record: TrialRecord) -> TrialRecord:
    """Returns a trial without what only its curve is drawn from."""
    last = [
        rung.model_copy(
            update={
                "figures": {},
                "histograms": {},
                "judged": rung.judged if record.state == "COMPLETE" else None,
            }
        )
        for rung in record.curve[-1:]
    ]
    return record.model_copy(update={"curve": last, "traceback": None})
