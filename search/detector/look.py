"""What a trained detector makes of the validation images: what its folder will say of it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from anomtune.errors import TrainingDivergedError
from anomtune.progress import steps
from anomtune.search.detector.opened import OpenedDetector
from anomtune.search.detector.saved import Measured, SavedConfig
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.detector.threshold import choose_threshold, seen_rounding
from anomtune.search.metrics.image import auroc

_BATCH = 32
_LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "safetensors")


@dataclass(frozen=True)
class Look:
    """What a trained detector makes of the validation images, as it will when it is loaded.

    Attributes:
        scores: ``(M,)``.
        usual: What 95 % of the pixels of each map stay below ``(M,)``.
        highest: What 99.9 % of them stay below ``(M,)``.
    """

    scores: npt.NDArray[np.float32]
    usual: npt.NDArray[np.floating[Any]]
    highest: npt.NDArray[np.floating[Any]]


def look(opened: OpenedDetector) -> Look:
    """Scores the validation images once, with nothing known of them.

    Args:
        opened: A trained detector and its images.

    Raises:
        TrainingDivergedError: If a map or a score is not finite.
    """
    # The threshold is for scores of other batches, which round otherwise: let it be seen.
    opened.forget_features()
    scores: list[torch.Tensor] = []
    levels: list[npt.NDArray[Any]] = []
    batches = torch.split(opened.validation, _BATCH)
    for images in steps(batches, "judging validation images", len(batches)):
        maps, scored = opened.detector.predict(images)
        scores.append(scored.float().cpu())
        levels.append(np.quantile(maps.flatten(1).float().cpu().numpy(), (0.95, 0.999), axis=1))
    usual, highest = np.concatenate(levels, axis=1)
    found = Look(torch.cat(scores).numpy(), usual, highest)
    if not all(np.isfinite(part).all() for part in (found.scores, usual, highest)):
        raise TrainingDivergedError("anomaly maps or scores are not finite")
    return found


def make_saved_config(spec: TrainingSpec, opened: OpenedDetector, seen: Look) -> SavedConfig:
    """Says what there is to say of a trained detector.

    Args:
        spec: What it was trained on.
        opened: The detector, trained, and its images.
        seen: What it makes of the validation images.
    """
    detector, labels, scores = opened.detector, opened.labels, seen.scores
    area = auroc(labels, scores)
    rounding = seen_rounding(detector, opened.validation, scores)
    threshold = choose_threshold(labels, scores, rounding)
    return SavedConfig(
        method=spec.method,
        hyperparameters=detector.hyperparameters.model_dump(mode="json"),
        image_size=spec.image_size,
        seed=spec.seed,
        dataset=spec.dataset.name,
        category=spec.category,
        score_rule=detector.scoring.rule,
        threshold=threshold.value,
        map_low=float(np.median(seen.usual[labels == 0])),
        map_high=float(seen.highest.max()),
        validation=spec.validation,
        split_hash=opened.split_hash,
        measured=Measured(
            n_normal=int((labels == 0).sum()),
            n_anomalous=int((labels == 1).sum()),
            auroc=area.value,
            interval=(area.low, area.high),
            n_flagged=threshold.flagged,
            f1=threshold.f1,
            accuracy=threshold.accuracy,
        ),
        code_version=version("anomtune"),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
    )
