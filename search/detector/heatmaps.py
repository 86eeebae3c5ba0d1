"""Pictures of anomaly maps: overlays, outlines of masks, and sheets of pictures side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

#: uint8 ``(H, W, 3)``, RGB.
Picture = npt.NDArray[np.uint8]

#: Colours from little to much: those of matplotlib's inferno from a third of its length on. Their
#: lightness rises all the way, so that more looks like more, also in grey and to the colour-blind.
_RAMP = np.array(
    [(120, 28, 109), (165, 45, 96), (207, 68, 70), (237, 105, 37), (251, 155, 6), (252, 255, 164)]
)
#: Opacity of the strongest colour: what lies below it is still recognised.
_OPACITY = 0.8
_OUTLINE = (0, 255, 255)  # Cyan is no colour of the ramp.
_GAP = 4  # Pixels between the pictures of a sheet.


def overlay(
    image: Picture, anomaly_map: npt.NDArray[np.float32], low: float, high: float
) -> Picture:
    """Lays a map over its image: the more anomalous, the lighter and the more opaque the colour.

    Args:
        image: uint8 ``(S, S, 3)``.
        anomaly_map: ``(S, S)``.
        low: Up to this value the image shows as it is.
        high: From this value on the colour is strongest. If it is not above ``low``, only what
            exceeds ``low`` is coloured.

    Returns:
        uint8 ``(S, S, 3)``.
    """
    span = max(high - low, 1e-30)
    level = ((anomaly_map.astype(np.float64) - low) / span).clip(0, 1)
    stops = np.linspace(0, 1, len(_RAMP))
    colour = np.stack([np.interp(level, stops, channel) for channel in _RAMP.T], axis=-1)
    # Rises fast, or a weak defect would not show.
    opacity = (_OPACITY * level**0.7)[..., None]
    blend: npt.NDArray[np.float64] = image * (1 - opacity) + colour * opacity
    return blend.round().astype(np.uint8)


def outline(image: Picture, mask: npt.NDArray[np.generic]) -> Picture:
    """Draws the contour of a mask, just outside it, so that it hides nothing of what it marks.

    Args:
        image: uint8 ``(S, S, 3)``.
        mask: ``(S, S)``, true or not 0 inside.

    Returns:
        A copy, uint8 ``(S, S, 3)``.
    """
    from scipy.ndimage import binary_dilation  # noqa: PLC0415 - `predict` draws no outline

    inside = mask.astype(bool)
    # Pixels that touch from above, below or a side.
    grown = binary_dilation(inside, iterations=max(1, round(len(image) / 128)))
    marked = image.copy()
    marked[grown & ~inside] = _OUTLINE
    return marked


def sheet(rows: Sequence[Sequence[Picture]]) -> Picture:
    """Puts equally large pictures side by side, row below row, with thin white gaps between them.

    Args:
        rows: At least one row of at least one picture ``(H, W, 3)``; shorter rows are filled up
            with white.

    Returns:
        uint8 ``(R (H + gap) - gap, C (W + gap) - gap, 3)`` of R rows and C columns.
    """
    height, width, _ = rows[0][0].shape
    columns = max(map(len, rows))
    down, right = height + _GAP, width + _GAP
    canvas = np.full((len(rows) * down - _GAP, columns * right - _GAP, 3), 255, np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            top, left = row * down, column * right
            canvas[top : top + height, left : left + width] = picture
    return canvas


def sheet_rows(picture: Picture, count: int) -> list[Picture]:
    """Cuts a sheet into its rows.

    Args:
        picture: What `sheet` returns.
        count: How many rows it has.

    Returns:
        A uint8 picture ``(H, C (W + gap) - gap, 3)`` per row.
    """
    down = (len(picture) + _GAP) // count
    return [picture[row * down : (row + 1) * down - _GAP] for row in range(count)]


def png_bytes(picture: Picture) -> bytes:
    """Returns a picture as the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
