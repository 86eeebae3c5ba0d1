"""What must hold of a finished sweep directory, whatever happened on the way."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import safetensors.numpy
import torch
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anomtune.datasets.splits.split import load_search_split
from anomtune.errors import StorageError
from anomtune.search.config import Sweep
from anomtune.search.decide.confirm import choose, kept_seed, to_confirm
from anomtune.search.decide.scoring import read_studies
from anomtune.search.detector.devices import as_images
from anomtune.search.detector.saved import load_detector
from anomtune.search.results.leaderboard import write_tables
from anomtune.search.results.result import open_sweep
from anomtune.search.results.tensorboard_internals import says_the_end
from anomtune.search.results.winners import model_folder
from anomtune.search.store.directory import read_sweep
from anomtune.search.store.lock import DirectoryLock, OwnerWatch
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import AnyRecord, ConfirmRecord, StudyKey, TrialRecord

#: All that may lie at the top of a sweep directory.
_TOP = {
    "scorings",
    ".lock",
    "confirm",
    "held_out.json",
    "leaderboard.parquet",
    "models",
    "owner.json",
    "searched.json",
    "sweep.yaml",
    "tensorboard",
    "trials",
    "trials.parquet",
}
#: What the same sweep need not come to again: times, and the memory of a process.
_MEASURED = {"train_seconds", "image_ms", "peak_memory_bytes", "created_at"}
#: Of a trial, what its config and its images alone decide.
_DECIDED = ("category", "method", "number", "seed", "state", "params")


def finished_records(directory: Path) -> dict[str, bytes]:
    """Returns the files of all records that say that they have ended."""
    found = {}
    for folder in ("trials", "confirm"):
        for path in sorted(directory.glob(f"{folder}/*/*/0*.json")):
            content = path.read_bytes()
            if json.loads(content)["state"] != "RUNNING":
                found[str(path.relative_to(directory))] = content
    return found


def violations(directory: Path, before: dict[str, bytes]) -> Iterator[str]:
    """Yields what is wrong with a finished sweep directory.

    Args:
        directory: Local path.
        before: Records that had ended before, and their content then.
    """
    config, store = read_sweep(directory)
    yield from _changed(directory, before)
    if not open_sweep(directory).finished:
        yield "is not finished, it says"
    yield from _left_over(directory)
    trials, runs = read_studies(store), store.read_confirmed()
    wanted = {
        StudyKey(category, method)
        for category in config.dataset.categories or ()
        for method in config.methods
    }
    if trials.keys() != wanted:
        yield f"studies {sorted(map(str, trials))}, not {sorted(map(str, wanted))}"
    for key, records in trials.items():
        numbers = [record.number for record in records]
        if numbers != list(range(config.trials)):
            yield f"{key}: trials {numbers}"
        for record in records:
            yield from _wrong_trial(store, record, config.rungs)
            yield from _wrong_curve(directory, record)
        expected = {
            (number, seed)
            for number in to_confirm(records, config.confirm)
            for seed in config.confirm.seeds
        }
        of_study = runs.get(key, [])
        found = {(run.number, run.seed) for run in of_study}
        if found != expected or len(of_study) != len(expected):
            yield f"{key}: confirm runs {sorted(found)}, not {sorted(expected)}"
        for run in of_study:
            if run.state == "RUNNING":
                yield f"{run.path}: still RUNNING"
            if run.state == "FAIL":
                yield f"{run.path}: FAIL: {run.error}"
            if run.state == "COMPLETE" and store.read_held_out(run) is None:
                yield f"{run.path}: no held-out scores"
            if run.state == "COMPLETE":
                yield from _wrong_scores(store, run)
                yield from _wrong_confirm_curves(directory, run)
        _, winner = choose(records, of_study, config.confirm)
        yield from _wrong_model(directory, key, winner.runs if winner else (), config, store)
    yield from _wrong_tables(directory, store)
    yield from _locked(store)  # last: who owns a directory tidies it


def differences(directory: Path, other: Path) -> Iterator[str]:
    """Yields in what a finished sweep differs from another of the same file, measured times aside.

    Args:
        directory: Local path.
        other: Local path.
    """
    boards = [pq.read_table(folder / "leaderboard.parquet") for folder in (directory, other)]
    found, expected = (
        board.select([name for name in board.column_names if name not in _MEASURED])
        for board in boards
    )
    for name in expected.column_names:
        if not found.column(name).equals(expected.column(name)):
            values = found.column(name).to_pylist(), expected.column(name).to_pylist()
            yield f"leaderboard: {name} {values[0]}, untroubled {values[1]}"
    trials = [_decided(folder) for folder in (directory, other)]
    if trials[0] != trials[1]:
        yield f"trials {trials[0]}, untroubled {trials[1]}"


def _decided(directory: Path) -> list[tuple[object, ...]]:
    records = [
        json.loads(path.read_text()) for path in sorted(directory.glob("trials/*/*/0*.json"))
    ]
    return [
        (*(record[name] for name in _DECIDED), [rung["auroc"] for rung in record["curve"]])
        for record in records
    ]


def _locked(store: RecordStore) -> Iterator[str]:
    mark = json.loads(store.storage.read("owner.json") or b"{}")
    if mark.get("pid") != os.getpid() and OwnerWatch(store.storage).look().alive:
        yield "owner.json: says that the sweep has a live owner"
    try:
        with DirectoryLock(store.storage):
            pass
    except StorageError as error:
        yield f"cannot be locked: {error}"


def _changed(directory: Path, before: dict[str, bytes]) -> Iterator[str]:
    for path, content in before.items():
        now = (directory / path).read_bytes() if (directory / path).exists() else b"nothing"
        if now != content:
            yield f"{path}: changed after it had ended"


def _left_over(directory: Path) -> Iterator[str]:
    for path in directory.iterdir():
        if path.name not in _TOP:
            yield f"{path.name}: left over"
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if path.suffix == ".tmp":
            yield f"{name}: left over"
        if path.is_file() and path.name != ".lock" and not _is_whole(path):
            yield f"{name}: not a whole file"
    if weights := list((directory / "confirm").rglob("*.safetensors")):
        yield f"{weights[0]}: weights of no winner"


def _is_whole(path: Path) -> bool:
    content = path.read_bytes()
    try:
        match path.suffix:
            case ".json":
                json.loads(content)
            case ".npy" | ".npz":
                np.load(io.BytesIO(content), allow_pickle=False)
            case ".parquet":
                pq.read_table(io.BytesIO(content))
            case ".safetensors":
                safetensors.numpy.load(content)
    except Exception:  # noqa: BLE001 - whatever a reader would stumble on
        return False
    return bool(content)


def _events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns the steps and values of every scalar of a run, as TensorBoard reads them."""
    if not folder.is_dir():
        return {}
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def _wrong_curve(directory: Path, record: TrialRecord) -> Iterator[str]:
    """Yields what TensorBoard would not show of a trial as it was."""
    folder = directory / f"tensorboard/{record.key}/{record.number:05d}"
    found = _events(folder)
    shown = found.get("auroc/validation", [])
    if [step for step, _ in shown] != [rung.step for rung in record.curve]:
        yield f"{folder.relative_to(directory)}: shows {shown}, has {len(record.curve)} rungs"
    for (step, value), rung in zip(shown, record.curve, strict=False):
        # As the scoring read it that was the study's when it was written.
        known = [rung.auroc, *([] if rung.judged is None else rung.judged.values())]
        if np.abs(np.array(known) - value).min() > 1e-6:
            yield f"{folder.relative_to(directory)}: shows {value} at rung {step}"
    for tag, points in found.items():
        steps = [step for step, _ in points]
        if steps != sorted(set(steps)):
            yield f"{folder.relative_to(directory)}: {tag} has steps {steps}"
    files = sorted(folder.glob("*tfevents*"))
    if not files or not says_the_end(files[-1].read_bytes()):
        yield f"{folder.relative_to(directory)}: has no end"


def _wrong_confirm_curves(directory: Path, run: ConfirmRecord) -> Iterator[str]:
    """Yields what TensorBoard would not show of a confirm run as it was."""
    name = f"{run.number:05d}-{run.seed}"
    figures = _events(directory / f"tensorboard/{run.key}/confirm/{name}")
    if [value for _, value in figures.get("auroc/confirmed", [])] != [np.float32(run.val_auroc)]:
        yield f"tensorboard: {run.path} confirmed {figures.get('auroc/confirmed')}"
    curves = _events(directory / f"tensorboard/{run.key}/roc/{name}")
    steps = [step for points in curves.values() for step, _ in points]
    if steps != list(range(0, 1001, 2)):
        yield f"tensorboard: the ROC curve of {run.path} has {len(steps)} points"


def _wrong_trial(store: RecordStore, record: TrialRecord, rungs: int) -> Iterator[str]:
    if record.state == "RUNNING":
        yield f"{record.path}: still RUNNING"
    steps = [rung.step for rung in record.curve]
    if steps != list(range(1, len(steps) + 1)):
        yield f"{record.path}: rungs {steps}"
    if record.state == "FAIL":  # these configs do not fail by themselves
        yield f"{record.path}: FAIL: {record.error}"
    if record.state != "COMPLETE":
        return
    if len(steps) != rungs:
        yield f"{record.path}: COMPLETE with rungs {steps}"
    yield from _wrong_scores(store, record)


def _wrong_scores(store: RecordStore, record: AnyRecord) -> Iterator[str]:
    labels, (scores,) = store.read_labels(record.category), store.read_scores([record])
    if labels is None or scores is None or labels.shape != scores.shape:
        yield f"{record.path}: no scores"
    elif abs(roc_auc_score(labels, scores) - (record.value or 0)) > 1e-9:
        yield f"{record.path}: the scores are of another training"


def _wrong_model(
    directory: Path,
    key: StudyKey,
    runs: tuple[ConfirmRecord, ...],
    config: Sweep,
    store: RecordStore,
) -> Iterator[str]:
    folder = directory / model_folder(key)
    if not runs:
        if folder.exists():
            yield f"{folder.name}: a model of no winner"
        return
    try:
        detector, saved = load_detector(folder)
    except Exception as error:  # noqa: BLE001 - whatever a user would see
        yield f"{key}: the model cannot be loaded: {error}"
        return
    run = next(run for run in runs if run.seed == kept_seed(config.confirm))
    if saved.hyperparameters != run.params or saved.seed != run.seed:
        yield f"{key}: the model is not the winner's"
        return
    split = load_search_split(
        config.dataset.open(),
        key.category,
        config.image_size,
        config.validation,
        input_size=detector.input_size,
        resize=detector.hyperparameters.resize,
    )
    scores = detector.score(as_images(split.validation, torch.device("cpu"))).numpy()
    (kept,) = store.read_scores([run])
    if kept is None or not np.allclose(scores, kept, rtol=1e-3, atol=1e-5):
        yield f"{key}: the model scores {scores}, its run scored {kept}"


def _wrong_tables(directory: Path, store: RecordStore) -> Iterator[str]:
    files = [directory / f"{name}.parquet" for name in ("leaderboard", "trials")]
    before = [pq.read_table(path) for path in files]
    write_tables(read_sweep(directory)[0], store)
    for path, table in zip(files, before, strict=True):
        if not pq.read_table(path).equals(table):
            yield f"{path.name}: compiled again it differs"
