"""The crop of a fundus photo to the eye, as the preparation of APTOS in ReContrast makes it.

The steps and their rounding follow the official code, so that the same photo gives
the same pixels up to the last step's arithmetic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

U8 = npt.NDArray[np.uint8]

VERSION = 1  # Raise it when the pixels change: cached categories are found by it.

_DARK = 30  # Sum of the three channels up to which a pixel is background.
_MARGIN = 5
_SIDE = 512


def crop_fundus(photo: U8) -> U8:
    """Crops a photo ``(H, W, 3)`` to the square around the eye and resizes it to 512 x 512.

    The eye is the largest connected region that is not dark. The square has the longer side of its
    bounding box plus a margin and lies around the region's centroid; outside the photo it is black.

    Raises:
        ValueError: If no pixel is bright enough to be of an eye.
    """
    bright = photo.sum(axis=2, dtype=np.int32) > _DARK
    labels, count = ndimage.label(bright, structure=np.ones((3, 3), dtype=np.int8))
    if not count:
        raise ValueError("the image is dark all over")
    largest = int(np.bincount(labels.ravel())[1:].argmax()) + 1
    region = labels == largest
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    bounds = []
    for axis, length in ((1, photo.shape[0]), (0, photo.shape[1])):
        centre = float(region.sum(axis=axis) @ np.arange(length)) / float(region.sum())
        # Both ends are truncated towards zero, as there.
        bounds.append((int(centre - longer / 2) - _MARGIN, int(centre + longer / 2) + _MARGIN))
    (top, bottom), (left, right) = bounds
    square = np.zeros((bottom - top, right - left, 3), dtype=np.uint8)
    inside = photo[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    y, x = max(-top, 0), max(-left, 0)
    square[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return _resize(square, _SIDE)


def _resize(image: U8, side: int) -> U8:
    """Resizes bilinearly without smoothing, which Pillow cannot: four pixels make one."""
    (y0, y1, fy), (x0, x1, fx) = (_neighbours(length, side) for length in image.shape[:2])
    fy, fx = fy[:, None, None], fx[None, :, None]
    above = image[y0][:, x0] * (1 - fx) + image[y0][:, x1] * fx
    below = image[y1][:, x0] * (1 - fx) + image[y1][:, x1] * fx
    resized: U8 = np.rint(above * (1 - fy) + below * fy).astype(np.uint8)
    return resized


def _neighbours(
    length: int, side: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Returns for each of ``side`` pixels its two neighbours among ``length`` and their weight."""
    place = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
    low = np.floor(place).astype(np.intp)
    return low, np.minimum(low + 1, length - 1), (place - low).astype(np.float32)
