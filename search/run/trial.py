"""One trial: train a method on a category rung by rung, and score the validation images."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from anomtune.datasets.io.remote import is_uri
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
from anomtune.search.detector.opened import OpenedDetector, check_loss, open_detector
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.metrics.image import auroc
from anomtune.search.run.checkpoint import Checkpoints
from anomtune.search.run.packing import memory_limit
from anomtune.search.store.records import Cost, Facts, Rung, canonical, npy_bytes
from anomtune.search.store.storage import Storage


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
    """

    model_config = ConfigDict(frozen=True)

    training: TrainingSpec
    directory: str
    record_path: str
    rungs: int
    threads: int
    gpu: float
    keep: bool = False

    def storage(self) -> Storage:
        """Returns the sweep directory.

        Raises:
            StorageError: If it cannot be understood.
        """
        return Storage(self.directory if is_uri(self.directory) else to_name(self.directory))

    def identity(self) -> str:
        """Returns a hash of all that makes a training the same training, wherever it runs."""
        fields = {"category", "method", "hyperparameters", "seed", "split_hash", "image_size"}
        content = self.training.model_dump(mode="json", include=fields)
        content |= {"rungs": self.rungs, "code": version("anomtune")}
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
    cost = results[-1].cost if results else Cost()
    for step in range(1, spec.rungs + 1):
        # Whole iterations, spread as evenly as they go: rung k ends at floor(k T / R). With fewer
        # iterations than rungs, some rungs would look at the same network again: left out.
        iterations = step * total // spec.rungs - detector.iteration
        if iterations <= 0:
            continue
        # Now, when it is known that the trial goes on.
        if checkpoints.due and results:
            _keep(detector, results, checkpoints)
        begin = time.perf_counter()
        report = detector.fit(trial.train, iterations)
        check_loss(report)
        fitted = time.perf_counter()
        scores = detector.score(trial.validation).numpy()
        evaluated = time.perf_counter()
        if not np.isfinite(scores).all():
            raise TrainingDivergedError(f"anomaly scores are not finite at rung {step}")
        area = auroc(trial.labels, scores)
        cost = Cost(
            train_seconds=cost.train_seconds + fitted - begin,
            evaluate_seconds=cost.evaluate_seconds + evaluated - fitted,
            image_ms=(evaluated - fitted) / len(scores) * 1e3,
            peak_memory_bytes=max(peak_memory(detector.device), cost.peak_memory_bytes or 0),
            iterations=(cost.iterations or 0) + iterations,
            gpu=spec.gpu or None,
            gpu_memory_bytes=gpu_memory(detector.device),
        )
        rung = Rung(
            step=step,
            auroc=area.value,
            auroc_low=area.low,
            auroc_high=area.high,
            **_monitoring(report),
        )
        if step < spec.rungs:
            results.append(TrialResult(rung=rung, cost=cost))
            yield results[-1]
            continue
        storage.write(f"{spec.record_path}.npy", npy_bytes(scores), durable=True)
        yield TrialResult(rung=rung, cost=cost, facts=trial.facts())


def _resume(spec: TrialSpec, checkpoints: Checkpoints) -> tuple[OpenedDetector, list[TrialResult]]:
    """Opens a trial where its last checkpoint is, and returns its results up to there."""
    trial = open_trial(spec)
    checkpoint = checkpoints.read()
    if checkpoint is None:
        return trial, []
    try:
        trial.detector.load_state_dict(checkpoint.state)
        return trial, [TrialResult.model_validate_json(text) for text in checkpoint.results]
    except (RuntimeError, KeyError, ValueError, IndexError):
        # Of another version of the method: begin again, with a detector that nothing has touched.
        return open_trial(spec), []


def _keep(detector: Detector[Any], results: list[TrialResult], checkpoints: Checkpoints) -> None:
    """Writes a checkpoint, unless the device has no room for the copy that a state is."""
    with suppress(torch.OutOfMemoryError):
        state = detector.state_dict()
        checkpoints.write(state, [result.model_dump_json() for result in results])


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
