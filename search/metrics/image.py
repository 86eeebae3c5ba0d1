"""Image AUROC with exact ties, its DeLong interval and paired test, the ROC curve, the best F1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtr, ndtri

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
    anomalous, normal, value = _placements(labels, scores)
    smaller = min(len(anomalous), len(normal))
    if value in (0.0, 1.0):
        bound = 0.025 ** (1 / smaller)
        return Auroc(value, bound, 1.0) if value == 1.0 else Auroc(value, 0.0, 1.0 - bound)
    deviation = math.sqrt(_variance(anomalous, normal)) if smaller > 1 else 0.0
    if deviation == 0.0:  # one image, or all alike: nothing to estimate a width from
        return Auroc(value, 0.0, 1.0)
    centre = math.log(value / (1 - value))
    half = float(ndtri(0.975)) * deviation / (value * (1 - value))
    return Auroc(value, float(expit(centre - half)), float(expit(centre + half)))


def roc_curve(
    labels: Labels, scores: Scores
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns the corners of the ROC curve, from (0, 0) to (1, 1).

    Where tied scores hold images of both classes the curve is oblique. Points on a straight part
    between two others are left out, as scikit-learn's function of this name does.

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images.
        scores: ``(N,)``, higher where more anomalous.

    Returns:
        False and true positive rates, both rising, in [0, 1].

    Raises:
        ValueError: If a class is missing or a score is not finite.
    """
    labels, values = _checked(labels, scores)
    order = np.argsort(-values)
    last_of_equals = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    hits = np.cumsum(labels[order] == 1)[last_of_equals]
    alarms = last_of_equals + 1 - hits
    bends = (np.diff(alarms, 2) != 0) | (np.diff(hits, 2) != 0)
    corners = np.concatenate([[True], bends, [True]]) if len(hits) > 1 else np.ones(1, np.bool_)
    alarms, hits = np.append(0, alarms[corners]), np.append(0, hits[corners])
    return alarms / alarms[-1], hits / hits[-1]


def paired_delong_p(labels: Labels, first: Scores, second: Scores) -> float:
    """Returns the two-sided p-value that two detectors have the same AUROC on the same images.

    DeLong, DeLong and Clarke-Pearson 1988, with the ``O(n log n)`` placements of Sun and Xu 2014.

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images.
        first: ``(N,)`` scores of one detector.
        second: ``(N,)`` scores of the other, in the same order.

    Returns:
        The p-value; 1 if the areas are equal. Where one detector is better by the same amount on
        every image, DeLong's variance is 0; the sign test of the smaller class stands in.
    """
    first_anomalous, first_normal, first_area = _placements(labels, first)
    second_anomalous, second_normal, second_area = _placements(labels, second)
    difference = first_area - second_area
    smaller = min(len(first_anomalous), len(first_normal))
    if difference == 0.0 or smaller < 2:
        return 1.0
    variance = _variance(first_anomalous - second_anomalous, first_normal - second_normal)
    if variance < 1e-24:  # rounding of components that are all alike
        return min(1.0, 2 * 0.5**smaller)
    return float(2 * ndtr(-abs(difference) / math.sqrt(variance)))


def f1_threshold(labels: Labels, scores: Scores) -> tuple[float, float, float]:
    """Returns the threshold with the highest F1, and F1 and accuracy there.

    An image is predicted anomalous if its score is at least the threshold. Among thresholds of
    equal F1 it is the highest. ReContrast's figures on medical images are these, but for the 1e-7
    in the denominator of their F1. Choosing the threshold on the images that it is judged by
    flatters both figures.

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images.
        scores: ``(N,)``, higher where more anomalous.

    Raises:
        ValueError: If no image is anomalous or a score is not finite.
    """
    labels = np.asarray(labels)
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("anomaly scores are not finite")
    n_anomalous = int((labels == 1).sum())
    if n_anomalous == 0:
        raise ValueError("F1 needs anomalous images")
    order = np.argsort(-values)
    values = values[order]
    last_of_equals = np.flatnonzero(np.append(values[1:] != values[:-1], True))
    predicted = last_of_equals + 1
    hits = np.cumsum(labels[order] == 1)[last_of_equals]
    f1 = 2 * hits / (predicted + n_anomalous)
    best = int(np.argmax(f1))  # the first of equals
    wrong = predicted[best] + n_anomalous - 2 * hits[best]
    return float(values[last_of_equals[best]]), float(f1[best]), float(1 - wrong / len(values))


def _variance(anomalous: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> float:
    """Returns DeLong's variance of an area from its structural components."""
    return float(anomalous.var(ddof=1) / len(anomalous) + normal.var(ddof=1) / len(normal))


def _placements(
    labels: Labels, scores: Scores
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """Returns DeLong's structural components and the area.

    For every anomalous image the share of normal images that it outscores, and for every normal
    image the share of anomalous images that outscore it (a tie is one half). The mean of either
    is the area; it is computed from the sum of ranks, which is exact: equal areas are equal bits.
    """
    labels, values = _checked(labels, scores)
    anomalous, normal = values[labels == 1], values[labels == 0]
    ranks = _midranks(np.concatenate([anomalous, normal]))
    m, n = len(anomalous), len(normal)
    over_normal = (ranks[:m] - _midranks(anomalous)) / n
    under_anomalous = 1.0 - (ranks[m:] - _midranks(normal)) / m
    area = (float(ranks[:m].sum()) - m * (m + 1) / 2) / (m * n)
    return over_normal, under_anomalous, area


def _midranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns 1-based ranks; tied values share the mean of theirs.

    As `scipy.stats.rankdata`; every worker would spend more time on importing it than on its ranks.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _checked(labels: Labels, scores: Scores) -> tuple[Labels, npt.NDArray[np.float64]]:
    labels = np.asarray(labels)
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("anomaly scores are not finite")
    if not ((labels == 1).any() and (labels == 0).any()):
        raise ValueError("AUROC needs normal and anomalous images")
    return labels, values
