"""Compares pixel AUROC and AUPRO with the code that the papers use, and measures their memory.

The other side is a plain transcription of the evaluation of RD4AD and ReContrast: scikit-learn's
roc_auc_score over all pixels, and for every anomalous image 200 thresholds, at each of which the
regions of its mask are labelled and their recalls taken one by one. Ours computes MVTec's AUPRO
over the whole data set besides.

    python tests/benchmarks/pixel_metrics.py [--images 1000]

Ours must take at most a thirtieth of the time, agree with the per-image figure to 1e-9 and with
the exact pixel AUROC and AUPRO to 1e-3. Then it streams images of 1024 x 1024 pixels; its memory
must not depend on how many. Times are those of the processor: both sides use one core.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from sklearn.metrics import auc, roc_auc_score

from anomtune.search.metrics.pixel import PixelFigures, PixelMetrics

Maps = npt.NDArray[np.float32]
Masks = npt.NDArray[np.uint8]
T = TypeVar("T")

BATCH = 32
STREAM_BATCH, STREAM_SIDE = 8, 1024


def draw(count: int, side: int, seed: int) -> tuple[Maps, Masks]:
    """Returns smooth maps of which 7 in 10 have one to four irregular defects, and their masks."""
    rng = np.random.default_rng(seed)
    maps = np.empty((count, side, side), np.float32)
    masks = np.zeros((count, side, side), np.uint8)
    y, x = np.mgrid[:side, :side] / side
    for number in range(count):
        smooth = ndimage.gaussian_filter(rng.normal(size=(side, side)), side / 64)
        smooth /= smooth.std()
        for _ in range(rng.integers(1, 5) if number % 10 >= 3 else 0):
            height, width = rng.uniform(0.02, 0.12, 2)
            row, column = rng.uniform(0.1, 0.9, 2)
            distance = ((y - row) / height) ** 2 + ((x - column) / width) ** 2
            masks[number] |= distance < 1 + 0.3 * smooth
        signal = ndimage.gaussian_filter(masks[number].astype(float), side / 64)
        maps[number] = np.exp(0.5 * smooth + rng.uniform(0.5, 4) * signal - 3)
    return maps, masks


def ours(maps: Maps, masks: Masks) -> PixelFigures:
    metrics = PixelMetrics()
    for start in range(0, len(maps), BATCH):
        metrics.add(maps[start : start + BATCH], masks[start : start + BATCH])
    return metrics.result()


def image_aupro(mask: Masks, image: Maps) -> float:
    """The official function for one image, line by line but for skimage and pandas."""
    low, high = float(image.min()), float(image.max())
    points = []
    for threshold in np.linspace(low, high, 200, endpoint=False):
        predicted = image > threshold
        recalls = []
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        for region in range(1, count + 1):
            rows, columns = np.nonzero(labels == region)
            recalls.append(predicted[rows, columns].sum() / len(rows))
        inverse = 1 - mask
        fpr = np.logical_and(inverse, predicted).sum() / inverse.sum()
        points.append((fpr, np.mean(recalls)))
    rates, overlaps = np.array([point for point in points if point[0] < 0.3]).T
    return float(auc(rates / rates.max(), overlaps))


def plain(maps: Maps, masks: Masks) -> tuple[float, float]:
    """Returns pixel AUROC and per-image AUPRO."""
    pixel_auroc = roc_auc_score(masks.ravel(), maps.ravel())
    areas = [
        # float64, as the official maps are: float32 would round the thresholds.
        image_aupro(mask, image.astype(np.float64))
        for image, mask in zip(maps, masks, strict=True)
        if mask.any()
    ]
    return float(pixel_auroc), float(np.mean(areas))


def exact_aupro(maps: Maps, masks: Masks) -> float:
    """MVTec's AUPRO with every distinct value of all maps as a threshold."""
    weights = np.zeros(masks.shape)
    regions = 0
    for mask, weight in zip(masks, weights, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        for region in range(1, count + 1):
            weight[labels == region] = 1 / (labels == region).sum()
        regions += count
    order = np.argsort(-maps.ravel())
    values = maps.ravel()[order]
    last = np.append(values[1:] != values[:-1], True)
    rates = np.append(0, np.cumsum(masks.ravel()[order] == 0)[last]) / (masks == 0).sum()
    overlaps = np.append(0, np.cumsum(weights.ravel()[order])[last]) / regions
    inside = rates < 0.3
    rates = np.append(rates[inside], 0.3)
    overlaps = np.append(overlaps[inside], overlaps[np.argmin(inside)])  # a pixel too far at most
    return float(auc(rates, overlaps) / 0.3)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def compare() -> bool:
    """Prints times and values of both; returns whether they are as they must be."""
    maps, masks = draw(100, 256, seed=0)
    print(f"100 maps of 256 x 256, {sum(map(bool, masks.any((1, 2))))} with defects")
    our_seconds, figures = min(timed(lambda: ours(maps, masks)) for _ in range(3))
    plain_seconds, (pixel_auroc, per_image) = timed(lambda: plain(maps, masks))
    assert figures.pixel_auroc is not None
    assert figures.aupro is not None
    assert figures.aupro_per_image is not None
    aupro = exact_aupro(maps, masks)
    errors = (
        abs(figures.pixel_auroc - pixel_auroc),
        abs(figures.aupro - aupro),
        abs(figures.aupro_per_image - per_image),
    )
    print(f"pixel AUROC      {pixel_auroc:.6f}, ours differs by {errors[0]:.1e} (at most 1e-3)")
    print(f"AUPRO            {aupro:.6f}, ours differs by {errors[1]:.1e} (at most 1e-3)")
    print(f"AUPRO per image  {per_image:.6f}, ours differs by {errors[2]:.1e} (at most 1e-9)")
    faster = plain_seconds / our_seconds
    print(
        f"ours {our_seconds:.2f} s, the papers' loop {plain_seconds:.1f} s: "
        f"{faster:.0f} times as fast (must be 30)",
        flush=True,
    )
    return faster >= 30 and errors[0] < 1e-3 and errors[1] < 1e-3 and errors[2] < 1e-9


def stream(count: int) -> bool:
    """Prints the memory of a long stream; returns whether its first tenth took as much."""
    maps, masks = draw(STREAM_BATCH, STREAM_SIDE, seed=1)
    rng = np.random.default_rng(2)
    metrics = PixelMetrics()
    batch = np.empty_like(maps)
    peaks = []
    seconds = 0.0
    tracemalloc.start()
    for part in (count // 10, count - count // 10):
        tracemalloc.reset_peak()
        for _ in range(0, part, STREAM_BATCH):
            np.multiply(maps, rng.uniform(0.5, 2, (STREAM_BATCH, 1, 1)), out=batch, dtype="f4")
            seconds += timed(lambda: metrics.add(batch, masks))[0]
        peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
    tracemalloc.stop()
    more, result = timed(metrics.result)
    print(f"{count} images of {STREAM_SIDE} x {STREAM_SIDE}, a pixel AUROC of {result.pixel_auroc}")
    print(
        f"besides the batch at most {peaks[0]:.0f} MB in the first tenth, "
        f"{peaks[1]:.0f} MB after it "
        f"(all maps: {count * maps[0].nbytes / 1e6:.0f} MB), "
        f"{(seconds + more) / count * 1e3:.1f} ms per image"
    )
    return peaks[1] < 1.1 * peaks[0]


def main() -> int:
    """Returns the exit code: 0 if all is as it must be."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    images = parser.parse_args().images
    return 0 if compare() and stream(images) else 1


if __name__ == "__main__":
    sys.exit(main())
