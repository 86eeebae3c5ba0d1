"""What a confirm run finds on the held-out images."""

# ruff: noqa: RUF012 - pydantic gives every record its own copy of a default.
from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from anomtune.search.store.part import Count, Part


class DomainFigures(Part):
    """How a detector does on the held-out images of one domain.

    Attributes:
        n_normal: Normal images.
        n_anomalous: Anomalous images.
        figures: The figure of each metric by its name, as `anomtune.search.metrics.metric` lists
            them. ``None`` stands where one is not defined: without normal or anomalous images, or
            without masks.
        auroc_low: Lower end of the 95 % DeLong interval of the image AUROC.
        auroc_high: Upper end.
        notes: Why a figure that should be there is not.
    """

    n_normal: Count
    n_anomalous: Count
    figures: dict[str, float | None] = {}
    auroc_low: float | None = None
    auroc_high: float | None = None
    notes: list[str] = []

    @property
    def auroc(self) -> float | None:
        """Image AUROC."""
        return self.figures.get("auroc")


ExampleKind = Literal["missed", "typical anomaly", "found", "false alarm", "typical normal"]


class Example(Part):
    """A held-out image that is shown to people.

    Attributes:
        kind: What it stands for: the anomalous image with the lowest, the median and the highest
            score; the normal one with the highest and the median score.
        key: Its path within the category.
        defect: Its defect type.
        score: Its anomaly score.
    """

    kind: ExampleKind
    key: str
    defect: str
    score: float


class HeldOutScores(NamedTuple):
    """What a confirm run gave the held-out images of the training images' domain.

    Attributes:
        labels: ``(K,)`` int8, 1 = anomalous.
        scores: ``(K,)`` float32.
    """

    labels: npt.NDArray[np.int8]
    scores: npt.NDArray[np.float32]
