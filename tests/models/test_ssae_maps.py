"""SSAE's maps and scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anomtune.errors import MethodError
from anomtune.models.layers.separable import box_window, filter_maps
from anomtune.models.layers.ssim import ssim_distance
from anomtune.models.ssae import SSAE
from tests.models.layers.test_sdc_autoencoder import count
from tests.models.test_ssae import build, photos, uniform


@given(n=st.integers(0, 3), k=st.integers(1, 9), value=st.floats(0, 1, width=32))
@settings(max_examples=25)
def test_smoothing_leaves_constant_maps_alone(n: int, k: int, value: float) -> None:
    constant = torch.full((2, 6, 7), value)
    torch.testing.assert_close(filter_maps(constant, box_window(k), n), constant)


def test_smoothing_without_neighbours_or_repetitions_is_the_identity() -> None:
    maps = uniform(2, 8, 8)
    for n in (0, 1, 3):
        assert torch.equal(filter_maps(maps, box_window(1), n), maps)
    assert torch.equal(filter_maps(maps, box_window(5), 0), maps)


def test_smoothing_is_scipys_uniform_filter() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    maps = uniform(1, 12, 15)
    for k in (2, 3, 5, 31):
        for n in (1, 2, 3):
            expected = maps[0].double().numpy()
            for _ in range(n):
                expected = ndimage.uniform_filter(expected, k, mode="reflect")
            actual = filter_maps(maps, box_window(k), n)[0]
            torch.testing.assert_close(
                actual, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5
            )


def test_ssim_distance_is_the_definition() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    a, b = uniform(2, 1, 3, 16, 16).double().unbind(0)

    def mean(x: Tensor) -> Tensor:
        filtered = ndimage.gaussian_filter(x.numpy(), 1.5, mode="reflect", radius=5, axes=(-2, -1))
        return torch.from_numpy(filtered)

    cov = mean(a * b) - mean(a) * mean(b)
    var = [mean(x * x) - mean(x) ** 2 for x in (a, b)]
    c1, c2 = 0.01**2, 0.03**2
    ssim = ((2 * mean(a) * mean(b) + c1) * (2 * cov + c2)) / (
        (mean(a) ** 2 + mean(b) ** 2 + c1) * (var[0] + var[1] + c2)
    )
    torch.testing.assert_close(
        ssim_distance(a.float(), b.float()).double(), (1 - ssim).mean(1) / 2, rtol=1e-3, atol=1e-4
    )


def test_ssim_distance_of_equal_and_of_opposite_images() -> None:
    a = uniform(2, 3, 16, 16)
    torch.testing.assert_close(ssim_distance(a, a), torch.zeros(2, 16, 16), atol=1e-4, rtol=0)
    assert ssim_distance(a, 1 - a).mean() > 0.6
    flat = torch.full_like(a, 0.4)
    assert ssim_distance(flat, flat).abs().max() < 1e-4
    assert ssim_distance(flat, a).max() <= 1


class Fixed(nn.Module):
    """Reconstructs everything as a fixed image, scaled."""

    def __init__(self, factor: float, target: Tensor | None = None) -> None:
        super().__init__()
        self.factor = factor
        self.target = target

    def forward(self, images: Tensor) -> Tensor:
        return (images if self.target is None else self.target) * self.factor


def fixed(networks: list[nn.Module], **fields: Any) -> SSAE:
    detector = build(**fields)
    detector.network = nn.ModuleList(networks)
    return detector


def test_the_score_of_a_grey_image_without_smoothing_is_its_squared_distance() -> None:
    grey = photos(4)[:, :1].expand(-1, 3, -1, -1)
    target = uniform(1, 1, 32, 32).expand(-1, 3, -1, -1)
    detector = fixed([Fixed(1, target)], scoring={"n": 0})
    expected = (grey[:, 0] / 255 - target[:, 0]).flatten(1).norm(dim=1) ** 2
    torch.testing.assert_close(detector.score(grey), expected)


def test_the_score_is_the_sum_of_the_map() -> None:
    detector = build()
    assert detector.scoring.rule == "sum"
    maps, scores = detector.predict(photos())
    torch.testing.assert_close(scores, maps.sum((1, 2)))


def test_colour_differences_are_averaged() -> None:
    detector = fixed([Fixed(0.0)], scoring={"n": 0})
    expected = (photos() / 255).square().mean(1)
    torch.testing.assert_close(detector.anomaly_maps(photos()), expected)


@pytest.mark.parametrize("diff", ["squared", "ssim"])
def test_the_map_is_the_smoothed_difference(diff: str) -> None:
    pixels = photos() / 255
    detector = fixed([Fixed(0.5)], scoring={"diff": diff, "n": 2, "k": 81})
    plain = (
        (0.5 * pixels).square().mean(1) if diff == "squared" else ssim_distance(pixels, pixels / 2)
    )
    # 81 pixels of an input of 512 are 5 of one of 32.
    expected = filter_maps(plain, box_window(5), 2)
    torch.testing.assert_close(detector.anomaly_maps(photos()), expected)


def test_the_average_map_of_one_validation_image_is_its_own() -> None:
    detector = build(scoring={"n": 1})
    images = photos(5)
    detector.fit(images, 2)
    (held_out,) = detector._held_out(5)
    for kind, diff in enumerate(("squared", "ssim")):
        detector.scoring = detector.scoring.changed({"diff": diff})
        plain = detector.anomaly_maps(images[held_out : held_out + 1])
        torch.testing.assert_close(
            detector._smooth(detector.average[kind], detector.scoring), plain
        )


@pytest.mark.parametrize("t", [0, 1, 4])
def test_the_average_map_weights_the_maps(t: int) -> None:
    plain, weighted = build(), build(scoring={"t": t})
    images = photos(60)
    for detector in (plain, weighted):
        detector.fit(images, 2)
    held_out = plain._held_out(60)
    assert len(held_out) == 3
    average = plain.anomaly_maps(images[held_out]).mean(0)
    expected = plain.anomaly_maps(images[:4]) * (1 - average) ** t
    torch.testing.assert_close(weighted.anomaly_maps(images[:4]), expected)
    if t == 0:
        assert torch.equal(weighted.anomaly_maps(images), plain.anomaly_maps(images))


def test_the_average_map_follows_the_weights() -> None:
    detector = build(scoring={"t": 1})
    detector.fit(photos(), 1)
    before = detector.average.clone()
    detector.fit(photos(), 3)
    assert not torch.equal(detector.average, before)


def test_the_ensemble_is_the_larger_map_of_each_pixel() -> None:
    one, other = Fixed(1, uniform(1, 3, 32, 32)), Fixed(1, uniform(1, 3, 32, 32, seed=1))
    a, b = (fixed([network]).anomaly_maps(photos()) for network in (one, other))
    both = fixed([one, other], objective="ensemble").anomaly_maps(photos())
    assert torch.equal(both, torch.maximum(a, b))
    assert (both > a).any()
    assert (both > b).any()
    twice = fixed([one, one], objective="ensemble").anomaly_maps(photos())
    assert torch.equal(twice, a)


def test_the_ensemble_weights_each_map_by_its_own_average() -> None:
    networks: list[nn.Module] = [Fixed(0.5), Fixed(0.9)]
    detector = fixed(networks, objective="ensemble", scoring={"t": 2, "n": 0})
    detector._validate(photos(20), torch.tensor([3, 4]))
    alone = []
    for network in networks:
        single = fixed([network], scoring={"t": 2, "n": 0})
        single._validate(photos(20), torch.tensor([3, 4]))
        alone.append(single.anomaly_maps(photos()))
    torch.testing.assert_close(detector.anomaly_maps(photos()), torch.maximum(*alone))
    # Also where one of the two is judged alone.
    for name, maps in zip(("filter", "amplify"), alone, strict=True):
        detector.scoring = detector.scoring.changed({"scales": (name,)})
        torch.testing.assert_close(detector.anomaly_maps(photos()), maps)


def test_networks_of_an_ensemble_learn_as_they_would_alone() -> None:
    both = build(objective="ensemble")
    alone = build(objective="1")
    same = zip(both.network[0].parameters(), alone.network[0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    both.fit(photos(), 3)
    alone.fit(photos(), 3)
    for a, b in zip(both.network[0].parameters(), alone.network[0].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert count(both.network) == 2 * count(alone.network)


def test_maps_have_the_size_that_is_asked_for() -> None:
    same, larger, smaller = (build(image_size=size, scoring={"n": 0}) for size in (32, 48, 8))
    maps = same.anomaly_maps(photos())
    assert larger.anomaly_maps(photos()).shape == (6, 48, 48)
    shrunk = smaller.anomaly_maps(photos())
    assert shrunk.shape == (6, 8, 8)
    # Every pixel of the larger map counts in the smaller one.
    torch.testing.assert_close(shrunk.mean((1, 2)), maps.mean((1, 2)), rtol=0.01, atol=0)


def test_images_of_another_size_than_the_resolution_are_refused() -> None:
    detector = build(image_size=48)
    for use in (lambda: detector.fit(photos(size=48), 1), lambda: detector.score(photos(size=48))):
        with pytest.raises(MethodError, match=r"shape \(N, 3, 32, 32\)"):
            use()


def test_the_validation_error_is_the_mean_squared_error_of_the_reconstructions() -> None:
    detector = fixed([Fixed(0.0)], scoring={"n": 1, "k": 5})
    images = photos(10)
    assert detector._validate(images, torch.tensor([2, 7])) == pytest.approx(
        float((images[[2, 7]] / 255).square().mean()), rel=1e-5
    )
