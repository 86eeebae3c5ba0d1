from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from anomtune.errors import MethodError
from anomtune.models import ssae
from anomtune.models.images.augmentation import augment
from anomtune.models.images.repair_objectives import filter_objective
from anomtune.models.layers.sdc_autoencoder import SDCAutoencoder
from anomtune.models.ranges import ranges_of
from anomtune.models.ssae import SSAE, SSAEHyperparameters, SSAEScoring, crop_size
from anomtune.models.testing import check_method

SMALL: dict[str, Any] = {
    **{"resolution": 32, "width": 2, "batch_size": 3, "iterations": 4},
    "scoring": {"k": 3},
}
EVERYTHING = "elastic+zeros+patch_swap+occlusion+brightness+rotation"


def build(image_size: int = 32, seed: int = 0, **fields: Any) -> SSAE:
    hp = SSAEHyperparameters(**SSAEHyperparameters.merged(SMALL, fields))
    return SSAE(hp, image_size=image_size, seed=seed)


def photos(n: int = 6, size: int = 32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# The contract, in structurally different settings.


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"corruption": EVERYTHING, "augment": "all", "scoring": {"t": 3}},
        {"objective": "4", "f": 5, "squared": True, "progressive": False, "clean": 0.3},
        {
            "objective": "ensemble",
            "augment": "flips",
            "scoring": {"diff": "ssim", "t": 1, "n": 2},
        },
    ],
)
def test_ssae_keeps_the_contract(fields: dict[str, Any]) -> None:
    hp = SSAEHyperparameters(**SSAEHyperparameters.merged(SMALL, fields))
    diverging = hp.model_copy(update={"lr": 1e30})
    check_method(SSAE, hp, diverging=diverging, image_size=24)


def test_defaults_are_the_papers() -> None:
    hp = SSAEHyperparameters()
    assert (hp.lr, hp.resolution, hp.width, hp.f, hp.lam) == (1e-4, 512, 64, 3, 0.5)
    assert (hp.objective, hp.squared, hp.corruption) == ("1", False, "elastic")
    how = hp.scoring
    assert (how.diff, how.t, how.sigma, how.combine, how.reduce) == (
        *("squared", 0, "own", "maximum", "sum"),
    )
    assert hp.training_iterations(5) == hp.training_iterations(500) == hp.iterations
    assert hp.input_size(256) == 512
    assert set(hp.search_space()) == {
        *("corruption", "resolution", "f", "objective", "lam"),
    }
    assert {"diff", "t"} <= ranges_of(SSAEScoring).keys()


def test_yaml_may_write_objectives_as_numbers() -> None:
    assert SSAEHyperparameters(objective=4).objective == "4"  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        SSAEHyperparameters(objective=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("resolution", [8, 100])
def test_a_resolution_that_cannot_be_halved_three_times_is_refused(resolution: int) -> None:
    with pytest.raises(ValidationError):
        SSAEHyperparameters(resolution=resolution)


# Training.


@pytest.mark.slow
def test_held_out_images_are_not_trained_on() -> None:
    images = photos(40)
    changed = images.clone()
    detector, other = build(), build()
    detector.fit(images, 1)
    train, held_out = detector.training_rows(40), detector._held_out(40)
    assert len(held_out) == 2
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(40))
    changed[held_out] = 0
    other.fit(changed, 1)
    detector.fit(images, 20)
    other.fit(changed, 20)
    for a, b in zip(detector.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(detector.average, other.average)


def test_a_single_image_serves_for_training_and_validation() -> None:
    report = build().fit(photos(1), 2)
    assert set(report) == {"loss", "validation_error"}


def test_no_image_is_an_error() -> None:
    with pytest.raises(MethodError, match="no training image"):
        build().fit(photos(0), 1)


def test_crops_grow_in_four_equal_parts() -> None:
    def sides(resolution: int) -> list[int]:
        return [crop_size(resolution, step / 100) for step in (0, 24, 25, 49, 50, 74, 75, 99, 100)]

    assert sides(512) == [128, 128, 256, 256, 384, 384, 512, 512, 512]
    assert sides(72) == [16, 16, 32, 32, 56, 56, 72, 72, 72]
    assert sides(16) == [16] * 9


@pytest.mark.parametrize(("progressive", "sides"), [(True, [16, 32, 48, 64]), (False, [64] * 4)])
def test_training_sees_growing_crops(progressive: bool, sides: list[int]) -> None:
    detector = build(resolution=64, progressive=progressive)
    seen = []
    detector.network[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape[-1]) if module.training else None
    )
    detector.fit(photos(size=64), 2)
    detector.fit(photos(size=64), 2)
    assert seen == sides


@pytest.mark.parametrize(("how", "symmetries"), [("none", 1), ("flips", 4), ("all", 8)])
def test_augmentation_has_all_symmetries(how: Any, symmetries: int) -> None:
    image = uniform(1, 3, 5, 5)
    results = augment(image.expand(200, -1, -1, -1), how, torch.Generator().manual_seed(0))
    expected = [image.rot90(turn, (2, 3)) for turn in range(4)]
    expected += [other.flip(-1) for other in expected]
    distinct = {tuple(result.flatten().tolist()) for result in results}
    assert len(distinct) == symmetries
    assert distinct <= {tuple(other.flatten().tolist()) for other in expected}


def trained_on(detector: SSAE, images: Tensor) -> Tensor:
    inputs: list[Tensor] = []
    detector.network[0].register_forward_pre_hook(
        lambda module, args: inputs.append(args[0]) if module.training else None
    )
    detector.fit(images, 4)
    return torch.cat(inputs)


def test_training_sees_corrupted_images() -> None:
    white = torch.full((6, 3, 32, 32), 255, dtype=torch.uint8)
    batch = trained_on(build(corruption="zeros", progressive=False), white)
    assert batch.amin((1, 2, 3)).max() < 0.1
    assert (batch.amax((1, 2, 3)) == 1).all()


@pytest.mark.parametrize(("how", "varied"), [("none", False), ("all", True)])
def test_training_sees_augmented_images(how: str, varied: bool) -> None:
    image = photos(1).expand(6, -1, -1, -1)
    batch = trained_on(build(augment=how, clean=0.9999, progressive=False), image)
    same = (batch == image[:1] / 255).all((1, 2, 3))
    assert same.all() != varied


@pytest.mark.slow
def test_a_network_learns_to_repair() -> None:
    place = torch.arange(32)
    stripes = (127 + 100 * torch.sin(place / 3)).to(torch.uint8).expand(8, 3, 32, 32)
    detector = build(
        corruption="zeros", width=8, lr=1e-2, iterations=120, progressive=False, squared=True
    )
    first = detector.fit(stripes, 10)["validation_error"]
    last = detector.fit(stripes, 110)["validation_error"]
    assert last < 0.1 * first
    defect = stripes[:1].clone()
    defect[:, :, 10:18, 10:18] = 0
    maps, scores = detector.predict(torch.cat([stripes[:1], defect]))
    assert scores[1] > 3 * scores[0]
    assert maps[1, 12:16, 12:16].mean() > 10 * maps[1, :, 24:].mean()


# Textures.


@pytest.mark.parametrize(
    ("corruption", "textures", "source"),
    [
        ("elastic", "auto", None),
        ("elastic", "/no/where", None),
        ("elastic+occlusion:0", "auto", None),
        ("elastic+occlusion", "auto", "categories"),
        ("occlusion", "procedural", None),
        ("occlusion:2+elastic", "/no/where", "/no/where"),
    ],
)
def test_foreign_images_are_wanted_for_occlusions_alone(
    corruption: str, textures: str, source: str | None
) -> None:
    hp = SSAEHyperparameters(corruption=corruption, textures=textures)
    assert hp.foreign_images() == source
    if source == "/no/where":
        with pytest.raises(MethodError, match="there is no folder /no/where: put images there"):
            SSAE.prepare(hp)
    else:
        SSAE.prepare(hp)


def test_a_folder_of_textures_that_is_there_can_be_used(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"corruption": "occlusion", "textures": str(tmp_path)}
    SSAE.prepare(SSAEHyperparameters(**fields))
    detector = build(**fields)
    with pytest.raises(MethodError, match="are missing"):
        detector.fit(photos(), 1)
    detector.foreign = photos(4, seed=9)
    detector.fit(photos(), 1)


@pytest.mark.parametrize(("textures", "used"), [("auto", True), ("procedural", False)])
def test_foreign_images_are_used_if_they_are_asked_for(textures: str, used: bool) -> None:
    losses = []
    for foreign in (None, torch.zeros(2, 3, 32, 32, dtype=torch.uint8)):
        detector = build(corruption="occlusion", textures=textures)
        detector.foreign = foreign
        losses.append(detector.fit(photos(), 1)["loss"])
    assert (losses[0] != losses[1]) == used


# Precision, randomness, presets.


def test_training_in_mixed_precision_corrupts_and_measures_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = build(corruption=EVERYTHING)
    seen: set[tuple[torch.dtype, ...]] = set()
    inner: set[torch.dtype] = set()

    def note(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        assert not torch.is_autocast_enabled("cpu")
        return images, torch.ones_like(images[:, :1])

    monkeypatch.setattr(detector, "_new_corruptor", lambda: note)
    objective = filter_objective

    def check(output: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        seen.add((output.dtype, args[0].dtype))
        return objective(output, *args, **kwargs)

    monkeypatch.setattr(ssae, "filter_objective", check)
    network = detector.network[0]
    assert isinstance(network, SDCAutoencoder)
    network.context.register_forward_hook(lambda _m, _i, out: inner.add(out.dtype))

    def half(device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16)

    monkeypatch.setattr("anomtune.models.training.gradient_detector.mixed_precision", half)
    detector.fit(photos(), 1)
    assert torch.bfloat16 in inner
    inner.clear()
    assert detector.anomaly_maps(photos()).dtype == torch.float32
    assert seen == {(torch.float32, torch.float32)}
    assert inner == {torch.float32}, "what is scored is computed in float32"


def test_construction_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build()
    assert torch.equal(before, torch.get_rng_state())


def test_presets_are_the_kinds_of_category_that_the_paper_tells_apart() -> None:
    presets = SSAEHyperparameters.presets
    made = {name: SSAEHyperparameters(**fields) for name, fields in presets.items()}
    texture = made["texture"]
    assert (texture.resolution, texture.f, texture.scoring.t) == (512, 3, 0)
    assert made["object"].scoring.t > 0
