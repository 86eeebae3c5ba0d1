"""What every scoring says of a training, small enough to stand in its record."""

from __future__ import annotations

import base64
import zlib
from typing import Self

import numpy as np
import numpy.typing as npt

from anomtune.bounded import inflate
from anomtune.search.store.part import Part, Whole

Figures = npt.NDArray[np.float64]

#: What a figure of each scoring may take: some hundred times as much as hundreds of scorings.
_MOST_BYTES = 1 << 18
#: Ends of intervals are kept in such steps.
_STEPS = 2**32 - 1


class Judged(Part):
    """AUROCs by scoring, in the order of the study's scorings, of which the first is the paper's.

    Attributes:
        steps: AUROCs of so many images are whole numbers of such parts of 1: they are kept exactly.
        aurocs: Packed.
        lows: Lower ends of their 95 % intervals, packed; of a last rung.
        highs: Upper ends.
        errors: Standard errors, over images, of what each has over the paper's, packed; of a last
            rung.
    """

    steps: Whole
    aurocs: str
    lows: str | None = None
    highs: str | None = None
    errors: str | None = None

    @classmethod
    def of(
        cls,
        labels: npt.NDArray[np.integer],
        aurocs: Figures,
        lows: Figures | None = None,
        highs: Figures | None = None,
        errors: Figures | None = None,
    ) -> Self:
        """Returns what is kept.

        Args:
            labels: ``(N,)``, 0 for normal and 1 for anomalous images.
            aurocs: ``(G,)``, in [0, 1].
            lows: ``(G,)``, in [0, 1].
            highs: ``(G,)``, in [0, 1].
            errors: ``(G,)``, in [0, 1].
        """
        n_anomalous = int((labels == 1).sum())
        # A tie counts one half. Of very many images there are more steps than a number has.
        steps = min(2 * n_anomalous * (len(labels) - n_anomalous), _STEPS)
        return cls(
            steps=steps,
            aurocs=_pack(aurocs, steps),
            lows=None if lows is None else _pack(lows, _STEPS),
            highs=None if highs is None else _pack(highs, _STEPS),
            errors=None if errors is None else _pack(errors, _STEPS),
        )

    def values(self) -> Figures:
        """Returns the AUROCs ``(G,)``."""
        return _unpack(self.aurocs, self.steps)

    def standard_errors(self) -> Figures | None:
        """Returns the standard errors ``(G,)`` of what each has over the paper's, if kept."""
        return None if self.errors is None else _unpack(self.errors, _STEPS)

    def interval(self, scoring: int) -> tuple[float | None, float | None]:
        """Returns the ends of the interval of one scoring, if they were kept."""
        if self.lows is None or self.highs is None:
            return None, None
        low, high = (_unpack(end, _STEPS)[scoring] for end in (self.lows, self.highs))
        return float(low), float(high)


def _pack(values: Figures, steps: int) -> str:
    counts = np.rint(values * steps).astype("<u4")
    # Differences of neighbours are small, and compress well.
    changes = np.diff(counts, prepend=np.uint32(0))
    return base64.b64encode(zlib.compress(changes.tobytes())).decode()


def _unpack(text: str, steps: int) -> Figures:
    """Returns figures; raises ValueError if the text holds none."""
    changes = np.frombuffer(inflate(base64.b64decode(text), _MOST_BYTES), "<u4")
    found: Figures = np.cumsum(changes, dtype=np.uint32) / steps
    return found
