"""Colour transfer against what defines it, and the drawn negatives that it is applied to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomtune.models.images.color_transfer import (
    Transfer,
    color_statistics,
    diagonal,
    monge_kantorovich,
    transfer_colors,
)
from anomtune.models.images.dead_leaves import dead_leaves
from anomtune.models.images.negatives import draw_negatives, random_resized_crops

CPU = torch.device("cpu")


def covariances(seed: int, n: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)
    return roots @ roots.mT + 0.05 * torch.eye(3, dtype=torch.float64)


def pictures(seed: int, n: int = 3, size: int = 12) -> Tensor:
    """Images in float64 with colours that go together, well inside [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 3, size * size, generator=generator, dtype=torch.float64)
    mixing = torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)
    return (0.5 + 0.02 * mixing @ noise).view(n, 3, size, size)


def grey(seed: int, n: int = 3) -> Tensor:
    return pictures(seed, n)[:, :1].expand(-1, 3, -1, -1)


def chroma(images: Tensor) -> Tensor:
    """The largest difference of two channels."""
    return (images.amax(1) - images.amin(1)).max()


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_the_map_carries_one_covariance_to_the_other(seed: int) -> None:
    source, target = covariances(seed), covariances(seed + 1)
    matrix = monge_kantorovich(source, target)
    assert torch.equal(matrix, matrix.mT)
    assert (torch.linalg.eigvalsh(matrix) > 0).all()
    torch.testing.assert_close(matrix @ source @ matrix, target, rtol=1e-10, atol=1e-10)


def test_equal_covariances_need_no_map() -> None:
    identity = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    source = covariances(0)
    torch.testing.assert_close(monge_kantorovich(source, source), identity, rtol=0, atol=1e-10)
    torch.testing.assert_close(diagonal(source, source), identity, rtol=0, atol=1e-12)


def test_diagonal_covariances_have_the_diagonal_map() -> None:
    source, target = (
        torch.diag_embed(c.diagonal(dim1=1, dim2=2)) for c in map(covariances, (0, 1))
    )
    torch.testing.assert_close(
        monge_kantorovich(source, target), diagonal(source, target), rtol=1e-10, atol=1e-10
    )


def test_the_diagonal_map_carries_the_variance_of_each_channel() -> None:
    source, target = covariances(0), covariances(1)
    matrix = diagonal(source, target)
    moved = matrix @ source @ matrix
    torch.testing.assert_close(moved.diagonal(dim1=1, dim2=2), target.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("transfer", ["monge_kantorovich", "diagonal"])
def test_rho_0_changes_nothing(transfer: Transfer) -> None:
    images = pictures(0)
    torch.testing.assert_close(transfer_colors(images, pictures(1), 0.0, transfer), images)


def test_rho_1_gives_the_mean_and_covariance_of_the_target() -> None:
    images, targets = pictures(0), pictures(1, size=9)
    moved = transfer_colors(images, targets, 1.0, clip=False)
    for actual, expected in zip(
        color_statistics(moved.flatten(2)), color_statistics(targets.flatten(2)), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rho", [0.3, 0.75])
def test_between_the_map_is_that_of_interpolated_colours(rho: float) -> None:
    images, targets = pictures(0), pictures(1)
    whole = transfer_colors(images, targets, 1.0, clip=False)
    moved = transfer_colors(images, targets, rho, clip=False)
    torch.testing.assert_close(moved, (1 - rho) * images + rho * whole)
    source, target = (color_statistics(x.flatten(2))[1] for x in (images, targets))
    matrix = (1 - rho) * torch.eye(3, dtype=torch.float64) + rho * monge_kantorovich(source, target)
    torch.testing.assert_close(
        color_statistics(moved.flatten(2))[1], matrix @ source @ matrix, rtol=1e-8, atol=1e-12
    )


def test_each_image_may_have_its_own_rho() -> None:
    images, targets = pictures(0), pictures(1)
    moved = transfer_colors(images, targets, torch.tensor([0.0, 0.5, 1.0]))
    for index, rho in enumerate((0.0, 0.5, 1.0)):
        one = slice(index, index + 1)
        torch.testing.assert_close(moved[one], transfer_colors(images[one], targets[one], rho))


def test_a_grey_target_makes_images_grey_but_not_by_the_diagonal_map() -> None:
    images, targets = pictures(0), grey(1)
    assert chroma(images) > 0.05
    assert chroma(transfer_colors(images, targets)) < 1e-6
    assert chroma(transfer_colors(images, targets, transfer="diagonal")) > 0.01


@pytest.mark.parametrize("transfer", ["monge_kantorovich", "diagonal"])
def test_images_of_one_colour_or_none_stay_finite(transfer: Transfer) -> None:
    flat = torch.full((3, 3, 8, 8), 0.4)
    for images, targets in ((flat, pictures(0).float()), (grey(0).float(), flat)):
        moved = transfer_colors(images, targets, transfer=transfer)
        assert moved.dtype == torch.float32
        assert moved.isfinite().all()
        torch.testing.assert_close(moved.mean((2, 3)), targets.mean((2, 3)))


def test_colours_are_clipped_at_the_end() -> None:
    targets = (pictures(1) - 0.5) * 20 + 0.5
    moved = transfer_colors(pictures(0), targets)
    assert (moved.min(), moved.max()) == (0, 1)
    torch.testing.assert_close(moved, transfer_colors(pictures(0), targets, clip=False).clamp(0, 1))


def test_dead_leaves_are_always_the_same_and_made_once() -> None:
    state = torch.get_rng_state()
    images = dead_leaves(12, 48)
    assert dead_leaves(12, 48) is images
    copy = images.clone()
    dead_leaves.cache_clear()
    assert torch.equal(dead_leaves(12, 48), copy)
    assert torch.equal(torch.get_rng_state(), state)
    assert images.shape == (12, 3, 48, 48)
    assert images.dtype == torch.uint8


def test_dead_leaves_look_natural() -> None:
    images = dead_leaves(16, 64).double() / 255
    assert 0.3 < images.mean() < 0.6
    assert (images.std((1, 2, 3)) > 0.08).all()
    # They differ, and the colours of each go together: most of the variance is brightness.
    assert images.mean((2, 3)).std(0).min() > 0.05
    values = torch.linalg.eigvalsh(color_statistics(images.flatten(2))[1])
    assert (values[:, 2] / values.sum(1)).mean() > 0.6
    # Edges and occlusions of all sizes: power falls with frequency as in photographs, about f^-2.
    grey = images.mean(1)
    power = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs().square().mean(0)
    row, column = torch.meshgrid(*(torch.fft.fftfreq(64, dtype=torch.float64),) * 2, indexing="ij")
    radius = torch.hypot(row, column) * 64
    low, high = (power[(radius >= r) & (radius < 2 * r)].mean().log2() for r in (2, 16))
    assert -3 < (high - low) / 3 < -1


def test_a_crop_of_the_whole_is_the_whole_or_its_mirror_image() -> None:
    images = dead_leaves(2, 32)
    draws = torch.tensor([[1.0, 0.5, 0.3, 0.8, 0.9], [1.0, 0.5, 0.3, 0.8, 0.1]])
    crops = random_resized_crops(images, 32, draws)
    expected = torch.stack([images[0], images[1].flip(2)]).float() / 255
    torch.testing.assert_close(crops, expected, rtol=0, atol=1e-5)


def test_crops_lie_where_the_draws_say() -> None:
    images = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
    images[:, :, :20, :20] = 255
    # A quarter of the area, upper left and lower right.
    draws = torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.9], [0.0, 0.5, 0.99999, 0.99999, 0.9]])
    crops = random_resized_crops(images, 20, draws)
    assert crops[0].min() == 1
    assert crops[1].max() < 0.01


def test_negatives_have_the_colours_of_a_normal_image() -> None:
    normal = dead_leaves(4, 32)[:2] // 4 + torch.tensor([20, 120], dtype=torch.uint8).view(
        2, 1, 1, 1
    )
    pool = dead_leaves(12, 48)

    def draw(rho: float | None, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return draw_negatives(
            20, pool, normal, CPU, generator, rho=rho, transfer="monge_kantorovich"
        )

    negatives = draw(1.0)
    assert negatives.shape == (20, 3, 32, 32)
    assert negatives.dtype == torch.uint8
    means, wanted = (x.float().mean((2, 3)) for x in (negatives, normal))
    distance = torch.cdist(means, wanted)
    assert distance.amin(1).max() < 5
    assert set(distance.argmin(1).tolist()) == {0, 1}
    assert torch.equal(draw(1.0), negatives)
    assert not torch.equal(draw(1.0, 1), negatives)
    far = torch.cdist(draw(0.0).float().mean((2, 3)), wanted).amin(1).mean()
    between = torch.cdist(draw(None).float().mean((2, 3)), wanted).amin(1).mean()
    assert 5 < between < 0.6 * far
