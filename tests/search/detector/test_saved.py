"""A model folder: whole or not there, data alone, and one line for whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import MethodError
from anomtune.models.layers import backbones
from anomtune.search.detector.devices import as_images
from anomtune.search.detector.saved import CONFIG, WEIGHTS, load_detector, save_model
from anomtune.search.detector.train import train
from anomtune.search.metrics.image import f1_threshold
from anomtune.search.source import DatasetConfig
from anomtune.search.store.storage import Storage
from tests.models.test_every_method import SHORT
from tests.search.toy_models import save_toy, toy_config

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path, toy_data) -> Path:
    return save_toy(toy_data, tmp_path / "model")


def test_a_folder_gives_the_same_detector(tmp_path, toy_data):
    model = train(toy_config(toy_data), device="cpu")
    detector, config = model.detector, model.config
    save_model(Storage(tmp_path), "models/plate/toy", detector, config)
    loaded, read = load_detector(tmp_path / "models/plate/toy")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded.anomaly_maps(images), detector.anomaly_maps(images))
    assert read.model_copy(update={"weights_sha256": ""}) == config
    assert read.hyperparameters["quality"] == 1.0


@pytest.mark.parametrize("method", sorted(SHORT))
def test_every_method_is_saved_without_what_only_training_needs(
    method, tmp_path, toy_data, monkeypatch
):
    settings = {**SHORT[method], **({"epochs": 1} if "epochs" in SHORT[method] else {})}
    if "iterations" in settings:
        settings["iterations"] = 1
    if "resolution" in settings:
        settings["resolution"] = 48
    config = toy_config(toy_data) | {"method": method, "hyperparameters": settings}
    model = train(config, device="cpu")
    detector, saved = model.detector, model.config
    if "weights" in settings:  # as if it had been trained with ImageNet's
        imagenet = {**saved.hyperparameters, "weights": "imagenet"}
        saved = saved.model_copy(update={"hyperparameters": imagenet})
    save_model(Storage(tmp_path), "", detector, saved)
    kept = load_file(tmp_path / WEIGHTS)
    assert not [name for name in kept if name.startswith(("optimizer", "order", "generator"))]
    assert set(kept) < set(detector.state_dict())

    def no_file(*arguments: object) -> None:
        raise AssertionError("ImageNet weights were asked for")

    monkeypatch.setattr(backbones, "_state", no_file)
    monkeypatch.setattr(backbones, "_weights_file", no_file)
    loaded, read = load_detector(tmp_path)
    side = loaded.input_size
    images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    assert torch.equal(loaded.anomaly_maps(images), detector.anomaly_maps(images))
    assert read.hyperparameters == saved.hyperparameters


def test_the_threshold_is_the_best_on_validation_and_between_two_scores(toy_data):
    model = train(toy_config(toy_data), device="cpu")
    detector, config = model.detector, model.config
    dataset = DatasetConfig(**toy_config(toy_data)["dataset"]).open()
    split = load_search_split(dataset, "plate", 32, Validation())
    scores = detector.score(as_images(split.validation, torch.device("cpu"))).numpy()
    threshold, f1, accuracy = f1_threshold(split.validation_labels, scores)
    assert (config.measured.f1, config.measured.accuracy) == (f1, accuracy)
    assert np.array_equal(scores >= config.threshold, scores >= threshold)
    assert scores[scores < threshold].max() < config.threshold < threshold
    assert config.map_low < config.map_high


def test_the_config_is_written_last(tmp_path, toy_data, monkeypatch):
    """Killed in between, a first save leaves no model, and a second one no mixture of two."""
    first = train(toy_config(toy_data), device="cpu")
    second = train(toy_config(toy_data, iterations=9), device="cpu")
    written: list[str] = []
    original = Storage.write

    def killed(self: Storage, path: str, content: bytes, *, durable: bool = False) -> None:
        written.append(path)
        if path.endswith(CONFIG):
            raise KeyboardInterrupt
        original(self, path, content, durable=durable)

    monkeypatch.setattr(Storage, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(Storage(tmp_path), "model", first.detector, first.config)
    assert written == ["model/weights.safetensors", "model/config.yaml"]
    with pytest.raises(MethodError, match=r"no config.yaml there"):
        load_detector(tmp_path / "model")
    monkeypatch.undo()
    save_model(Storage(tmp_path), "model", first.detector, first.config)
    monkeypatch.setattr(Storage, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(Storage(tmp_path), "model", second.detector, second.config)
    with pytest.raises(MethodError, match="not the weights that"):
        load_detector(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 1}, "not a saved model of this version of anomtune (format 1"),
        ({"method": "toyy"}, "did you mean 'toy'?"),
        ({"hyperparameters": {"qualty": 1}}, "hyperparameters.qualty: unknown key"),
        ({"hyperparameters": {"quality": 3}}, "quality: Input should be less than"),
        ({"threshold": float("nan")}, "threshold: "),
        ({"surprise": 1}, "surprise: unknown key"),
    ],
)
def test_a_folder_of_another_version_is_refused_in_one_line(folder, change, expected):
    config = yaml.safe_load((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(yaml.safe_dump(config | change))
    with pytest.raises(MethodError) as refusal:
        load_detector(folder)
    assert expected in str(refusal.value)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "content", ["", "a: [", "- 1", "!!python/object/apply:os.system ['true']", "\x00"]
)
def test_a_config_that_is_none_is_refused(folder, content):
    (folder / CONFIG).write_text(content)
    with pytest.raises(MethodError, match="config"):
        load_detector(folder)


def test_weights_are_those_of_the_config(folder):
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[:-1] + b"\xff")
    with pytest.raises(MethodError, match="not the weights that"):
        load_detector(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(MethodError, match=r"no weights.safetensors there"):
        load_detector(folder)


def test_a_state_that_lacks_something_is_refused(tmp_path, toy_data):
    settings = {"backbone": "mobilenet_v2", "weights": "random"}
    config = toy_config(toy_data) | {"method": "patchcore", "hyperparameters": settings}
    detector = train(config, device="cpu").detector
    state = detector.inference_state()
    del state["network.bank"]
    with pytest.raises(MethodError, match=r"no network\.bank"):
        detector.load_inference_state(state)
    alien = {**detector.inference_state(), "network.alien": torch.zeros(1)}
    with pytest.raises(MethodError, match="does not fit"):
        detector.load_inference_state(alien)
