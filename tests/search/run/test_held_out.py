"""One confirm run: what it measures on held-out images, and what it leaves beside its record."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from anomtune.cli.tables import leaderboard_table
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import DataError, StorageError
from anomtune.models.base import Detector
from anomtune.models.layers.evidence import Evidence
from anomtune.registry import METHODS, METRICS
from anomtune.search.config import parse_sweep
from anomtune.search.decide.work import Confirmation, Work
from anomtune.search.detector.devices import as_images
from anomtune.search.detector.predict import load_model
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.metrics.metric import BUILT_IN, register_metric
from anomtune.search.results.leaderboard import compile_leaderboard
from anomtune.search.run import held_out as held_out_module
from anomtune.search.run.checkpoint import SECONDS_VARIABLE
from anomtune.search.run.held_out import run_confirm
from anomtune.search.run.trial import TrialSpec
from anomtune.search.source import DatasetConfig
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import ConfirmRecord, Rung, TrialRecord
from anomtune.search.store.storage import Storage
from tests.conftest import draw_category


def open_split(root, category, validation) -> str:
    dataset = open_dataset("folder", root)
    return load_search_split(dataset, category, 32, validation).split_hash


@pytest.fixture
def make_spec(tmp_path):
    def make(root, category="plate", **changes) -> TrialSpec:
        validation = changes.pop("validation", Validation())
        keep = changes.pop("keep", False)
        return TrialSpec(
            training=TrainingSpec(
                dataset=DatasetConfig(name="folder", root=str(root)),
                category=category,
                validation=validation,
                image_size=32,
                method="toy",
                hyperparameters=METHODS.get("toy")
                .Hyperparameters(quality=0.8, **changes)
                .model_dump(),
                seed=1,
                split_hash=open_split(root, category, validation),
            ),
            directory=str(tmp_path / "sweep"),
            record_path="confirm/plate/toy/00000-1",
            rungs=4,
            threads=1,
            gpu=0,
            keep=keep,
        )

    return make


def record_of(spec: TrialSpec, **changes) -> ConfirmRecord:
    training = spec.training
    return ConfirmRecord(
        dataset="folder",
        category=training.category,
        method=training.method,
        number=0,
        seed=training.seed,
        state="COMPLETE",
        params=training.hyperparameters,
        split_hash=training.split_hash,
        **changes,
    )


@pytest.mark.parametrize("side", [0, 48])
def test_a_run_scores_exactly_the_held_out_images(toy_data, make_spec, side) -> None:
    spec = make_spec(toy_data, side=side)
    (found,) = run_confirm(spec)
    kind = METHODS.get("toy")
    detector = kind(kind.Hyperparameters(quality=0.8, side=side), image_size=32, seed=1)
    held_out = load_test_split(
        open_dataset("folder", toy_data), "plate", 32, Validation(), input_size=side or None
    )
    assert held_out.images.shape[1] == (side or 32)
    assert held_out.masks[0].shape == (32, 32)
    detector.fit(torch.zeros(1, 3, 8, 8), 8)
    maps, scored = detector.predict(as_images(held_out.images, detector.device))
    scores = scored.numpy()
    test = found.test
    assert test.auroc == pytest.approx(roc_auc_score(held_out.labels, scores))
    assert test.auroc_low < test.auroc <= test.auroc_high
    assert (test.n_normal, test.n_anomalous) == (3, 3)
    assert list(test.figures) == [metric.name for metric in BUILT_IN]
    assert test.notes == []
    assert test.figures["pixel_auroc"] == pytest.approx(
        roc_auc_score(np.stack(held_out.masks).ravel(), maps.numpy().ravel()), abs=1e-3
    )
    assert 0 <= test.figures["aupro"] <= 1
    assert 0 <= test.figures["aupro_per_image"] <= 1
    best = max(f1_score(held_out.labels, scores >= t) for t in scores)
    assert test.figures["f1"] == pytest.approx(best)
    assert 0.5 <= test.figures["accuracy"] <= 1
    assert found.shifted == {}
    assert found.cost.train_seconds >= 0
    store = RecordStore(Storage(spec.directory))
    kept = store.read_held_out(record_of(spec))
    assert store.read_defects(record_of(spec)).tolist() == list(held_out.defects)
    np.testing.assert_array_equal(kept.labels, held_out.labels)
    np.testing.assert_allclose(kept.scores, scores, rtol=1e-6)


def test_images_that_changed_after_the_split_are_not_opened(tmp_path, toy_data, make_spec) -> None:
    """Added images move others from validation to the held-out side."""
    root = shutil.copytree(toy_data, tmp_path / "data")
    spec = make_spec(root)
    list(run_confirm(spec))
    draw_category(root / "plate", train=6, good=9, bad=9, seed=5)
    with pytest.raises(DataError, match="not those that the sweep started with"):
        list(run_confirm(spec))


def test_held_out_scores_that_are_no_numbers_fail_nothing(toy_data, make_spec, monkeypatch) -> None:
    spec = make_spec(toy_data)
    calls = []

    def judge(self, evidence, scoring, size=None):
        maps, _ = Detector.judge(self, evidence, scoring, size)
        calls.append(len(maps))
        fill = 0.5 if len(calls) == 1 else float("nan")
        return maps, torch.full((len(maps),), fill)

    monkeypatch.setattr("anomtune_toy.Toy.judge", judge)
    (found,) = run_confirm(spec)
    assert found.val_auroc == 0.5
    assert found.test.auroc is None
    assert found.test.figures["f1"] is None
    assert found.test.figures["pixel_auroc"] is not None
    assert found.test.notes == ["anomaly scores are not finite: no figures of images"]


def test_held_out_maps_that_are_no_numbers_are_left_out(toy_data, make_spec, monkeypatch) -> None:
    spec = make_spec(toy_data)
    evidence_of = METHODS.get("toy").evidence
    calls = []

    def evidence(self, images):
        calls.append(len(images))
        found = evidence_of(self, images)
        return found if len(calls) == 1 else Evidence((torch.full_like(*found.maps, torch.nan),))

    monkeypatch.setattr("anomtune_toy.Toy.evidence", evidence)
    (found,) = run_confirm(spec)
    assert found.test.auroc is None
    assert set(found.test.figures.values()) == {None}


def test_where_nothing_is_held_out_there_are_no_figures(toy_data, make_spec) -> None:
    spec = make_spec(toy_data, validation=Validation(protocol="test"), keep=True)
    (found,) = run_confirm(spec)
    assert found.test is None
    assert found.val_auroc > 0
    assert found.examples == []
    assert RecordStore(Storage(spec.directory)).read_held_out(record_of(spec)) is None


def test_defects_without_a_mask_count_for_images_alone(tmp_path, toy_data, make_spec) -> None:
    root = shutil.copytree(toy_data, tmp_path / "data")
    shutil.rmtree(root / "plate" / "ground_truth")
    (found,) = run_confirm(make_spec(root))
    assert found.test.auroc is not None
    assert (found.test.figures["pixel_auroc"], found.test.figures["aupro"]) == (None, None)


def test_a_defect_that_is_not_drawn_is_no_normal_pixel(tmp_path, toy_data, make_spec) -> None:
    root = shutil.copytree(toy_data, tmp_path / "data")
    held_out = load_test_split(open_dataset("folder", root), "plate", 32, Validation())
    key = next(k for k, label in zip(held_out.keys, held_out.labels, strict=True) if label)
    mask = root / "plate" / key.replace("test", "ground_truth")
    mask = next(p for p in mask.parent.iterdir() if p.stem.startswith(mask.stem))
    Image.new("L", Image.open(mask).size).save(mask)
    spec = make_spec(root)
    (found,) = run_confirm(spec)
    assert found.test.figures["aupro"] is not None
    assert found.test.notes == [
        "1 anomalous images have no mask, or nothing drawn in it: left out of the figures of pixels"
    ]
    mask.unlink()
    (bare,) = run_confirm(make_spec(root))
    for name in ("pixel_auroc", "aupro", "aupro_per_image"):
        assert bare.test.figures[name] == found.test.figures[name]


def test_the_kept_run_leaves_its_detector_and_examples(toy_data, make_spec) -> None:
    spec = make_spec(toy_data, keep=True)
    (found,) = run_confirm(spec)
    assert [example.kind for example in found.examples] == [
        "missed",
        "typical anomaly",
        "found",
        "false alarm",
        "typical normal",
    ]
    missed, typical, best, alarm, normal = (example.score for example in found.examples)
    assert missed <= typical <= best
    assert normal <= alarm
    assert all(example.defect == "spot" for example in found.examples[:3])
    store = RecordStore(Storage(spec.directory))
    png = store.read_examples(record_of(spec, examples=found.examples))
    picture = Image.open(io.BytesIO(png))
    assert picture.width > 3 * 32
    assert picture.height > 5 * 32
    model = load_model(f"{spec.directory}/{spec.record_path}")
    assert model.config.threshold > 0


def test_other_runs_leave_only_scores(toy_data, make_spec) -> None:
    spec = make_spec(toy_data)
    (found,) = run_confirm(spec)
    assert found.examples == []
    path = "confirm/plate/toy/00000-1"
    assert Storage(spec.directory).list("", "") == [f"{path}.npz"]


def test_a_run_keeps_the_validation_scores_that_its_figure_is_of(toy_data, make_spec) -> None:
    for validation in (Validation(), Validation(protocol="test")):
        spec = make_spec(toy_data, validation=validation)
        (found,) = run_confirm(spec)
        split = load_search_split(open_dataset("folder", toy_data), "plate", 32, validation)
        store = RecordStore(Storage(spec.directory))
        (scores,) = store.read_scores([record_of(spec)])
        assert scores.dtype == np.float32
        assert found.val_auroc == pytest.approx(roc_auc_score(split.validation_labels, scores))


def test_scores_are_there_before_the_run_is_over(toy_data, make_spec, monkeypatch) -> None:
    """A run that ends without them, in whatever way, has no result."""
    spec = make_spec(toy_data)

    def full(self, path, content, *, durable=False):
        assert durable
        raise StorageError("disk full")

    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(StorageError, match="disk full"):
        next(run_confirm(spec))


def test_a_metric_of_ones_own_is_measured_and_has_a_column(toy_data, make_spec, monkeypatch):
    monkeypatch.setitem(METRICS._registered, "average_precision", None)  # gone after the test

    @register_metric("average_precision", title="AP", meaning="Average precision.")
    def average_precision(labels, scores):
        return average_precision_score(labels, scores)

    spec = make_spec(toy_data)
    (found,) = run_confirm(spec)
    store = RecordStore(Storage(spec.directory))
    held_out = store.read_held_out(record_of(spec))
    expected = average_precision_score(held_out.labels, held_out.scores)
    assert found.test.figures["average_precision"] == pytest.approx(expected)

    # What the sweep writes of it, and the leaderboard made of that.
    run = record_of(spec, **found.model_dump(include={"val_auroc", "test", "shifted"}))
    rung = Rung(step=4, auroc=0.8, auroc_low=0.5, auroc_high=1.0)
    names = {"dataset", "category", "method", "number", "params", "split_hash", "seed"}
    trial = TrialRecord(
        **run.model_dump(include=names), state="COMPLETE", curve=[rung], facts=found.facts
    )
    for record in (run, trial):
        store.write(record)
    config = parse_sweep(
        {
            "name": "toys",
            "dataset": {"name": "folder", "categories": ["plate"]},
            "methods": {"toy": {}},
            "confirm": {"top": 1, "seeds": [run.seed]},
        },
        "test",
    )
    board = compile_leaderboard(config, store)
    assert board["test_average_precision_mean"].to_pylist() == [pytest.approx(expected)]
    assert "AP" in [str(column.header) for column in leaderboard_table(board).columns]


def test_held_out_images_are_resized_as_the_method_wants(tmp_path, make_spec, monkeypatch) -> None:
    draw_category(tmp_path / "data" / "plate", size=48)
    spec = make_spec(tmp_path / "data")
    hyperparameters = METHODS.get("spr").Hyperparameters(width=8, resolution=32, epochs=1)
    training = spec.training.model_copy(
        update={"method": "spr", "hyperparameters": hyperparameters.model_dump()}
    )
    opened = []

    def load(*args, **options):
        opened.append(load_test_split(*args, **options))
        return opened[-1]

    monkeypatch.setattr(held_out_module, "load_test_split", load)
    list(run_confirm(spec.model_copy(update={"training": training})))
    for key, image in zip(opened[0].keys, opened[0].images, strict=True):
        file = Image.open(tmp_path / "data" / "plate" / key)
        expected = file.resize((32, 32), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(image, np.asarray(expected))


def test_a_lost_run_goes_on_from_its_checkpoint_with_the_same_result(
    tmp_path, toy_data, make_spec, monkeypatch
) -> None:
    """And it opens the held-out images once, when it has trained to its end."""
    (whole,) = run_confirm(make_spec(toy_data))
    monkeypatch.setenv(SECONDS_VARIABLE, "0")
    opened, fitted = [], []
    toy = METHODS.get("toy")
    fit = toy.fit

    def load(*args, **options):
        opened.append(sum(fitted))
        return load_test_split(*args, **options)

    def lose(self, images, iterations):
        if sum(fitted) == 4 and not (tmp_path / "lost").exists():
            (tmp_path / "lost").touch()
            raise KeyboardInterrupt
        fitted.append(iterations)
        return fit(self, images, iterations)

    monkeypatch.setattr(held_out_module, "load_test_split", load)
    monkeypatch.setattr(toy, "fit", lose)
    with pytest.raises(KeyboardInterrupt):
        list(run_confirm(make_spec(toy_data)))
    assert opened == []
    (found,) = run_confirm(make_spec(toy_data))
    assert fitted == [2, 2, 2, 2], "it did not go on where it was"
    assert opened == [8]
    assert found.model_dump(exclude={"cost"}) == whole.model_dump(exclude={"cost"})
    assert found.cost.iterations == 8


def test_checkpoints_of_confirm_runs_that_will_go_on_are_kept(make_sweep, simulation) -> None:
    config = make_sweep(confirm={"top": 1, "seeds": [1, 2]}, trials=1)
    pool = simulation.run(config)
    runs: dict[str, ConfirmRecord] = {}

    def confirmation(records):
        def save(record):
            runs[record.path] = record.model_copy()

        return Confirmation(config, pool, records, save)

    first = confirmation({})
    begun, other = first.ask(), first.ask()
    first.finish(other, None, error="simulated")
    again = confirmation({begun.key: list(runs.values())})
    assert again.unfinished == {begun.path} == Work(config, pool, again).unfinished


@pytest.mark.parametrize("keep", [False, True])
def test_the_time_of_an_image_is_measured_with_nothing_known(
    toy_data, make_spec, keep, monkeypatch
) -> None:
    done: list[str] = []
    opened = held_out_module.OpenedDetector

    def spy(name: str) -> None:
        real = getattr(opened, name)
        monkeypatch.setattr(opened, name, lambda self: done.append(name) or real(self))

    spy("know_features")
    spy("forget_features")

    def measure(detector: Detector, images: torch.Tensor) -> float:
        done.append("measured")
        return 7.0

    monkeypatch.setattr(held_out_module, "image_ms", measure)
    (found,) = run_confirm(make_spec(toy_data, keep=keep))
    assert found.cost.image_ms == 7.0
    assert done[0] == "know_features"
    assert done[-2:] == ["forget_features", "measured"]
