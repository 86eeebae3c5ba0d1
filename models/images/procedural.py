"""Textures drawn by formulas: content of other things where there are no images of any."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Cells of the noise grids along one side, coarse to fine.
_OCTAVES = (4, 8, 16, 32)


def procedural_textures(
    n: int, size: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draws textures: stripes and clouds of several octaves, between two random colours.

    Args:
        n: Number of textures.
        size: Side in pixels.
        generator: Randomness, on ``device``.
        device: Where they are drawn.

    Returns:
        Images ``(n, 3, size, size)``, float32 in ``[0, 1]``.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand(shape, generator=generator, device=device)
        return draw.mul_(high - low).add_(low)

    clouds = torch.zeros(n, 1, size, size, device=device)
    shares = uniform(1e-3, 1, n, len(_OCTAVES))
    shares /= shares.sum(1, keepdim=True)
    for index, cells in enumerate(_OCTAVES):
        octave = F.interpolate(uniform(0, 1, n, 1, cells, cells), size=size, mode="bilinear")
        clouds += shares[:, index].view(n, 1, 1, 1) * octave

    one = (n, 1, 1, 1)
    angle = uniform(0, math.pi, *one)
    place = torch.linspace(0, 1, size, device=device)
    along = place * angle.cos() + place.view(-1, 1) * angle.sin()
    # Stripes per side; how far clouds bend them.
    frequency, bend = uniform(2, 30, *one), uniform(0, 3, *one)
    waves = torch.sin(2 * math.pi * (frequency * along + bend * clouds))
    contrast, share = uniform(1, 9, *one), uniform(0, 1, *one)
    stripes = torch.sigmoid(contrast * waves)
    pattern = share * stripes + (1 - share) * torch.sigmoid(2 * contrast * (2 * clouds - 1))

    first, second = uniform(0, 1, n, 3, 1, 1), uniform(0, 1, n, 3, 1, 1)
    return pattern * first + (1 - pattern) * second
