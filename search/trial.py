"""One trial: train a method on a category rung by rung, and score the validation images.

:func:`run_trial` is the trial itself; :class:`TrialActor` gives it to Ray Tune. An actor is used
for many trials, so that imports, the CUDA context and the images are paid for once.
"""

from __future__ import annotations

import gc
import resource
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from ray import tune
from torch import Tensor

from anomtune.datasets.base import DataError
from anomtune.datasets.registry import open_dataset
from anomtune.datasets.splits import SearchSplit, Validation, load_search_split
from anomtune.models.hyperparameters import MethodError, TrainingDivergedError
from anomtune.models.registry import get_method
from anomtune.search.config import SweepError, ValidationConfig
from anomtune.search.metrics import auroc
from anomtune.search.records import Cost, Facts, Rung, npy_bytes
from anomtune.search.storage import Storage

#: Failures of a config that say all in one line; other exceptions bring their traceback.
_EXPECTED = (MethodError, TrainingDivergedError, torch.OutOfMemoryError)
#: Failures of the surroundings: no fault of the config, which must not be marked by them.
_SURROUNDINGS = (DataError, SweepError)


class TrialSpec(BaseModel):
    """All that a worker is told of a trial. It says nothing of held-out images."""

    model_config = ConfigDict(frozen=True)

    directory: str
    record_path: str
    dataset: str
    root: str | None
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


class TrialResult(BaseModel):
    """What a trial knows when a rung is done; ``facts`` at the last one."""

    rung: Rung
    cost: Cost
    facts: Facts | None = None


def run_trial(spec: TrialSpec) -> Iterator[TrialResult]:
    """Trains one config and yields a result at each rung; its scores are kept at the last.

    Args:
        spec: What to train on what.

    Raises:
        TrainingDivergedError: If the loss or a score is not finite.
        MethodError: If the method cannot be used so.
        DataError: If the images are not those that the sweep started with.
        SweepError: If the scores cannot be written.
    """
    torch.set_num_threads(spec.threads)
    device = torch.device("cuda" if spec.gpu > 0 and torch.cuda.is_available() else "cpu")
    _reset_peak_memory(device)
    split = _open_split(spec.dataset, spec.root, spec.category, spec.image_size, spec.validation)
    if split.split_hash != spec.split_hash:
        raise DataError(
            f"{spec.category}: the images under {spec.root} are not those that the sweep "
            f"started with; restore them"
        )
    method = get_method(spec.method)
    detector = method(
        method.Hyperparameters(**spec.params),
        image_size=spec.image_size,
        device=device,
        seed=spec.seed,
    )
    train = as_images(split.train, device)
    validation = as_images(split.validation, device)
    total = detector.hyperparameters.training_iterations(len(train))
    if total < spec.rungs:
        raise MethodError(f"{spec.rungs} rungs, but only {total} iterations of training")
    cost = Cost()
    for step in range(1, spec.rungs + 1):
        begin = time.perf_counter()
        # Whole iterations, spread as evenly as they go: rung k ends at round(k T / R).
        losses = detector.fit(train, round(step * total / spec.rungs) - detector.iteration)
        fitted = time.perf_counter()
        scores = detector.score(validation).numpy()
        evaluated = time.perf_counter()
        if not np.isfinite(scores).all():
            raise TrainingDivergedError(f"anomaly scores are not finite at rung {step}")
        area = auroc(split.validation_labels, scores)
        cost = Cost(
            train_seconds=cost.train_seconds + fitted - begin,
            evaluate_seconds=cost.evaluate_seconds + evaluated - fitted,
            image_ms=(evaluated - fitted) / len(scores) * 1e3,
            peak_memory_bytes=_peak_memory(device),
        )
        rung = Rung(
            step=step,
            auroc=area.value,
            auroc_low=area.low,
            auroc_high=area.high,
            loss=losses["loss"],
        )
        if step < spec.rungs:
            yield TrialResult(rung=rung, cost=cost)
            continue
        kept = f"{spec.record_path}.npy"
        Storage(spec.directory).write(kept, npy_bytes(scores), durable=True)
        facts = Facts(
            n_val_normal=int((split.validation_labels == 0).sum()),
            n_val_anomalous=int((split.validation_labels == 1).sum()),
            parameters=sum(p.numel() for p in detector.network.parameters()),
            score_rule=detector.score_rule,
        )
        yield TrialResult(rung=rung, cost=cost, facts=facts)


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """Runs trials one after the other for Ray Tune, a rung per ``step``.

    An exception is a result, not the end of the actor: only a dying process is Ray's business.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Begins the first trial."""
        with suppress(MethodError):
            get_method(config["trial"]["method"])  # import what it imports
        # All that stays: the collector need not look through it after each trial.
        gc.freeze()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins another trial in the same process."""
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._results = run_trial(TrialSpec(**config["trial"]))

    def step(self) -> dict[str, Any]:
        """Trains up to the next rung."""
        try:
            result = next(self._results)
        except _SURROUNDINGS as error:
            return {"abort": str(error), "done": True}
        except Exception as error:  # noqa: BLE001 - a failing trial is a record, whatever failed
            expected = isinstance(error, _EXPECTED)
            return {
                "error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:500],
                "traceback": None if expected else traceback.format_exc()[-4000:],
                "done": True,
            }
        return {"result": result.model_dump_json(), "done": result.facts is not None}

    def cleanup(self) -> None:
        """Lets go of the trial's memory."""
        self._results = iter(())
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@lru_cache(maxsize=4)
def _open_split(
    dataset: str, root: str | None, category: str, image_size: int, validation: ValidationConfig
) -> SearchSplit:
    source = open_dataset(dataset, None if root is None else Path(root))
    return load_search_split(source, category, image_size, Validation(**validation.model_dump()))


def as_images(array: Any, device: torch.device) -> Tensor:
    """Returns ``(N, S, S, 3)`` uint8 images as the tensor that detectors take.

    No copy on a CPU: the tensor is a channels-last view of the memory-mapped file.
    """
    return torch.from_numpy(array).to(device).permute(0, 3, 1, 2)


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the process's peak so far


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
