"""The threshold of a detector: the best on the validation images, and clear of rounding.

Scores of one image differ with the batch that it passes through the network in, and between
machines, by rounding. No such difference may change a verdict, so a threshold lies in the middle
of a gap between scores that is wider.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anomtune.models.base import Detector
from anomtune.search.metrics.image import f1_threshold

#: So many images are scored a second time, alone.
_ALONE = 32
#: Rounding that is reckoned with, relative to the largest score: 16 units of float32's last place.
_RELATIVE = 16 * float(np.finfo(np.float32).eps)
#: The same where all scores are zero.
_LEAST = 1e-6
#: Other batches and machines may round by so many times what was seen.
_SAFETY = 4.0


class Threshold(NamedTuple):
    """Where normal ends.

    Attributes:
        value: Images that score as high or higher are called anomalous.
        f1: F1 of the validation images there.
        accuracy: Their accuracy.
        flagged: How many of them are called anomalous.
    """

    value: float
    f1: float
    accuracy: float
    flagged: int


def choose_threshold(
    labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float32], rounding: float
) -> Threshold:
    """Returns the threshold with the highest F1 among those that rounding cannot cross.

    Where no two scores differ by more, it lies below all of them: everything is anomalous.

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images, of which there must be one.
        scores: ``(N,)``, finite.
        rounding: By how much a score may differ in another batch, 0 or more.
    """
    values = scores.astype(np.float64)
    rounding = max(rounding, _RELATIVE * float(np.abs(values).max()))
    order = np.argsort(values)
    ascending = values[order]
    # Scores that rounding could put in another order count as one, their lowest.
    first = np.append(True, np.diff(ascending) > 2 * rounding)
    lowest = ascending[first][np.cumsum(first) - 1]
    level, f1, accuracy = f1_threshold(labels[order], lowest)
    below = ascending[lowest < level]
    margin = max(8 * rounding, _LEAST)
    value = (level + float(below[-1])) / 2 if len(below) else level - margin
    return Threshold(value, f1, accuracy, len(values) - len(below))


def seen_rounding(
    detector: Detector[Any], images: Tensor, scores: npt.NDArray[np.float32]
) -> float:
    """Returns by how much scores are to be expected to differ in another batch.

    Args:
        detector: Trained.
        images: uint8 ``(N, 3, I, I)``.
        scores: ``(N,)``, theirs from batches of many.
    """
    chosen = np.unique(
        np.linspace(0, len(images) - 1, min(_ALONE, len(images))).round().astype(int)
    )
    alone = torch.cat([detector.score(images[i : i + 1]).float().cpu() for i in chosen]).numpy()
    return _SAFETY * float(np.abs(alone.astype(np.float64) - scores[chosen]).max())
