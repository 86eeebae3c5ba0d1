"""Image AUROC with exact ties, its DeLong interval and paired test, the ROC curve, the best F1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomtune.search.metrics.delong import intervals, p_values

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

    Of several trainings of one config it is their mean, and the interval says where it would be
    with other images and other seeds (`anomtune.search.metrics.delong.intervals`). Of a single
    training it is that training's, with other images.

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images.
        scores: ``(N,)``, or ``(S, N)`` of S trainings; higher where more anomalous.

    Raises:
        ValueError: If a class is missing or a score is not finite.
    """
    found = intervals(*_trainings(labels, scores))
    return Auroc(float(found.value), float(found.low), float(found.high))


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
    """Returns the two-sided p-value that two configs have the same AUROC.

    See `anomtune.search.metrics.delong.p_values`.

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images.
        first: ``(N,)`` scores of a training of one config, or ``(S, N)`` of S trainings.
        second: Those of the other config, of the same images in the same order.

    Raises:
        ValueError: If a class is missing or a score is not finite.
    """
    labels, one = _trainings(labels, first)
    return float(p_values(labels, one, _trainings(labels, second)[1]))


def are_tied(labels: Labels, first: Scores, second: Scores) -> bool | None:
    """Returns whether two configs cannot be told apart at 5 %.

    ``None`` where that is not known: the images tell a single training of one from a single
    training of the other, but another seed may say otherwise. (Where the images alone cannot tell
    them, what seeds add to the variance cannot help.)

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images.
        first: ``(N,)`` scores of a training of one config, or ``(S, N)`` of S trainings.
        second: Those of the other config, of the same images in the same order.

    Raises:
        ValueError: If a class is missing or a score is not finite.
    """
    if paired_delong_p(labels, first, second) > 0.05:
        return True
    return False if min(len(np.atleast_2d(first)), len(np.atleast_2d(second))) > 1 else None


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


def _trainings(labels: Labels, scores: Scores) -> tuple[Labels, npt.NDArray[np.float64]]:
    """Returns labels and scores, the latter ``(S, N)``."""
    labels, values = _checked(labels, scores)
    return labels, np.atleast_2d(values)


def _checked(labels: Labels, scores: Scores) -> tuple[Labels, npt.NDArray[np.float64]]:
    labels = np.asarray(labels)
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("anomaly scores are not finite")
    if not ((labels == 1).any() and (labels == 0).any()):
        raise ValueError("AUROC needs normal and anomalous images")
    return labels, values
