"""Training one config: what ``anomtune best`` prints becomes a detector with a threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anomtune.datasets.splits.split import Validation, load_search_split
from anomtune.errors import DataError, MethodError, SweepError
from anomtune.models.base import Detector, Hyperparameters, Report
from anomtune.registry import METHODS
from anomtune.search.config import DatasetConfig, Seed, ValidationConfig, explain, read_yaml
from anomtune.search.data import open_data
from anomtune.search.detector.saved import SavedConfig, make_saved_config
from anomtune.search.run.trial import TrialSpec, check_loss, forget_images, open_trial

#: The training is done in so many parts, each followed by a report.
_PARTS = 10

#: Called with the iterations done, their total, and what the detector reports.
Monitor = Callable[[int, int, Report], None]


class FoundValidation(ValidationConfig):
    """Which images are for validation, and what a search measured on them: it is not used.

    Attributes:
        split_hash: Which images they were; other ones are refused.
        auroc: AUROC of the config.
        interval: Its 95 % interval.
        default_auroc: AUROC of the paper's own config.
    """

    split_hash: str | None = None
    auroc: float | None = None
    interval: tuple[float | None, float | None] | None = None
    default_auroc: float | None = None


class TrainConfig(BaseModel):
    """One config of one method for one category.

    Attributes:
        dataset: Where the images are.
        category: One of its categories.
        method: Name of the method.
        image_size: Side of the maps in pixels.
        seed: Seed of the training.
        hyperparameters: What differs from the paper's defaults, or all of them.
        validation: Which images set the threshold.
        trial: Number of the trial that the config comes from; it is not used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: DatasetConfig
    category: str
    method: str
    image_size: int = Field(256, ge=32, le=4096, multiple_of=32)
    seed: Seed = 0
    hyperparameters: dict[str, Any] = {}
    validation: FoundValidation = FoundValidation()
    trial: Annotated[int, Field(ge=0)] | None = None


def train_config(
    source: Path | Mapping[str, Any],
    *,
    device: str | None = None,
    monitor: Monitor | None = None,
) -> tuple[Detector[Any], SavedConfig]:
    """Trains one config and sets its threshold on the validation images.

    Held-out images are not opened.

    Args:
        source: A YAML file as ``anomtune best`` prints it, or its content.
        device: ``cpu`` or ``cuda``; default: a GPU if there is one.
        monitor: Is told of the progress, about ten times.

    Returns:
        The detector, and what `saved.save_model` takes with it.

    Raises:
        SweepError: If the config is wrong.
        DataError: If the images cannot be read, or are not those of the search.
        MethodError: If the method cannot be used so.
        TrainingDivergedError: If the loss or a score is not finite.
    """
    forget_images()
    origin = str(source) if isinstance(source, Path) else "config"
    config = _parse(_read(source) if isinstance(source, Path) else source, origin)
    hyperparameters = _hyperparameters(config, origin)
    spec = TrialSpec(
        directory="",
        record_path="",
        dataset=config.dataset,
        category=config.category,
        validation=ValidationConfig(
            **config.validation.model_dump(include=set(ValidationConfig.model_fields))
        ),
        split_hash=_split_hash(config, hyperparameters, origin),
        image_size=config.image_size,
        method=config.method,
        params=hyperparameters.model_dump(),
        rungs=1,
        seed=config.seed,
        threads=torch.get_num_threads(),
        gpu=_gpu(device),
    )
    trial = open_trial(spec)
    detector, total = trial.detector, trial.iterations
    for part in range(1, _PARTS + 1):
        iterations = part * total // _PARTS - detector.iteration
        if iterations == 0:
            continue
        report = detector.fit(trial.train, iterations)
        check_loss(report)
        if monitor is not None:
            monitor(detector.iteration, total, report)
    return detector, make_saved_config(spec, trial)


def _read(path: Path) -> Any:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise SweepError(
            f"{path}: cannot read the config: {reason}; `anomtune best` prints one"
        ) from None
    return read_yaml(text, str(path))


def _parse(data: Any, origin: str) -> TrainConfig:
    if not isinstance(data, Mapping):
        raise SweepError(f"{origin}: a config is a mapping of keys; `anomtune best` prints one")
    try:
        return TrainConfig.model_validate(dict(data))
    except ValidationError as error:
        raise SweepError(f"{origin}: {explain(error, TrainConfig)}") from None


def _hyperparameters(config: TrainConfig, origin: str) -> Hyperparameters:
    try:
        kind = METHODS.get(config.method).Hyperparameters
        return kind(**config.hyperparameters)
    except MethodError as error:
        raise SweepError(f"{origin}: {error}") from None
    except ValidationError as error:
        raise SweepError(f"{origin}: hyperparameters.{explain(error, kind)}") from None


def _split_hash(config: TrainConfig, hyperparameters: Hyperparameters, origin: str) -> str:
    """Returns which images the category has now.

    Raises:
        DataError: If they are not those that the config was found with.
    """
    settings = config.validation.model_dump(include=set(ValidationConfig.model_fields))
    split = load_search_split(
        open_data(config.dataset),
        config.category,
        config.image_size,
        Validation(**settings),
        input_size=hyperparameters.input_size(config.image_size),
    )
    if config.validation.split_hash not in (None, split.split_hash):
        raise DataError(
            f"{config.category}: the images under {config.dataset.root} are not those that the "
            f"config was found with; restore them, or remove validation.split_hash from {origin} "
            "to train on these"
        )
    return split.split_hash


def _gpu(device: str | None) -> float:
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise MethodError("--device cuda: torch sees no GPU here; use cpu")
    return float(available and device != "cpu")
