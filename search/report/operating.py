"""What a threshold costs: missed defects against false alarms on the held-out images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anomtune.search.metrics.proportion import proportion_interval
from anomtune.search.report.kept import Kept

#: Thresholds that the slider stops at; where there are more, those that no cost ratio chooses go.
_MOST = 200
_BINS = 48
#: False alarms, as a share of the normal images, that a row of the table allows.
_ALLOWED = 0.05


@dataclass(frozen=True)
class Counts:
    """How many of how many, with the 95 % interval of their share (Clopper-Pearson)."""

    number: int
    total: int

    @property
    def text(self) -> str:
        """For example ``3 of 40 (2-20 %)``."""
        low, high = (float(end) for end in proportion_interval(self.number, self.total))
        return f"{self.number} of {self.total} ({percent(low)}-{percent(high)} %)"


def percent(share: float) -> str:
    """Returns a share in [0, 1] in percent, with a digit after the point where it is small."""
    value = 100 * share
    return f"{value:.1f}" if 0 < value < 9.95 else f"{value:.0f}"


@dataclass(frozen=True)
class Step:
    """A threshold, and what goes wrong at it."""

    name: str
    threshold: float
    missed: Counts
    alarms: Counts


@dataclass(frozen=True)
class Bar:
    """A bin of scores, in percent of the picture: its place, and a height for either class."""

    left: float
    width: float
    normal: float
    anomalous: float


@dataclass(frozen=True)
class Operating:
    """The thresholds of a detector.

    Attributes:
        seed: Of the detector.
        saved: Whether the chosen threshold is that of the saved detector.
        table: The thresholds that a reader asks for first, the chosen one in front.
        slider: What the page's script needs: ``steps`` of threshold, missed, alarms, the ends of
            both intervals in percent and the place in the picture; ``chosen``, the index of the
            chosen one; ``good`` and ``bad``, the numbers of images.
        bars: Picture of the scores.
        dropped: How many thresholds the slider leaves out.
    """

    seed: int
    saved: bool
    table: tuple[Step, ...]
    slider: dict[str, Any]
    bars: tuple[Bar, ...]
    dropped: int

    @property
    def chosen(self) -> Step | None:
        """The chosen threshold, if it is known."""
        return self.table[0] if self.slider["chosen"] is not None else None


def operating(kept: Kept) -> Operating:
    """Counts what each threshold misses and what it calls a defect wrongly.

    Args:
        kept: The detector.
    """
    normal, anomalous = (np.sort(kept.scores[kept.labels == label]) for label in (0, 1))
    thresholds = _thresholds(kept.scores, kept.threshold)
    missed = np.searchsorted(anomalous, thresholds, "left")
    alarms = len(normal) - np.searchsorted(normal, thresholds, "left")
    chosen = None
    if kept.threshold is not None:
        chosen = int(np.flatnonzero(thresholds == kept.threshold)[0])
    shown = _kept_steps(missed, alarms, chosen)

    def step(name: str, index: int) -> Step:
        return Step(
            name,
            float(thresholds[index]),
            Counts(int(missed[index]), len(anomalous)),
            Counts(int(alarms[index]), len(normal)),
        )

    table = [] if chosen is None else [step("chosen on validation", chosen)]
    table += [
        step("no defect missed", int(np.flatnonzero(missed == 0)[-1])),
        step(
            f"at most {_ALLOWED:.0%} false alarms".replace("%", " %"),
            int(np.flatnonzero(alarms <= _ALLOWED * len(normal))[0]),
        ),
        step("no false alarm", int(np.flatnonzero(alarms == 0)[0])),
    ]
    low, high = float(kept.scores.min()), float(kept.scores.max())
    ends = [
        np.round(100 * end, 2)
        for counts, total in ((missed, len(anomalous)), (alarms, len(normal)))
        for end in proportion_interval(counts, total)
    ]
    places = np.round(100 * (thresholds - low) / ((high - low) or 1), 2).clip(0, 100)
    columns = (thresholds, missed, alarms, *ends, places)
    return Operating(
        seed=kept.seed,
        saved=kept.saved,
        table=tuple(table),
        slider={
            "steps": [[column[index].item() for column in columns] for index in shown],
            "chosen": None if chosen is None else shown.index(chosen),
            "good": len(normal),
            "bad": len(anomalous),
        },
        bars=_bars(normal, anomalous, low, high),
        dropped=len(thresholds) - len(shown),
    )


def _thresholds(scores: npt.NDArray[np.float64], chosen: float | None) -> npt.NDArray[np.float64]:
    """Returns a threshold for each way to divide the images, rising; the chosen is one of them."""
    levels = np.unique(scores)
    margin = max(float(levels[-1] - levels[0]), abs(float(levels[-1])), 1e-6) * 0.01
    # Scores are of float32: in float64 there is room between any two of them.
    between = (levels[1:] + levels[:-1]) / 2
    thresholds = np.concatenate([[levels[0] - margin], between, [levels[-1] + margin]])
    if chosen is not None:
        thresholds[np.searchsorted(levels, chosen, "left")] = chosen
    return thresholds


def _kept_steps(
    missed: npt.NDArray[np.intp], alarms: npt.NDArray[np.intp], chosen: int | None
) -> list[int]:
    """Returns which thresholds the slider has: all, or those that are best at some cost, and some.

    What is best where a missed defect costs as much as so many false alarms is always a corner of
    the convex hull of missed and alarms, so that no answer is lost.
    """
    count = len(missed)
    if count <= _MOST:
        return list(range(count))
    kept = set(_hull(zip(missed.tolist(), alarms.tolist(), strict=True)))
    kept |= set(np.linspace(0, count - 1, _MOST).round().astype(int).tolist())
    return sorted(kept | ({chosen} if chosen is not None else set()))


def _hull(points: Iterable[tuple[int, int]]) -> list[int]:
    """Returns the corners of the lower left convex hull of points with rising x and falling y."""
    corners: list[tuple[int, int, int]] = []
    for index, (x, y) in enumerate(points):
        while len(corners) > 1:
            (_, x1, y1), (_, x2, y2) = corners[-2:]
            if (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1) > 0:
                break
            corners.pop()
        corners.append((index, x, y))
    return [index for index, _, _ in corners]


def _bars(
    normal: npt.NDArray[np.float64], anomalous: npt.NDArray[np.float64], low: float, high: float
) -> tuple[Bar, ...]:
    """Returns the histograms of both classes, each as high as its own highest bin."""
    ends = (low, high) if high > low else (low - 0.5, low + 0.5)
    counts = [np.histogram(scores, _BINS, ends)[0] for scores in (normal, anomalous)]
    heights = [100 * count / count.max() for count in counts]
    width = 100 / _BINS
    return tuple(
        Bar(round(index * width, 2), round(width * 0.86, 2), round(up, 1), round(down, 1))
        for index, (up, down) in enumerate(zip(*heights, strict=True))
        if up or down
    )
