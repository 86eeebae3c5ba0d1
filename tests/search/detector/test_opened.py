"""Images reach a detector as its method wants them, wherever they are opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomtune.datasets.io.cache import open_category
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.held_out import load_test_split
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.search.detector.opened import OpenedDetector, open_detector
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.detector.train import train
from anomtune.search.source import DatasetConfig
from tests.conftest import draw_category

pytestmark = pytest.mark.slow

SPR = {"width": 8, "resolution": 32, "epochs": 1}
GNL = {"backbone": "mobilenet_v2", "weights": "random", "batch_size": 3}


def opened(root: Path, method: str, **fields: object) -> OpenedDetector:
    spec = TrainingSpec(
        dataset=DatasetConfig(name="folder", root=str(root)),
        category="plate",
        method=method,
        image_size=32,
        hyperparameters=fields,
    )
    return open_detector(spec, torch.device("cpu"))


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that have to be resized."""
    root = tmp_path_factory.mktemp("larger")
    draw_category(root / "plate", size=48)
    return root


def resized(root: Path, how: Image.Resampling) -> set[bytes]:
    """Returns every image of the category as Pillow resizes it."""
    return {
        Image.open(path).convert("RGB").resize((32, 32), how).tobytes()
        for path in (root / "plate").rglob("*.png")
        if "ground_truth" not in path.parts
    }


def bytes_of(images: torch.Tensor) -> set[bytes]:
    return {image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in images}


@pytest.mark.parametrize(
    ("method", "fields", "how"),
    [
        ("spr", SPR, Image.Resampling.LANCZOS),
        ("gnl", GNL, Image.Resampling.BILINEAR),
    ],
)
def test_images_are_resized_as_the_method_wants(
    larger: Path, method: str, fields: dict, how: Image.Resampling
) -> None:
    """At the same size, one after the other: the cache keeps them apart."""
    expected = resized(larger, how)
    trial = opened(larger, method, **fields)
    assert bytes_of(trial.train) <= expected
    assert bytes_of(trial.validation) <= expected
    held_out = load_test_split(
        open_dataset("folder", larger),
        "plate",
        32,
        Validation(),
        input_size=trial.detector.input_size,
        resize=trial.detector.hyperparameters.resize,
    )
    assert {image.tobytes() for image in held_out.images} <= expected


def test_new_images_are_resized_as_in_training(larger: Path) -> None:
    spec = TrainingSpec(
        dataset=DatasetConfig(name="folder", root=str(larger)),
        category="plate",
        method="spr",
        image_size=32,
        hyperparameters=SPR,
    )
    model = train(spec)
    seen = {p.image.tobytes() for p in model.predict(larger / "plate" / "train")}
    assert seen <= resized(larger, Image.Resampling.LANCZOS)
    assert seen.isdisjoint(resized(larger, Image.Resampling.BILINEAR))


def test_damage_is_the_same_for_every_method(larger: Path) -> None:
    """Drawn on bilinear images, and brought over to the others: at the same size as well."""
    dataset, protocol = open_dataset("folder", larger), Validation(protocol="synthetic")
    plain = load_search_split(dataset, "plate", 32, protocol)
    sharp = load_search_split(dataset, "plate", 32, protocol, resize="lanczos")
    assert plain.validation_keys == sharp.validation_keys
    changes = [s.validation.astype(int) - s.validation[:1] for s in (plain, sharp)]
    copies = [i for i, key in enumerate(plain.validation_keys) if "#" in key][:2]
    for i in copies:
        where = [np.abs(change[i]).max(-1) > 40 for change in changes]
        assert (where[0] == where[1]).mean() > 0.9


def test_the_reference_of_gnl_is_the_first_training_image_by_name(tmp_path: Path) -> None:
    """Splits order images by their pixels; the official code takes the first file."""
    draw_category(tmp_path / "plate", train=6, good=4, bad=4, seed=2)
    trial = opened(tmp_path, "gnl", **GNL)
    trial.detector.fit(trial.train, 1)
    arrays = open_category(open_dataset("folder", tmp_path), "plate", 32)
    keys = [s.key for s in arrays.samples if s.part == "train"]
    first = arrays.images[[s.key for s in arrays.samples].index(min(keys))]
    assert trial.detector.first_image != 0, "the order by pixels happens to be that of the names"
    reference = trial.detector.reference
    assert reference is not None
    np.testing.assert_array_equal(reference[0].permute(1, 2, 0).numpy(), first)


def test_a_config_without_hyperparameters_trains_the_papers(tmp_path: Path) -> None:
    """As trial 0 does: `train` completes a config by what holds for its dataset and category."""
    for name, defect in (("tile", "crack"), ("bottle", "contamination")):
        folder = draw_category(tmp_path / name, train=4, good=2, bad=4, seed=1)
        for part in ("test", "ground_truth"):
            (folder / part / "spot").rename(folder / part / defect)
    small = {"backbone": "mobilenet_v2", "weights": "random", "iterations": 1, "batch_size": 2}
    modes = {}
    for name in ("tile", "bottle"):
        spec = TrainingSpec(
            dataset=DatasetConfig(name="mvtec", root=str(tmp_path)),
            category=name,
            method="recontrast",
            image_size=32,
            hyperparameters=small,
        )
        modes[name] = train(spec).config.hyperparameters["encoder_bn"]
    assert modes == {"tile": "eval", "bottle": "train"}
