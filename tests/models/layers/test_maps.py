from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch.utils._python_dispatch import TorchDispatchMode

from anomtune.models.layers.maps import (
    anomaly_map,
    cosine_map,
    gaussian_smooth,
    image_scores,
    scaled_window,
    surround,
)


@pytest.mark.parametrize("shape", [(64, 64), (33, 50), (5, 7), (1, 3), (256, 256)])
@pytest.mark.parametrize("sigma", [0.0, 0.6, 2.0, 4.0, 8.0])
def test_smoothing_equals_scipy(shape: tuple[int, int], sigma: float) -> None:
    maps = np.random.default_rng(0).random((3, *shape)).astype(np.float32)
    expected = np.stack([gaussian_filter(m, sigma) if sigma else m for m in maps])
    actual = gaussian_smooth(torch.from_numpy(maps), sigma).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_smoothing_copies_its_matrices_once() -> None:
    class Copies(TorchDispatchMode):
        seen: ClassVar[list[str]] = []

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    maps = torch.rand(2, 12, 9)
    with torch.inference_mode():
        gaussian_smooth(maps, 3.25)
    with Copies():
        gaussian_smooth(maps, 3.25)
    assert Copies.seen
    assert not [name for name in Copies.seen if "copy" in name or name.startswith("aten.to.")]
    # What prediction asked for first can be trained through all the same.
    maps.requires_grad_()
    gaussian_smooth(maps, 3.25).sum().backward()  # type: ignore[no-untyped-call]
    assert maps.grad is not None


@pytest.mark.parametrize("size", [64, 96, 256])
def test_the_map_is_the_smoothed_sum_of_interpolated_distances(size: int) -> None:
    """The papers' Gaussian of 4 pixels belongs to maps of 256: it scales with the map."""
    torch.manual_seed(0)
    pairs = [
        (torch.randn(2, c, s, s), torch.randn(2, c, s, s))
        for c, s in ((4, 16), (8, 8), (6, 4), (4, 16), (8, 8), (6, 4))
    ]
    expected = np.zeros((2, size, size), dtype=np.float32)
    for target, prediction in pairs:
        distance = 1 - F.cosine_similarity(target, prediction, dim=1)
        one = F.interpolate(distance[:, None], size=size, mode="bilinear", align_corners=True)
        expected += one[:, 0].numpy()
    expected = np.stack([gaussian_filter(m, 4 * size / 256) for m in expected])
    np.testing.assert_allclose(anomaly_map(pairs, size, 4.0).numpy(), expected, atol=1e-5)


def test_maps_are_bounded() -> None:
    # Three non-negative pairs: at most 3. Six pairs of any sign: at most 12.
    ones, zeros = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    orthogonal = (torch.cat([ones, zeros], 1), torch.cat([zeros, ones], 1))
    assert anomaly_map([orthogonal] * 3, 8, 0).max() == pytest.approx(3)
    assert anomaly_map([(ones, -ones)] * 6, 8, 0).max() == pytest.approx(12)
    torch.manual_seed(0)
    random = [(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)) for _ in range(3)]
    assert 0 <= anomaly_map(random, 8, 4.0).min() <= anomaly_map(random, 8, 4.0).max() <= 3


def test_equal_features_have_no_distance_and_zeros_no_nan() -> None:
    features = torch.randn(2, 5, 3, 3)
    assert cosine_map(features, 3 * features).abs().max() < 1e-6
    assert torch.equal(cosine_map(features, torch.zeros_like(features)), torch.ones(2, 3, 3))


def test_score_rules() -> None:
    maps = torch.arange(400.0).reshape(1, 20, 20)
    assert image_scores(maps, "max").tolist() == [399]
    assert image_scores(maps, "mean").tolist() == [199.5]
    assert image_scores(maps, "top1").tolist() == [(399 + 398 + 397 + 396) / 4]
    assert image_scores(maps[:, :5, :5], "top1").tolist() == [84]


def test_filters_scale_with_the_map_and_stay_odd() -> None:
    assert [scaled_window(31, size) for size in (256, 128, 64, 512)] == [31, 15, 7, 61]
    assert [scaled_window(21, size, 512) for size in (512, 256, 32)] == [21, 11, 1]
    assert scaled_window(1, 1024) == 1, "1 is no filter at any size"


def test_maps_of_the_middle_are_surrounded_by_zeros() -> None:
    maps = surround(torch.ones(2, 5, 5), 8)
    assert maps.shape == (2, 8, 8)
    assert maps.sum() == 50
    assert (maps[:, 1:6, 1:6] == 1).all()
    assert torch.equal(surround(maps, 8), maps)
