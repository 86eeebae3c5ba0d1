"""A very large mask in cells of whole pixels: how much of each is anomalous, in bounded memory.

A map of a few hundred pixels a side says nothing of the single pixels of a line scan. Their number
is what counts: so many normal and so many anomalous ones at the map's value there. Regions are
those of the pixels: a scratch is as thin as it was drawn, and what lies apart in a cell stays so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int32]

#: A mask of more pixels (4096 x 4096) comes in cells: bounds the memory that an image takes to
#: about 1 GB and 4 bytes a pixel.
MOST_PIXELS = 1 << 24
#: Most cells along a side, as many as the largest map has pixels.
_SIDE = 4096
_STRIP = 1 << 22  # Pixels looked at together.


@dataclass(frozen=True, slots=True)
class Cells:
    """What is drawn in each cell of a mask.

    Attributes:
        pixels: ``(h, w)``, how many pixels a cell has.
        anomalous: ``(h, w)``, how many of them are anomalous.
        weights: ``(K,)``, for every cell with an anomalous pixel, in their order: the sum over
            these pixels of ``1 / size of their region``.
        regions: Number of 8-connected regions of the mask.
    """

    pixels: Counts
    anomalous: Counts
    weights: npt.NDArray[np.float64]
    regions: int


def cells_of(mask: Mask) -> Cells:
    """Returns the cells of a mask ``(H, W)``, up to 4096 a side and of nearly the same size."""
    rows, columns = (_starts(length) for length in mask.shape)
    heights, widths = (
        np.diff(starts, append=length).astype(np.int32)
        for starts, length in zip((rows, columns), mask.shape, strict=True)
    )
    pixels = np.outer(heights, widths)
    anomalous = np.zeros(pixels.shape, np.int32)
    if not mask.any():
        return Cells(pixels, anomalous, np.empty(0), 0)
    labels, regions = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.zeros(regions + 1)
    for strip, _ in _strips(labels, rows):
        np.add.at(sizes, strip[strip > 0], 1.0)
    shares = 1 / np.maximum(sizes, 1)
    shares[0] = 0  # What is normal is of no region.
    overlap = np.zeros(pixels.shape)
    for strip, (first, last) in _strips(labels, rows):
        inner = rows[first:last] - rows[first]
        for values, sums in ((shares[strip], overlap), (strip > 0, anomalous)):
            # Along rows first: that is the faster way.
            rows_of_cells = np.add.reduceat(values, inner, axis=0, dtype=sums.dtype)
            sums[first:last] = np.add.reduceat(rows_of_cells, columns, axis=1)
    return Cells(pixels, anomalous, overlap[anomalous > 0], regions)


def _starts(length: int) -> npt.NDArray[np.intp]:
    """Returns the first pixel of every cell along a side."""
    count = min(length, _SIDE)
    # Rounded: the middle of a cell is where the map's value is.
    return (np.arange(count) * length + count // 2) // count


def _strips(
    labels: npt.NDArray[np.integer], rows: npt.NDArray[np.intp]
) -> Iterator[tuple[npt.NDArray[np.integer], tuple[int, int]]]:
    """Yields whole rows of cells where anything is drawn: their pixels, and which rows they are."""
    tall = -(-len(labels) // len(rows))
    step = max(1, _STRIP // (labels.shape[1] * tall))
    ends = np.append(rows, len(labels))
    for first in range(0, len(rows), step):
        last = min(first + step, len(rows))
        strip = labels[ends[first] : ends[last]]
        if strip.any():
            yield strip, (first, last)
