"""What anomaly maps are made with: distances of features, resizing, smoothing.

Papers give lengths for maps of 256 pixels: they scale with the map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

#: Side of the maps, in pixels, that lengths such as ``sigma`` are given for.
REFERENCE_SIDE = 256

#: Target and prediction of one scale, each ``(B, C, h, w)``.
Pair = tuple[Tensor, Tensor]


def cosine_map(target: Tensor, prediction: Tensor) -> Tensor:
    """Returns ``1 - cos`` along the channels: ``(B, C, h, w)`` twice -> ``(B, h, w)``."""
    return 1 - F.cosine_similarity(target.float(), prediction.float(), dim=1, eps=1e-8)


def distance_maps(pairs: Sequence[Pair], scales: int = 3) -> tuple[Tensor, ...]:
    """Returns the distances of features, a map ``(B, h, w)`` per scale, from fine to coarse.

    Pairs of the same scale, the views of an image, are summed (RD4AD and ReContrast, official
    code).

    Args:
        pairs: Of all scales of one view after another.
        scales: Their number; several may be of one size.
    """
    distances = [cosine_map(target, prediction) for target, prediction in pairs]
    maps = [torch.stack(distances[number::scales]).sum(0) for number in range(scales)]
    return tuple(sorted(maps, key=lambda one: one.shape[-1], reverse=True))


def resized(
    maps: Tensor, size: int, *, align_corners: bool = False, antialias: bool = False
) -> Tensor:
    """Returns maps ``(N, h, w)`` interpolated bilinearly to ``(N, size, size)``."""
    if maps.shape[-2:] == (size, size):
        return maps
    found: Tensor = F.interpolate(
        maps.unsqueeze(1),
        size=(size, size),
        mode="bilinear",
        # torch has no antialiasing with aligned corners; where maps shrink they matter little.
        align_corners=align_corners and not antialias,
        antialias=antialias,
    )
    return found.squeeze(1)


def scaled(length: float, size: int, reference: int = REFERENCE_SIDE) -> float:
    """Returns a length in pixels of a map of ``size``, given in those of one of ``reference``."""
    return length * size / reference


def scaled_window(side: int, size: int, reference: int = REFERENCE_SIDE) -> int:
    """Returns the nearest odd side of a filter for a map of ``size``; see `scaled`."""
    return 1 + 2 * round((scaled(side, size, reference) - 1) / 2) if side > 1 else 1


def surround(maps: Tensor, size: int) -> Tensor:
    """Puts maps ``(N, h, h)`` into the middle of zeros ``(N, size, size)``.

    For methods that see the middle of an image alone: of the rest they say that it is normal.
    """
    before = (size - maps.shape[-1]) // 2
    after = size - maps.shape[-1] - before
    return F.pad(maps, (before, after, before, after))


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """Smooths maps ``(..., H, W)`` as `scipy.ndimage.gaussian_filter` does by default.

    The filter is one matrix product per axis: for maps of a few hundred pixels that is faster
    than a convolution of one channel, and the border needs no padding, however small the map.

    Args:
        maps: Any number of maps, float32.
        sigma: Standard deviation in pixels; 0 leaves the maps as they are.
    """
    if sigma == 0:
        return maps
    rows = _smoothing_matrix(maps.shape[-2], sigma, maps.device, maps.dtype)
    columns = _smoothing_matrix(maps.shape[-1], sigma, maps.device, maps.dtype)
    return rows @ maps @ columns.T


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # Kept for training as well, whoever asks first.
def _smoothing_matrix(n: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns ``(n, n)``: the filter along one axis with scipy's ``reflect`` border."""
    radius = int(4 * sigma + 0.5)
    offsets = range(-radius, radius + 1)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in offsets]
    total = sum(weights)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for offset, weight in zip(offsets, weights, strict=True):
        # d c b a | a b c d | d c b a: a period of 2 n, mirrored.
        source = (torch.arange(n) + offset) % (2 * n)
        source = torch.minimum(source, 2 * n - 1 - source)
        matrix[torch.arange(n), source] += weight / total
    return matrix.to(device, dtype)
