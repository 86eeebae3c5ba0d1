"""What the papers set by dataset and category (METHODS sections 2.3, 3.4, 5, 7 and 14)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from anomtune.models.gnl import GNLHyperparameters
from anomtune.models.hyperparameters import Hyperparameters, Setting
from anomtune.models.rd4ad import RD4ADHyperparameters
from anomtune.models.recontrast import ReContrastHyperparameters
from anomtune.models.ssae import SSAEHyperparameters
from anomtune.registry import DATASETS, METHODS

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
OBJECTS = (
    *("bottle", "cable", "capsule", "hazelnut", "metal_nut"),
    *("pill", "screw", "toothbrush", "transistor", "zipper"),
)


def paper(kind: type[Hyperparameters], dataset: str, category: str) -> Any:
    return kind(**kind.paper_values(dataset, category))


@pytest.mark.parametrize("category", [*TEXTURES, *OBJECTS])
def test_recontrast_on_mvtec(category: str) -> None:
    hp = paper(ReContrastHyperparameters, "mvtec", category)
    frozen = category in {"toothbrush", "leather", "grid", "tile", "wood", "screw"}
    assert hp.encoder_bn == ("eval" if frozen else "train")
    assert (hp.iterations, hp.batch_size, hp.input_size(256)) == (2000, 16, 256)


@pytest.mark.parametrize(
    ("dataset", "category", "iterations", "batch", "encoder_bn", "score", "size"),
    [
        ("visa", "candle", 3000, 16, "train", "max", 256),
        ("visa", "cashew", 3000, 16, "eval", "max", 256),
        ("visa", "pcb1", 3000, 16, "eval", "max", 256),
        ("visa", "pcb2", 3000, 16, "train", "max", 256),
        ("oct2017", "oct2017", 1000, 32, "eval", "max", 256),
        ("aptos2019", "aptos2019", 1000, 32, "train", "max", 256),
        ("isic2018", "isic2018", 2000, 32, "train", "mean", 224),
    ],
)
def test_recontrast_elsewhere(
    dataset: str, category: str, iterations: int, batch: int, encoder_bn: str, score: str, size: int
) -> None:
    hp = paper(ReContrastHyperparameters, dataset, category)
    assert (hp.iterations, hp.batch_size) == (iterations, batch)
    assert (hp.encoder_bn, hp.scoring.reduce, hp.scoring.sigma) == (encoder_bn, score, 4)
    assert hp.input_size(256) == size
    if dataset == "isic2018":
        assert hp.input_size(128) == 224, "whatever the sweep's size"


@pytest.mark.parametrize("category", [*TEXTURES, *OBJECTS])
def test_ssae_on_mvtec(category: str) -> None:
    hp = paper(SSAEHyperparameters, "mvtec", category)
    ssim = {
        *("carpet", "tile", "bottle", "cable"),
        *("capsule", "metal_nut", "transistor", "zipper"),
    }
    assert hp.scoring.diff == ("ssim" if category in ssim else "squared")
    mixes = {
        "cable": "elastic+occlusion",
        "screw": "elastic+occlusion",
        "transistor": "elastic+occlusion+rotation",
    }
    assert hp.corruption == mixes.get(category, "elastic")
    assert (hp.scoring.sigma, hp.scoring.combine, hp.scoring.reduce) == ("own", "maximum", "sum")
    assert (hp.scoring.t > 0) == (category in OBJECTS), "the average map is for objects only"
    if category in TEXTURES:
        assert (hp.resolution, hp.f, hp.augment) == (512, 3, "all")
    if category in {"cable", "transistor", "capsule"}:
        assert hp.augment == "none"


def test_what_the_paper_of_ssae_does_not_list_is_marked() -> None:
    decided = SSAEHyperparameters.settings_for("mvtec", "hazelnut")
    assert {name for name, setting in decided.items() if setting.inferred} == {
        "scoring.t",
        "augment",
    }
    decided = SSAEHyperparameters.settings_for("mvtec", "cable")
    assert {name for name, setting in decided.items() if not setting.inferred} == {
        "scoring.diff",
        "corruption",
    }
    assert decided["scoring.t"].inferred, "beside what the paper tells of the scoring"


@pytest.mark.parametrize("kind", [RD4ADHyperparameters, GNLHyperparameters])
@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_digits_are_small_and_not_normalised(kind: type[Hyperparameters], dataset: str) -> None:
    hp = paper(kind, dataset, "3")
    assert hp.pixels == "unit"
    assert hp.input_size(256) == hp.input_size(64) == 32
    assert hp.scoring.sigma * 32 / 256 == 4
    if kind is GNLHyperparameters:
        assert (hp.backbone, hp.epochs) == ("resnet18", 5)


@pytest.mark.parametrize("name", ["rd4ad", "gnl"])
@pytest.mark.parametrize("pixels", ["unit", "imagenet"])
def test_networks_are_given_such_pixels(name: str, pixels: str) -> None:
    method, seen = METHODS.get(name), []
    fields = {"backbone": "mobilenet_v2", "weights": "random", "pixels": pixels}
    detector = method(method.Hyperparameters(**fields), image_size=64)

    def note(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, nn.Conv2d) and inputs[0].shape[1] == 3:
            seen.append(inputs[0].detach().float())

    images = torch.arange(4 * 3 * 64 * 64).remainder(256).byte().view(4, 3, 64, 64)
    with register_module_forward_pre_hook(note):
        detector.fit(images, 1)
        learnt = seen.copy()
        seen.clear()
        detector.anomaly_maps(images)
    unit = pixels == "unit"
    # Mixed views of gnl are rounded.
    assert all((x.min() >= 0 and x.max() <= 1 + 1e-6) == unit for x in (*learnt, *seen))
    assert any(torch.equal(x, images / 255) for x in seen) == unit


def test_gnl_on_pacs_has_eight_operations() -> None:
    assert paper(GNLHyperparameters, "pacs", "dog").augmix == "pacs"
    assert paper(GNLHyperparameters, "mvtec", "tile").augmix == "mvtec"


def test_elsewhere_nothing_differs() -> None:
    for name in METHODS.declared():
        kind = METHODS.get(name).Hyperparameters
        assert kind.settings_for("folder", "bottle") == {}, name
        assert kind.paper_values("", None) == {}, name


def test_every_setting_is_of_a_known_dataset_and_says_where_it_is_from() -> None:
    for name in METHODS.declared():
        for setting in METHODS.get(name).Hyperparameters.settings:
            assert setting.dataset in DATASETS.names(), name
            assert setting.source.endswith("."), name


def test_of_two_settings_the_later_one_holds() -> None:
    class Mine(Hyperparameters):
        size: int = 1
        settings = (
            Setting("mvtec", {"size": 2}, "paper."),
            Setting("mvtec", {"size": 3}, "code.", categories=("tile",)),
        )

    assert [Mine.paper_values("mvtec", name) for name in ("tile", "wood", None)] == [
        {"size": 3},
        {"size": 2},
        {"size": 2},
    ]
    assert Mine.settings_for("mvtec", "tile")["size"].source == "code."
    assert Mine.paper_values("visa", "tile") == {}
