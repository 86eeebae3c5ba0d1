"""A very large mask in cells of whole pixels: how much of each is anomalous, in bounded memory.

A map of a few hundred pixels a side says nothing of the single pixels of a line scan. Their number
is what counts: so many normal and so many anomalous ones, at the mean of the map over each. Regions
are those of the pixels: a scratch is as thin as it was drawn, and what lies apart in a cell stays
so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anomtune.search.metrics.alignment import Map, Mask, at_size

Counts = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

#: A mask of more pixels (4096 x 4096) comes in cells: bounds the memory that an image takes to
#: about 1 GB and 4 bytes a pixel.
MOST_PIXELS = 1 << 24
#: Most cells along a side, as many as the largest map has pixels.
_SIDE = 4096
_STRIP = 1 << 22  # Pixels looked at together.


@dataclass(frozen=True, slots=True)
class Cells:
    """A mask and the map of its image, in ``(h, w)`` cells.

    Attributes:
        normal: ``(h, w)``, how many pixels of a cell are normal.
        anomalous: ``(h, w)``, how many are anomalous.
        normal_map: ``(h, w)``, the map at the normal ones.
        anomalous_map: ``(h, w)``, the map at the anomalous ones.
        overlap: ``(h, w)``, the sum over these of ``1 / size of their region``.
        regions: Number of 8-connected regions of the mask.
    """

    normal: Counts
    anomalous: Counts
    normal_map: Map
    anomalous_map: Map
    overlap: Floats
    regions: int


def cells_of(anomaly_map: Map, mask: Mask) -> Cells:
    """Returns a map and a mask ``(H, W)`` in up to 4096 cells a side, of nearly the same size.

    Args:
        anomaly_map: ``(h, w)``. It is interpolated to the mask where that has anything drawn, and
            to the cells elsewhere.
        mask: True in defects.
    """
    rows, columns = (_starts(length) for length in mask.shape)
    heights, widths = (
        np.diff(starts, append=length).astype(np.int32)
        for starts, length in zip((rows, columns), mask.shape, strict=True)
    )
    normal = np.outer(heights, widths)
    anomalous, overlap = np.zeros(normal.shape, np.int32), np.zeros(normal.shape)
    normal_map = at_size(anomaly_map, normal.shape)
    if not mask.any():
        return Cells(normal, anomalous, normal_map, normal_map, overlap, 0)
    labels, regions = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.zeros(regions + 1)
    for _, pixels in _strips(mask, rows):
        np.add.at(sizes, labels[pixels][mask[pixels]], 1.0)
    shares = 1 / np.maximum(sizes, 1)
    shares[0] = 0  # What is normal is of no region.
    normal_map, anomalous_map = normal_map.copy(), normal_map.copy()
    for cells, pixels in _strips(mask, rows):
        starts = rows[cells] - rows[cells][0], columns
        inside, values = mask[pixels], at_size(anomaly_map, mask.shape, pixels)
        counts, sums = _totals(inside, *starts), _totals(values * inside, *starts)
        anomalous[cells] = counts
        normal[cells] -= anomalous[cells]
        overlap[cells] = _totals(shares[labels[pixels]], *starts)
        np.divide(sums, counts, out=anomalous_map[cells], where=counts > 0, casting="same_kind")
        np.divide(
            _totals(values, *starts) - sums,
            normal[cells],
            out=normal_map[cells],
            where=normal[cells] > 0,
            casting="same_kind",
        )
    return Cells(normal, anomalous, normal_map, anomalous_map, overlap, regions)


def _totals(
    values: npt.NDArray[np.generic], rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]
) -> Floats:
    """Returns the sums over the pixels of each cell; along rows first, which is faster."""
    added: Floats = np.add.reduceat(values, rows, axis=0, dtype=np.float64)
    added = np.add.reduceat(added, columns, axis=1)
    return added


def _starts(length: int) -> npt.NDArray[np.intp]:
    """Returns the first pixel of every cell along a side."""
    count = min(length, _SIDE)
    # Rounded: the middle of a cell is where the map's value is.
    return (np.arange(count) * length + count // 2) // count


def _strips(mask: Mask, rows: npt.NDArray[np.intp]) -> Iterator[tuple[slice, slice]]:
    """Yields whole rows of cells where anything is drawn, and the rows of pixels in them."""
    tall = -(-len(mask) // len(rows))
    step = max(1, _STRIP // (mask.shape[1] * tall))
    ends = np.append(rows, len(mask))
    for first in range(0, len(rows), step):
        last = min(first + step, len(rows))
        pixels = slice(int(ends[first]), int(ends[last]))
        if mask[pixels].any():
            yield slice(first, last), pixels
