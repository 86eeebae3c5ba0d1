"""What is written for TensorBoard: trials as they come, confirm runs once and whole."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anomtune.models.training.report import Histogram
from anomtune.search.config import MethodConfig
from anomtune.search.decide.plan import plan_search, plan_studies
from anomtune.search.detector.heatmaps import sheet_rows
from anomtune.search.results.tensorboard import CurveWriter
from anomtune.search.store.directory import read_sweep
from anomtune.search.store.records import (
    ConfirmRecord,
    Cost,
    Rung,
    StudyKey,
    TrialRecord,
)
from anomtune.search.store.storage import Storage
from tests.search.sample_sweep import write_sample_sweep

pytestmark = pytest.mark.slow

ROC = "roc/TPR by FPR (per mille)"


def toy_record(number: int, state: str, steps: int) -> TrialRecord:
    return TrialRecord(
        dataset="folder",
        category="plate",
        method="toy",
        number=number,
        state=state,
        params={"quality": 0.1 * number, "colour": "green"},
        seed=0,
        split_hash="x",
        curve=[
            Rung(
                step=k,
                auroc=0.5 + 0.1 * k,
                auroc_low=0.4,
                auroc_high=1,
                loss=1 / k,
                figures={"diversity": 0.1 * k},
                histograms={"weight": Histogram(edges=(0, 0.5, 1), counts=(k, 4 - k))},
            )
            for k in range(1, steps + 1)
        ],
        cost=Cost(),
    )


TOY_PLANS = {toy_record(0, "RUNNING", 0).key: plan_search("toy", MethodConfig(), image_size=64)}


def write_toys(root: Path) -> None:
    """Writes one completed, one pruned and one running trial, report by report as they come."""
    writer = CurveWriter(Storage(root), TOY_PLANS)
    for number, last, steps in ((0, "COMPLETE", 4), (1, "PRUNED", 2), (2, "RUNNING", 1)):
        for step in range(steps + 1):
            writer.update(toy_record(number, "RUNNING", step))
        writer.update(toy_record(number, last, steps))


def sweep_writer(root: Path) -> CurveWriter:
    config, store = read_sweep(root)
    plans = plan_studies(config)
    return CurveWriter(store.storage, plans)


def confirmed(root: Path) -> list[ConfirmRecord]:
    (runs,) = read_sweep(root)[1].read_confirmed().values()
    return runs


def events(root: Path, run: str) -> EventAccumulator:
    found = EventAccumulator(str(root / "tensorboard" / run), size_guidance={"tensors": 0})
    return found.Reload()


def sizes(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in root.rglob("*tfevents*")}


@pytest.fixture
def sweep(tmp_path):
    """A study with two confirmed configs of two seeds, and nothing written for TensorBoard."""
    write_sample_sweep(
        tmp_path,
        categories=["bottle"],
        methods=["padim"],
        trials=4,
        confirm=1,
        seeds=(1, 11),
        domains=["fog"],
    )
    return tmp_path


def test_a_trial_that_begins_again_leaves_no_double_curve(tmp_path):
    write_toys(tmp_path)
    before = sizes(tmp_path)
    assert len(before) == 3, "one file per trial"
    writer = CurveWriter(Storage(tmp_path), TOY_PLANS)
    writer.update(toy_record(2, "RUNNING", 0))
    writer.update(toy_record(2, "RUNNING", 1))
    assert sizes(tmp_path) == before


def test_a_curve_is_whole_that_has_each_rung_once_and_an_end(tmp_path):
    write_toys(tmp_path)
    writer = CurveWriter(Storage(tmp_path), TOY_PLANS)
    assert writer.is_whole(toy_record(0, "COMPLETE", 4))
    assert writer.is_whole(toy_record(1, "PRUNED", 2))
    assert not writer.is_whole(toy_record(2, "PRUNED", 1)), "has no end"
    assert not writer.is_whole(toy_record(1, "PRUNED", 3)), "misses a rung"
    assert not writer.is_whole(toy_record(3, "PRUNED", 1)), "is not there"
    (file,) = (tmp_path / "tensorboard/plate/toy/00001").iterdir()
    file.write_bytes(file.read_bytes() + file.read_bytes())
    assert not writer.is_whole(toy_record(1, "PRUNED", 2)), "is there twice"


def test_a_rung_that_a_former_owner_has_added_is_seen(tmp_path):
    """It was stopped between the look at its mark and the write."""
    former = CurveWriter(Storage(tmp_path), TOY_PLANS)
    former.update(toy_record(0, "RUNNING", 0))
    follower = CurveWriter(Storage(tmp_path), TOY_PLANS)
    for steps in range(3):
        follower.update(toy_record(0, "RUNNING", steps))
    former.update(toy_record(0, "RUNNING", 1))
    ended = toy_record(0, "PRUNED", 2)
    follower.update(ended)

    def shown() -> list[int]:
        found = events(tmp_path, "plate/toy/00000")
        return [event.step for event in found.Scalars("auroc/validation")]

    assert sorted(shown()) == [1, 1, 2]
    new = CurveWriter(Storage(tmp_path), TOY_PLANS)
    assert not new.is_whole(ended)
    new.update(ended)
    assert new.is_whole(ended)
    assert shown() == [1, 2]


def test_a_confirm_run_is_written_when_it_is_complete(sweep):
    writer, runs = sweep_writer(sweep), confirmed(sweep)
    for run in runs:
        writer.update(run.model_copy(update={"state": "RUNNING"}))
    assert not sizes(sweep)
    for run in runs:
        writer.update(run)
    written = {str(path.parent.relative_to(sweep)) for path in sweep.rglob("*tfevents*")}
    assert written == {
        f"tensorboard/bottle/padim/{kind}/{run.number:05d}-{run.seed}"
        for run in runs
        for kind in ("confirm", "roc")
    }


def test_a_confirm_run_that_is_written_twice_is_there_once(sweep):
    run = confirmed(sweep)[0]
    for _ in range(2):  # the second by a driver that was killed before it wrote the record
        sweep_writer(sweep).update(run)
    name = f"bottle/padim/confirm/{run.number:05d}-{run.seed}"
    (point,) = events(sweep, name).Scalars("auroc/held_out")
    assert point.value == pytest.approx(run.test.auroc)


@pytest.mark.parametrize("state", ["RUNNING", "FAIL"])
def test_a_confirm_run_that_begins_again_is_removed(sweep, state):
    writer, run = sweep_writer(sweep), confirmed(sweep)[0]
    writer.update(run)
    writer.update(run.model_copy(update={"state": state}))
    assert not sizes(sweep)


def test_figures_of_a_confirm_run(sweep):
    run = confirmed(sweep)[0]
    sweep_writer(sweep).update(run)
    found = events(sweep, f"bottle/padim/confirm/{run.number:05d}-{run.seed}")
    figures = {tag: found.Scalars(tag)[0].value for tag in found.Tags()["scalars"]}
    assert figures == pytest.approx(
        {
            "auroc/confirmed": run.val_auroc,
            "auroc/held_out": run.test.auroc,
            "held_out/pixel_auroc": run.test.figures["pixel_auroc"],
            "held_out/aupro": run.test.figures["aupro"],
            "shifted/fog": run.shifted["fog"].auroc,
        }
    )
    text = found.Tensors("confirm/figures")[0].tensor_proto.string_val[0].decode()
    assert f"held out | 30 | 30 | {run.test.auroc:.4f} |" in text
    assert f"fog | 30 | 30 | {run.shifted['fog'].auroc:.4f} |" in text


def test_each_example_is_a_picture_with_its_row_of_the_sheet(sweep):
    run = confirmed(sweep)[0]
    sweep_writer(sweep).update(run)
    found = events(sweep, f"bottle/padim/confirm/{run.number:05d}-{run.seed}")
    sheet = np.asarray(Image.open(sweep / f"{run.path}.png").convert("RGB"))
    for example, row in zip(run.examples, sheet_rows(sheet, 5), strict=True):
        content = found.Tensors(f"examples/{example.kind}")[0].tensor_proto.string_val
        picture = np.asarray(Image.open(io.BytesIO(content[2])))
        assert [int(side) for side in content[:2]] == [picture.shape[1], picture.shape[0]]
        np.testing.assert_array_equal(picture, row)
        about = found.SummaryMetadata(f"examples/{example.kind}").summary_description
        assert about.startswith(f"{example.key}, {example.defect}, score ")


@pytest.mark.parametrize("rounding", [9, 0])
def test_the_area_under_the_roc_curve_is_the_auroc(sweep, rounding):
    from sklearn.metrics import roc_auc_score

    run = confirmed(sweep)[0]
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200).astype(np.int8)
    # Rounded scores have ties, whose part of the curve is oblique.
    scores = np.round(labels + generator.normal(size=200), rounding).astype(np.float32)
    np.savez(sweep / f"{run.path}.npz", labels=labels, held_out=scores)
    sweep_writer(sweep).update(run)
    curve = events(sweep, f"bottle/padim/roc/{run.number:05d}-{run.seed}").Scalars(ROC)
    assert (curve[0].step, curve[-1].step, curve[-1].value) == (0, 1000, 1.0)
    area = np.trapezoid([p.value for p in curve], [p.step / 1000 for p in curve])
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)


def test_without_held_out_images_there_are_the_validation_figures(sweep):
    run = confirmed(sweep)[0].model_copy(update={"test": None, "shifted": {}, "examples": []})
    sweep_writer(sweep).update(run)
    name = f"{run.number:05d}-{run.seed}"
    assert events(sweep, f"bottle/padim/confirm/{name}").Tags()["scalars"] == ["auroc/confirmed"]
    assert not (sweep / "tensorboard/bottle/padim/roc").exists()


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_broken_sheet_is_no_reason_to_stop(sweep, content):
    run = confirmed(sweep)[0]
    sheet = sweep / f"{run.path}.png"
    sheet.write_bytes(sheet.read_bytes()[:200] if content is None else content)
    sweep_writer(sweep).update(run)
    found = events(sweep, f"bottle/padim/confirm/{run.number:05d}-{run.seed}")
    assert "auroc/held_out" in found.Tags()["scalars"]
    assert not [tag for tag in found.Tags()["tensors"] if tag.startswith("examples/")]


def test_runs_of_a_study_without_confirm_are_its_trials(tmp_path):
    write_sample_sweep(tmp_path, categories=["bottle"], methods=["padim"], trials=2, confirm=0)
    _, store = read_sweep(tmp_path)
    writer = sweep_writer(tmp_path)
    for record in store.read_all()[StudyKey("bottle", "padim")]:
        writer.update(record)
    names = [path.name for path in sorted((tmp_path / "tensorboard/bottle/padim").iterdir())]
    assert names == ["00000", "00001"]
