"""What a sweep keeps of each trial and each confirm run. Records are the only truth about it."""

# ruff: noqa: RUF012 - pydantic gives every record its own copy of a default.
from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator

from anomtune.models.training.report import Histogram
from anomtune.search.store.held_out import DomainFigures, Example
from anomtune.search.store.judged import Judged
from anomtune.search.store.part import Count, MessageText, Part, Time, Whole

#: Where configs come from that won nowhere else: trial 0, and what the sampler suggests.
PAPER, SAMPLER = "paper", "sampler"


def has_a_scoring(params: dict[str, Any]) -> dict[str, Any]:
    """Returns hyperparameters as they are.

    Raises:
        ValueError: If tables cannot say how they make a score.
    """
    # What tables say of a scoring they say of every method, also where that is not installed.
    scoring = params.get("scoring", {})
    if not isinstance(scoring, dict):
        raise ValueError("params.scoring: no mapping")
    reduce, share = scoring.get("reduce", "max"), scoring.get("share", 0.01)
    if not isinstance(reduce, str) or not isinstance(share, int | float):
        raise ValueError("params.scoring: no rule of a score")
    return params


#: Hyperparameters as a record keeps them.
Params = Annotated[dict[str, Any], AfterValidator(has_a_scoring)]

State = Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL"]


class StudyKey(NamedTuple):
    """Names a study of a sweep."""

    category: str
    method: str

    def __str__(self) -> str:
        return f"{self.category}/{self.method}"


class Rung(Part):
    """What a trial reports at one of its evaluation points.

    Attributes:
        step: 1-based index of the rung.
        auroc: Image AUROC on the validation images, in [0, 1], with the paper's scoring; in a
            trial that `anomtune.search.decide.scoring` has read, with that of the study.
        auroc_low: Lower end of its 95 % DeLong interval; of other scorings at the last rung alone.
        auroc_high: Upper end.
        judged: The AUROCs of all scorings; ``None`` if there is only the paper's.
        paper_auroc: With the paper's scoring, where ``auroc`` is with another.
        scoring_error: Standard error of the difference of the two; at the last rung alone.
        loss: Mean training loss since the rung before; ``None`` for methods without one.
        figures: What else the method reports, by name.
        histograms: The same, for figures that are distributions.
    """

    step: Whole
    auroc: float
    auroc_low: float | None
    auroc_high: float | None
    judged: Judged | None = None
    paper_auroc: float | None = None
    scoring_error: float | None = None
    loss: float | None = None
    figures: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}


class Facts(Part):
    """What is known of a trained detector, apart from its scores."""

    n_val_normal: Count
    n_val_anomalous: Count
    parameters: Whole


class Cost(Part):
    """What a trial took. The only part of a record that differs when it is run again.

    Attributes:
        train_seconds: Time spent in ``fit``.
        evaluate_seconds: Time spent scoring validation images.
        image_ms: Milliseconds from a decoded image to its map and score: of a confirm run measured
            (`search.detector.timing`), of a trial estimated from its validation batches, with what
            the cache of features spared it.
        peak_memory_bytes: Peak of GPU memory, on a CPU of the worker's resident memory.
        iterations: How many iterations ``train_seconds`` were spent on.
        gpu: GPUs that the run was given, below 1 a share of one; ``None`` on a CPU.
        gpu_memory_bytes: Memory of the whole GPU.
        gpu_type: Ray's name for its type, if the run asked for one (`Capacity.gpu_types`).
        ran_out_with: The share with which the attempt before ran out of memory.
        started_at: UTC, ISO 8601.
        finished_at: UTC, ISO 8601.
    """

    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    image_ms: float | None = None
    peak_memory_bytes: Whole | None = None
    iterations: Whole | None = None
    gpu: float | None = None
    gpu_memory_bytes: Whole | None = None
    gpu_type: MessageText | None = None
    ran_out_with: float | None = None
    started_at: Time | None = None
    finished_at: Time | None = None


class TrialRecord(Part):
    """One trial: which config, how it went and what came out.

    Attributes:
        number: Index of the trial within its study; 0 is the paper's own config.
        params: The complete hyperparameters, searched and fixed.
        split_hash: Names the exact images of training and validation.
        origin: Where the config comes from: ``paper``, ``sampler``, or where it won before.
        scoring: Number of the scoring that it is read with; 0, the paper's, as it is kept.
        error: Why a FAIL failed, or the search ended before the trial did, in one line.
        traceback: Where, if it was not expected.
    """

    dataset: str
    category: str
    method: str
    number: Count
    state: State
    params: Params
    seed: Whole
    split_hash: str
    origin: MessageText = SAMPLER
    curve: list[Rung] = []
    facts: Facts | None = None
    scoring: Whole = 0
    error: MessageText | None = None
    traceback: MessageText | None = None
    cost: Cost = Cost()

    @property
    def key(self) -> StudyKey:
        """The study that the trial belongs to."""
        return StudyKey(self.category, self.method)

    @property
    def value(self) -> float | None:
        """The AUROC at the last rung of a completed trial."""
        return self.curve[-1].auroc if self.state == "COMPLETE" and self.curve else None

    @property
    def paper_value(self) -> float | None:
        """The same with the paper's scoring, whatever it is read with."""
        if self.value is None:
            return None
        last = self.curve[-1]
        return last.auroc if last.paper_auroc is None else last.paper_auroc

    @property
    def path(self) -> str:
        """Where the record lies below the sweep directory, without extension."""
        return f"trials/{self.category}/{self.method}/{self.number:05d}"


class PaperScored(Part):
    """What a confirm run of the paper's own config found with the paper's own scoring.

    Attributes:
        val_auroc: AUROC on the validation images.
        test: Figures on the held-out images of the training images' domain.
    """

    val_auroc: float
    test: DomainFigures | None


class ConfirmResult(Part):
    """What a confirm run found; see `ConfirmRecord`."""

    val_auroc: float
    test: DomainFigures | None
    shifted: dict[str, DomainFigures]
    paper: PaperScored | None = None
    examples: list[Example] = []
    facts: Facts
    cost: Cost


class ConfirmRecord(Part):
    """One confirm run: a config of the search, trained with a seed, on held-out images.

    Beside it lie its validation scores and the held-out ones (``.npz``).

    Attributes:
        number: Of the trial whose config it is.
        seed: What it was trained with.
        val_auroc: AUROC on the validation images, by which the winner is chosen.
        test: Figures on the held-out images of the training images' domain; ``None`` if there
            are none.
        shifted: The same for each shifted domain.
        paper: Of the paper's own config: the same with the paper's scoring, if that is another.
        examples: The held-out images on the sheet beside the record, from top to bottom.
    """

    dataset: str
    category: str
    method: str
    number: Count
    seed: Whole
    state: Literal["RUNNING", "COMPLETE", "FAIL"]
    params: Params
    split_hash: str
    val_auroc: float | None = None
    test: DomainFigures | None = None
    shifted: dict[str, DomainFigures] = {}
    paper: PaperScored | None = None
    examples: list[Example] = []
    facts: Facts | None = None
    error: MessageText | None = None
    traceback: MessageText | None = None
    cost: Cost = Cost()

    @property
    def value(self) -> float | None:
        """The AUROC on the validation images of a completed run."""
        return self.val_auroc if self.state == "COMPLETE" else None

    @property
    def key(self) -> StudyKey:
        """The study that the config belongs to."""
        return StudyKey(self.category, self.method)

    @property
    def path(self) -> str:
        """Where the record lies below the sweep directory, without extension."""
        return f"confirm/{self.category}/{self.method}/{self.number:05d}-{self.seed}"


AnyRecord = TrialRecord | ConfirmRecord
R = TypeVar("R", TrialRecord, ConfirmRecord)


def best_record(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """Returns the completed trial with the highest AUROC, the earliest of equals."""
    completed = [
        (record.value, -record.number, record) for record in records if record.value is not None
    ]
    return max(completed, key=lambda item: item[:2])[2] if completed else None


def now() -> str:
    """Returns the time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def canonical(params: dict[str, Any]) -> str:
    """Returns hyperparameters as JSON with sorted keys, as the leaderboard shows them."""
    return json.dumps(params, sort_keys=True)
