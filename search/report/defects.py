"""Which types of defects the detector of a category misses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomtune.search.metrics.image import auroc
from anomtune.search.report.kept import Kept
from anomtune.search.report.operating import Counts
from anomtune.search.results.figures import figure, interval

#: Types that are listed, the worst first.
_MOST = 40


@dataclass(frozen=True)
class DefectType:
    """A defect type on held-out images.

    Attributes:
        name: Of the type.
        images: How many there are.
        missed: How many the threshold lets pass; ``None`` without a threshold.
        auroc: Against all normal images: the share of them that an image of this type outscores.
        area: The same as a number, in [0, 1].
        range: Its 95 % interval; empty where there are too few to say.
    """

    name: str
    images: int
    missed: Counts | None
    auroc: str
    area: float
    range: str


def defect_types(kept: Kept) -> list[DefectType]:
    """Returns the types of the held-out images, those that are missed most in front.

    Args:
        kept: The detector.
    """
    if kept.defects is None:
        return []
    found = []
    anomalous = kept.labels == 1
    for name in np.unique(kept.defects[anomalous]):
        own = anomalous & (kept.defects == name)
        chosen = own | ~anomalous
        area = auroc(kept.labels[chosen], kept.scores[chosen])
        missed = None
        if kept.threshold is not None:
            missed = Counts(int((kept.scores[own] < kept.threshold).sum()), int(own.sum()))
        known = (area.low, area.high) != (0.0, 1.0)
        found.append(
            DefectType(
                name=str(name),
                images=int(own.sum()),
                missed=missed,
                auroc=figure(area.value),
                area=area.value,
                range=interval(area.low, area.high) if known else "",
            )
        )
    found.sort(key=lambda item: (-_share(item), item.area, item.name))
    return found[:_MOST]


def _share(item: DefectType) -> float:
    return 0.0 if item.missed is None else item.missed.number / item.missed.total
