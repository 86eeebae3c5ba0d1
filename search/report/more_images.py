"""What more labelled images would buy: the width of the held-out interval against their number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomtune.datasets.splits.validation import Validation
from anomtune.search.metrics.delong import foretold_intervals
from anomtune.search.metrics.image import Labels, Scores
from anomtune.search.results.figures import interval

_MORE = (0, 50, 100, 200, 500)
#: So many that images add nothing any more: what is left is of the seeds.
_ENDLESS = 10**9


@dataclass(frozen=True)
class Foretold:
    """The interval with so many more labelled images.

    Attributes:
        more: Labelled images more than now.
        normal: Held-out normal images then.
        anomalous: Held-out anomalous images then.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    more: int
    normal: int
    anomalous: int
    low: float
    high: float

    @property
    def width(self) -> float:
        """From end to end."""
        return self.high - self.low

    @property
    def text(self) -> str:
        """Both ends."""
        return interval(self.low, self.high)


@dataclass(frozen=True)
class MoreImages:
    """What is foretold.

    Attributes:
        rows: From now on.
        share: Share of labelled images that is held out.
        sentence: What the next hundred would buy.
        seeds: What remains of the width however many images there are; 0 with a single seed.
    """

    rows: tuple[Foretold, ...]
    share: float
    sentence: str
    seeds: float

    def after(self, more: int) -> Foretold:
        """Returns the row of so many more images."""
        return next(row for row in self.rows if row.more == more)


def foretell(labels: Labels, scores: Scores, validation: Validation) -> MoreImages | None:
    """Foretells the interval of the held-out AUROC from the images that there are.

    ``None`` where a class has a single image: its scatter is not known.

    Args:
        labels: ``(K,)`` of the held-out images.
        scores: ``(S, K)`` of the chosen config's trainings.
        validation: By which labelled images become validation or held-out images.
    """
    n_anomalous = int((labels == 1).sum())
    n_normal = len(labels) - n_anomalous
    if min(n_normal, n_anomalous) < 2:
        return None
    share = 1.0 if validation.protocol == "synthetic" else 1 - validation.fraction
    values = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    rows = []
    for more in _MORE:
        growth = 1 + more * share / len(labels)
        normal, anomalous = round(n_normal * growth), round(n_anomalous * growth)
        found = foretold_intervals(labels, values, normal, anomalous)
        rows.append(Foretold(more, normal, anomalous, float(found.low), float(found.high)))
    if rows[0].width == 1:  # all images alike: their scatter is not known either
        return None
    end = foretold_intervals(labels, values, _ENDLESS, _ENDLESS)
    seeds = float(end.high - end.low)
    now, then = rows[0], rows[_MORE.index(100)]
    held = then.normal + then.anomalous - len(labels)
    where = "all of them held out" if share == 1 else f"{held} of them held out"
    sentence = (
        f"100 more labelled images, good and defective as now ({where}), would make the 95 % "
        f"interval of the held-out AUROC {then.width:.3f} wide instead of {now.width:.3f}."
    )
    return MoreImages(tuple(rows), share, sentence, seeds)
