"""The detector that a sweep keeps of a category, on the held-out images: whom it misses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anomtune.search.config import ConfirmConfig
from anomtune.search.decide.confirm import Confirmed, kept_seed
from anomtune.search.detector.threshold import choose_threshold
from anomtune.search.results.winners import kept_config
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import ConfirmRecord


@dataclass(frozen=True)
class Kept:
    """One training of the chosen config: that whose detector lies in ``models/``.

    Attributes:
        seed: It was trained with.
        labels: ``(K,)`` of the held-out images, 1 = anomalous; both kinds are there.
        scores: ``(K,)``, finite.
        defects: ``(K,)`` defect types; ``None`` if they have not been kept.
        threshold: Images that score as high or higher are called anomalous; ``None`` if it is
            known from nowhere.
        saved: Whether it is the saved detector's own; else it is what its validation scores give.
    """

    seed: int
    labels: npt.NDArray[np.int8]
    scores: npt.NDArray[np.float64]
    defects: npt.NDArray[np.str_] | None
    threshold: float | None
    saved: bool


def read_kept(store: RecordStore, winner: Confirmed, config: ConfirmConfig) -> Kept | None:
    """Returns the detector that is kept, ``None`` if there are no usable scores of it.

    Args:
        store: The sweep directory.
        winner: The chosen config of a study.
        config: Which seeds there are.
    """
    run = next((run for run in winner.runs if run.seed == kept_seed(config)), None)
    found = None if run is None else store.read_held_out(run)
    if run is None or found is None:
        return None
    labels, scores = found.labels, found.scores.astype(np.float64)
    if labels.shape != scores.shape or not np.isfinite(scores).all() or len(np.unique(labels)) < 2:
        return None
    defects = store.read_defects(run)
    threshold, saved = _threshold(store, run)
    return Kept(
        seed=run.seed,
        labels=labels,
        scores=scores,
        defects=defects if defects is not None and defects.shape == labels.shape else None,
        threshold=threshold,
        saved=saved,
    )


def _threshold(store: RecordStore, run: ConfirmRecord) -> tuple[float | None, bool]:
    """Returns the threshold of a run's detector, and whether a saved detector says so."""
    if saved := kept_config(store.storage, run):
        return saved.threshold, True
    (scores,), labels = store.read_scores([run]), store.read_labels(run.category)
    if scores is None or labels is None or scores.shape != labels.shape or not labels.any():
        return None, False
    if not np.isfinite(scores).all():
        return None, False
    return choose_threshold(labels, scores, 0.0).value, False
