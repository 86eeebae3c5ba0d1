"""All metrics of one set of images, in one pass over its maps and the masks as they were drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anomtune.search.metrics.alignment import (
    MaskSize,
    at_one_size,
    at_size,
    check_mask_size,
    middle,
)
from anomtune.search.metrics.cells import MOST_PIXELS, cells_of
from anomtune.search.metrics.metric import Metric

_TOGETHER = 1 << 20  # Pixels of images of one size that metrics are given at once.


class Evaluation:
    """Computes metrics of one set of images.

    Held-out images must not decide what fails: a metric that raises or is no number has no figure,
    and `notes` say why.

    Args:
        metrics: What is computed.
        masks: ``as_drawn`` measures at the size of each mask; ``resized`` and ``touched`` do what
            papers do, see `anomtune.search.metrics.alignment`.
        seen: How much of each side the method sees, in (0, 1]: the rim around the middle is in no
            figure of pixels. For what papers do alone.

    Raises:
        ValueError: If ``masks`` is none of these, or a rim is left out of masks as drawn.
    """

    def __init__(
        self, metrics: Iterable[Metric], *, masks: MaskSize = "as_drawn", seen: float = 1.0
    ) -> None:
        check_mask_size(masks)
        if seen != 1 and masks == "as_drawn":
            raise ValueError("a rim is left out where masks are resized to the maps alone")
        self._masks, self._seen = masks, seen
        self._metrics = tuple(metrics)
        self.notes: list[str] = []
        self._broken: set[Callable[..., Any]] = set()
        #: By what makes them: metrics may share an accumulator.
        self._accumulators = {
            compute: self._guarded(compute, compute)
            for compute in dict.fromkeys(m.compute for m in self._metrics if m.level == "pixel")
        }
        self._has_maps = False

    def add(self, maps: npt.NDArray[np.float32], masks: Sequence[npt.NDArray[np.bool_]]) -> None:
        """Adds a batch of images whose defects are marked, normal ones included.

        Args:
            maps: ``(N, h, w)``, finite.
            masks: ``N`` masks, each ``(H, W)`` of the size of its image, true in defects.
        """
        together: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]] = []
        for anomaly_map, mask in zip(maps, masks, strict=True):
            if self._masks == "as_drawn" and mask.size > MOST_PIXELS:
                self._add_in_cells(anomaly_map, mask)
                continue
            whole = at_one_size(anomaly_map, mask, self._masks)
            pair = middle(whole[0], self._seen), middle(whole[1], self._seen)
            if together and (
                pair[1].shape != together[0][1].shape
                or (len(together) + 1) * pair[1].size > _TOGETHER
            ):
                self._add(*map(np.stack, zip(*together, strict=True)))
                together = []
            together.append(pair)
        if together:
            self._add(*map(np.stack, zip(*together, strict=True)))

    def _add(self, maps: npt.NDArray[np.float32], masks: npt.NDArray[np.bool_]) -> None:
        """Adds images of one size, ``(N, H, W)`` both."""
        self._has_maps = True
        for compute, accumulator in self._accumulators.items():
            if compute not in self._broken:
                self._guarded(compute, accumulator.add, maps, masks)

    def _add_in_cells(
        self, anomaly_map: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]
    ) -> None:
        """Adds an image whose mask is very large."""
        self._has_maps = True
        cells = cells_of(anomaly_map, mask)
        for compute, accumulator in self._accumulators.items():
            if compute in self._broken:
                continue
            if hasattr(accumulator, "add_cells"):
                self._guarded(compute, accumulator.add_cells, cells)
            else:  # Nothing that is drawn vanishes.
                touched = cells.anomalous > 0
                at_cells = at_size(anomaly_map, touched.shape)
                self._guarded(compute, accumulator.add, at_cells[None], touched[None])

    def figures(
        self, labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float32]
    ) -> dict[str, float | None]:
        """Returns the figure of every metric, ``None`` where it is not defined.

        Args:
            labels: ``(N,)``, 1 = anomalous.
            scores: ``(N,)``.
        """
        finite = bool(np.isfinite(scores).all())
        if not finite:
            self.notes.append("anomaly scores are not finite: no figures of images")
        usable = finite and len(np.unique(labels)) == 2
        results = {
            compute: self._guarded(compute, accumulator.result)
            for compute, accumulator in self._accumulators.items()
            if compute not in self._broken and self._has_maps
        }
        figures: dict[str, float | None] = {}
        for metric in self._metrics:
            found = None
            if metric.level == "pixel":
                found = results.get(metric.compute)
                found = getattr(found, metric.name, found)
            elif usable:
                found = self._guarded(metric.compute, metric.compute, labels, scores)
            figures[metric.name] = self._number(metric, found)
        return figures

    def _number(self, metric: Metric, found: Any) -> float | None:
        if found is None:
            return None
        try:
            value = float(found)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            self.notes.append(f"{metric.name}: gives {found!r}, not a finite number")
            return None
        return value

    def _guarded(self, compute: Callable[..., Any], call: Callable[..., Any], *args: Any) -> Any:
        """Returns what a metric's own code returns, ``None`` if it fails."""
        try:
            return call(*args)
        except Exception as error:  # noqa: BLE001 - anybody's code; the note says what it raised
            names = ", ".join(metric.name for metric in self._metrics if metric.compute is compute)
            reason = " ".join(str(error).split())
            self._broken.add(compute)
            self.notes.append(f"{names}: {type(error).__name__}: {reason}")
            return None
