"""A trained detector as a folder: ``config.yaml`` and ``weights.safetensors``.

The config says all that prediction needs to know and where it comes from. It is written last: a
folder that has one is whole. Nothing in the folder is ever unpickled.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError

from anomtune.datasets.splits.validation import Validation
from anomtune.errors import MethodError, SweepError
from anomtune.models.base import Detector
from anomtune.models.layers.backbones import weights_come_later
from anomtune.registry import METHODS
from anomtune.search.explain import explain
from anomtune.search.store.storage import Storage
from anomtune.search.yaml_text import dump_yaml, read_yaml
from anomtune.settings import Settings

CONFIG, WEIGHTS = "config.yaml", "weights.safetensors"

#: Raise it when a folder is read otherwise.
FORMAT = 4


class Measured(Settings):
    """How a detector did on the validation images, which also gave the threshold.

    Attributes:
        n_normal: Normal images.
        n_anomalous: Anomalous images.
        auroc: Image AUROC.
        interval: Its 95 % DeLong interval.
        n_flagged: Images that the threshold calls anomalous.
        f1: F1 at the threshold, the highest that any has which rounding cannot cross.
        accuracy: Accuracy at the threshold.
    """

    n_normal: int
    n_anomalous: int
    auroc: float
    interval: tuple[float, float]
    n_flagged: int
    f1: float
    accuracy: float

    @property
    def note(self) -> str | None:
        """What a user of the threshold must know, in one line."""
        if self.n_flagged < self.n_normal + self.n_anomalous:
            return None
        return (
            "the threshold calls every validation image anomalous, the normal ones as well: no "
            "other has a higher F1; choose another config, or set the threshold yourself"
        )


class SavedConfig(Settings):
    """What ``config.yaml`` holds.

    Attributes:
        format: Version of the folder's layout.
        method: Name of the method.
        hyperparameters: All of them.
        image_size: Side of the maps in pixels.
        seed: Seed of the training.
        dataset: Name of the dataset family it was trained on.
        category: The category.
        score_rule: How an image's score is drawn from its map.
        threshold: Images that score as high or higher are called anomalous.
        map_low: Where the colours of heat maps begin: what 95 % of the pixels of a normal image
            stay below (the median over the normal validation images).
        map_high: Where they end: the highest 99.9th percentile of a validation image.
        validation: How the validation images were chosen.
        split_hash: Which images trained and validated.
        measured: Figures on the validation images.
        code_version: Version of anomtune.
        versions: Versions of Python and of the libraries.
        weights_sha256: SHA-256 of the weights file: a config never goes with the weights of
            another training. Filled in by `save_model`.
    """

    format: int = FORMAT
    method: str
    hyperparameters: dict[str, Any]
    image_size: int
    seed: int
    dataset: str
    category: str
    score_rule: str
    threshold: float
    map_low: float
    map_high: float
    validation: Validation
    split_hash: str
    measured: Measured
    code_version: str
    versions: dict[str, str]
    weights_sha256: str = ""


def save_model(storage: Storage, folder: str, detector: Detector[Any], config: SavedConfig) -> None:
    """Writes a model folder, or replaces the one that is there.

    Args:
        storage: Where; any filesystem.
        folder: Path of the folder below the storage's root, "" for the root itself.
        detector: Trained.
        config: From `make_saved_config`.

    Raises:
        StorageError: If the storage refuses.
    """
    weights = safetensors.torch.save(detector.inference_state())
    whole = config.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    prefix = f"{folder}/" if folder else ""
    storage.write(prefix + WEIGHTS, weights, durable=True)
    text = dump_yaml(whole.model_dump(mode="json"))
    storage.write(prefix + CONFIG, text.encode(), durable=True)


def load_detector(
    directory: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> tuple[Detector[Any], SavedConfig]:
    """Reads a model folder; no weights but its own are needed.

    Args:
        directory: A local path or a pyarrow filesystem URI.
        device: Where the detector shall run.

    Raises:
        MethodError: If it is no model folder, is damaged, or is of a method or a version that is
            not installed.
        StorageError: If it cannot be read.
    """
    storage = Storage(directory)
    config = _read_config(storage)
    try:
        method = METHODS.get(config.method)
        hyperparameters = method.Hyperparameters(**config.hyperparameters)
    except ValidationError as error:
        kind = method.Hyperparameters
        raise _unusable(storage, f"hyperparameters.{explain(error, kind)}", config) from None
    except MethodError as error:
        raise MethodError(f"{storage.location}: {error}") from None
    weights = _read(storage, WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != config.weights_sha256:
        raise MethodError(
            f"{storage.location}/{WEIGHTS}: not the weights that {CONFIG} describes; copy the "
            "folder again, or train again"
        )
    try:
        with weights_come_later():
            detector = method(
                hyperparameters, image_size=config.image_size, device=device, seed=config.seed
            )
        detector.load_inference_state(safetensors.torch.load(weights))
    except (MethodError, safetensors.SafetensorError) as error:
        raise _unusable(storage, str(error), config) from None
    return detector, config


def read_saved_config(storage: Storage, folder: str) -> SavedConfig | None:
    """Returns the config of a model folder below a storage's root, ``None`` if there is none."""
    try:
        data = read_yaml((storage.read(f"{folder}/{CONFIG}") or b"").decode(), folder)
        return SavedConfig.model_validate(data)
    except (SweepError, UnicodeDecodeError, ValidationError):
        return None


def _read_config(storage: Storage) -> SavedConfig:
    place = f"{storage.location}/{CONFIG}"
    try:
        data = read_yaml(_read(storage, CONFIG).decode(), place)
    except (SweepError, UnicodeDecodeError) as error:
        raise MethodError(f"{place}: cannot be read: {error}") from None
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise MethodError(
            f"{place}: not a saved model of this version of anomtune (format {found}, not "
            f"{FORMAT}); give the folder of a model, or train again with this version"
        )
    try:
        return SavedConfig.model_validate(data)
    except ValidationError as error:
        raise MethodError(f"{place}: {explain(error, SavedConfig)}; train again") from None


def _read(storage: Storage, name: str) -> bytes:
    content = storage.read(name)
    if content is None:
        raise MethodError(f"{storage.location}: no {name} there; give the folder of a saved model")
    return content


def _unusable(storage: Storage, reason: str, config: SavedConfig) -> MethodError:
    return MethodError(
        f"{storage.location}: {reason}; it was saved by anomtune {config.code_version}: use that "
        "version, or train again"
    )
