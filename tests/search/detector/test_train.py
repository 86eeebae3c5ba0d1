"""From the config that a search found to a detector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import DataError, SweepError, TrainingDivergedError
from anomtune.search.config import MethodConfig
from anomtune.search.decide.plan import plan_search
from anomtune.search.detector.saved import load_detector
from anomtune.search.detector.train import train
from anomtune.search.sweep import run as run_sweep
from tests.conftest import draw_category
from tests.search.conftest import parse_sweep, sweep_dict
from tests.search.toy_models import toy_config


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_best_prints_trains_to_what_the_search_saw(run, tmp_path, toy_data):
    config = sweep_dict(toy_data, trials=3, confirm=0)
    run_sweep(parse_sweep(config, "test"), str(tmp_path / "sweep"))
    code, out, _ = run("best", tmp_path / "sweep", "--category", "plate")
    assert code == 0
    (tmp_path / "best.yaml").write_text(out)
    code, out, err = run("train", tmp_path / "best.yaml", "--out", tmp_path / "model")
    assert code == 0, err
    _, saved = load_detector(tmp_path / "model")
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert saved.measured.auroc == best["found"]["auroc"]
    assert list(saved.measured.interval) == pytest.approx(best["found"]["interval"], abs=1e-9)
    assert saved.split_hash == best["split_hash"]
    assert saved.hyperparameters == best["hyperparameters"]
    assert f"validation AUROC {saved.measured.auroc:.4f}" in out
    assert str(tmp_path / "model") in out
    assert "iteration 8 of 8  loss 0.1111" in err


def test_the_observer_sees_the_whole_training(toy_data):
    seen = []
    model = train(
        toy_config(toy_data, iterations=25),
        on_progress=lambda iteration, total, report: seen.append((iteration, total)),
    )
    assert model.detector.iteration == 25
    assert seen[-1] == (25, 25)
    assert len(seen) == 10
    assert seen == sorted(seen)


def test_what_is_passed_over_is_told(toy_data, tmp_path):
    root = shutil.copytree(toy_data, tmp_path / "data")
    for number in range(3):
        (root / "plate/train/good" / f"{number}.txt").write_text("no image")
    notes = []
    train(toy_config(root, iterations=2), on_note=notes.append)
    assert notes == [
        "note: plate/train/good: '0.txt', '1.txt', '2.txt' ignored: "
        "not a PNG, JPEG, BMP, TIFF or WebP file"
    ]


def test_held_out_images_are_not_opened(toy_data, monkeypatch):
    def opened(*arguments: object, **options: object) -> None:
        raise AssertionError("the held-out images were opened")

    # All that opens any goes through it, under whatever name it was imported.
    monkeypatch.setattr("anomtune.datasets.splits.held_out._test_split", opened)
    with pytest.raises(AssertionError, match="were opened"):
        load_test_split(open_dataset("folder", toy_data), "plate", 32, Validation())
    train(toy_config(toy_data))


def test_other_images_than_the_search_had(tmp_path):
    draw_category(tmp_path / "data/plate")
    config = toy_config(tmp_path / "data")
    known = config | {"split_hash": train(config).config.split_hash}
    train(known)
    shutil.copy(tmp_path / "data/plate/test/good/000.png", tmp_path / "new.png")
    shutil.rmtree(tmp_path / "data")
    draw_category(tmp_path / "data/plate", seed=5)
    with pytest.raises(DataError, match=r"restore them, or remove split_hash from config"):
        train(known)
    train(config)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"methd": "toy"}, "did you mean 'method'?"),
        ({"method": "toyy"}, "did you mean 'toy'?"),
        ({"hyperparameters": {"qualty": 1}}, "hyperparameters.qualty: unknown key"),
        ({"hyperparameters": {"quality": 7}}, "hyperparameters.quality: Input should be less"),
        ({"image_size": 33}, "image_size: Input should be a multiple of 32"),
        ({"validation": {"protcol": "test"}}, "did you mean 'protocol'?"),
        ({"dataset": {"name": "folder", "rot": "x"}}, "did you mean 'root'?"),
        ({"category": None}, "category: "),
    ],
)
def test_a_wrong_config_is_one_line(run, tmp_path, toy_data, change, expected):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(toy_config(toy_data) | change))
    code, out, err = run("train", path, "--out", tmp_path / "model")
    assert (code, out) == (2, "")
    assert err.startswith(f"anomtune: {path}: ")
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("content", ["a: [", "- 1", "", "\xff\xfe"])
def test_a_file_that_is_no_config(run, tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content.encode("latin-1"))
    code, _, err = run("train", path, "--out", tmp_path / "model")
    assert code == 2
    assert err.count("\n") == 1
    with pytest.raises(SweepError, match="cannot read the config: No such file"):
        train(tmp_path / "absent.yaml")


def test_a_folder_that_holds_something_else_is_left_alone(run, tmp_path, toy_data):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(toy_config(toy_data)))
    out = tmp_path / "model"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "holds something else" in run("train", path, "--out", out)[2]
    assert [entry.name for entry in out.iterdir()] == ["notes.txt"]
    (out / "notes.txt").unlink()
    assert run("train", path, "--out", out)[0] == 0
    assert run("train", path, "--out", out)[0] == 0, "a model may be trained again"
    assert "holds something else" in run("train", path, "--out", path)[2]


def test_a_training_that_diverges(run, tmp_path, toy_data):
    config = toy_config(toy_data, behaviour="diverge")
    with pytest.raises(TrainingDivergedError):
        train(config)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    code, _, err = run("train", path, "--out", tmp_path / "model")
    assert code == 1
    assert "the loss is nan at iteration" in err
    assert not (tmp_path / "model").exists()


def test_a_device_that_is_not_there(run, tmp_path, toy_data):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(toy_config(toy_data)))
    arguments = ("train", path, "--out", tmp_path / "model", "--device")
    assert "there is cpu, cuda" in run(*arguments, "gpu")[2]
    if not torch.cuda.is_available():
        code, _, err = run(*arguments, "cuda")
        assert code == 2
        assert "torch sees no GPU here" in err


def tied(root: Path) -> dict:
    """A config as its writer has it, of images that differ by a pixel which resizing removes."""
    number = 0
    for part in ("train/good", "test/good", "test/bad"):
        (root / "part" / part).mkdir(parents=True)
        for index in range(6):
            pixels = np.full((256, 256, 3), 128, np.uint8)
            pixels[number // 250, number % 250] = 129
            number += 3
            Image.fromarray(pixels).save(root / "part" / part / f"{index}.png")
    return {
        "dataset": {"name": "folder", "root": str(root)},
        "category": "part",
        "method": "patchcore",
        "image_size": 64,
        "hyperparameters": {"backbone": "mobilenet_v2", "weights": "random", "sigma": 0.0},
    }


def test_a_part_of_the_scoring_may_be_set_in_short(run, tmp_path):
    config = tied(tmp_path / "tied")
    (tmp_path / "tied.yaml").write_text(yaml.safe_dump(config))
    code, _, err = run("train", tmp_path / "tied.yaml", "--out", tmp_path / "model")
    assert code == 0, err
    detector, saved = load_detector(tmp_path / "model")
    assert saved.hyperparameters["scoring"]["sigma"] == 0.0
    assert "sigma" not in saved.hyperparameters
    assert detector.scoring == type(detector.hyperparameters)().scoring.changed({"sigma": 0.0})


@pytest.mark.parametrize(
    ("hyperparameters", "told"),
    [
        (
            {"sigma": 0.0, "scoring": {"sigma": 0.0}},
            "hyperparameters.sigma: given as scoring.sigma too; keep one of them",
        ),
        ({"sigma": -1.0}, "hyperparameters.scoring.sigma: must be 0 or more"),
        ({"sgima": 1.0}, "hyperparameters.sgima: unknown key"),
    ],
)
def test_what_is_wrong_in_short_is_told_in_one_line(run, tmp_path, toy_data, hyperparameters, told):
    config = toy_config(toy_data) | {"method": "padim", "hyperparameters": hyperparameters}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    code, _, err = run("train", tmp_path / "config.yaml", "--out", tmp_path / "model")
    assert code == 2
    assert told in err
    assert len(err.strip().splitlines()) == 1


def test_a_config_takes_either_length(run, tmp_path, toy_data):
    """The method counts iterations; the images are 10 or so, so that an epoch is few steps."""
    small = {"backbone": "mobilenet_v2", "weights": "random", "batch_size": 4}
    config = toy_config(toy_data) | {"method": "recontrast"}
    model = train({**config, "hyperparameters": {**small, "epochs": 2}}, device="cpu")
    hp = model.detector.hyperparameters
    assert (hp.epochs, hp.iterations) == (2, None)
    split = load_search_split(open_dataset("folder", toy_data), "plate", 32, Validation())
    assert model.detector.iteration == 2 * -(-len(split.train) // 4)
    both = {**config, "hyperparameters": {**small, "epochs": 2, "iterations": 3}}
    with pytest.raises(SweepError, match=r"hyperparameters\.epochs: set epochs or iterations, not"):
        train(both, device="cpu")


@pytest.mark.parametrize("method", ["gmm_contrastive", "patchcore"])
def test_a_size_of_the_search_goes_from_training_to_prediction(method, tmp_path, toy_data, run):
    small = {"backbone": "mobilenet_v2", "weights": "random"}
    if method == "gmm_contrastive":
        small |= {"iterations": 1, "dimensions": 6, "components": 2, "em_steps": 2}
    plan = plan_search(method, MethodConfig(fixed=small), image_size=64)
    side = plan.space["resolution"].choices[-1]
    params = plan.hyperparameters(plan.anchor()[0] | {"resolution": side}).model_dump(mode="json")
    assert params["resolution"] == side > 64
    config = toy_config(toy_data) | {"method": method, "image_size": 64, "hyperparameters": params}
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(config))
    code, _, err = run("train", tmp_path / "best.yaml", "--out", tmp_path / "model")
    assert code == 0, err
    detector, saved = load_detector(tmp_path / "model")
    assert saved.hyperparameters["resolution"] == detector.input_size == side
    assert detector.image_size == 64
    folder = toy_data / "plate/test"
    code, _, err = run("predict", tmp_path / "model", folder, "--out", tmp_path / "scores")
    assert code == 0, err
    assert (tmp_path / "scores/scores.csv").read_text().count("\n") > 2
