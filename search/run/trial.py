"""One trial: train a method on a category rung by rung, and score the validation images."""

from __future__ import annotations

import hashlib
import math
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from anomtune.datasets.io.foreign import folder_images, other_categories
from anomtune.datasets.splits.split import SearchSplit, Validation, load_search_split
from anomtune.errors import DataError, MethodError, TrainingDivergedError
from anomtune.models.base import Detector, Histogram, Report
from anomtune.registry import METHODS
from anomtune.search.config import DatasetConfig, ValidationConfig
from anomtune.search.data import open_data
from anomtune.search.metrics.image import auroc
from anomtune.search.run.checkpoint import Checkpoints
from anomtune.search.run.packing import memory_limit
from anomtune.search.store.records import Cost, Facts, HistogramRecord, Rung, canonical, npy_bytes
from anomtune.search.store.storage import Storage


class TrialSpec(BaseModel):
    """All that a worker is told of a trial. It says nothing of held-out images."""

    model_config = ConfigDict(frozen=True)

    directory: str
    record_path: str
    dataset: DatasetConfig
    category: str
    validation: ValidationConfig
    split_hash: str
    image_size: int
    method: str
    params: dict[str, Any]
    rungs: int
    seed: int
    threads: int
    gpu: float
    #: Whether the trained detector is kept; for confirm runs alone.
    keep: bool = False

    def identity(self) -> str:
        """Returns a hash of all that makes a training the same training, wherever it runs."""
        fields = {"category", "method", "params", "seed", "split_hash", "image_size", "rungs"}
        content = {**self.model_dump(mode="json", include=fields), "code": version("anomtune")}
        return hashlib.sha256(canonical(content).encode()).hexdigest()


class TrialResult(BaseModel):
    """What a trial knows when a rung is done; ``facts`` at the last one."""

    rung: Rung
    cost: Cost
    facts: Facts | None = None


@dataclass(frozen=True)
class OpenedTrial:
    """A detector and the images that a search may show it.

    Attributes:
        detector: Untrained.
        train: uint8 ``(N, 3, I, I)``.
        validation: uint8 ``(M, 3, I, I)``.
        labels: ``(M,)``, 1 = anomalous.
        iterations: Length of the full training.
        n_held_out: How many images are held out from the search.
    """

    detector: Detector[Any]
    train: Tensor
    validation: Tensor
    labels: npt.NDArray[np.int8]
    iterations: int
    n_held_out: int

    def facts(self) -> Facts:
        """Returns what is known of the detector, apart from its scores."""
        return Facts(
            n_val_normal=int((self.labels == 0).sum()),
            n_val_anomalous=int((self.labels == 1).sum()),
            parameters=sum(p.numel() for p in self.detector.network.parameters()),
            score_rule=self.detector.score_rule,
        )


def open_trial(spec: TrialSpec) -> OpenedTrial:
    """Builds the detector and opens its images, on the device that the trial was given.

    Raises:
        MethodError: If the method cannot be used so.
        DataError: If the images are not those that the sweep started with.
    """
    torch.set_num_threads(spec.threads)
    device = trial_device(spec)
    limit_memory(device, spec.gpu)
    _reset_peak_memory(device)
    method = METHODS.get(spec.method)
    hyperparameters = method.Hyperparameters(**spec.params)
    side = hyperparameters.input_size(spec.image_size)
    split = _open_split(
        spec.dataset.model_dump_json(),
        spec.category,
        spec.image_size,
        spec.validation,
        input_size=side,
    )
    if split.split_hash != spec.split_hash:
        raise images_changed(spec)
    detector = method(hyperparameters, image_size=spec.image_size, device=device, seed=spec.seed)
    foreign = hyperparameters.foreign_images()
    if foreign is not None:
        others = _open_foreign(spec.dataset.model_dump_json(), spec.category, foreign, side)
        detector.foreign = None if others is None else as_images(others, device)
    iterations = hyperparameters.training_iterations(len(split.train))
    if iterations < 1:
        raise MethodError(f"{iterations} iterations of training; set at least one")
    return OpenedTrial(
        detector=detector,
        train=as_images(split.train, device),
        validation=as_images(split.validation, device),
        labels=split.validation_labels,
        iterations=iterations,
        n_held_out=split.n_test_normal + split.n_test_anomalous + split.n_shifted,
    )


def images_changed(spec: TrialSpec) -> DataError:
    """Returns the error of a category whose images are not those of the sweep any more."""
    return DataError(
        f"{spec.category}: the images under {spec.dataset.root} are not those that the sweep "
        f"started with; restore them"
    )


def check_loss(report: Report) -> None:
    """Raises TrainingDivergedError if a detector reports a loss that is no number."""
    loss = report.get("loss")
    if isinstance(loss, float) and not math.isfinite(loss):
        raise TrainingDivergedError(f"the loss is {loss}")


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
        SweepError: If the scores or a checkpoint cannot be written.
    """
    storage = Storage(spec.directory)
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


def _resume(spec: TrialSpec, checkpoints: Checkpoints) -> tuple[OpenedTrial, list[TrialResult]]:
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
            name: HistogramRecord(edges=value.edges, counts=value.counts)
            for name, value in report.items()
            if isinstance(value, Histogram) and all(map(math.isfinite, value.edges))
        },
    }


@lru_cache(maxsize=4)
def _open_split(
    dataset: str,
    category: str,
    image_size: int,
    validation: ValidationConfig,
    *,
    input_size: int,
) -> SearchSplit:
    return load_search_split(
        open_data(DatasetConfig.model_validate_json(dataset)),
        category,
        image_size,
        Validation(**validation.model_dump()),
        input_size=input_size,
    )


@lru_cache(maxsize=4)
def _open_foreign(
    dataset: str, category: str, source: str, size: int
) -> npt.NDArray[np.uint8] | None:
    if source == "categories":
        return other_categories(
            open_data(DatasetConfig.model_validate_json(dataset)), category, size
        )
    return folder_images(Path(source).expanduser(), size)


def forget_images() -> None:
    """Lets the next trial of this process look again at what lies in the folders."""
    _open_split.cache_clear()
    _open_foreign.cache_clear()


def as_images(array: Any, device: torch.device) -> Tensor:
    """Returns ``(N, S, S, 3)`` uint8 images as the tensor that detectors take.

    No copy on a CPU: the tensor is a channels-last view of the memory-mapped file.
    """
    return torch.from_numpy(array).to(device).permute(0, 3, 1, 2)


def trial_device(spec: TrialSpec) -> torch.device:
    """Returns where a trial trains: on the GPU that Ray shows to its process, if it has one."""
    return torch.device("cuda" if spec.gpu > 0 and torch.cuda.is_available() else "cpu")


def gpu_memory(device: torch.device) -> int | None:
    """Returns the memory of a whole GPU in bytes, ``None`` of a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def limit_memory(device: torch.device, gpu: float) -> None:
    """Keeps this process to its share of a GPU, whose rest belongs to others."""
    total = gpu_memory(device)
    if total is not None and gpu < 1:
        # Of the current device: Ray shows a process that has a share no other.
        torch.cuda.set_per_process_memory_fraction(memory_limit(gpu, total) / total)


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the process's peak so far


def peak_memory(device: torch.device) -> int:
    """Returns the peak of GPU memory, on a CPU of the process's resident memory, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
