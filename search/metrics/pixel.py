"""Pixel AUROC and AUPRO of a test set: one pass over its anomaly maps, in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anomtune.search.metrics.cells import Cells

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_LIMIT = 0.3  # the false positive rate up to which AUPRO integrates
_THRESHOLDS = 200  # of the per-image variant
_PAGES = 1 << 16
_RESOLUTION = 1 << 17  # bins for a class of pixels, shared out among the pages
_CHUNK = 1 << 20  # pixels binned at a time
_TOGETHER = 1 << 18  # pixels that wait for each other before they are binned

_NORMAL, _ANOMALOUS, _OVERLAP = range(3)


@dataclass(frozen=True, slots=True)
class PixelFigures:
    """How well anomaly maps find defects, in [0, 1]; ``None`` where that is not defined.

    Attributes:
        pixel_auroc: Area under the ROC curve over all pixels of all images.
        aupro: Area under the per-region overlap as a function of the false positive rate up to
            0.3, divided by 0.3 (Bergmann et al. 2021, "The MVTec anomaly detection dataset"):
            the rate is that of all normal pixels of all images, the overlap the mean over all
            8-connected regions of the ground truth.
        aupro_per_image: What the official code of RD4AD and ReContrast reports as AUPRO, for
            comparison with their tables: an area for every anomalous image, and their mean.
    """

    pixel_auroc: float | None
    aupro: float | None
    aupro_per_image: float | None


class PixelMetrics:
    """Accumulates anomaly maps and masks, batch by batch, into `PixelFigures`.

    Kept are histograms over the value of the map: of normal pixels, of anomalous pixels, and of
    anomalous pixels that each weigh ``1 / size of their region``. The sum of the last above a
    threshold, divided by the number of regions, is the mean per-region overlap there. Pixels of
    one bin count as tied.

    The bins need no range known beforehand. The bits of a float32, read as an integer, keep its
    order; their upper half names a *page* (0.8 % of the value or less), and a page has a power of
    two of bins, up to one for every float32 in it. Pages get their bins by their share of the
    pixels seen, normal or anomalous, so that about 1e-5 of either class shares a bin, whatever
    the offset and the scale of the maps. The bins are dealt out anew before a batch crowds into
    few; what lies in a bin then stays together, at the value of one of its pixels. A bin puts the
    pixel AUROC off by at most half the product of both classes' shares in it, all of them
    together usually by less than 1e-5.

    Example:
        >>> metrics = PixelMetrics()
        >>> metrics.add(np.array([[[0.1, 0.2], [0.3, 0.9]]]), np.array([[[0, 0], [0, 1]]]))
        >>> metrics.result().pixel_auroc
        1.0
    """

    def __init__(self) -> None:
        self._pixels = np.zeros((2, _PAGES))  # of both classes, per page
        self._depth = np.zeros(_PAGES, np.int64)  # log2 of the number of bins of a page
        self._histograms = np.zeros((3, _PAGES))
        self._members = np.zeros(_PAGES, np.uint32)  # for every bin the key of one of its pixels
        #: Pixels that have no bin yet: key, whether anomalous, and weights of the anomalous.
        self._waiting: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_], Floats]] = []
        self._regions = 0
        self._image_sum, self._images = 0.0, 0

    def add(self, maps: npt.NDArray[np.float32], masks: npt.NDArray[np.generic]) -> None:
        """Adds a batch of images, normal ones included.

        An anomalous image without a mask file has no place here: its defect would count as normal
        pixels. Leaving such images out is up to the caller.

        Args:
            maps: ``(N, H, W)`` float32, higher where more anomalous.
            masks: ``(N, H, W)``, 0 for normal and 1 for anomalous pixels.

        Raises:
            ValueError: If the shapes differ or a map is not finite. Nothing is added then.
        """
        maps = np.asarray(maps, dtype=np.float32)
        inside = np.asarray(masks, dtype=np.bool_)
        if maps.ndim != 3 or maps.shape != inside.shape:
            raise ValueError(f"maps are {maps.shape} and masks {inside.shape}, not both (N, H, W)")
        if not np.isfinite(maps).all():
            raise ValueError("anomaly maps are not finite")
        step = max(1, _CHUNK // max(1, math.prod(maps.shape[1:])))
        for start in range(0, len(maps), step):
            self._add(maps[start : start + step], inside[start : start + step])

    def add_cells(self, cells: Cells) -> None:
        """Adds an image with a mask so large that it comes in cells.

        Raises:
            ValueError: If the map is not finite. Nothing is added then.
        """
        if not (np.isfinite(cells.normal_map).all() and np.isfinite(cells.anomalous_map).all()):
            raise ValueError("anomaly maps are not finite")
        outside, inside = cells.normal > 0, cells.anomalous > 0  # a cell may be both
        if cells.regions and outside.any():
            self._image_sum += _image_aupro(
                cells.normal_map[outside],
                cells.anomalous_map[inside],
                cells.overlap[inside] / cells.regions,
                cells.normal[outside].astype(np.float64),
            )
            self._images += 1
        self._regions += cells.regions
        self._bin_waiting()
        step = max(1, _CHUNK // outside.shape[1])
        for first in range(0, len(outside), step):
            rows = slice(first, first + step)
            normal, anomalous = outside[rows], inside[rows]
            self._bin(
                _keys(
                    np.append(cells.normal_map[rows][normal], cells.anomalous_map[rows][anomalous])
                ),
                np.repeat([False, True], [np.count_nonzero(normal), np.count_nonzero(anomalous)]),
                cells.overlap[rows][anomalous],
                np.append(cells.normal[rows][normal], cells.anomalous[rows][anomalous]),
            )

    def result(self) -> PixelFigures:
        """Returns the figures of all images added so far."""
        self._bin_waiting()
        normal, anomalous, overlap = self._histograms
        if self._regions == 0 or not normal.any():
            return PixelFigures(None, None, None)
        return PixelFigures(  # sums of 1 / size may round upwards
            _auroc(normal, anomalous),
            min(1.0, _aupro(normal, overlap / self._regions)),
            min(1.0, self._image_sum / self._images) if self._images else None,
        )

    def _add(self, maps: npt.NDArray[np.float32], masks: npt.NDArray[np.bool_]) -> None:
        weights = [np.empty(0)]
        for image, mask in zip(maps, masks, strict=True):
            if mask.any():
                weight, regions = _region_weights(mask)
                weights.append(weight)
                self._regions += regions
                if not mask.all():
                    self._image_sum += _image_aupro(image[~mask], image[mask], weight / regions)
                    self._images += 1

        self._waiting.append((_keys(maps), masks.ravel(), np.concatenate(weights)))
        # Bins that were dealt for a few pixels of one class would suit no others.
        if sum(len(keys) for keys, _, _ in self._waiting) >= _TOGETHER:
            self._bin_waiting()

    def _bin_waiting(self) -> None:
        if not self._waiting:
            return
        keys, inside, weights = map(np.concatenate, zip(*self._waiting, strict=True))
        self._waiting.clear()
        self._bin(keys, inside, weights)

    def _bin(
        self,
        keys: npt.NDArray[np.uint32],
        inside: npt.NDArray[np.bool_],
        weights: Floats,
        counts: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """Puts pixels into the histograms.

        Args:
            keys: Of their values.
            inside: Which are anomalous.
            weights: Of these.
            counts: How many pixels each of them stands for; default: one.
        """
        pages = (keys >> 16).astype(np.intp)
        classes = ~inside, inside
        numbers = [None if counts is None else counts[c].astype(np.float64) for c in classes]
        self._pixels += np.stack(
            [
                np.bincount(pages[of_class], number, _PAGES)
                for of_class, number in zip(classes, numbers, strict=True)
            ]
        )
        needed = _needed_bins(self._pixels)
        if (needed >= 2 << self._depth).any():  # not at every small change of a share
            self._deal(np.ceil(np.log2(needed)).astype(np.int64))

        bins = _locate(keys, pages, self._depth)
        self._members[bins] = keys
        for row, of_class, number in zip((_NORMAL, _ANOMALOUS), classes, numbers, strict=True):
            np.add.at(self._histograms[row], bins[of_class], 1.0 if number is None else number)
        np.add.at(self._histograms[_OVERLAP], bins[inside], weights)

    def _deal(self, depth: Integers) -> None:
        """Deals out the bins anew; what was in a bin moves together with its member."""
        size = int((1 << depth).sum())
        bins = _locate(self._members, (self._members >> 16).astype(np.intp), depth)
        self._histograms = np.stack([np.bincount(bins, row, size) for row in self._histograms])
        members = np.zeros(size, np.uint32)
        members[bins] = self._members
        self._members, self._depth = members, depth


def _keys(maps: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Returns integers in the order of the values, flat."""
    bits = (maps.ravel() + np.float32(0)).view(np.uint32)  # -0 becomes 0
    flips = (bits.view(np.int32) >> 31).view(np.uint32)  # all bits of a negative number
    flips |= np.uint32(1 << 31)  # the sign of any number
    bits ^= flips
    return bits


def _needed_bins(pixels: Floats) -> Floats:
    """Returns how many bins every page should have, by its share of the pixels of each class."""
    shares = pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1)
    bins: Floats = np.clip(shares.sum(axis=0) * _RESOLUTION, 1, 1 << 16)
    return bins


def _locate(keys: npt.NDArray[np.uint32], pages: npt.NDArray[np.intp], depth: Integers) -> Integers:
    """Returns the bin of every key."""
    size = 1 << depth
    shift = (16 - depth).astype(np.uint32)
    first = np.cumsum(size) - size - np.arange(_PAGES) * size  # less what the shift leaves
    bins: Integers = (keys >> shift[pages]) + first[pages]
    return bins


def _region_weights(mask: npt.NDArray[np.bool_]) -> tuple[Floats, int]:
    """Returns ``1 / size of its region`` for every anomalous pixel, and the number of regions."""
    labels, regions = ndimage.label(mask, structure=np.ones((3, 3)))
    inside = labels[mask] - 1
    return 1.0 / np.bincount(inside)[inside], regions


def _auroc(normal: Floats, anomalous: Floats) -> float:
    below = np.cumsum(normal)
    outscored = (below - normal / 2) / below[-1]
    return float(anomalous @ outscored / anomalous.sum())


def _aupro(normal: Floats, overlap: Floats) -> float:
    """Returns the normalised area up to the limit, interpolating the curve there."""
    rates = np.concatenate([[0.0], np.cumsum(normal[::-1])])
    rates /= rates[-1]
    overlaps = np.concatenate([[0.0], np.cumsum(overlap[::-1])])
    end = int(np.searchsorted(rates, _LIMIT))  # the first point at the limit or beyond
    part = (_LIMIT - rates[end - 1]) / (rates[end] - rates[end - 1])
    overlaps[end] = overlaps[end - 1] + part * (overlaps[end] - overlaps[end - 1])
    rates[end] = _LIMIT
    return float(np.trapezoid(overlaps[: end + 1], rates[: end + 1])) / _LIMIT


def _image_aupro(
    normal: npt.NDArray[np.float32],
    anomalous: npt.NDArray[np.float32],
    weights: Floats,
    counts: Floats | None = None,
) -> float:
    """Returns the area of one anomalous image, as RD4AD's and ReContrast's code has it.

    It has 200 thresholds evenly spaced from the map's minimum, the maximum left out; the part of
    the curve where the false positive rate is below 0.3 is stretched to a width of 1. That code
    fails where all these rates are 0; here it is the mean overlap then (1 for a map that equals
    its mask). It fails too where at most one rate is below 0.3: there is no area then, 0.

    Args:
        normal: The map at normal pixels, at least one.
        anomalous: The map at anomalous ones, at least one.
        weights: For each of these, its share of the mean overlap.
        counts: How many pixels each of ``normal`` stands for; default: one.
    """
    low, high = min(normal.min(), anomalous.min()), max(normal.max(), anomalous.max())
    thresholds = np.linspace(float(low), float(high), _THRESHOLDS, endpoint=False)
    if counts is None:
        # Sorting is the faster way where nothing has a weight.
        rates = (len(normal) - np.searchsorted(np.sort(normal), thresholds, "right")) / len(normal)
    else:
        rates = _above(normal, counts / counts.sum(), thresholds)
    # In the order of falling thresholds, that is of rising rates.
    rates, overlaps = rates[::-1], _above(anomalous, weights, thresholds)[::-1]
    rates, overlaps = rates[rates < _LIMIT], overlaps[rates < _LIMIT]
    if len(rates) == 0:
        return 0.0
    if rates[-1] == 0:
        return float(overlaps.mean())
    return float(np.trapezoid(overlaps, rates)) / float(rates[-1])


def _above(values: npt.NDArray[np.float32], weights: Floats, thresholds: Floats) -> Floats:
    """Returns the weight of the values above each of rising thresholds."""
    passed = np.bincount(np.searchsorted(thresholds, values), weights, len(thresholds) + 1)
    return np.cumsum(passed[:0:-1], dtype=np.float64)[::-1]
