"""One confirm run: train a config with a seed, and open the held-out test images.

Nothing else opens them. The search has no part in it: which configs are confirmed was decided by
validation alone, and so is which of them wins.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from anomtune.datasets.splits import TestSplit, Validation, load_test_split
from anomtune.models.base import TrainingDivergedError
from anomtune.search.data import open_data
from anomtune.search.metrics import auroc
from anomtune.search.records import ConfirmResult, Cost, DomainFigures
from anomtune.search.trial import (
    OpenedTrial,
    TrialSpec,
    as_images,
    check_loss,
    images_changed,
    open_trial,
    peak_memory,
)

_BATCH = 32


def run_confirm(spec: TrialSpec) -> Iterator[ConfirmResult]:
    """Trains a config to its end and yields its figures on validation and held-out images.

    Args:
        spec: What to train on what; its ``rungs`` do not matter.

    Raises:
        TrainingDivergedError: If the loss or a score is not finite.
        MethodError: If the method cannot be used so.
        DataError: If the images are not those that the sweep started with.
    """
    trial = open_trial(spec)
    begin = time.perf_counter()
    check_loss(trial.detector.fit(trial.train, trial.iterations))
    fitted = time.perf_counter()
    scores = trial.detector.score(trial.validation).numpy()
    evaluated = time.perf_counter()
    if not np.isfinite(scores).all():
        raise TrainingDivergedError("anomaly scores are not finite")
    test, shifted = (None, {}) if trial.n_held_out == 0 else _evaluate(spec, trial)
    yield ConfirmResult(
        val_auroc=auroc(trial.labels, scores).value,
        test=test,
        shifted=shifted,
        facts=trial.facts(),
        cost=Cost(
            train_seconds=fitted - begin,
            evaluate_seconds=time.perf_counter() - fitted,
            image_ms=(evaluated - fitted) / len(scores) * 1e3,
            peak_memory_bytes=peak_memory(trial.detector.device),
        ),
    )


def _evaluate(
    spec: TrialSpec, trial: OpenedTrial
) -> tuple[DomainFigures | None, dict[str, DomainFigures]]:
    """Returns the figures on the training images' own domain and on each shifted one."""
    held_out = load_test_split(
        open_data(spec.dataset),
        spec.category,
        spec.image_size,
        Validation(**spec.validation.model_dump()),
        input_size=trial.detector.input_size,
    )
    if held_out.split_hash != spec.split_hash:
        raise images_changed(spec)
    scores = _score(trial, held_out)
    domains = np.array(held_out.domains)
    figures = {
        str(domain): _figures(held_out.labels[domains == domain], scores[domains == domain])
        for domain in sorted(set(held_out.domains))
    }
    return figures.pop("", None), figures


def _score(trial: OpenedTrial, held_out: TestSplit) -> npt.NDArray[np.float32]:
    # Batches go to the device one by one: the held-out part may be larger than its memory.
    batches = range(0, len(held_out.images), _BATCH)
    return np.concatenate(
        [
            trial.detector.score(
                as_images(held_out.images[start : start + _BATCH], trial.detector.device)
            ).numpy()
            for start in batches
        ]
    )


def _figures(labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float32]) -> DomainFigures:
    n_anomalous = int((labels == 1).sum())
    n_normal = len(labels) - n_anomalous
    # A score that is no number is no reason to fail: held-out images must not decide who wins.
    measurable = n_normal and n_anomalous and np.isfinite(scores).all()
    return DomainFigures(
        n_normal=n_normal,
        n_anomalous=n_anomalous,
        auroc=auroc(labels, scores).value if measurable else None,
    )
