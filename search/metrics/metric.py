"""The list of metrics on held-out images: what is measured, what it is called and what it means.

A metric is a figure of image scores or of anomaly maps, in one number. Those of anomtune stand
here; others join by `register_metric`, or as an entry point of the group ``anomtune.metrics``::

    @anomtune.register_metric("average_precision", title="AP", meaning="Average precision.")
    def average_precision(labels, scores):
        return sklearn.metrics.average_precision_score(labels, scores)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from anomtune.errors import SweepError
from anomtune.registry import METRICS
from anomtune.search.metrics.image import auroc, f1_threshold
from anomtune.search.metrics.pixel import PixelMetrics

F = TypeVar("F", bound=Callable[..., Any])

Level = Literal["image", "pixel"]


@dataclass(frozen=True)
class Metric:
    """One figure of a set of held-out images.

    Attributes:
        name: As records know it; the leaderboard has it as ``test_<name>_mean``.
        title: What people read above it.
        meaning: A sentence.
        compute: At level ``image`` a function of labels ``(N,)``, 1 = anomalous, and finite scores
            ``(N,)``, among which both classes are; it returns the figure, ``None`` if it is not
            defined. At level ``pixel`` a class or function that makes an accumulator: it is given
            ``add(maps, masks)``, both ``(N, H, W)``, batch by batch; batches differ in size as
            the images do. Of a mask of more than 16.8 million pixels it is given cells, of which
            one is anomalous where any of its pixels is; if it has ``add_cells(cells)``, how many
            are, see `anomtune.search.metrics.cells`. Then it is asked for ``result()``.
            Metrics with the same ``compute`` share one pass; their ``result()`` has an attribute
            per metric, by name.
        level: What it is made of.
    """

    name: str
    title: str
    meaning: str
    compute: Callable[..., Any]
    level: Level = "image"


def _auroc(labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float32]) -> float:
    return auroc(labels, scores).value


def _f1(labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float32]) -> float:
    return f1_threshold(labels, scores)[1]


def _accuracy(labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float32]) -> float:
    return f1_threshold(labels, scores)[2]


#: In the order of the leaderboard.
BUILT_IN = (
    Metric("auroc", "AUROC", "Area under the ROC curve of the image scores.", _auroc),
    Metric(
        "pixel_auroc",
        "pixel AUROC",
        "Area under the ROC curve over all pixels of all images, at the size of their masks.",
        PixelMetrics,
        "pixel",
    ),
    Metric(
        "aupro",
        "AUPRO",
        "Per-region overlap up to a false positive rate of 0.3, as MVTec AD defines it.",
        PixelMetrics,
        "pixel",
    ),
    Metric(
        "aupro_per_image",
        "AUPRO per image",
        "The variant of AUPRO in the code of RD4AD and ReContrast: the mean of an area per image.",
        PixelMetrics,
        "pixel",
    ),
    Metric(
        "f1",
        "F1",
        "F1 at the threshold that maximises it on these very images, as papers report it.",
        _f1,
    ),
    Metric("accuracy", "accuracy", "Accuracy at the threshold of F1.", _accuracy),
)


def metrics() -> tuple[Metric, ...]:
    """Returns all metrics: those of anomtune, then what was registered or installed, by name.

    Raises:
        SweepError: If an installed one cannot be used, or goes by another's name.
    """
    others = [METRICS.get(name) for name in METRICS.names()]
    for metric in others:
        _check_name(metric.name)
    found = {metric.name: metric for metric in (*BUILT_IN, *others)}
    if len(found) < len(BUILT_IN) + len(others):
        counts = Counter(metric.name for metric in (*BUILT_IN, *others))
        double = next(name for name, count in counts.items() if count > 1)
        raise SweepError(f"metric {double!r}: two have that name; rename one of them")
    return tuple(found.values())


def register_metric(
    name: str, *, title: str, meaning: str, level: Level = "image"
) -> Callable[[F], F]:
    """Makes a function a metric: computed on held-out images, with a column in the leaderboard.

    Args:
        name: Letters, digits and underscores.
        title: What people read above its column.
        meaning: A sentence.
        level: ``image`` for a function of labels and scores, ``pixel`` for a class that
            accumulates maps and masks; see `Metric.compute`.

    Raises:
        SweepError: If it cannot have that name.

    Example:
        >>> @register_metric("top_score", title="top", meaning="The highest score.")
        ... def top_score(labels, scores):
        ...     return scores.max()
    """

    def register(compute: F) -> F:
        _check_name(name)
        METRICS.register(name, Metric(name, title, meaning, compute, level))
        return compute

    return register


def _check_name(name: str) -> None:
    if not name.isidentifier():
        raise SweepError(f"metric {name!r}: use letters, digits and underscores")
    if name in {metric.name for metric in BUILT_IN}:
        raise SweepError(f"metric {name!r} is one of anomtune's own; choose another name")
