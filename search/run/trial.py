"""One trial: train a method on a category rung by rung, and score the validation images."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict

from anomtune.datasets.io.uri import is_uri
from anomtune.errors import TrainingDivergedError
from anomtune.models.base import Detector
from anomtune.models.training.report import Histogram, Report
from anomtune.names import to_name
from anomtune.search.detector.devices import (
    gpu_memory,
    limit_memory,
    peak_memory,
    reset_peak_memory,
)
from anomtune.search.detector.judging import judge
from anomtune.search.detector.opened import OpenedDetector, check_loss, open_detector
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.detector.timing import usual
from anomtune.search.metrics.delong import errors_against_first, intervals
from anomtune.search.run.checkpoint import Checkpoints
from anomtune.search.run.packing import memory_limit
from anomtune.search.store.arrays import npz_bytes
from anomtune.search.store.judged import Judged
from anomtune.search.store.records import Cost, Facts, Rung, canonical
from anomtune.search.store.storage import Storage

#: Scores of all scorings are kept where they take no more bytes.
_SMALL = 2**16
#: Else those of so many of the best.
_LEADING = 32


class TrialSpec(BaseModel):
    """All that a worker is told of a trial. It says nothing of held-out images.

    Attributes:
        training: What is trained on what; its hyperparameters are complete, its images named.
        directory: The sweep directory: a URI, or a local path as text.
        record_path: Where the record lies below it, without extension.
        rungs: How many evaluation points there are.
        threads: CPU threads.
        gpu: GPUs, below 1 a share of one.
        keep: Whether the trained detector is kept; for confirm runs alone.
        pinned: Fields of the scoring that keep their value; ``None``: all of them.
        leading: Numbers of the scorings whose scores are kept whatever they are.
        paper: The paper's scoring, for a confirm run of the paper's config with another.
    """

    model_config = ConfigDict(frozen=True)

    training: TrainingSpec
    directory: str
    record_path: str
    rungs: int
    threads: int
    gpu: float
    keep: bool = False
    pinned: tuple[str, ...] | None = None
    leading: tuple[int, ...] = ()
    paper: dict[str, Any] | None = None

    def storage(self) -> Storage:
        """Returns the sweep directory.

        Raises:
            StorageError: If it cannot be understood.
        """
        place = self.directory if is_uri(self.directory) else to_name(self.directory)
        return Storage(place, known=True)  # to the driver

    def identity(self) -> str:
        """Returns a hash of all that makes a training the same training, wherever it runs."""
        fields = {"category", "method", "hyperparameters", "seed", "split_hash", "image_size"}
        content = self.training.model_dump(mode="json", include=fields)
        content |= {"rungs": self.rungs, "pinned": self.pinned, "code": version("anomtune")}
        return hashlib.sha256(canonical(content).encode()).hexdigest()


class TrialResult(BaseModel):
    """What a trial knows when a rung is done; ``facts`` at the last one."""

    rung: Rung
    cost: Cost
    facts: Facts | None = None


def open_trial(spec: TrialSpec) -> OpenedDetector:
    """Opens a detector on the device that the trial was given, within its share of it.

    Raises:
        MethodError: If the method cannot be used so.
        DataError: If the images are not those that the sweep started with.
    """
    torch.set_num_threads(spec.threads)
    # The GPU that Ray shows to this process, if it has one.
    device = torch.device("cuda" if spec.gpu > 0 and torch.cuda.is_available() else "cpu")
    total = gpu_memory(device)
    if total is not None and spec.gpu < 1:
        limit_memory(device, memory_limit(spec.gpu, total))
    reset_peak_memory(device)
    return open_detector(spec.training, device)


def run_trial(spec: TrialSpec) -> Iterator[TrialResult]:
    """Trains one config and yields a result at each rung; its scores are kept at the last.

    Where an earlier start left a checkpoint of this very training, its results are yielded again
    and the training goes on from there. The results are the same, only the cost may differ.

    Args:
        spec: What to train on what.

    Raises:
        TrainingDivergedError: If the loss or a score is not finite.
        MethodError: If the method cannot be used so.
        DataError: If the images are not those that the sweep started with.
        StorageError: If the scores or a checkpoint cannot be written.
    """
    storage = spec.storage()
    checkpoints = Checkpoints(storage, spec.record_path, spec.identity())
    trial, results = _resume(spec, checkpoints)
    yield from results
    detector, total = trial.detector, trial.iterations
    scorings = detector.hyperparameters.scorings(spec.pinned)
    cost = results[-1].cost if results else Cost()
    begin = time.perf_counter()
    trial.know_features(share=True)
    cost = cost.model_copy(
        update={"train_seconds": cost.train_seconds + time.perf_counter() - begin}
    )
    for step, iterations in pieces(spec.rungs, total, detector.iteration):
        # Now, when it is known that the trial goes on.
        if checkpoints.due and results:
            keep(detector, results, checkpoints)
        begin = time.perf_counter()
        report = detector.fit(trial.train, iterations)
        check_loss(report)
        fitted = time.perf_counter()
        if any(scoring.normalise != "none" for scoring in scorings):
            detector.learn_normal(trial.train)
        seconds: list[float] = []
        scores = judge(
            detector, trial.validation, scorings, fine=step == spec.rungs, seconds=seconds
        )
        evaluated = time.perf_counter()
        if not np.isfinite(scores[0]).all():
            raise TrainingDivergedError(f"anomaly scores are not finite at rung {step}")
        cost = Cost(
            train_seconds=cost.train_seconds + fitted - begin,
            evaluate_seconds=cost.evaluate_seconds + evaluated - fitted,
            image_ms=trial.image_ms(usual(seconds)) if step == spec.rungs else None,
            peak_memory_bytes=highest(peak_memory(detector.device), cost.peak_memory_bytes),
            iterations=(cost.iterations or 0) + iterations,
            gpu=spec.gpu or None,
            gpu_memory_bytes=gpu_memory(detector.device),
        )
        rung = Rung(
            step=step,
            **_figures(trial.labels, scores, whole=step == spec.rungs),
            **_monitoring(report),
        )
        if step < spec.rungs:
            results.append(TrialResult(rung=rung, cost=cost))
            yield results[-1]
            continue
        kept = _leading(rung, spec.leading) if scores.nbytes > _SMALL else np.arange(len(scores))
        content = npz_bytes(scorings=kept, validation=scores[kept])
        storage.write(f"{spec.record_path}.npz", content, durable=True)
        yield TrialResult(rung=rung, cost=cost, facts=trial.facts())


def pieces(rungs: int, total: int, done: int) -> Iterator[tuple[int, int]]:
    """Yields the rungs that are still to come, and how many iterations each of them takes.

    Whole iterations, spread as evenly as they go: rung k ends at floor(k T / R). With fewer
    iterations than rungs, some rungs would look at the same network again: they are left out.

    Args:
        rungs: How many there are.
        total: Iterations of the whole training.
        done: Iterations that it has behind it.
    """
    for step in range(1, rungs + 1):
        iterations = step * total // rungs - done
        if iterations > 0:
            yield step, iterations
            done += iterations


def highest(*values: int | None) -> int | None:
    """Returns the highest of these that are known; ``None`` if none is."""
    return max((value for value in values if value is not None), default=None)


def _resume(spec: TrialSpec, checkpoints: Checkpoints) -> tuple[OpenedDetector, list[TrialResult]]:
    """Opens a trial where its last checkpoint is, and returns its results up to there."""
    trial, texts = open_at_checkpoint(spec, checkpoints)
    try:
        return trial, [TrialResult.model_validate_json(text) for text in texts]
    except ValueError:  # of another version
        return open_trial(spec), []


def open_at_checkpoint(
    spec: TrialSpec, checkpoints: Checkpoints
) -> tuple[OpenedDetector, list[str]]:
    """Opens a detector where the last checkpoint of its training is, at its beginning without one.

    Returns:
        The detector, and what was kept of the results up to there, as JSON; nothing without one.
    """
    trial = open_trial(spec)
    checkpoint = checkpoints.read()
    if checkpoint is None:
        return trial, []
    try:
        trial.detector.load_state_dict(checkpoint.state)
        return trial, checkpoint.results
    except (RuntimeError, KeyError, ValueError, IndexError):
        # Of another version of the method: begin again, with a detector that nothing has touched.
        return open_trial(spec), []


def keep(detector: Detector[Any], results: Sequence[BaseModel], checkpoints: Checkpoints) -> None:
    """Writes a checkpoint, unless the device has no room for the copy that a state is.

    Args:
        detector: In the middle of its training.
        results: What there is of it up to there.
        checkpoints: Of this training.
    """
    with suppress(torch.OutOfMemoryError):
        state = detector.state_dict()
        checkpoints.write(state, [result.model_dump_json() for result in results])


def _figures(
    labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float32], *, whole: bool
) -> dict[str, Any]:
    """Returns the AUROCs of scores ``(G, N)`` as fields of a rung; a whole one has all intervals.

    A scoring whose scores are no numbers is the worst there can be.
    """
    usable = np.asarray(np.isfinite(scores).all(axis=1))
    found = intervals(labels, np.where(usable[:, None], scores, 0.0)[:, None].astype(np.float64))
    values, low, high = (np.where(usable, part, 0.0) for part in found)
    judged = None
    if len(scores) > 1:
        known: list[npt.NDArray[np.float64]] = []
        if whole:
            numbers = np.where(usable[:, None], scores, 0.0).astype(np.float64)
            known = [low, high, errors_against_first(labels, numbers)]
        judged = Judged.of(labels, values, *known)
    return {
        "auroc": float(values[0]),
        "auroc_low": float(low[0]),
        "auroc_high": float(high[0]),
        "judged": judged,
    }


def _leading(rung: Rung, wanted: Sequence[int]) -> npt.NDArray[np.intp]:
    """Returns the numbers of the scorings whose scores are kept: the paper's, the best, more."""
    if rung.judged is None:
        return np.zeros(1, np.intp)
    best = np.argsort(-rung.judged.values(), kind="stable")[:_LEADING]
    return np.unique(np.concatenate([[0], best, wanted]).astype(np.intp))


def _monitoring(report: Report) -> dict[str, Any]:
    """Returns what a detector reports as fields of a rung; JSON has no NaN, so it is left out."""
    figures = {
        name: value
        for name, value in report.items()
        if not isinstance(value, Histogram) and math.isfinite(value)
    }
    return {
        "loss": figures.pop("loss", None),
        "figures": figures,
        "histograms": {
            name: value for name, value in report.items() if isinstance(value, Histogram)
        },
    }
