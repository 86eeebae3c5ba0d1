"""What a trained detector measures on test images: one pass, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anomtune.datasets.splits.held_out import TestSplit
from anomtune.models.base import Detector
from anomtune.search.detector.devices import as_images
from anomtune.search.metrics.alignment import MaskSize
from anomtune.search.metrics.evaluation import Evaluation
from anomtune.search.metrics.image import auroc
from anomtune.search.metrics.metric import metrics
from anomtune.search.store.held_out import DomainFigures

_BATCH = 32


@dataclass(frozen=True)
class Evaluated:
    """What test images say of a detector.

    Attributes:
        figures: By domain, "" for the training images' own.
        scores: ``(K,)``, in the order of the images.
    """

    figures: Mapping[str, DomainFigures]
    scores: npt.NDArray[np.float32]


def evaluate(
    detector: Detector[Any],
    images: TestSplit,
    *,
    masks: MaskSize = "as_drawn",
    seen: float = 1.0,
) -> Evaluated:
    """Scores test images, batch by batch: they may be larger than the device's memory.

    A map that is no number is no reason to fail: held-out images must not decide who wins.

    Args:
        detector: Trained.
        images: At the detector's input size.
        masks: How maps and masks are brought to one size.
        seen: How much of each side counts in figures of pixels, see `Evaluation`.

    Raises:
        SweepError: If an installed metric cannot be used.
    """
    domains, drawn = np.array(images.domains), images.masks.drawn
    localises = detector.hyperparameters.localises and bool(drawn.any())
    wanted = metrics()
    evaluations = {
        str(domain): Evaluation(wanted, masks=masks, seen=seen)
        for domain in sorted(set(images.domains))
    }
    scores = np.empty(len(images.images), np.float32)
    for start in range(0, len(scores), _BATCH):
        batch = np.arange(start, min(start + _BATCH, len(scores)))
        found, scored = detector.predict(as_images(images.images[batch], detector.device))
        maps, scores[batch] = found.cpu().numpy(), scored.cpu().numpy()
        # Where the defect lies must be known.
        usable = np.isfinite(maps).all(axis=(1, 2))
        usable &= drawn[batch] | (images.labels[batch] == 0)
        for domain, evaluation in evaluations.items() if localises else ():
            chosen = usable & (domains[batch] == domain)
            evaluation.add(maps[chosen], images.masks.take(batch[chosen]))
    unknown = (images.labels == 1) & ~drawn
    for domain, evaluation in evaluations.items() if localises else ():
        if count := int((unknown & (domains == domain)).sum()):
            evaluation.notes.append(
                f"{count} anomalous images have no mask, or nothing drawn in it: left out of the "
                "figures of pixels"
            )
    figures = {
        domain: _figures(images.labels[domains == domain], scores[domains == domain], evaluation)
        for domain, evaluation in evaluations.items()
    }
    return Evaluated(figures, scores)


def _figures(
    labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float32], evaluation: Evaluation
) -> DomainFigures:
    n_anomalous = int((labels == 1).sum())
    found = evaluation.figures(labels, scores)
    area = None if found["auroc"] is None else auroc(labels, scores)
    return DomainFigures(
        n_normal=len(labels) - n_anomalous,
        n_anomalous=n_anomalous,
        figures=found,
        auroc_low=area and area.low,
        auroc_high=area and area.high,
        notes=evaluation.notes,
    )
