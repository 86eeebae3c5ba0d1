"""Training one config: what ``anomtune best`` prints becomes a detector with a threshold."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from anomtune.errors import DataError, MethodError, SweepError
from anomtune.models.training.report import Report
from anomtune.progress import tell
from anomtune.registry import METHODS
from anomtune.search.detector.devices import choose_device
from anomtune.search.detector.look import look, make_saved_config
from anomtune.search.detector.opened import (
    OpenedDetector,
    check_loss,
    few_notes,
    forget_images,
    open_detector,
)
from anomtune.search.detector.predict import Model
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.explain import explain
from anomtune.search.yaml_text import read_yaml_file

#: The training is done in so many parts, each followed by a report.
_PARTS = 10

#: Called with the iterations done, their total, and what the detector reports.
OnProgress = Callable[[int, int, Report], None]


def train(
    source: TrainingSpec | str | os.PathLike[str] | Mapping[str, Any],
    *,
    device: str | None = None,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Model:
    """Trains one config and sets its threshold on the validation images.

    Held-out images are not opened.

    Args:
        source: What to train, or a YAML file as ``anomtune best`` prints it, or its content.
        device: ``cpu`` or ``cuda``; default: a GPU if there is one.
        on_progress: Is told of the progress, about ten times.
        on_note: Is told the first few things that are odd about the images or were passed over.

    Raises:
        SweepError: If the config is wrong.
        DataError: If the images cannot be read, or are not those of the search.
        MethodError: If the method cannot be used so.
        TrainingDivergedError: If the loss or a score is not finite.
    """
    forget_images()
    spec = _complete(source if isinstance(source, TrainingSpec) else read_spec(source), source)
    opened = open_detector(spec.model_copy(update={"split_hash": None}), choose_device(device))
    if spec.split_hash not in (None, opened.split_hash):
        raise DataError(
            f"{spec.category}: the images under {spec.dataset.root} are not those that the config "
            f"was found with; restore them, or remove split_hash from {_origin(source)} to train "
            "on these"
        )
    if on_note is not None:
        for note in few_notes(spec.dataset, opened.notes):
            on_note(note)
    fit_whole(opened, on_progress)
    return Model(opened.detector, make_saved_config(spec, opened, look(opened)))


def fit_whole(opened: OpenedDetector, on_progress: OnProgress | None = None) -> None:
    """Trains a new detector to its end, and makes it ready to predict.

    Args:
        opened: The detector and its images.
        on_progress: Is told of the progress, about ten times.

    Raises:
        TrainingDivergedError: If the loss is not finite.
    """
    detector, total = opened.detector, opened.iterations
    opened.know_features()
    for part in range(1, _PARTS + 1):
        iterations = part * total // _PARTS - detector.iteration
        if iterations == 0:
            continue
        tell("training", detector.iteration, total)
        report = detector.fit(opened.train, iterations)
        check_loss(report)
        tell("training", detector.iteration, total)
        if on_progress is not None:
            on_progress(detector.iteration, total, report)
    opened.make_ready()


def read_spec(source: str | os.PathLike[str] | Mapping[str, Any]) -> TrainingSpec:
    """Reads a config as ``anomtune best`` prints it.

    Args:
        source: A YAML file, or its content.

    Raises:
        SweepError: If the file cannot be read, or does not fit; names the first wrong key.
    """
    origin = _origin(source)
    data: Any = source
    if isinstance(source, str | os.PathLike):
        data = read_yaml_file(source, "config", hint="; `anomtune best` prints one")
    if not isinstance(data, Mapping):
        raise SweepError(f"{origin}: a config is a mapping of keys; `anomtune best` prints one")
    try:
        return TrainingSpec.model_validate(dict(data))
    except ValidationError as error:
        raise SweepError(f"{origin}: {explain(error, TrainingSpec)}") from None


def _complete(spec: TrainingSpec, source: object) -> TrainingSpec:
    """Returns the spec with all hyperparameters spelled out and checked."""
    origin = _origin(source)
    try:
        kind = METHODS.get(spec.method).Hyperparameters
        usual = kind.paper_values(spec.dataset.name, spec.category)
        hyperparameters = kind(**kind.merged(usual, kind.in_full(spec.hyperparameters)))
    except MethodError as error:
        raise SweepError(f"{origin}: {error}") from None
    except ValidationError as error:
        raise SweepError(f"{origin}: hyperparameters.{explain(error, kind)}") from None
    return spec.model_copy(update={"hyperparameters": hyperparameters.model_dump()})


def _origin(source: object) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else "config"
