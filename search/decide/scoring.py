"""Which scoring a study reads its trainings with: chosen from all its trials together.

Hundreds of scorings judge each training, so that the highest figure of all is mostly luck. Two
means over more than one figure are less so: over the completed trials, each of which is another
look at a scoring, and over its neighbours, the scorings that differ from it in one field. A part of
the standard error of what it has over the paper's is taken off: the less a scoring ranks images
like the paper's, the more it must win. What is then left to differ between trials is their
training. ``docs/scoring.md`` compares this rule with others on held-out images.

Methods gain by it what they gain, and what chance adds. Where they are compared with each other,
one whole standard error is taken off, and as much again shared by the trainings that chose it
(`doubt`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from anomtune.errors import SweepError
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import Rung, StudyKey, TrialRecord


def neighbours(scorings: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float64]:
    """Returns what each scoring's neighbours weigh in its mean, ``(G, G)``; rows sum to 1.

    Args:
        scorings: All of a study, as they are dumped.
    """
    differing = np.zeros((len(scorings), len(scorings)), np.int64)
    for name in scorings[0] if scorings else ():
        values = [str(scoring[name]) for scoring in scorings]
        codes = np.unique(values, return_inverse=True)[1]
        differing += codes[:, None] != codes
    near: npt.NDArray[np.float64] = (differing <= 1).astype(np.float64)
    near /= near.sum(1, keepdims=True)
    return near


#: Of how many standard errors a scoring must beat the paper's.
_CAUTION = 0.25


def doubt(error: float, trainings: int) -> float:
    """Returns what is taken off a method's AUROC where methods are compared.

    Args:
        error: Standard error, over images, of what its scoring has over the paper's.
        trainings: How many completed trainings chose the scoring, at least one. One alone may owe
            it to its own weights.
    """
    return error * (1 + 1 / trainings)


class Judgements:
    """What the completed trials of a study say of its scorings, all together.

    Args:
        near: From `neighbours`.
    """

    def __init__(self, near: npt.NDArray[np.float64]) -> None:
        self._near = near
        self._sum: npt.NDArray[np.float64] = np.zeros(len(near))
        self._errors: npt.NDArray[np.float64] = np.zeros(len(near))
        self._count = 0

    def add(self, record: TrialRecord) -> None:
        """Takes in a trial, as it is kept; one that is not complete says nothing."""
        if record.state == "COMPLETE" and record.curve and record.curve[-1].judged is not None:
            judged = record.curve[-1].judged
            self._sum = self._sum + judged.values()
            errors = judged.standard_errors()
            self._errors = self._errors + (0.0 if errors is None else errors)
            self._count += 1

    def leading(self, count: int) -> tuple[int, ...]:
        """Returns the numbers of so many scorings that are best for the study, the best first.

        None as long as no trial is complete.
        """
        if not self._count:
            return ()
        # Rounded: equal means are equal in whatever order they were summed, and the earliest is
        # first.
        means = self._near @ self._sum - _CAUTION * self._errors
        means = np.round(means / self._count, 9)
        return tuple(np.argsort(-means, kind="stable")[:count].tolist())

    def doubt(self, scoring: int) -> float:
        """Returns what is taken off figures by a scoring, see `doubt`; 0 if none is known."""
        if not self._count:
            return 0.0
        return doubt(float(self._errors[scoring] / self._count), self._count)

    @property
    def best(self) -> int:
        """The number of the scoring that is best; 0, the paper's, as long as none is known."""
        return next(iter(self.leading(1)), 0)


def pooled_scoring(trials: Iterable[TrialRecord], near: npt.NDArray[np.float64]) -> int:
    """Returns the number of the scoring that is best for a study's completed trials.

    Args:
        trials: As they are kept; without any that is complete, 0: the paper's scoring.
        near: From `neighbours`.
    """
    judgements = Judgements(near)
    for record in trials:
        judgements.add(record)
    return judgements.best


def auroc_with(rung: Rung, scoring: int) -> float:
    """Returns the AUROC of a rung, as it is kept, with a scoring: that of `read_with`, in less."""
    if scoring == 0 or rung.judged is None:
        return rung.auroc
    return float(rung.judged.values()[scoring])


def read_with(
    record: TrialRecord, scoring: int, scorings: Sequence[Mapping[str, Any]]
) -> TrialRecord:
    """Returns a trial as a scoring reads it: its curve, and its params as they would be confirmed.

    Args:
        record: As it is kept: with the paper's scoring.
        scoring: Number of the scoring.
        scorings: All of the study.
    """
    if scoring == 0 or not scorings:
        return record
    return record.model_copy(
        update={
            "scoring": scoring,
            "params": {**record.params, "scoring": dict(scorings[scoring])},
            "curve": [_rung(rung, scoring) for rung in record.curve],
        }
    )


def read_study(
    trials: Sequence[TrialRecord], scorings: Sequence[Mapping[str, Any]]
) -> list[TrialRecord]:
    """Returns the trials of a study as its own choice of scoring reads them.

    Raises:
        SweepError: If what a record says of the scorings is damaged.
    """
    if not scorings:
        return list(trials)
    judgements = Judgements(neighbours(scorings))
    for record in trials:
        with _judged(record):
            judgements.add(record)
    scoring, found = judgements.best, []
    for record in trials:
        with _judged(record):
            found.append(read_with(record, scoring, scorings))
    return found


@contextmanager
def _judged(record: TrialRecord) -> Iterator[None]:
    """Names the record whose figures by scoring are damaged, or are not those of its study."""
    try:
        yield
    except (ValueError, LookupError):
        raise SweepError(
            f"{record.path}.json: the figures of its scorings are damaged; delete the file to run "
            "that trial again"
        ) from None


def read_studies(store: RecordStore) -> dict[StudyKey, list[TrialRecord]]:
    """Returns every trial of a sweep as the scoring of its study reads it.

    Raises:
        SweepError: If a record cannot be understood.
    """
    studies = store.read_all()
    scorings = store.read_all_scorings(studies)
    return {key: read_study(trials, scorings[key]) for key, trials in studies.items()}


def _rung(rung: Rung, scoring: int) -> Rung:
    if rung.judged is None:
        return rung
    low, high = rung.judged.interval(scoring)
    errors = rung.judged.standard_errors()
    return rung.model_copy(
        update={
            "auroc": float(rung.judged.values()[scoring]),
            "auroc_low": low,
            "auroc_high": high,
            "paper_auroc": rung.auroc,
            "scoring_error": None if errors is None else float(errors[scoring]),
        }
    )
