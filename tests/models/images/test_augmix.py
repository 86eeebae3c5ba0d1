"""AugMix against Pillow: the operations to the bit, whole views against images one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from anomtune.models.images import augmix
from anomtune.models.images.augmix import OPERATIONS, AugMix, Plan
from anomtune.models.images.pixels import normalise

CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PillowOperation = Callable[[Image.Image, float], Image.Image]

PILLOW: dict[str, PillowOperation] = {
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "posterize": lambda image, level: ImageOps.posterize(image, 4 - int(level * 4 / 10)),
    "solarize": lambda image, level: ImageOps.solarize(image, 256 - int(level * 256 / 10)),
    "color": lambda image, level: ImageEnhance.Color(image).enhance(level * 1.8 / 10 + 0.1),
    "contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(level * 1.8 / 10 + 0.1),
    "brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(
        level * 1.8 / 10 + 0.1
    ),
    "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(level * 1.8 / 10 + 0.1),
}


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def pictures(seed: int, height: int = 24, width: int = 31) -> Tensor:
    """Noise, narrow and two-valued noise, a gradient, one value, one outlier, blobs, and grey."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, height, width)

    def noise(low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    gradient = torch.linspace(3, 250, height * width).view(height, width).expand(shape)
    flat = noise(0, 256)[:, :1, :1].expand(shape)
    outlier = flat.clone()
    outlier[:, 0, 0] = 255 - outlier[:, 0, 0]
    blobs = torch.nn.functional.interpolate(
        torch.rand(1, 3, 4, 4, generator=generator) * 255, (height, width), mode="bilinear"
    )[0]
    grey = noise(20, 230)[:1].expand(shape)
    narrow = noise(100, 100 + 2 + seed % 40)
    two = noise(0, 2) * (1 + seed % 255)
    images = [noise(0, 256), narrow, two, gradient, flat, outlier, blobs, grey]
    return torch.stack([image.to(torch.uint8) for image in images])


@pytest.mark.parametrize("name", PILLOW)
@given(seed=st.integers(0, 10**6), data=st.data())
@settings(max_examples=12, deadline=None)
def test_operations_are_pillows_to_the_bit(name: str, seed: int, data: st.DataObject) -> None:
    images = pictures(seed)
    levels = [data.draw(st.floats(1e-6, 3.0)) for _ in images]
    before = images.clone()
    actual = getattr(augmix, name)(images, torch.tensor(levels, dtype=torch.float64))
    assert torch.equal(images, before)
    assert actual.dtype == torch.uint8
    for image, level, result in zip(images, levels, actual, strict=True):
        expected = from_pillow(PILLOW[name](to_pillow(image), level))
        assert torch.equal(result, expected), level


@pytest.mark.parametrize("name", ["posterize", "solarize", "color", "brightness", "sharpness"])
def test_operations_are_pillows_at_every_level(name: str) -> None:
    image = pictures(3)[:1]
    levels = torch.linspace(0.0, 3.0, 301, dtype=torch.float64)
    actual = getattr(augmix, name)(image.expand(301, -1, -1, -1), levels)
    for level, result in zip(levels.tolist(), actual, strict=True):
        assert torch.equal(result, from_pillow(PILLOW[name](to_pillow(image[0]), level))), level


def test_every_value_is_blended_as_pillow_does() -> None:
    # All pairs of a value and a grey, of which the blend of a colour image is made.
    values = torch.arange(256, dtype=torch.uint8)
    image = torch.stack([values.view(-1, 1).expand(256, 256), *[values.expand(256, 256)] * 2])
    for level in (0.1, 0.77, 1.5, 2.9):
        actual = augmix.color(image[None], torch.tensor([level], dtype=torch.float64))[0]
        assert torch.equal(actual, from_pillow(PILLOW["color"](to_pillow(image), level)))


def test_autocontrast_is_pillows_for_every_range() -> None:
    low, high = torch.meshgrid(torch.arange(0, 256, 5), torch.arange(0, 256, 3), indexing="ij")
    ramps = [
        torch.arange(int(a), int(b) + 1, dtype=torch.uint8)
        for a, b in zip(low.flatten(), high.flatten(), strict=True)
        if a <= b
    ]
    for ramp in ramps[::7]:
        image = ramp.expand(3, 1, -1)
        expected = from_pillow(ImageOps.autocontrast(to_pillow(image)))
        assert torch.equal(augmix.autocontrast(image[None], torch.ones(1))[0], expected)


def reference_view(image: Tensor, plan: Plan, index: int, names: list[str]) -> Tensor:
    """One view as the official code makes it: chain by chain, mixed after normalisation."""
    mix = torch.zeros(1, *image.shape)
    for chain in range(3):
        picture = to_pillow(image)
        for position in range(int(plan.depth[index])):
            name = names[int(plan.operations[position, chain, index])]
            picture = PILLOW[name](picture, float(plan.levels[position, chain, index]))
        mix += plan.weights[chain, index] * normalise(from_pillow(picture)[None], CPU)
    share = plan.mix[index]
    return (1 - share) * normalise(image[None], CPU) + share * mix


@pytest.mark.parametrize("operations", OPERATIONS)
def test_views_are_those_of_the_official_procedure(operations: augmix.OperationList) -> None:
    views = AugMix(operations, seeded(4))
    names = [operation.__name__ for operation in views.operations]
    images = torch.cat([pictures(seed) for seed in range(4)])
    plan = views.draw(len(images))
    actual = normalise(views.apply(images, plan), CPU)
    for index, image in enumerate(images):
        expected = reference_view(image, plan, index, names)
        torch.testing.assert_close(actual[index : index + 1], expected, rtol=0, atol=2e-5)


def test_the_lists_are_those_of_the_official_code() -> None:
    names = {key: {f.__name__ for f in functions} for key, functions in OPERATIONS.items()}
    mvtec = {"autocontrast", "equalize", "posterize", "solarize", "color", "sharpness"}
    assert names == {"mvtec": mvtec, "pacs": mvtec | {"contrast", "brightness"}}


def test_no_share_of_the_chains_and_chains_that_do_nothing_leave_the_image() -> None:
    images = pictures(0)
    views = AugMix("mvtec", seeded(0))
    plan = views.draw(len(images))
    none = Plan(torch.zeros_like(plan.mix), plan.weights, plan.depth, plan.operations, plan.levels)
    assert torch.equal(views.apply(images, none), images.float())
    views.operations = (lambda pixels, level: pixels,) * 6
    torch.testing.assert_close(views.apply(images, plan), images.float(), rtol=1e-6, atol=1e-4)


def test_what_is_drawn_has_the_distributions_of_the_official_code() -> None:
    n = 20_000
    plan = AugMix("pacs", seeded(1)).draw(n)
    torch.testing.assert_close(plan.weights.sum(0), torch.ones(n))
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18. Beta(1, 1): mean 1/2, variance 1/12.
    torch.testing.assert_close(plan.weights.mean(1), torch.full((3,), 1 / 3), atol=0.01, rtol=0)
    torch.testing.assert_close(plan.weights.var(1), torch.full((3,), 1 / 18), atol=0.002, rtol=0)
    assert float(plan.mix.mean()) == pytest.approx(1 / 2, abs=0.01)
    assert float(plan.mix.var()) == pytest.approx(1 / 12, abs=0.003)
    assert plan.depth.unique(return_counts=True)[1].div(n).tolist() == pytest.approx(
        [1 / 3] * 3, abs=0.015
    )
    shares = plan.operations.flatten().bincount() / plan.operations.numel()
    assert shares.tolist() == pytest.approx([1 / 8] * 8, abs=0.005)
    # Of severity s, levels are uniform in [0.1, s), or in (0, 0.1] for s = 0.
    top = plan.levels.amax((0, 1))
    assert float(plan.levels.min()) > 0
    assert float((top <= 0.1).float().mean()) == pytest.approx(1 / 4, abs=0.015)
    assert 2.9 < float(top.max()) < 3.0
    expected = sum((0.1 + s) / 2 for s in range(4)) / 4
    assert float(plan.levels.mean()) == pytest.approx(expected, abs=0.02)


def test_views_follow_the_generator_alone() -> None:
    images = pictures(1)
    before = images.clone()
    first, second = (AugMix("mvtec", seeded(2)) for _ in range(2))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    view = first(images)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(second(images), view)
    assert not torch.equal(first(images), view)
    second.generator.set_state(first.generator.get_state())
    assert torch.equal(first(images), second(images))
    assert torch.equal(images, before)
    assert view.dtype == torch.float32
    assert float(view.min()) >= 0
    assert float(view.max()) <= 255.001


def test_the_memory_format_does_not_matter() -> None:
    images = pictures(5)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(AugMix("pacs", seeded(3))(images), AugMix("pacs", seeded(3))(strided))
