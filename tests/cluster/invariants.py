"""What must hold of a finished sweep directory, whatever happened on the way."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import safetensors.numpy
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anomtune.search.decide.confirm import choose, kept_seed, to_confirm
from anomtune.search.decide.scoring import read_studies
from anomtune.search.detector.saved import load_detector
from anomtune.search.results.leaderboard import write_tables
from anomtune.search.results.tensorboard_internals import says_the_end
from anomtune.search.results.winners import model_folder
from anomtune.search.store.directory import read_sweep
from anomtune.search.store.records import (
    AnyRecord,
    ConfirmRecord,
    RecordStore,
    StudyKey,
    TrialRecord,
)

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
                for folder in ("confirm", "roc"):
                    curve = f"tensorboard/{key}/{folder}/{run.number:05d}-{run.seed}"
                    if not list(directory.glob(f"{curve}/*tfevents*")):
                        yield f"{curve}: nothing there"
        _, winner = choose(records, of_study, config.confirm)
        yield from _wrong_model(directory, key, winner.runs if winner else (), config.confirm)
    yield from _wrong_tables(directory, store)


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


def _wrong_curve(directory: Path, record: TrialRecord) -> Iterator[str]:
    """Yields what TensorBoard would not show of a trial as it was."""
    folder = directory / f"tensorboard/{record.key}/{record.number:05d}"
    found = EventAccumulator(str(folder)).Reload()
    tag = "auroc/validation"
    shown = [event.step for event in found.Scalars(tag)] if tag in found.Tags()["scalars"] else []
    if shown != [rung.step for rung in record.curve]:
        yield f"{folder.relative_to(directory)}: shows rungs {shown}"
    files = sorted(folder.glob("*tfevents*"))
    if not files or not says_the_end(files[-1].read_bytes()):
        yield f"{folder.relative_to(directory)}: has no end"


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
    directory: Path, key: StudyKey, runs: tuple[ConfirmRecord, ...], confirm: object
) -> Iterator[str]:
    folder = directory / model_folder(key)
    if not runs:
        if folder.exists():
            yield f"{folder.name}: a model of no winner"
        return
    try:
        _, saved = load_detector(folder)
    except Exception as error:  # noqa: BLE001 - whatever a user would see
        yield f"{key}: the model cannot be loaded: {error}"
        return
    run = next(run for run in runs if run.seed == kept_seed(confirm))  # type: ignore[arg-type]
    if saved.hyperparameters != run.params or saved.seed != run.seed:
        yield f"{key}: the model is not the winner's"


def _wrong_tables(directory: Path, store: RecordStore) -> Iterator[str]:
    files = [directory / f"{name}.parquet" for name in ("leaderboard", "trials")]
    before = [pq.read_table(path) for path in files]
    write_tables(read_sweep(directory)[0], store)
    for path, table in zip(files, before, strict=True):
        if not pq.read_table(path).equals(table):
            yield f"{path.name}: compiled again it differs"
