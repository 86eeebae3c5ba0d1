"""Separable filters of maps and images with a border that reflects.

A filter along one axis is a matrix product: for maps of a few hundred pixels that is as fast as a
convolution however wide the window, and the border needs no padding, however small the map.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def filter_maps(maps: Tensor, window: tuple[float, ...], times: int = 1) -> Tensor:
    """Convolves both axes of maps ``(..., H, W)`` with the same window, several times over.

    Beyond the border the map is mirrored, its outermost pixel included (``d c b a | a b c d``),
    so that with weights that sum to 1 a constant map stays as it is.

    Args:
        maps: Any number of maps, float32.
        window: Weights along one axis; the middle one, of an even number the one right of the
            middle, belongs to the pixel itself.
        times: How often the filter is applied; 0 leaves the maps as they are.
    """
    if times == 0 or window == (1.0,):
        return maps
    rows = _filter_matrix(maps.shape[-2], window, times, maps.device, maps.dtype)
    columns = _filter_matrix(maps.shape[-1], window, times, maps.device, maps.dtype)
    return rows @ maps @ columns.T


def box_window(k: int) -> tuple[float, ...]:
    """Returns the window of the average of ``k`` pixels."""
    return (1 / k,) * k


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # Kept for training as well, whoever asks first.
def _filter_matrix(
    n: int, window: tuple[float, ...], times: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns ``(n, n)``: the filter along one axis, applied ``times`` times."""
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for index, weight in enumerate(window):
        # The mirrored row has a period of 2 n.
        source = (torch.arange(n) + index - len(window) // 2) % (2 * n)
        source = torch.minimum(source, 2 * n - 1 - source)
        matrix[torch.arange(n), source] += weight
    power: Tensor = torch.linalg.matrix_power(matrix, times)
    return power.to(device, dtype)
