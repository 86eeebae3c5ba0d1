from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from anomtune.models.images.augmentation import random_crops
from anomtune.models.images.corruption_settings import (
    CorruptionHyperparameters,
    corruption_weights,
)
from anomtune.models.images.corruptions import Corruptor, blend
from anomtune.models.images.procedural import procedural_textures

CPU = torch.device("cpu")
KINDS = ("elastic", "zeros", "patch_swap", "occlusion", "brightness")


def noise(n: int = 6, size: int = 32) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def corrupt(
    images: Tensor,
    mix: str,
    *,
    seed: int = 0,
    resolution: int = 128,
    foreign: Tensor | None = None,
    **fields: Any,
) -> tuple[Tensor, Tensor]:
    settings = CorruptionHyperparameters(corruption=mix, **fields)
    corruptor = Corruptor(settings, resolution, CPU, foreign)
    return corruptor(images, torch.Generator().manual_seed(seed))


def ramps(n: int, size: int) -> Tensor:
    """Images whose first two channels are their own coordinates, y and x in pixels / 100."""
    place = torch.arange(size, dtype=torch.float32) / 100
    y, x = torch.meshgrid(place, place, indexing="ij")
    return torch.stack([y, x, x * 0]).repeat(n, 1, 1, 1)


def boxes(mask: Tensor) -> list[tuple[int, int, int, int]]:
    found = []
    for rows, columns in ((m[0].any(1).nonzero(), m[0].any(0).nonzero()) for m in mask > 0):
        assert len(rows), "there is a patch"
        found.append((int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])))
    return found


@pytest.mark.parametrize(
    ("mix", "weights"),
    [
        ("elastic", {"elastic": 1.0}),
        ("elastic+occlusion", {"elastic": 0.5, "occlusion": 0.5}),
        ("elastic:3 + rotation:1", {"elastic": 0.75, "rotation": 0.25}),
        ("zeros:0+brightness:1e-1", {"brightness": 1.0}),
    ],
)
def test_a_mix_is_read_as_shares(mix: str, weights: dict[str, float]) -> None:
    assert corruption_weights(mix) == pytest.approx(weights)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("elastik", "no corruption 'elastik'"),
        ("", "no corruption ''"),
        ("elastic+elastic", "named twice"),
        ("elastic:much", "is no number"),
        ("elastic:-1", "must be finite and not negative"),
        ("elastic:nan", "must be finite"),
        ("elastic:0+zeros:0", "at least one weight"),
    ],
)
def test_a_mix_that_cannot_be_read_is_refused(mix: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CorruptionHyperparameters(corruption=mix)


def test_ranges_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValidationError, match="patch_min must not be above patch_max"):
        CorruptionHyperparameters(patch_min=0.5)


@given(
    st.floats(0, 1, width=32),
    st.floats(0, 1, width=32),
    st.floats(0, 1, width=32),
)
def test_blending_is_a_convex_combination(image: float, content: float, mask: float) -> None:
    x, p, m = (torch.tensor([value]) for value in (image, content, mask))
    assert torch.equal(blend(x, p, torch.zeros(1)), x)
    assert torch.equal(blend(x, p, torch.ones(1)), p)
    assert min(image, content) - 1e-6 <= float(blend(x, p, m)) <= max(image, content) + 1e-6


@pytest.mark.parametrize("mix", [*KINDS, "rotation", "+".join((*KINDS, "rotation"))])
def test_images_change_nowhere_but_in_their_masks(mix: str) -> None:
    images = noise(24)
    before = images.clone()
    corrupted, mask = corrupt(images, mix)
    assert torch.equal(images, before), "the images are not written to"
    assert corrupted.shape == images.shape
    assert mask.shape == (24, 1, 32, 32)
    assert corrupted.dtype == mask.dtype == torch.float32
    for values in (corrupted, mask):
        assert values.min() >= 0
        assert values.max() <= 1 + 1e-6
    outside = (mask == 0).expand_as(images)
    assert torch.equal(corrupted[outside], images[outside])
    # Every image is changed, within its mask.
    assert ((corrupted - images).abs() * mask).amax((1, 2, 3)).min() > 0.02


@pytest.mark.parametrize("mix", KINDS)
def test_a_mask_is_soft_and_inside_its_box(mix: str) -> None:
    _, mask = corrupt(noise(40, 64), mix, patches=1, patch_min=0.25, patch_max=0.25)
    for top, left, bottom, right in boxes(mask):
        assert bottom - top < 16
        assert right - left < 16
    # Both the middle of a patch and its soft edge are there.
    assert mask.amax((1, 2, 3)).min() > 0.9
    assert ((mask > 0.1) & (mask < 0.9)).any((1, 2, 3)).all()
    assert mask.mean() < 0.25**2


def test_patches_have_all_places_and_sizes_of_their_range() -> None:
    _, mask = corrupt(noise(300, 32), "zeros", patches=1, patch_min=0.25, patch_max=0.75)
    found = torch.tensor(boxes(mask))
    heights = found[:, 2] - found[:, 0] + 1
    assert 20 <= heights.max() <= 24
    assert heights.min() <= 8
    assert found.min() == 0
    assert found.max() == 31
    wide = found[:, 3] - found[:, 1] + 1
    assert (heights != wide).float().mean() > 0.5


def test_images_get_one_to_several_patches() -> None:
    images = torch.ones(200, 3, 64, 64)
    areas = [
        corrupt(images, "zeros", patches=patches, patch_min=0.2, patch_max=0.2)[1].mean().item()
        for patches in (1, 3)
    ]
    assert 1.6 < areas[1] / areas[0] < 2.1  # two on average, but for overlaps
    _, mask = corrupt(images, "zeros", patches=3)
    assert mask.flatten(1).any(1).all()


def test_the_default_corrupts_less_than_half_of_an_image() -> None:
    _, mask = corrupt(noise(300, 32), "elastic")
    assert mask.mean((1, 2, 3)).max() < 0.5


def test_a_cut_out_is_zero() -> None:
    images = noise()
    corrupted, mask = corrupt(images, "zeros")
    torch.testing.assert_close(corrupted, (1 - mask) * images)


def test_elastic_deformation_moves_pixels_within_their_patch() -> None:
    images = ramps(40, 64)
    sizes: dict[str, Any] = {"patches": 1, "patch_min": 0.25, "patch_max": 0.25}
    corrupted, mask = corrupt(
        *(images, "elastic"), **sizes, displacement_min=20, displacement_max=20
    )
    moved = (corrupted - images).abs().mul(100)
    assert moved.max() <= 20 / 4 + 1e-3  # 20 pixels of 512 are 5 of 128
    assert moved.amax((1, 2, 3)).median() > 2.5
    reached = 0
    for index, (top, left, bottom, right) in enumerate(boxes(mask)):
        full = mask[index, 0] > 0.999
        if full.any():
            y, x = corrupted[index, :2, full] * 100
            # What is seen lies with the mask in one box of 16 pixels.
            assert max(float(y.max()), bottom) - min(float(y.min()), top) <= 15.1
            assert max(float(x.max()), right) - min(float(x.min()), left) <= 15.1
            reached += 1
    assert reached > 10
    flat = torch.full((4, 3, 32, 32), 0.3)
    torch.testing.assert_close(corrupt(flat, "elastic")[0], flat)


def test_displacements_are_constant_in_pixels_of_the_whole_image() -> None:
    images = ramps(60, 64)
    fixed: dict[str, Any] = {"displacement_min": 16, "displacement_max": 16, "patches": 1}
    small, large = (
        (corrupt(images, "elastic", resolution=resolution, **fixed)[0] - images).abs().mean()
        for resolution in (128, 256)
    )
    assert 1.5 < large / small < 2.2


def test_smoother_displacements_vary_less() -> None:
    def roughness(smoothness: float) -> Tensor:
        fixed = {"smoothness_min": smoothness, "smoothness_max": smoothness}
        corrupted, _ = corrupt(
            *(ramps(40, 64), "elastic"),
            patches=1,
            patch_min=1,
            resolution=256,
            **fixed,
            patch_max=1,
        )
        shift = corrupted - ramps(40, 64)
        return shift.diff(dim=-1).abs().mean() / shift.abs().mean()

    assert roughness(16) < 0.6 * roughness(4)


def test_swapped_patches_come_from_images_of_the_batch() -> None:
    images = (torch.arange(8.0) / 10).view(8, 1, 1, 1).expand(8, 3, 32, 32).contiguous()
    corrupted, mask = corrupt(images, "patch_swap", patches=1, patch_min=0.5, patch_max=0.5)
    partners = set()
    for index in range(8):
        inside = corrupted[index][:, mask[index, 0] > 0.99]
        if inside.numel():
            assert inside.max() - inside.min() < 0.01
            partners.add(round(10 * float(inside[0, 0])))
    assert len(partners) > 2
    assert partners <= set(range(8))


def test_swapped_patches_come_from_elsewhere_without_being_stretched() -> None:
    images = ramps(30, 64)
    corrupted, mask = corrupt(images, "patch_swap", patches=1, patch_min=0.35)
    shifts = set()
    for index in range(30):
        full = mask[index, 0] > 0.999
        shift = ((corrupted - images)[index, :2, full] * 100).round()
        if shift.numel():
            assert (shift == shift[:, :1]).all()
            shifts.add(tuple(shift[:, 0].tolist()))
    assert len(shifts) > 10


def test_occlusions_show_the_foreign_images() -> None:
    images = noise() * 0.5
    foreign = torch.full((3, 3, 48, 48), 255, dtype=torch.uint8)
    corrupted, mask = corrupt(images, "occlusion", foreign=foreign)
    torch.testing.assert_close(corrupted, mask + (1 - mask) * images)


@pytest.mark.parametrize("foreign", [None, torch.empty(0, 3, 32, 32, dtype=torch.uint8)])
def test_occlusions_are_procedural_where_there_are_no_foreign_images(
    foreign: Tensor | None,
) -> None:
    images = torch.zeros(30, 3, 32, 32)
    corrupted, mask = corrupt(images, "occlusion", foreign=foreign)
    bright = corrupted[(mask > 0.99).expand_as(corrupted)]
    assert bright.std() > 0.1
    assert 0.3 < bright.mean() < 0.7


def test_brightness_changes_a_patch_by_one_value() -> None:
    images = torch.full((50, 3, 32, 32), 0.5)
    corrupted, mask = corrupt(images, "brightness", patches=1, brightness_max=0.2)
    change = (corrupted - images).div(mask.clamp_min(1e-6))
    changes = []
    for one, shape in zip(change, mask, strict=True):
        values = one[:, shape[0] > 0.5]
        torch.testing.assert_close(values, values[:1, :1].expand_as(values), atol=1e-5, rtol=0)
        changes.append(float(values[0, 0]))
    assert max(map(abs, changes)) <= 0.2 + 1e-6
    assert min(changes) < -0.1
    assert max(changes) > 0.1


def test_brightness_acts_on_another_corruption() -> None:
    images = torch.full((200, 3, 16, 16), 0.5)
    corrupted, mask = corrupt(images, "zeros+brightness", patches=1, brightness_max=0.4)
    middle = corrupted.amin(1, keepdim=True)[mask > 0.9999]
    # Zeros stay zeros or become brighter; nothing is the old image made brighter.
    assert (middle < 0.41).all()
    assert (middle > 0.05).any()
    assert (middle < 1e-4).float().mean() > 0.5


def test_a_rotation_turns_about_the_centre_and_its_mask_is_all_ones() -> None:
    size = 33
    images = ramps(20, size)
    corrupted, mask = corrupt(images, "rotation", angle_max=180)
    assert (mask == 1).all()
    centred = corrupted[:, :2] * 100 - 16
    original = images[:, :2] * 100 - 16
    radius = original.norm(dim=1)
    near = radius < 15
    torch.testing.assert_close(centred.norm(dim=1)[near], radius[near], atol=1e-3, rtol=0)
    turns = torch.atan2(centred[:, 0], centred[:, 1]) - torch.atan2(original[:, 0], original[:, 1])
    turns = turns[:, 16, 24].rad2deg().remainder(360)
    assert turns.std() > 60
    small, _ = corrupt(images, "rotation", angle_max=10)
    assert ((small - images)[:, :2] * 100).norm(dim=1)[near].max() <= 15 * 10 / 57.29 + 1e-3


def test_rotations_act_on_corrupted_images() -> None:
    corrupted, mask = corrupt(torch.ones(40, 3, 32, 32), "zeros:1+rotation:1e9")
    assert (mask == 1).all()
    assert (corrupted.amin((1, 2, 3)) < 0.1).all()  # the cut-out is there
    assert (corrupted.amax((1, 2, 3)) > 0.99).all()


def test_kinds_are_drawn_by_their_weights() -> None:
    _, mask = corrupt(torch.ones(800, 3, 16, 16), "zeros:3+rotation:1")
    assert (mask == 1).all((1, 2, 3)).float().mean() == pytest.approx(0.25, abs=0.05)


def test_some_images_stay_clean() -> None:
    images = noise(400, 16)
    corrupted, mask = corrupt(images, "zeros", clean=0.3)
    clean = (mask == 0).all((1, 2, 3))
    assert clean.float().mean() == pytest.approx(0.3, abs=0.07)
    assert torch.equal(corrupted[clean], images[clean])


def test_corruption_follows_its_own_generator_alone() -> None:
    images = noise()
    before = torch.get_rng_state()
    mix = "+".join((*KINDS, "rotation"))
    once, again, other = (corrupt(images, mix, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])
    assert not torch.equal(once[0], other[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_small_crops_can_be_corrupted() -> None:
    corrupted, mask = corrupt(noise(50, 16), "+".join((*KINDS, "rotation")), resolution=16)
    assert corrupted.isfinite().all()
    assert mask.isfinite().all()


def test_crops_are_windows_of_the_images_they_are_asked_of() -> None:
    images = (torch.arange(4 * 3 * 12 * 12).view(4, 3, 12, 12) % 251).to(torch.uint8)
    rows = torch.tensor([2, 0, 2])
    crops = random_crops(images, 3, 5, torch.Generator().manual_seed(0), rows)
    assert crops.shape == (3, 3, 5, 5)
    for crop, row in zip(crops, rows.tolist(), strict=True):
        windows = images[row].unfold(1, 5, 1).unfold(2, 5, 1).permute(1, 2, 0, 3, 4)
        assert (windows == crop).all((2, 3, 4)).any()
    whole = random_crops(images, 4, 12, torch.Generator(), torch.arange(4))
    assert torch.equal(whole, images)


def test_procedural_textures_are_in_range_and_differ() -> None:
    textures = procedural_textures(12, 48, torch.Generator().manual_seed(0), CPU)
    assert textures.shape == (12, 3, 48, 48)
    assert textures.dtype == torch.float32
    assert textures.min() >= 0
    assert textures.max() <= 1
    assert textures.std((2, 3)).amax(1).min() > 0.005
    distances = torch.cdist(textures.flatten(1), textures.flatten(1))
    assert (distances + 100 * torch.eye(12)).min() > 1
    again = procedural_textures(12, 48, torch.Generator().manual_seed(0), CPU)
    assert torch.equal(textures, again)
