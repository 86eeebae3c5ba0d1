from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch.utils._python_dispatch import TorchDispatchMode

from anomtune.models.layers.maps import (
    cosine_map,
    distance_maps,
    gaussian_smooth,
    resized,
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


def test_views_of_a_scale_are_summed_and_the_finest_scale_comes_first() -> None:
    torch.manual_seed(0)
    pairs = [
        (torch.randn(2, c, s, s), torch.randn(2, c, s, s))
        for c, s in ((6, 4), (4, 16), (8, 8), (6, 4), (4, 16), (8, 8))
    ]
    maps = distance_maps(pairs)
    assert [tuple(one.shape) for one in maps] == [(2, 16, 16), (2, 8, 8), (2, 4, 4)]
    for one in maps:
        expected = sum(
            1 - F.cosine_similarity(target, prediction, dim=1)
            for target, prediction in pairs
            if target.shape[-1] == one.shape[-1]
        )
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [5, 16, 40])
def test_maps_are_interpolated_between_pixels(size: int, align_corners: bool) -> None:
    maps = torch.rand(2, 12, 1).expand(-1, -1, 12)
    found = resized(maps, size, align_corners=align_corners)
    for row in range(size):
        # Where the row lies in the smaller map: corners on each other, or pixels side by side.
        place = row * 11 / (size - 1) if align_corners else (row + 0.5) * 12 / size - 0.5
        low = min(int(max(place, 0)), 10)
        weight = min(max(place - low, 0), 1)
        expected = torch.lerp(maps[:, low, 0], maps[:, low + 1, 0], weight)
        torch.testing.assert_close(found[:, row], expected[:, None].expand(-1, size))
    assert resized(maps, 12, align_corners=align_corners) is maps


def test_antialiased_maps_keep_their_mean() -> None:
    maps = torch.rand(2, 64, 64)
    small = resized(maps, 8, antialias=True)
    torch.testing.assert_close(small.mean((1, 2)), maps.mean((1, 2)), rtol=0.02, atol=0)
    assert small.var() < 0.2 * resized(maps, 8).var()


def test_equal_features_have_no_distance_and_zeros_no_nan() -> None:
    features = torch.randn(2, 5, 3, 3)
    assert cosine_map(features, 3 * features).abs().max() < 1e-6
    assert torch.equal(cosine_map(features, torch.zeros_like(features)), torch.ones(2, 3, 3))


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
