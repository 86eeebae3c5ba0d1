"""Structural similarity of images (Wang, Bovik, Sheikh and Simoncelli, 2004) as a distance map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anomtune.models.layers.separable import filter_maps

_K1, _K2 = 0.01, 0.03
_SIGMA, _SIZE = 1.5, 11


def _gaussian_window() -> tuple[float, ...]:
    offsets = range(-(_SIZE // 2), _SIZE // 2 + 1)
    weights = [math.exp(-0.5 * (offset / _SIGMA) ** 2) for offset in offsets]
    return tuple(weight / sum(weights) for weight in weights)


_WINDOW = _gaussian_window()


def ssim_distance(a: Tensor, b: Tensor) -> Tensor:
    """Returns ``(1 - SSIM) / 2`` in ``[0, 1]``, averaged over the channels.

    The window is a Gaussian of 11 x 11 pixels with a deviation of 1.5, as in the paper; the
    border reflects, so that the map has the size of the images.

    Args:
        a: Images ``(B, C, H, W)``, float32 in ``[0, 1]``.
        b: The images they are compared to.

    Returns:
        Maps ``(B, H, W)``.
    """
    moments = torch.stack([a, b, a * a, b * b, a * b]).contiguous()
    mean_a, mean_b, square_a, square_b, product = filter_maps(moments, _WINDOW)
    # Of a constant neighbourhood rounding leaves a variance just below zero.
    variance_a = (square_a - mean_a**2).clamp_min(0)
    variance_b = (square_b - mean_b**2).clamp_min(0)
    covariance = product - mean_a * mean_b
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    similarity: Tensor = (luminance * structure).mean(1)
    return ((1 - similarity) / 2).clamp(0, 1)
