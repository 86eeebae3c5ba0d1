"""Image AUROC with exact ties, its DeLong interval, and the paired DeLong test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

Scores = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Auroc:
    """An area under the ROC curve with its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float


def auroc(labels: Labels, scores: Scores) -> Auroc:
    """Returns the area under the ROC curve; tied scores count one half.

    The interval is DeLong's on the logit scale, so that it stays within [0, 1] (Hanley and
    McNeil's transform, as in Pepe 2003, section 5.2). At an area of exactly 0 or 1, where DeLong's
    variance is 0, it is the Clopper-Pearson bound of as many trials as the smaller class has
    images: an honest width where the formula has none.

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images.
        scores: ``(N,)``, higher where more anomalous.

    Raises:
        ValueError: If a class is missing or a score is not finite.
    """
    anomalous, normal = _placements(labels, scores)
    value = float(anomalous.mean())
    smaller = min(len(anomalous), len(normal))
    if value in (0.0, 1.0):
        bound = 0.025 ** (1 / smaller)
        return Auroc(value, bound, 1.0) if value == 1.0 else Auroc(value, 0.0, 1.0 - bound)
    if smaller < 2:  # no variance can be estimated from one image
        return Auroc(value, 0.0, 1.0)
    deviation = math.sqrt(anomalous.var(ddof=1) / len(anomalous) + normal.var(ddof=1) / len(normal))
    centre = math.log(value / (1 - value))
    half = float(norm.ppf(0.975)) * deviation / (value * (1 - value))
    return Auroc(value, _expit(centre - half), _expit(centre + half))


def paired_delong_p(labels: Labels, first: Scores, second: Scores) -> float:
    """Returns the two-sided p-value that two detectors have the same AUROC on the same images.

    DeLong, DeLong and Clarke-Pearson 1988, with the ``O(n log n)`` placements of Sun and Xu 2014.

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images.
        first: ``(N,)`` scores of one detector.
        second: ``(N,)`` scores of the other, in the same order.

    Returns:
        The p-value; 1 if the two rank the images alike.
    """
    first_anomalous, first_normal = _placements(labels, first)
    second_anomalous, second_normal = _placements(labels, second)
    anomalous = first_anomalous - second_anomalous
    normal = first_normal - second_normal
    difference = float(anomalous.mean())
    if difference == 0.0 or min(len(anomalous), len(normal)) < 2:
        return 1.0
    variance = anomalous.var(ddof=1) / len(anomalous) + normal.var(ddof=1) / len(normal)
    if variance == 0.0:
        return 0.0
    return float(2 * norm.sf(abs(difference) / math.sqrt(variance)))


def _placements(
    labels: Labels, scores: Scores
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns DeLong's structural components.

    For every anomalous image the share of normal images that it outscores, and for every normal
    image the share of anomalous images that outscore it (a tie is one half). The mean of either
    is the AUROC.
    """
    labels = np.asarray(labels)
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("anomaly scores are not finite")
    anomalous, normal = values[labels == 1], values[labels == 0]
    if len(anomalous) == 0 or len(normal) == 0:
        raise ValueError("AUROC needs normal and anomalous images")
    ranks = rankdata(np.concatenate([anomalous, normal]))
    m, n = len(anomalous), len(normal)
    over_normal = (ranks[:m] - rankdata(anomalous)) / n
    under_anomalous = 1.0 - (ranks[m:] - rankdata(normal)) / m
    return over_normal, under_anomalous


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
