"""The AUROC of a config over its trainings: its interval, and the paired test of two configs.

A config is trained with S seeds, and each training scores the same N images. Its AUROC is the mean
over the trainings; what it would be with other images *and* other seeds is the question. So two
sources add to its variance:

* the images: DeLong's variance of the placements, averaged over the trainings. DeLong, DeLong and
  Clarke-Pearson, Biometrics 44 (1988); ranks as in Sun and Xu, IEEE Signal Processing Letters 21
  (2014). With the few images of a category it has as few degrees of freedom as the smaller class
  allows, as in Brunner and Munzel, Biometrical Journal 42 (2000).
* the seeds: the variance between the trainings' AUROCs over S, with S - 1 degrees of freedom. It is
  the part that Obuchowski and Rockette (Communications in Statistics 24, 1995) and Hillis
  (Statistics in Medicine 26, 2007) give to the readers where several people read the same images.

What a training says of an image of its own (not of all images, nor in all trainings) is in both, so
that intervals are rather too wide than too narrow. ``tests/benchmarks/intervals.py`` measures how
often they hold; ``docs/intervals.md`` is its table.

Everything here takes leading axes, so that the benchmark runs what a leaderboard runs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, stdtr, stdtrit

Array = npt.NDArray[np.float64]

#: Below it a variance is the rounding of components that are all alike.
_NOTHING = 1e-24


class Interval(NamedTuple):
    """AUROCs, and the ends of their 95 % intervals, all in [0, 1]."""

    value: Array
    low: Array
    high: Array


class _Source(NamedTuple):
    """A part of a variance, and its degrees of freedom."""

    variance: Array
    freedom: int


def intervals(labels: npt.NDArray[np.integer], scores: Array) -> Interval:
    """Returns mean AUROCs over trainings with 95 % intervals for other images and other seeds.

    On the logit scale, so that they stay within [0, 1] (Pepe, The Statistical Evaluation of Medical
    Tests, 2003, section 5.2). Half of the width is the root of the squared half-widths of images
    and of seeds, each with the t of its own degrees of freedom (Howe, JASA 69, 1974): few seeds
    of a skewed AUROC near 1 need more than the Satterthwaite mixture of `p_values`. With a
    single training the seeds have no part, and the interval is of that training.

    At an area of exactly 0 or 1 there is no variance to be seen; the interval is then the
    Clopper-Pearson bound of as many trials as the smaller class has images.

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images; both must be there.
        scores: ``(..., S, N)`` of S trainings, higher where more anomalous.

    Returns:
        Arrays of shape ``(...)``.
    """
    anomalous, normal, areas = placements(labels, scores)
    images = _of_images(anomalous.mean(-2), normal.mean(-2))
    return _interval(areas.mean(-1), images, _of_seeds(areas), _smaller(labels))


def foretold_intervals(
    labels: npt.NDArray[np.integer], scores: Array, n_normal: int, n_anomalous: int
) -> Interval:
    """Returns what `intervals` would be with other numbers of images like these.

    The AUROC, how much images differ and how much seeds differ are taken to stay: of the variance,
    the part of the images goes with their number and that of the seeds does not.

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images; both must be there.
        scores: ``(..., S, N)`` of S trainings, higher where more anomalous.
        n_normal: Normal images there would be.
        n_anomalous: Anomalous images there would be.

    Returns:
        Arrays of shape ``(...)``; with the numbers that there are, those of `intervals`. From a
        single image of a class nothing is foretold: the interval is [0, 1].
    """
    anomalous, normal, areas = placements(labels, scores)
    images = [
        _Source(source.variance * now / then, then - 1)
        for source, now, then in zip(
            _of_images(anomalous.mean(-2), normal.mean(-2)),
            (anomalous.shape[-1], normal.shape[-1]),
            (n_anomalous, n_normal),
            strict=True,
        )
    ]
    smaller = min(n_anomalous, n_normal) if _smaller(labels) > 1 else 1
    return _interval(areas.mean(-1), images, _of_seeds(areas), smaller)


def _interval(value: Array, images: list[_Source], seeds: list[_Source], smaller: int) -> Interval:
    """Returns the interval of AUROCs ``(...)`` whose variance has these sources.

    Args:
        value: The AUROCs.
        images: What the images of either class add.
        seeds: What the trainings add.
        smaller: Images of the smaller class.
    """
    squared = _squared_half(images) + _squared_half(seeds)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = np.sqrt(squared) / (value * (1 - value))
        low, high = expit(logit(value) - half), expit(logit(value) + half)
    # One image of a class, or all alike: nothing to estimate a width from.
    unknown = (sum(source.variance for source in images) < _NOTHING) | (smaller < 2)
    low, high = np.where(unknown, 0.0, low), np.where(unknown, 1.0, high)
    bound = 0.025 ** (1 / smaller)
    low = np.where(value == 1.0, bound, np.where(value == 0.0, 0.0, low))
    high = np.where(value == 0.0, 1 - bound, np.where(value == 1.0, 1.0, high))
    return Interval(value, low, high)


def p_values(labels: npt.NDArray[np.integer], first: Array, second: Array) -> Array:
    """Returns the two-sided p-values that two configs have the same mean AUROC over trainings.

    Paired over the images; the trainings of one are not those of the other, so that the variances
    of both seeds add up. Student's t with the degrees of freedom of Satterthwaite (Biometrics
    Bulletin 2, 1946) for the sum of all sources. With a single training of each the seeds have no
    part: the p-value is then of these two trainings.

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images; both must be there.
        first: ``(..., S, N)`` scores of one config.
        second: ``(..., T, N)`` scores of the other, of the same images.

    Returns:
        ``(...)``; 1 where the areas are equal. Where one config is better by the same amount on
        every image DeLong's variance is 0, and the sign test of the smaller class stands in.
    """
    smaller = _smaller(labels)
    (anomalous, normal, areas), (anomalous2, normal2, areas2) = (
        placements(labels, scores) for scores in (first, second)
    )
    difference = np.abs(areas.mean(-1) - areas2.mean(-1))
    images = _of_images(
        anomalous.mean(-2) - anomalous2.mean(-2), normal.mean(-2) - normal2.mean(-2)
    )
    variance, freedom = _satterthwaite([*images, *_of_seeds(areas), *_of_seeds(areas2)])
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(freedom, -difference / np.sqrt(variance))
    alike = sum(source.variance for source in images) < _NOTHING
    p = np.where(alike, np.fmax(p, min(1.0, 2 * 0.5**smaller)), p)
    return np.where((difference == 0) | (smaller < 2), 1.0, p)


def errors_against_first(labels: npt.NDArray[np.integer], scores: Array) -> Array:
    """Returns DeLong's standard error of the difference of each AUROC to the first, ``(G,)``.

    Paired over the images, of one training that is scored in G ways. 0 where a class has a single
    image: there is nothing to estimate it from.

    Args:
        labels: ``(N,)``, 0 for normal and 1 for anomalous images; both must be there.
        scores: ``(G, N)``, higher where more anomalous.
    """
    anomalous, normal, _ = placements(labels, scores)
    sources = _of_images(anomalous - anomalous[:1], normal - normal[:1])
    variance: Array = np.sum([source.variance for source in sources], axis=0)
    return np.sqrt(variance)


def _of_images(anomalous: Array, normal: Array) -> list[_Source]:
    """Returns what each class of images adds to the variance of the mean of its components."""
    return [
        _Source(part.var(-1, ddof=1) / part.shape[-1], part.shape[-1] - 1)
        if part.shape[-1] > 1
        else _Source(np.zeros(part.shape[:-1]), 1)
        for part in (anomalous, normal)
    ]


def _of_seeds(areas: Array) -> list[_Source]:
    """Returns what the trainings ``(..., S)`` add to the variance of their mean."""
    n = areas.shape[-1]
    return [_Source(areas.var(-1, ddof=1) / n, n - 1)] if n > 1 else []


def _satterthwaite(sources: list[_Source]) -> tuple[Array, Array]:
    """Returns the sum of variances and its degrees of freedom, 1 where there is no variance."""
    variance = np.sum([source.variance for source in sources], axis=0)
    spread = np.sum([source.variance**2 / source.freedom for source in sources], axis=0)
    freedom = np.divide(variance**2, spread, out=np.ones_like(spread), where=spread > 0)
    return variance, freedom


def _squared_half(sources: list[_Source]) -> Array:
    """Returns the squared half-width that independent sources give a 95 % interval."""
    if not sources:
        return np.zeros(())
    variance, freedom = _satterthwaite(sources)
    return np.asarray(stdtrit(freedom, 0.975) ** 2 * variance)


def _smaller(labels: npt.NDArray[np.integer]) -> int:
    n_anomalous = int((labels == 1).sum())
    return min(n_anomalous, len(labels) - n_anomalous)


def placements(labels: npt.NDArray[np.integer], scores: Array) -> tuple[Array, Array, Array]:
    """Returns DeLong's structural components and the areas, of scores ``(..., N)``.

    For every anomalous image the share of normal images that it outscores ``(..., m)``, for every
    normal image the share of anomalous images that outscore it ``(..., n)`` (a tie is one half).
    The mean of either is the area ``(...)``; it is computed from the sum of ranks, which is exact:
    equal areas are equal bits.
    """
    anomalous, normal = scores[..., labels == 1], scores[..., labels == 0]
    m, n = anomalous.shape[-1], normal.shape[-1]
    ranks = _midranks(np.concatenate([anomalous, normal], axis=-1))
    over_normal = (ranks[..., :m] - _midranks(anomalous)) / n
    under_anomalous = 1.0 - (ranks[..., m:] - _midranks(normal)) / m
    areas = (ranks[..., :m].sum(-1) - m * (m + 1) / 2) / (m * n)
    return over_normal, under_anomalous, areas


def _midranks(values: Array) -> Array:
    """Returns 1-based ranks along the last axis; equal values share the mean of theirs.

    As `scipy.stats.rankdata`, whose import takes longer than all ranks of a worker.
    """
    n = values.shape[-1]
    order = np.argsort(values, axis=-1)
    ordered = np.take_along_axis(values, order, axis=-1)
    steps = ordered[..., 1:] != ordered[..., :-1]
    edge = np.ones((*values.shape[:-1], 1), np.bool_)
    place = np.arange(n)
    first = np.maximum.accumulate(
        np.where(np.concatenate([edge, steps], axis=-1), place, 0), axis=-1
    )
    # From behind: the last place of each group of equal values.
    ends = np.where(np.concatenate([steps, edge], axis=-1), place, n)[..., ::-1]
    last = np.minimum.accumulate(ends, axis=-1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    return ranks
