"""Small tools to draw with numpy: grids, noise, antialiased shapes. Lengths are in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import PIL.Image

Field = npt.NDArray[np.float64]


def grid(height: int, width: int) -> tuple[Field, Field]:
    """Returns the coordinates ``x, y`` of the pixels, each ``(height, width)``."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    return x, y


def noise(
    height: int, width: int, scale: float | tuple[float, float], rng: np.random.Generator
) -> Field:
    """Draws smooth noise of zero mean and unit deviation.

    Args:
        height: Rows.
        width: Columns.
        scale: Size of its grains, or their height and width.
        rng: Source of randomness.
    """
    # Drawn coarse and enlarged: filtering at full size would cost ten times as much.
    tall, wide = scale if isinstance(scale, tuple) else (scale, scale)
    rows = int(np.ceil(height / min(max(1.0, tall), height))) + 3
    columns = int(np.ceil(width / min(max(1.0, wide), width))) + 3
    coarse = PIL.Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    fine = np.asarray(coarse.resize((width, height), PIL.Image.Resampling.BICUBIC), np.float64)
    return np.asarray((fine - fine.mean()) / (fine.std() + 1e-9))


def cover(distance: Field) -> Field:
    """Turns a signed distance (negative inside) into the share of a pixel that is covered."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def disc(x: Field, y: Field, cx: float, cy: float, radius: float) -> Field:
    """Returns the coverage of a disc."""
    return cover(np.hypot(x - cx, y - cy) - radius)


def box(
    x: Field, y: Field, centre: tuple[float, float], size: tuple[float, float], angle: float = 0.0
) -> Field:
    """Returns the coverage of a rectangle of (width, height) ``size``, turned by ``angle`` rad."""
    dx, dy = x - centre[0], y - centre[1]
    u = np.abs(dx * np.cos(angle) + dy * np.sin(angle)) - size[0] / 2
    v = np.abs(dy * np.cos(angle) - dx * np.sin(angle)) - size[1] / 2
    return cover(np.maximum(u, v))


def stroke(x: Field, y: Field, points: Sequence[tuple[float, float]], width: float) -> Field:
    """Returns the coverage of a line through ``points``."""
    nearest = np.full(x.shape, np.inf)
    for (ax, ay), (bx, by) in pairwise(points):
        dx, dy = bx - ax, by - ay
        along = ((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-9)
        along = np.clip(along, 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * dx, y - ay - along * dy))
    # A line thinner than a pixel covers it in part only.
    return cover(nearest - width / 2) * min(1.0, width)


def blob(
    x: Field, y: Field, centre: tuple[float, float], radius: float, rng: np.random.Generator
) -> Field:
    """Returns the coverage of a spot with an irregular, slightly soft rim."""
    height, width = x.shape
    rim = noise(height, width, max(3.0, radius), rng)
    stretch, angle = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
    u = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    v = ((y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)) / stretch
    return np.asarray(np.clip((radius * (1 + 0.22 * rim) - np.hypot(u, v)) / 2.0, 0.0, 1.0))


def paint(
    canvas: Field, alpha: Field, colour: Sequence[float] | Field, opacity: float = 1.0
) -> None:
    """Lays a colour (or an ``(H, W, 3)`` picture) over the canvas in place."""
    share = (opacity * alpha)[..., None]
    canvas += share * (np.asarray(colour, dtype=np.float64) - canvas)
