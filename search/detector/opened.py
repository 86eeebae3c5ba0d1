"""A detector and the images that a search may show it, opened together. Held-out images are not."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anomtune.datasets.io.foreign import folder_images, other_categories
from anomtune.datasets.splits.split import SearchSplit, load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import DataError, MethodError, TrainingDivergedError
from anomtune.models.base import Detector
from anomtune.models.hyperparameters import Resize
from anomtune.models.training.report import Report
from anomtune.registry import METHODS
from anomtune.search.detector.devices import as_images
from anomtune.search.detector.features import know_features
from anomtune.search.detector.memo import NodeMemo
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.source import DatasetConfig
from anomtune.search.store.records import Facts

#: How many notes on one category are shown.
_SHOWN = 5


@dataclass(frozen=True)
class OpenedDetector:
    """A detector and the images that a search may show it.

    Attributes:
        detector: Untrained.
        train: uint8 ``(N, 3, I, I)``.
        validation: uint8 ``(M, 3, I, I)``.
        labels: ``(M,)``, 1 = anomalous.
        iterations: Length of the full training.
        n_held_out: How many images are held out from the search.
        split_hash: Names the exact images of training and validation.
        notes: What is odd about the images and was passed over, a line each.
    """

    detector: Detector[Any]
    train: Tensor
    validation: Tensor
    labels: npt.NDArray[np.int8]
    iterations: int
    n_held_out: int
    split_hash: str
    notes: tuple[str, ...] = ()

    def know_features(self, *, share: bool = False) -> None:
        """Computes once, or finds in the cache, what frozen encoders say of the images.

        To be called before the training, and again when a state was loaded.

        Args:
            share: Whether others like it follow, with which the training shares what it can.
        """
        detector = self.detector
        how = detector.input_size, detector.hyperparameters.resize
        names = know_features(detector, (self.train, self.validation), (self.split_hash, *how))
        detector.memo = NodeMemo(names) if share and names else None

    def forget_features(self) -> None:
        """Lets the detector compute everything itself again, as one that is loaded will."""
        self.detector.memo = None
        for encoder in self.detector.frozen_encoders():
            encoder.known = None

    def image_ms(self, seconds: float) -> float:
        """Returns the time to score an image that nothing is known of, in milliseconds.

        Args:
            seconds: What one of the images took whose features may be known.
        """
        known = [encoder.known for encoder in self.detector.frozen_encoders()]
        spared = sum(features.seconds for features in known if features is not None)
        spared += self.detector.spared
        return (seconds + spared) * 1e3

    def make_ready(self) -> None:
        """Makes a trained detector ready to predict as its scoring wants."""
        if self.detector.scoring.normalise != "none":
            self.detector.learn_normal(self.train)

    def facts(self) -> Facts:
        """Returns what is known of the detector, apart from its scores."""
        return Facts(
            n_val_normal=int((self.labels == 0).sum()),
            n_val_anomalous=int((self.labels == 1).sum()),
            parameters=sum(p.numel() for p in self.detector.network.parameters()),
        )


def open_detector(spec: TrainingSpec, device: torch.device) -> OpenedDetector:
    """Builds the detector of a training and opens its images.

    Args:
        spec: What is to be trained on what.
        device: Where the detector shall live.

    Raises:
        MethodError: If the method cannot be used so.
        DataError: If the images cannot be read, or are not those that the spec names.
    """
    method = METHODS.get(spec.method)
    hyperparameters = method.Hyperparameters(**spec.hyperparameters)
    side, resize = hyperparameters.input_size(spec.image_size), hyperparameters.resize
    dataset = spec.dataset.model_dump_json()
    split = _open_split(
        dataset, spec.category, spec.image_size, spec.validation, input_size=side, resize=resize
    )
    if spec.split_hash not in (None, split.split_hash):
        raise images_changed(spec)
    detector = method(hyperparameters, image_size=spec.image_size, device=device, seed=spec.seed)
    detector.first_image = split.first_image
    foreign = hyperparameters.foreign_images()
    if foreign is not None:
        others = _open_foreign(dataset, spec.category, foreign, side, resize)
        detector.foreign = None if others is None else as_images(others, device)
    iterations = hyperparameters.training_iterations(len(split.train))
    if iterations < 1:
        raise MethodError(f"{iterations} iterations of training; set at least one")
    return OpenedDetector(
        detector=detector,
        train=as_images(split.train, device),
        validation=as_images(split.validation, device),
        labels=split.validation_labels,
        iterations=iterations,
        n_held_out=split.n_test_normal + split.n_test_anomalous + split.n_shifted,
        split_hash=split.split_hash,
        notes=(*split.warnings, *split.dropped),
    )


def images_changed(spec: TrainingSpec) -> DataError:
    """Returns the error of a category whose images are not those of the sweep any more."""
    return DataError(
        f"{spec.category}: the images under {spec.dataset.root} are not those that the sweep "
        f"started with; restore them"
    )


def few_notes(dataset: DatasetConfig, messages: Sequence[str]) -> list[str]:
    """Returns the first few of what is odd about a dataset, and where to see the rest."""
    notes = [f"note: {message}" for message in messages[:_SHOWN]]
    if len(messages) > _SHOWN:
        told = [] if dataset.options else filter(None, (dataset.name, dataset.root))
        command = shlex.join(["anomtune", "audit", *told])
        command += "" if not dataset.options else " SWEEP.yaml"
        notes.append(f"note: {len(messages) - _SHOWN} more; all of them: {command}")
    return notes


def check_loss(report: Report) -> None:
    """Raises TrainingDivergedError if a detector reports a loss that is no number."""
    loss = report.get("loss")
    if isinstance(loss, float) and not math.isfinite(loss):
        raise TrainingDivergedError(f"the loss is {loss}")


def forget_images() -> None:
    """Lets the next training of this process look again at what lies in the folders."""
    _open_split.cache_clear()
    _open_foreign.cache_clear()


@lru_cache(maxsize=4)
def _open_split(
    dataset: str,
    category: str,
    image_size: int,
    validation: Validation,
    *,
    input_size: int,
    resize: Resize,
) -> SearchSplit:
    source = DatasetConfig.model_validate_json(dataset).open()
    return load_search_split(
        source, category, image_size, validation, input_size=input_size, resize=resize
    )


@lru_cache(maxsize=4)
def _open_foreign(
    dataset: str, category: str, source: str, size: int, resize: Resize
) -> npt.NDArray[np.uint8] | None:
    if source == "categories":
        opened = DatasetConfig.model_validate_json(dataset).open()
        return other_categories(opened, category, size, resize)
    return folder_images(Path(source).expanduser(), size, resize)
