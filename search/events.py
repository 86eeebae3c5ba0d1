"""What a sweep tells of itself while it runs: small values, in the order of what happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from anomtune.search.decide.progress import StudyProgress
from anomtune.search.decide.timeleft import RunTimes


@dataclass(frozen=True)
class Note:
    """Something that a person should know.

    Attributes:
        text: A line.
    """

    text: str


@dataclass(frozen=True)
class SweepStarted:
    """Runs are handed out from now on.

    Attributes:
        slots: How many there can be at once.
        studies: How far each study is.
        seconds: That the sweep has left; ``None``: it has no number of hours.
        times: Knows how long runs take, and learns while they go on; ``None``: nobody does.
    """

    slots: int
    studies: tuple[StudyProgress, ...]
    seconds: float | None = None
    times: RunTimes | None = None


@dataclass(frozen=True)
class TrialStarted:
    """A trial has been handed out, or one that was interrupted again.

    Attributes:
        category: Its category.
        method: Its method.
        number: Its number within the study.
    """

    category: str
    method: str
    number: int


@dataclass(frozen=True)
class RungReached:
    """A trial has been evaluated.

    Attributes:
        category: Its category.
        method: Its method.
        number: Its number within the study.
        step: The rung, from 1.
        auroc: Validation AUROC there, in [0, 1].
    """

    category: str
    method: str
    number: int
    step: int
    auroc: float


@dataclass(frozen=True)
class TrialEnded:
    """A trial has ended.

    Attributes:
        category: Its category.
        method: Its method.
        number: Its number within the study.
        state: ``COMPLETE``, ``PRUNED`` or ``FAIL``.
        auroc: Validation AUROC of a complete one, in [0, 1].
        error: Why it failed, in one line.
    """

    category: str
    method: str
    number: int
    state: str
    auroc: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class SearchEnded:
    """All trials of a study have ended; its confirm runs can begin.

    Attributes:
        category: Its category.
        method: Its method.
        owed: How many confirm runs it is still to have.
    """

    category: str
    method: str
    owed: int


@dataclass(frozen=True)
class ConfirmStarted:
    """A confirm run has been handed out.

    Attributes:
        category: Its category.
        method: Its method.
        number: Number of the trial whose config it trains.
        seed: What it trains with.
    """

    category: str
    method: str
    number: int
    seed: int


@dataclass(frozen=True)
class ConfirmEnded:
    """A confirm run has ended.

    Attributes:
        category: Its category.
        method: Its method.
        number: Number of the trial whose config it trained.
        seed: What it trained with.
        state: ``COMPLETE`` or ``FAIL``.
        auroc: Validation AUROC of a complete one, in [0, 1].
        error: Why it failed, in one line.
    """

    category: str
    method: str
    number: int
    seed: int
    state: str
    auroc: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class SweepEnded:
    """No run is under way any more: all are done, or the sweep was interrupted."""


Event = (
    Note
    | SweepStarted
    | TrialStarted
    | RungReached
    | TrialEnded
    | SearchEnded
    | ConfirmStarted
    | ConfirmEnded
    | SweepEnded
)
#: Is told what happens, by the thread that runs the sweep.
Observer = Callable[[Event], object]
