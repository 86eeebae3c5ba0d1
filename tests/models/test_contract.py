from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anomtune.errors import MethodError
from anomtune.models.layers.backbones import load_backbone
from anomtune.models.rd4ad import RD4AD, RD4ADHyperparameters
from anomtune.models.recontrast import ReContrast, ReContrastHyperparameters
from anomtune.models.testing import check_method

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("image_size", [64, 32])
def test_rd4ad_keeps_the_contract(weights: str, image_size: int) -> None:
    small = {"backbone": "mobilenet_v2", "weights": weights, "batch_size": 3}
    check_method(
        RD4AD,
        RD4ADHyperparameters(**small),
        diverging=RD4ADHyperparameters(**small, lr=1e30),
        image_size=image_size,
    )


@pytest.mark.parametrize("preset", ["full", "C", "B+"])
@pytest.mark.parametrize("encoder_bn", ["train", "partial"])
def test_recontrast_keeps_the_contract(weights: str, preset: str, encoder_bn: str) -> None:
    fields = ReContrastHyperparameters.presets[preset]
    small = {"backbone": "mobilenet_v2", "weights": weights, "batch_size": 4, **fields}
    check_method(
        ReContrast,
        ReContrastHyperparameters(**small, encoder_bn=encoder_bn),
        diverging=ReContrastHyperparameters(**small, decoder_lr=1e30),
    )


def test_mobilenet_has_torchvisions_imagenet_weights(weights: str) -> None:
    if weights == "random":
        pytest.skip("no MobileNetV2 weights in TORCH_HOME, ../shared/weights or a package")
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pretrained = load_backbone("mobilenet_v2", "imagenet")(images)
        random = load_backbone("mobilenet_v2", "random")(images)
    assert [tuple(f.shape[1:]) for f in pretrained] == [(24, 16, 16), (32, 8, 8), (96, 4, 4)]
    assert all(feature.min() < 0 for feature in pretrained)  # linear bottlenecks: signed
    assert pretrained[0].std() > 10 * random[0].std()  # random ones shrink without statistics


def test_the_state_fits_in_a_safetensors_file(tmp_path: Path) -> None:
    hp = ReContrastHyperparameters(backbone="mobilenet_v2", weights="random", batch_size=2)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    original, copy = (ReContrast(hp, image_size=64, seed=seed) for seed in (0, 1))
    original.fit(images, 1)
    save_file(original.state_dict(), tmp_path / "state")
    copy.load_state_dict(load_file(tmp_path / "state"))
    original.fit(images, 1)
    copy.fit(images, 1)
    assert torch.equal(original.score(images), copy.score(images))


def test_a_state_that_no_safetensors_file_can_hold_breaks_the_contract() -> None:
    class Strided(RD4AD):
        def state_dict(self) -> dict[str, torch.Tensor]:
            state = super().state_dict()
            return {**state, "twice": state["order.order"]}

    hp = RD4ADHyperparameters(backbone="mobilenet_v2", weights="random", batch_size=3)
    before = torch.get_rng_state()
    with pytest.raises(AssertionError, match="does not fit in a safetensors file"):
        check_method(Strided, hp)
    assert torch.equal(torch.get_rng_state(), before), "the check left the random state alone"


def test_scores_leave_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hp = RD4ADHyperparameters(backbone="mobilenet_v2", weights="random")
    detector = RD4AD(hp, image_size=64)
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    copies = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: copies.append(len(t)) or original(t))
    detector.score(images, batch_size=2)
    assert copies == [5]


def test_a_resnet_keeps_the_contract() -> None:
    hp = ReContrastHyperparameters(backbone="resnet18", weights="random", batch_size=4)
    check_method(ReContrast, hp, image_size=32)


@pytest.mark.parametrize("image_size", [0, 31, 100])
def test_an_image_size_that_cannot_be_halved_five_times_is_refused(image_size: int) -> None:
    hp = RD4ADHyperparameters(backbone="mobilenet_v2", weights="random")
    with pytest.raises(MethodError, match="multiple of 32"):
        RD4AD(hp, image_size=image_size)


def test_no_images_is_an_error() -> None:
    hp = RD4ADHyperparameters(backbone="mobilenet_v2", weights="random")
    detector = RD4AD(hp, image_size=64)
    with pytest.raises(MethodError, match="no training image"):
        detector.fit(torch.empty(0, 3, 64, 64, dtype=torch.uint8), 1)


def test_divergence_names_the_iteration() -> None:
    hp = RD4ADHyperparameters(backbone="mobilenet_v2", weights="random", batch_size=2)
    detector = RD4AD(hp, image_size=64)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    detector.fit(images, 3)
    with torch.no_grad():
        next(detector.network.student.parameters()).fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="nan at iteration 3"):
        detector.fit(images, 2)


def test_repeated_fits_keep_no_tensors() -> None:
    hp = ReContrastHyperparameters(backbone="mobilenet_v2", weights="random", batch_size=2)
    detector = ReContrast(hp, image_size=64)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)

    def alive() -> int:
        gc.collect()
        return sum(torch.is_tensor(item) for item in gc.get_objects())

    detector.fit(images, 2)
    detector.score(images)
    before = alive()
    for _ in range(3):
        detector.fit(images, 2)
        detector.score(images)
    assert alive() <= before
