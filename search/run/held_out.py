"""One confirm run: train a config with a seed, and open the held-out test images.

Nothing else opens them. The search has no part in it: which configs are confirmed was decided by
validation alone, and so is which of them wins.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomtune.datasets.io.maskfile import resize_mask
from anomtune.datasets.splits.held_out import TestSplit, load_test_split
from anomtune.errors import TrainingDivergedError
from anomtune.models.base import Detector
from anomtune.search.detector.devices import as_images, gpu_memory, peak_memory
from anomtune.search.detector.evaluate import evaluate
from anomtune.search.detector.heatmaps import outline, overlay, png_bytes, sheet
from anomtune.search.detector.look import look, make_saved_config
from anomtune.search.detector.opened import OpenedDetector, check_loss, images_changed
from anomtune.search.detector.saved import SavedConfig, save_model
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.detector.timing import image_ms
from anomtune.search.metrics.image import auroc
from anomtune.search.run.checkpoint import Checkpoints
from anomtune.search.run.trial import (
    TrialSpec,
    highest,
    keep,
    open_at_checkpoint,
    open_trial,
    pieces,
)
from anomtune.search.store.arrays import npz_bytes
from anomtune.search.store.held_out import DomainFigures, Example, ExampleKind
from anomtune.search.store.records import ConfirmResult, Cost, PaperScored


@dataclass(frozen=True)
class _Evaluation:
    """What the held-out images say: figures of each domain; of their own, scores and types."""

    figures: dict[str, DomainFigures]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int8]
    defects: npt.NDArray[np.str_]
    examples: list[Example]
    sheet: bytes | None


def run_confirm(spec: TrialSpec) -> Iterator[ConfirmResult]:
    """Trains a config to its end and yields its figures on validation and held-out images.

    Beside the record go the validation and the held-out scores (``.npz``) and, of the run that the
    sweep keeps, the detector (a folder) and a sheet of examples (``.png``).

    Where an earlier start left a checkpoint of this very training, it goes on from there: the
    result is the same, only the cost may differ. Checkpoints come between rungs, as a trial's do,
    and hold nothing of the held-out images, which are opened when the training is over.

    Args:
        spec: What to train on what.

    Raises:
        TrainingDivergedError: If the loss or a score is not finite.
        MethodError: If the method cannot be used so.
        DataError: If the images are not those that the sweep started with.
        SweepError: If an installed metric cannot be used.
        StorageError: If the files cannot be written.
    """
    training = spec.training
    trial, trained = _train(spec)
    begin = time.perf_counter()
    trial.make_ready()
    fitted = time.perf_counter()
    if spec.keep:
        seen = look(trial)
        scores = seen.scores
        saved = make_saved_config(training, trial, seen)
    else:
        scores, saved = _validation_scores(trial), None
    held_out = _open_held_out(training, trial) if trial.n_held_out else None
    evaluation = None if held_out is None else _evaluate(trial, held_out, saved)
    paper, paper_scores = _as_the_paper(spec.paper, trial, held_out)
    _write(spec, trial, scores, saved, evaluation=evaluation, paper=paper_scores)
    evaluated = time.perf_counter()
    trial.forget_features()
    figures = dict(evaluation.figures) if evaluation else {}
    yield ConfirmResult(
        val_auroc=auroc(trial.labels, scores).value,
        test=figures.pop("", None),
        shifted=figures,
        paper=paper,
        examples=evaluation.examples if evaluation else [],
        facts=trial.facts(),
        cost=Cost(
            train_seconds=trained.train_seconds + fitted - begin,
            evaluate_seconds=evaluated - fitted,
            image_ms=image_ms(trial.detector, trial.validation),
            peak_memory_bytes=highest(
                peak_memory(trial.detector.device), trained.peak_memory_bytes
            ),
            iterations=trial.iterations,
            gpu=spec.gpu or None,
            gpu_memory_bytes=gpu_memory(trial.detector.device),
        ),
    )


def _train(spec: TrialSpec) -> tuple[OpenedDetector, Cost]:
    """Returns a detector at the end of its training, and what that took up to there."""
    checkpoints = Checkpoints(spec.storage(), spec.record_path, spec.identity())
    trial, cost = _resume(spec, checkpoints)
    begin = time.perf_counter()
    trial.know_features()
    detector = trial.detector
    for _, iterations in pieces(spec.rungs, trial.iterations, detector.iteration):
        if checkpoints.due and detector.iteration:
            keep(detector, [_after(cost, begin, detector)], checkpoints)
        check_loss(detector.fit(trial.train, iterations))
    return trial, _after(cost, begin, detector)


def _resume(spec: TrialSpec, checkpoints: Checkpoints) -> tuple[OpenedDetector, Cost]:
    """Opens a detector where its last checkpoint is, and returns what it took up to there."""
    trial, texts = open_at_checkpoint(spec, checkpoints)
    try:
        return trial, Cost.model_validate_json(texts[-1]) if texts else Cost()
    except ValueError:  # of another version
        return open_trial(spec), Cost()


def _after(cost: Cost, begin: float, detector: Detector[Any]) -> Cost:
    """Returns what a training has taken by now, that of earlier starts included."""
    return Cost(
        train_seconds=cost.train_seconds + time.perf_counter() - begin,
        peak_memory_bytes=highest(peak_memory(detector.device), cost.peak_memory_bytes),
    )


def _validation_scores(trial: OpenedDetector) -> npt.NDArray[np.float32]:
    scores: npt.NDArray[np.float32] = trial.detector.score(trial.validation).numpy()
    if not np.isfinite(scores).all():
        raise TrainingDivergedError("anomaly scores are not finite")
    return scores


def _as_the_paper(
    scoring: dict[str, Any] | None, trial: OpenedDetector, held_out: TestSplit | None
) -> tuple[PaperScored | None, npt.NDArray[np.float32] | None]:
    """Returns what the paper's scoring finds with the same training, and its held-out scores."""
    if scoring is None:
        return None, None
    detector = trial.detector
    chosen, detector.scoring = detector.scoring, detector.scoring.changed(scoring)
    try:
        value = auroc(trial.labels, _validation_scores(trial)).value
        if held_out is None:
            return PaperScored(val_auroc=value, test=None), None
        found = evaluate(detector, held_out)
        own = np.array(held_out.domains) == ""
        return PaperScored(val_auroc=value, test=found.figures.get("")), found.scores[own]
    finally:
        detector.scoring = chosen


def _open_held_out(spec: TrainingSpec, trial: OpenedDetector) -> TestSplit:
    """Returns the held-out images."""
    held_out = load_test_split(
        spec.dataset.open(),
        spec.category,
        spec.image_size,
        spec.validation,
        input_size=trial.detector.input_size,
        resize=trial.detector.hyperparameters.resize,
    )
    if held_out.split_hash != trial.split_hash:
        raise images_changed(spec)
    return held_out


def _evaluate(trial: OpenedDetector, held_out: TestSplit, saved: SavedConfig | None) -> _Evaluation:
    """Scores the held-out images, batch by batch: they may be larger than the device's memory."""
    found = evaluate(trial.detector, held_out)
    scores = found.scores
    own = np.flatnonzero(np.array(held_out.domains) == "")
    examples = _choose_examples(held_out, scores, own) if saved else {}
    return _Evaluation(
        figures=dict(found.figures),
        scores=scores[own],
        labels=held_out.labels[own],
        defects=np.array(held_out.defects, dtype=np.str_)[own],
        examples=[
            Example(
                kind=kind,
                key=held_out.keys[index],
                defect=held_out.defects[index],
                score=float(scores[index]),
            )
            for kind, index in examples.items()
        ],
        sheet=_draw(trial, held_out, list(examples.values()), saved)
        if examples and saved
        else None,
    )


def _choose_examples(
    held_out: TestSplit, scores: npt.NDArray[np.float32], own: npt.NDArray[np.intp]
) -> dict[ExampleKind, int]:
    """Returns which images show best what the detector does: its worst, its best, the usual."""
    ranked = own[np.argsort(scores[own], kind="stable")]
    anomalous = ranked[held_out.labels[ranked] == 1]
    normal = ranked[held_out.labels[ranked] == 0]
    chosen: dict[ExampleKind, int] = {}
    if len(anomalous):
        chosen |= {
            "missed": int(anomalous[0]),
            "typical anomaly": int(anomalous[len(anomalous) // 2]),
            "found": int(anomalous[-1]),
        }
    if len(normal):
        chosen |= {
            "false alarm": int(normal[-1]),
            "typical normal": int(normal[len(normal) // 2]),
        }
    return chosen


def _draw(
    trial: OpenedDetector, held_out: TestSplit, indices: list[int], saved: SavedConfig
) -> bytes:
    """Returns a PNG with a row per image: as it is, with its defect outlined, with its map."""
    detector = trial.detector
    images = as_images(held_out.images[np.array(indices)], detector.device)
    maps = detector.anomaly_maps(images).cpu().numpy()
    rows = []
    for index, anomaly_map in zip(indices, maps, strict=True):
        image = _at_size(held_out.images[index], detector.image_size)
        rows.append(
            [
                image,
                outline(image, resize_mask(held_out.masks[index], len(image), touched=True)),
                overlay(image, anomaly_map, saved.map_low, saved.map_high),
            ]
        )
    return png_bytes(sheet(rows))


def _at_size(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Returns an image ``(S, S, 3)`` at the size of maps, for a method that works at another."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def _write(
    spec: TrialSpec,
    trial: OpenedDetector,
    scores: npt.NDArray[np.float32],
    saved: SavedConfig | None,
    *,
    evaluation: _Evaluation | None,
    paper: npt.NDArray[np.float32] | None,
) -> None:
    """Writes what lies beside the record, which is written when it is all there."""
    storage = spec.storage()
    arrays: dict[str, npt.NDArray[Any]] = {
        "scorings": np.zeros(1, np.intp),
        "validation": scores[None],
    }
    if evaluation is not None:
        arrays |= {
            "labels": evaluation.labels,
            "held_out": evaluation.scores,
            "defects": evaluation.defects,
        }
        if evaluation.sheet is not None:
            storage.write(f"{spec.record_path}.png", evaluation.sheet)
    if paper is not None:
        arrays["paper_held_out"] = paper
    storage.write(f"{spec.record_path}.npz", npz_bytes(**arrays), durable=True)
    if saved is not None:
        save_model(storage, spec.record_path, trial.detector, saved)
