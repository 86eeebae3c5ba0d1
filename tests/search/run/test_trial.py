"""A trial, without Ray: rungs, scores, failures, and that it goes through real methods."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.split import SearchSplit, load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import DataError, MethodError, StorageError, TrainingDivergedError
from anomtune.models.layers.evidence import Evidence
from anomtune.registry import METHODS
from anomtune.search.config import MethodConfig
from anomtune.search.decide.plan import plan_search
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.run.checkpoint import (
    SECONDS_VARIABLE,
    Checkpoints,
    delete_checkpoint,
    delete_other_checkpoints,
)
from anomtune.search.run.messages import Aborted, Assignment, Failed, from_result
from anomtune.search.run.trial import TrialResult, TrialSpec, open_trial, run_trial
from anomtune.search.run.worker import TrialActor
from anomtune.search.source import DatasetConfig
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import TrialRecord
from anomtune.search.store.storage import Storage

pytestmark = pytest.mark.slow


def make_spec(directory: Path, root: Path, category: str, method: str = "toy", **changes):
    fixed = changes.pop("fixed", {})
    size = changes.pop("image_size", 32)
    split = load_search_split(open_dataset("folder", root), category, size, Validation())
    plan = plan_search(method, MethodConfig(fixed=fixed), image_size=size)
    training = TrainingSpec(
        dataset=DatasetConfig(name="folder", root=str(root)),
        category=category,
        image_size=size,
        method=method,
        hyperparameters=plan.defaults.model_dump(mode="json"),
        split_hash=changes.pop("split_hash", split.split_hash),
    )
    return split, TrialSpec(
        training=training,
        directory=str(directory),
        record_path=f"trials/{category}/{method}/00000",
        **{"rungs": 4, "threads": 1, "gpu": 0} | changes,
    )


def assigned(spec: TrialSpec) -> dict:
    """Returns a trial as Tune brings it to a worker."""
    return Assignment(spec=spec, confirm=False, shape={"CPU": 1}).to_config()


def kept_scores(root, spec: TrialSpec):
    """The validation scores that a trial has kept of the paper's scoring."""
    with np.load(root / f"{spec.record_path}.npz", allow_pickle=False) as arrays:
        assert arrays["scorings"][0] == 0
        return arrays["validation"][0]


def of_training(spec: TrialSpec, **changes) -> TrialSpec:
    return spec.model_copy(update={"training": spec.training.model_copy(update=changes)})


def test_rungs_are_spread_evenly_and_scores_are_kept(tmp_path, toy_data):
    split, spec = make_spec(tmp_path, toy_data, "plate", fixed={"iterations": 9, "quality": 0.9})
    results = list(run_trial(spec))
    assert [result.rung.step for result in results] == [1, 2, 3, 4]
    # The toy's loss is 1 / (1 + iteration): rung k ends at floor(9 k / 4).
    assert [round(1 / result.rung.loss - 1) for result in results] == [2, 4, 6, 9]
    assert [result.facts is None for result in results] == [True, True, True, False]
    scores = kept_scores(tmp_path, spec)
    assert scores.shape == split.validation_labels.shape
    area = roc_auc_score(split.validation_labels, scores)
    assert results[-1].rung.auroc == pytest.approx(area)
    assert results[-1].facts.n_val_normal == (split.validation_labels == 0).sum()
    assert results[-1].cost.peak_memory_bytes > 1e6


def test_other_images_than_the_sweep_started_with_fail(tmp_path, toy_data):
    _, spec = make_spec(tmp_path, toy_data, "plate", split_hash="other")
    with pytest.raises(DataError, match="not those that the sweep started with"):
        next(run_trial(spec))


def test_rungs_without_an_iteration_of_their_own_are_left_out(tmp_path, toy_data):
    """A method that learns in one pass is looked at once, at the last rung."""
    for iterations, steps in ((1, [4]), (3, [2, 3, 4])):
        _, spec = make_spec(tmp_path, toy_data, "plate", fixed={"iterations": iterations})
        results = list(run_trial(spec))
        assert [result.rung.step for result in results] == steps
        assert results[-1].facts is not None


def test_what_a_method_reports_is_kept(tmp_path, toy_data):
    _, spec = make_spec(tmp_path, toy_data, "plate")
    rungs = [result.rung for result in run_trial(spec)]
    assert rungs[0].figures == {"foreign": 0, "input_side": 32}, "without what is no number"
    assert rungs[3].histograms["spread"].edges == (0, 0.5, 1)
    assert rungs[3].histograms["spread"].counts == (1, 8)


def test_a_loss_that_is_no_number_fails(tmp_path, toy_data, monkeypatch):
    _, spec = make_spec(tmp_path, toy_data, "plate")
    monkeypatch.setattr("anomtune_toy.Toy.fit", lambda *_: {"loss": float("nan")})
    with pytest.raises(TrainingDivergedError, match="the loss is nan"):
        next(run_trial(spec))


def test_a_method_gets_images_of_the_size_it_wants(tmp_path, toy_data):
    _, spec = make_spec(tmp_path, toy_data, "plate", fixed={"side": 48, "quality": 1.0})
    *_, last = run_trial(spec)
    assert last.rung.figures["input_side"] == 48
    assert last.facts is not None


@pytest.mark.parametrize(("source", "count"), [("categories", 6), ("folder", 12), (None, 0)])
def test_a_method_gets_the_foreign_images_it_wants(tmp_path, toy_data, source, count):
    others = str(toy_data / "ring" / "test") if source == "folder" else source
    _, spec = make_spec(tmp_path, toy_data, "plate", fixed={"others": others})
    *_, last = run_trial(spec)
    assert last.rung.figures["foreign"] == count


def test_every_size_that_is_searched_is_the_one_that_a_trial_opens(tmp_path, toy_data):
    fixed = {"backbone": "mobilenet_v2", "weights": "random", "channels": 20}
    plan = plan_search("padim", MethodConfig(fixed=fixed), image_size=64)
    assert plan.distributions["resolution"].choices == (64, 96, 128)
    for side in (64, 96, 128):
        _, spec = make_spec(
            *(tmp_path, toy_data, "plate", "padim"),
            fixed={**fixed, "resolution": side},
            image_size=64,
        )
        trial = open_trial(spec)
        assert trial.train.shape[1:] == trial.validation.shape[1:] == (3, side, side)
        trial.detector.fit(trial.train, 1)
        assert trial.detector.anomaly_maps(trial.validation[:2]).shape == (2, 64, 64)


def test_scores_that_are_no_numbers_fail(tmp_path, toy_data, monkeypatch):
    _, spec = make_spec(tmp_path, toy_data, "plate")
    monkeypatch.setattr(
        "anomtune_toy.Toy.evidence",
        lambda self, images: Evidence((torch.full(images[:, 0].shape, torch.nan),)),
    )
    with pytest.raises(TrainingDivergedError, match="not finite at rung 1"):
        next(run_trial(spec))


def test_a_trial_cannot_reach_held_out_images(tmp_path, toy_data):
    """No array that a split holds, nor the files below it, contains a held-out image."""
    root = toy_data / "plate"
    split, _ = make_spec(tmp_path, toy_data, "plate")
    assert isinstance(split, SearchSplit)
    seen = {image.tobytes() for part in (split.train, split.validation) for image in part}
    for array in (split.train, split.validation):
        base = array
        while base is not None:
            images = np.asarray(base) if isinstance(base, np.ndarray) else None
            if images is not None and images.dtype == np.uint8 and images.ndim == 4:
                assert {image.tobytes() for image in images} <= seen
            base = getattr(base, "base", None)
    every = set()
    dataset = open_dataset("folder", root)
    for sample in dataset.scan("plate")[0]:
        every.add(dataset.read_image("plate", sample.key).tobytes())
    assert len(every - seen) == 6  # the held-out half of 12 test images


def test_an_actor_reports_failures_and_lives_on(tmp_path, toy_data):
    actor = TrialActor.__new__(TrialActor)
    _, spec = make_spec(tmp_path, toy_data, "plate", fixed={"behaviour": "raise"})
    Storage(spec.directory).write(f"{spec.record_path}.json", b"{}")
    actor.setup(assigned(spec))
    result = actor.step()
    assert result["done"]
    failed = from_result(result)
    assert isinstance(failed, Failed)
    assert failed.error == "RuntimeError: this toy is broken"
    assert "anomtune_toy.py" in failed.traceback
    _, spec = make_spec(tmp_path, toy_data, "plate")
    assert actor.reset_config(assigned(spec))
    results = [actor.step() for _ in range(4)]
    assert [result["done"] for result in results] == [False, False, False, True]
    assert from_result(results[-1]).result.facts is not None
    gc.unfreeze()


def test_what_an_actor_has_imported_is_not_looked_through_after_each_trial(
    tmp_path, toy_data, monkeypatch
):
    """The first trial imports most, torchvision among it: a tenth of a second for the collector."""
    actor = TrialActor.__new__(TrialActor)
    _, spec = make_spec(tmp_path, toy_data, "plate")
    actor.setup(assigned(spec))
    gc.unfreeze()
    actor.cleanup()
    kept = gc.get_freeze_count()
    assert kept > 10 * len(gc.get_objects())
    actor.reset_config(assigned(spec))
    assert gc.get_freeze_count() <= kept, "what a trial leaves is set apart"
    monkeypatch.setitem(sys.modules, "another_method", sys)
    actor.cleanup()
    assert gc.get_freeze_count() > kept
    gc.unfreeze()


def test_a_node_that_does_not_see_the_directory_ends_the_sweep_and_fails_no_config(
    tmp_path, toy_data
):
    """It may have joined after every node was asked; the record is always there before the run."""
    actor = TrialActor.__new__(TrialActor)
    _, spec = make_spec(tmp_path / "only here", toy_data, "plate")
    actor.setup(assigned(spec))
    result = actor.step()
    assert result["done"]
    aborted = from_result(result)
    assert isinstance(aborted, Aborted)
    assert isinstance(aborted.exception(), StorageError)
    assert "does not see what the driver writes" in str(aborted.exception())
    assert not (tmp_path / "only here").exists()
    gc.unfreeze()


@pytest.mark.parametrize(
    ("method", "fixed", "size"),
    [
        ("rd4ad", {"epochs": 4, "batch_size": 8}, 64),
        ("recontrast", {"iterations": 20, "batch_size": 8}, 96),
    ],
)
def test_real_welds(tmp_path, shared_data, method, fixed, size):
    """A few seconds of training find most of the defective welds."""
    fixed |= {"backbone": "mobilenet_v2"}
    root = shared_data / "battery_weld"
    _, spec = make_spec(
        tmp_path, root, "battery_weld", method, fixed=fixed, image_size=size, rungs=2, threads=1
    )
    try:
        *_, last = run_trial(spec)
    except MethodError as error:
        pytest.skip(f"needs MobileNetV2's weights: {error}")
    assert last.rung.auroc > 0.8
    assert last.facts.parameters > 1e6


def test_a_trial_computes_with_the_threads_it_was_given(tmp_path, toy_data):
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            _, spec = make_spec(tmp_path / str(threads), toy_data, "plate", threads=threads)
            list(run_trial(spec))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def without_cost(results: list[TrialResult]) -> list[dict]:
    return [result.model_dump(exclude={"cost"}) for result in results]


@pytest.mark.parametrize(
    ("method", "fixed"),
    [
        ("toy", {"iterations": 9}),
        ("rd4ad", {"epochs": 5, "batch_size": 4, "backbone": "mobilenet_v2", "weights": "random"}),
    ],
)
def test_a_long_trial_goes_on_bit_for_bit_where_it_was_lost(
    tmp_path, toy_data, monkeypatch, method, fixed
):
    monkeypatch.setenv(SECONDS_VARIABLE, "0")
    _, spec = make_spec(tmp_path / "whole", toy_data, "plate", method, fixed=fixed)
    whole = list(run_trial(spec))
    spec = spec.model_copy(update={"directory": str(tmp_path / "broken")})
    broken = run_trial(spec)
    first = [next(broken) for _ in range(3)]  # the second rung's end is kept, the third's is not
    broken.close()
    again = run_trial(spec)
    fitted: list[int] = []
    fit = METHODS.get(method).fit
    monkeypatch.setattr(METHODS.get(method), "fit", lambda *a: (fitted.append(a[-1]), fit(*a))[1])
    rest = list(again)
    assert len(fitted) == 2
    assert without_cost(rest) == without_cost(whole)
    assert rest[:2] == first[:2]
    assert rest[2].cost.train_seconds > first[1].cost.train_seconds
    scores = [kept_scores(tmp_path / name, spec) for name in ("whole", "broken")]
    assert np.array_equal(*scores)


def test_of_many_scorings_the_leading_ones_are_kept(tmp_path, toy_data, monkeypatch):
    monkeypatch.setattr("anomtune.search.run.trial._SMALL", 0)
    monkeypatch.setattr("anomtune.search.run.trial._LEADING", 4)
    split, spec = make_spec(tmp_path, toy_data, "plate", fixed={"quality": 0.6})
    spec = spec.model_copy(update={"pinned": (), "leading": (3, 5)})
    *_, last = run_trial(spec)
    values = last.rung.judged.values()
    assert len(values) > 10
    with np.load(tmp_path / f"{spec.record_path}.npz", allow_pickle=False) as arrays:
        kept, scores = arrays["scorings"].tolist(), arrays["validation"]
    assert {0, 3, 5, int(values.argmax())} <= set(kept)
    assert len(kept) <= 7
    for number, row in zip(kept, scores, strict=True):
        assert roc_auc_score(split.validation_labels, row) == pytest.approx(values[number])


def test_short_trials_keep_no_checkpoint(tmp_path, toy_data):
    _, spec = make_spec(tmp_path, toy_data, "plate")
    list(run_trial(spec))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("spoil", ["seed", "params", "truncate", "state", "empty"])
def test_a_checkpoint_of_another_training_or_a_broken_one_is_not_used(
    tmp_path, toy_data, monkeypatch, spoil
):
    monkeypatch.setenv(SECONDS_VARIABLE, "0")
    _, spec = make_spec(tmp_path, toy_data, "plate")
    broken = run_trial(spec)
    for _ in range(3):
        next(broken)
    (path,) = (tmp_path / "checkpoints").rglob("*.safetensors")
    match spoil:
        case "seed":
            spec = of_training(spec, seed=1)
        case "params":
            spec = of_training(
                spec, hyperparameters=spec.training.hyperparameters | {"quality": 0.7}
            )
        case "truncate":
            path.write_bytes(path.read_bytes()[:-3])
        case "empty":
            path.write_bytes(b"")
        case "state":
            kept = Checkpoints(Storage(tmp_path), spec.record_path, spec.identity())
            kept.write({"other": torch.zeros(1)}, kept.read().results)
    fitted: list[int] = []
    monkeypatch.setattr("anomtune_toy.time.sleep", lambda seconds: fitted.append(1))
    assert [result.rung.step for result in run_trial(spec)] == [1, 2, 3, 4]
    assert len(fitted) == 4


def test_no_room_for_a_checkpoint_is_no_failure(tmp_path, toy_data, monkeypatch):
    monkeypatch.setenv(SECONDS_VARIABLE, "0")

    def full(_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("anomtune_toy.Toy.state_dict", full)
    _, spec = make_spec(tmp_path, toy_data, "plate")
    assert len(list(run_trial(spec))) == 4
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoints_of_ended_trials_are_deleted(tmp_path):
    storage = Storage(tmp_path)
    for number in range(3):
        Checkpoints(storage, f"trials/a/toy/{number:05}", "x").write({"a": torch.ones(1)}, [])
    delete_checkpoint(storage, "trials/a/toy/00000")
    delete_checkpoint(storage, "trials/a/toy/00000")
    delete_other_checkpoints(storage, {"trials/a/toy/00002"})
    kept = [path.stem for path in tmp_path.rglob("*.safetensors")]
    assert kept == ["00002"]


def test_records_round_trip_exactly(tmp_path):
    store = RecordStore(Storage(tmp_path))
    record = TrialRecord(
        dataset="folder",
        category="plate",
        method="toy",
        number=3,
        state="FAIL",
        params={"lr": 0.1 + 0.2, "n": 3, "flag": True, "name": "x", "float": 2.0},
        seed=2**40,
        split_hash="abc",
        error="it broke",
    )
    store.write(record)
    (again,) = store.read_all()[record.key]
    assert again == record
    assert {name: type(v) for name, v in again.params.items()} == {
        name: type(v) for name, v in record.params.items()
    }
