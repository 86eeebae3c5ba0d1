"""A paper's row with one command: all methods, on real photographs in MVTec's true layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.held_out import load_whole_test
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import SweepError
from anomtune.registry import METHODS
from anomtune.search.metrics.alignment import at_one_size
from anomtune.search.metrics.image import auroc
from anomtune.search.metrics.metric import metrics
from anomtune.search.metrics.pixel import PixelMetrics
from anomtune.search.reproduce import reproduce
from anomtune.search.results.reproduction import Figure
from tests.conftest import draw_category

pytestmark = pytest.mark.slow

#: Settings that make a method quick: no more than that is not the paper's.
QUICK: dict[str, dict[str, object]] = {
    "cutpaste": {"iterations": 2, "width": 8, "level": "patch", "batch_size": 2},
    "deep_svdd": {"iterations": 2},
    "f_anogan": {"iterations": 2, "width": 8, "batch_size": 2},
    "gmm_contrastive": {"backbone": "mobilenet_v2", "iterations": 2},
    "gnl": {"backbone": "mobilenet_v2", "epochs": 1},
    "kdad": {"weights": "random", "iterations": 1},
    "padim": {"backbone": "mobilenet_v2"},
    "patchcore": {"backbone": "mobilenet_v2"},
    "rd4ad": {"backbone": "mobilenet_v2", "epochs": 1},
    "recontrast": {"backbone": "mobilenet_v2", "iterations": 2},
    "spr": {"epochs": 1, "resolution": 64, "width": 16},
    "ssae": {"iterations": 2, "resolution": 64},
}


def test_all_methods_are_tried() -> None:
    assert set(QUICK) == set(METHODS.declared()) - {"toy"}


@pytest.fixture(scope="module")
def mvtec(tmp_path_factory, shared_data: Path) -> Path:
    """Welds and tiles as if they were two categories of MVTec AD, a few of each."""
    root = tmp_path_factory.mktemp("mvtec")
    for category, source, defects in (
        ("grid", "battery_weld", ("bent", "broken")),
        ("tile", "magnetic_tile", ("crack", "rough")),
    ):
        kinds = sorted((shared_data / source / "ground_truth").iterdir())
        parts = [("train/good", "train/good", 10), ("test/good", "test/good", 5)]
        parts += [
            (f"test/{kinds[i % len(kinds)].name}", f"test/{name}", 4)
            for i, name in enumerate(defects)
        ]
        taken: dict[str, int] = {}
        for origin, target, count in parts:
            files = sorted((shared_data / source / origin).iterdir())
            first = taken.get(origin, 0)
            taken[origin] = first + count
            for number, file in enumerate(files[first : first + count]):
                place = root / category / target / f"{number:03}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.open(file).save(place)
                if "good" not in target:
                    mask = next(
                        (shared_data / source / "ground_truth" / Path(origin).name).glob(
                            f"{file.stem}*"
                        )
                    )
                    place = root / category / "ground_truth" / Path(target).name
                    place.mkdir(parents=True, exist_ok=True)
                    Image.open(mask).save(place / f"{number:03}_mask.png")
    return root


def options(method: str) -> list[str]:
    return [
        word
        for name, value in QUICK[method].items()
        for word in ("--set", f"{name}={json.dumps(value)}")
    ]


@pytest.mark.parametrize("method", sorted(QUICK))
def test_every_methods_row(method: str, mvtec: Path, run, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    kind = METHODS.get(method).Hyperparameters
    words = ["reproduce", method, "mvtec", mvtec, "--out", out, "--image-size", 64]
    if len(kind.protocol.seeds) > 1:
        words += ["--seed", kind.protocol.seeds[0]]
    code, told, err = run(*words, *options(method))
    assert code == 0, err
    lines = [line.split() for line in told.splitlines()]
    (mean,) = [line for line in lines if line and line[0] == "mean"]
    for category in ("grid", "tile"):
        (record,) = [json.loads(path.read_text()) for path in (out / category).iterdir()]
        assert record["seed"] == kind.protocol.seeds[0]
        paper = kind.paper_values("mvtec", category)
        assert all(
            record["hyperparameters"][name]
            == (value if name != "scoring" else record["hyperparameters"][name] | value)
            for name, value in paper.items()
            if name not in QUICK[method]
        )
        figures = record["figures"][""]
        assert (figures["n_normal"], figures["n_anomalous"]) == (5, 8)
        missing = {name for name, value in figures["figures"].items() if value is None}
        # A method that judges whole images has no figures of pixels.
        pixels = {metric.name for metric in metrics() if metric.level == "pixel"}
        assert missing == (set() if kind(**record["hyperparameters"]).localises else pixels)
        (row,) = [line for line in lines if line and line[0] == category]
        assert row[1] == f"{figures['figures']['auroc']:.4f}"
    assert len(mean) >= (3 if kind().localises else 2)
    assert "no figure of unseen images" in told
    assert "image_size 64, not 256" in told
    assert "10 of 264 training images; the download is not complete" in err
    published = {"cutpaste", "patchcore", "rd4ad", "recontrast", "ssae"}
    assert ("No published figure" in told) == (method not in published)
    assert ("Inferred, not told by the paper" in told) == (method == "ssae")


def test_the_figures_are_those_of_the_whole_test_set(mvtec: Path, tmp_path: Path) -> None:
    """Computed again, by hand, from the detector's own maps."""
    shutil.copytree(mvtec / "tile", tmp_path / "data/tile")
    test = tmp_path / "data/tile/test/good"
    # Papers do not leave out what training has too.
    shutil.copy(tmp_path / "data/tile/train/good/000.png", test / "005.png")
    source = {"name": "mvtec", "root": str(tmp_path / "data")}
    fixed = {"backbone": "mobilenet_v2", "iterations": 2, "batch_size": 4}
    found = reproduce("recontrast", source, tmp_path, image_size=64, hyperparameters=fixed)
    (run,) = found.runs["tile"]
    assert (run.seed, run.hyperparameters["encoder_bn"]) == (111, "eval")

    dataset = open_dataset("mvtec", tmp_path / "data")
    whole = load_whole_test(dataset, "tile", 64)
    assert len(whole.images) == 14
    train = load_search_split(dataset, "tile", 64, Validation(protocol="test")).train
    kind = METHODS.get("recontrast")
    detector = kind(kind.Hyperparameters(**run.hyperparameters), image_size=64, seed=111)
    detector.fit(torch.from_numpy(np.array(train)).permute(0, 3, 1, 2), 2)
    maps, scores = detector.predict(torch.from_numpy(whole.images).permute(0, 3, 1, 2))
    assert found.rows()[0].figures["auroc"].mean == pytest.approx(
        auroc(whole.labels, scores.numpy()).value
    )
    pixels = PixelMetrics()
    for anomaly_map, mask in zip(maps.numpy(), whole.masks, strict=True):
        small = at_one_size(anomaly_map, mask, "touched")[1]
        pixels.add(anomaly_map[None], small[None])
    assert found.rows()[0].figures["pixel_auroc"].mean == pytest.approx(
        pixels.result().pixel_auroc, abs=1e-6
    )
    assert found.rows()[0].figures["aupro_per_image"].mean == pytest.approx(
        pixels.result().aupro_per_image, abs=1e-6
    )


def test_pixels_that_a_cropping_method_does_not_see_are_in_no_figure(
    mvtec: Path, tmp_path: Path, run
) -> None:
    """As the official code of PatchCore, which crops image and mask: here by hand."""
    source = {"name": "mvtec", "root": str(mvtec), "categories": ["tile"]}
    fixed = {"backbone": "mobilenet_v2", "resolution": 64, "crop": 48}

    def go():
        return reproduce(
            "patchcore", source, tmp_path, image_size=64, preset="official", hyperparameters=fixed
        )

    found = go()
    (record,) = found.runs["tile"]
    assert record.seen == 0.75

    dataset = open_dataset("mvtec", mvtec)
    whole = load_whole_test(dataset, "tile", 64)
    train = load_search_split(dataset, "tile", 64, Validation(protocol="test")).train
    kind = METHODS.get("patchcore")
    detector = kind(kind.Hyperparameters(**record.hyperparameters), image_size=64)
    detector.fit(torch.from_numpy(np.array(train)).permute(0, 3, 1, 2), 1)
    maps = detector.predict(torch.from_numpy(whole.images).permute(0, 3, 1, 2))[0].numpy()
    masks = np.stack(
        [
            np.array(Image.fromarray(mask).convert("L").resize((64, 64), Image.Resampling.BILINEAR))
            > 127
            for mask in whole.masks
        ]
    )
    assert masks.sum() > masks[:, 8:56, 8:56].sum() > 0, "some defects reach the rim"
    figures = found.rows()[0].figures
    for values, drawn, same in (
        (maps[:, 8:56, 8:56], masks[:, 8:56, 8:56], True),
        (maps, masks, False),
    ):
        pixels = PixelMetrics()
        pixels.add(values, drawn)
        area = roc_auc_score(drawn.ravel(), values.ravel())
        for name, expected in (("pixel_auroc", area), ("aupro", pixels.result().aupro)):
            assert (abs(figures[name].mean - expected) < 1e-4) == same

    words = ("reproduce", "patchcore", "mvtec", mvtec, "--category", "tile", "--out", tmp_path)
    words += ("--image-size", 64, "--preset", "official")
    words += tuple(f"--set={name}={value}" for name, value in fixed.items())
    code, told, _ = run(*words)
    assert code == 0
    assert "pixels of the middle 75.0% of each side" in told
    # What was measured with the rim is of another kind.
    path = tmp_path / "tile/0.json"
    path.write_text(path.read_text().replace('"seen": 0.75', '"seen": 1.0'))
    with pytest.raises(SweepError, match=r"a run of another config \(seen\)"):
        go()


def test_who_crops_names_the_hyperparameter_that_says_so() -> None:
    for name in METHODS.declared():
        kind = METHODS.get(name).Hyperparameters
        assert kind.protocol.middle in {None, *kind.model_fields}


def test_it_goes_on_where_it_stopped_and_refuses_another_config(tmp_path, toy_data) -> None:
    source = {"name": "folder", "root": str(toy_data)}
    told: list[tuple[str, int, int, int]] = []

    def go(**changes: object):
        return reproduce(
            "toy", source, tmp_path / "out", image_size=32,
            on_progress=lambda *it: told.append(it), **{"seeds": (1, 2), **changes},
        )  # fmt: skip

    first = go()
    assert {(category, seed) for category, seed, *_ in told} == {
        (category, seed) for category in ("plate", "ring") for seed in (1, 2)
    }
    told.clear()
    (tmp_path / "out/ring/2.json").unlink()
    again = go()
    assert {(category, seed) for category, seed, *_ in told} == {("ring", 2)}
    assert [row.figures for row in again.rows()] == [row.figures for row in first.rows()]
    with pytest.raises(SweepError, match=r"plate/1.json: a run of another config \(hyperparam"):
        go(hyperparameters={"quality": 0.9})
    found = tmp_path / "out/plate/1.json"
    found.write_text(found.read_text().replace('"content": "', '"content": "0'))
    with pytest.raises(SweepError, match=r"plate/1\.json: a run on other images"):
        go()
    found.write_text("{}")
    with pytest.raises(SweepError, match="not a run of"):
        go()


def test_seeds_have_a_mean_and_a_deviation(tmp_path, toy_data) -> None:
    source = {"name": "folder", "root": str(toy_data), "categories": ["plate"]}
    found = reproduce("toy", source, tmp_path, image_size=32, seeds=(1, 2, 3, 1))
    (row,) = found.rows()
    figure = row.figures["auroc"]
    values = [run.figures[""].auroc for run in found.runs["plate"]]
    assert figure.mean == pytest.approx(np.mean(values))
    assert figure.std == pytest.approx(np.std(values, ddof=1))
    assert Figure(0.9, None, 0.95).difference == pytest.approx(-0.05)
    assert figure.published is None
    assert figure.difference is None


def test_a_training_that_fails_is_told_and_tried_again(tmp_path, toy_data, run) -> None:
    words = ("reproduce", "toy", "folder", toy_data, "--out", tmp_path / "out", "--image-size", 32)
    code, _out, err = run(*words, "--set", "behaviour=diverge", "--category", "ring")
    assert code == 1
    assert "ring, seed 0: the loss is nan at iteration" in err
    record = json.loads((tmp_path / "out/ring/0.json").read_text())
    assert (record["state"], record["figures"]) == ("FAIL", {})
    assert run(*words, "--set", "behaviour=diverge", "--category", "ring")[0] == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("nomethod", "folder", "DATA"), "no method 'nomethod'"),
        (("toy", "folder", "DATA", "--category", "plat"), "did you mean 'plate'?"),
        (("toy", "folder", "DATA", "--set", "qualiti=1"), "did you mean 'quality'?"),
        (("toy", "folder", "DATA", "--set", "quality"), "write name=value"),
        (("toy", "folder", "DATA", "--preset", "x"), "no 'x'"),
        (("toy", "folder", "/no/such"), "/no/such: no such folder"),
    ],
)
def test_bad_input_is_one_line(words, expected, run, toy_data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(toy_data) if word == "DATA" else word for word in words]
    code, _out, err = run("reproduce", *given)
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_shifted_domains_have_rows_of_their_own(tmp_path, toy_data) -> None:
    draw_category(tmp_path / "data/plate")
    shift = {"corruptions": ["brightness"], "severity": 3}
    source = {"name": "folder", "root": str(tmp_path / "data"), "shift": shift}
    found = reproduce("toy", source, tmp_path / "out", image_size=32)
    rows = found.rows()
    assert next(row.domain for row in rows) == ""
    assert len(rows) > 1
    assert all(row.figures["auroc"].mean is not None for row in rows)
