"""What resizing masks to the map does to pixel metrics; what measuring as drawn costs.

Papers resize the masks to the size of the maps. A defect narrower than a pixel of the map is gone
then, and where the detector finds it counts as a false positive. Here the map is interpolated to
the mask instead. The benchmark draws thin, small and large defects on images of 512 x 512 pixels,
maps of 64 x 64, and prints the figures of every way beside the truth: scikit-learn and the plain
definition of AUPRO on the interpolated maps, all pixels at once.

    python tests/benchmarks/masks_as_drawn.py

``as_drawn`` must be within 0.002 of the truth and take at most a thirtieth of the time of the
papers' loop of 200 thresholds at the size of the masks.

Masks of more than 16.8 million pixels are measured in cells. The same is done for two sizes of
them: thin are two lines of 3 pixels that lie 2 apart. Then a line scan of 201 million pixels must
take less than 2 GB, the mask itself included, with scratches and with half of it anomalous.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from sklearn.metrics import auc, roc_auc_score

from anomtune.search.metrics.alignment import MaskSize, at_one_size
from anomtune.search.metrics.evaluation import Evaluation
from anomtune.search.metrics.metric import BUILT_IN

Maps = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]

SIDE, MAP, COUNT = 512, 64, 8
#: Sizes of very large masks: an area scan, a line scan. Maps of 256 x 256, one image of 3 normal.
LARGE, LARGE_MAP, LARGE_COUNT = ((4352, 4352), (1024, 17408)), 256, 3
LINE_SCAN, MEMORY = (49152, 4096), 2e9
PIXELS = [metric for metric in BUILT_IN if metric.level == "pixel"]


def draw(kind: str, seed: int = 0) -> tuple[Maps, Masks]:
    """Returns maps of a detector that sees half of the defects, and their masks; 2 in 8 normal."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((COUNT, SIDE, SIDE), np.bool_)
    y, x = np.mgrid[:SIDE, :SIDE]
    for mask in masks[2:]:
        row, column = rng.integers(60, SIDE - 60, 2)
        if kind in {"thin", "all"}:
            mask[row : row + 3, 40 : SIDE - 40] = True
        if kind in {"small", "all"}:
            mask[column : column + 5, row : row + 5] = True
        if kind in {"large", "all"}:
            mask[(y - column) ** 2 + (x - row) ** 2 < 50**2] = True
    cells = masks.reshape(COUNT, MAP, SIDE // MAP, MAP, SIDE // MAP).mean(axis=(2, 4))
    signal = ndimage.gaussian_filter(np.sqrt(cells), (0, 1.5, 1.5)) * rng.uniform(
        0, 2, (COUNT, 1, 1)
    )
    noise = ndimage.gaussian_filter(rng.normal(size=cells.shape), (0, 1.5, 1.5))
    return (signal + noise).astype(np.float32), masks


def draw_large(kind: str, shape: tuple[int, int], seed: int = 0) -> tuple[Maps, Masks]:
    """Returns what `draw` does, for masks of another size; 1 in 3 normal."""
    rng = np.random.default_rng(seed)
    height, width = shape
    masks = np.zeros((LARGE_COUNT, *shape), np.bool_)
    y, x = np.ogrid[:height, :width]
    for mask in masks[1:]:
        row, column = rng.uniform(0.2, 0.8, 2)
        first, left = int(row * height), int(column * width)
        if kind == "thin":
            mask[first : first + 3, 40 : width - 40] = True
            mask[first + 5 : first + 8, 40 : width - 40] = True
        if kind == "small":
            for row, column in rng.uniform(0.1, 0.9, (12, 2)):
                first, left = int(row * height), int(column * width)
                mask[first : first + 5, left : left + 5] = True
        if kind == "large":
            mask[(y / height - row) ** 2 + (x / width - column) ** 2 < 0.1**2] = True
    cells = masks.reshape(
        LARGE_COUNT, LARGE_MAP, height // LARGE_MAP, LARGE_MAP, width // LARGE_MAP
    ).mean(axis=(2, 4))
    signal = ndimage.gaussian_filter(np.sqrt(cells), (0, 1.5, 1.5)) * rng.uniform(
        0, 0.5, (LARGE_COUNT, 1, 1)
    )
    noise = ndimage.gaussian_filter(rng.normal(size=cells.shape), (0, 1.5, 1.5))
    return (signal + noise).astype(np.float32), masks


def measured(maps: Maps, masks: Masks, way: MaskSize) -> tuple[float, ...]:
    """Returns pixel AUROC and AUPRO."""
    evaluation = Evaluation(PIXELS, masks=way)
    evaluation.add(maps, list(masks))
    found = evaluation.figures(np.zeros(0, np.int8), np.zeros(0, np.float32))
    return tuple(
        np.nan if found[name] is None else found[name] for name in ("pixel_auroc", "aupro")
    )


def truth(maps: Maps, masks: Masks) -> tuple[float, float]:
    """Returns both at the size of the masks, every distinct value a threshold."""
    large = np.stack([at_one_size(m, k)[0] for m, k in zip(maps, masks, strict=True)])
    weights, regions = np.zeros(masks.shape), 0
    for mask, weight in zip(masks, weights, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel())
        weight[mask] = 1 / sizes[labels[mask]]
        regions += count
    order = np.argsort(-large.ravel(), kind="stable")
    values = large.ravel()[order]
    last = np.append(values[1:] != values[:-1], True)
    rates = np.append(0, np.cumsum(~masks.ravel()[order])[last]) / (~masks).sum()
    found = np.append(0, np.cumsum(masks.ravel()[order])[last]) / masks.sum()
    area = auc(rates, found)
    overlaps = np.append(0, np.cumsum(weights.ravel()[order])[last]) / regions
    kept = rates < 0.3
    rates, overlaps = np.append(rates[kept], 0.3), np.append(overlaps[kept], overlaps[kept][-1])
    return float(area), float(auc(rates, overlaps) / 0.3)


def loop_seconds(maps: Maps, masks: Masks) -> float:
    """Returns the time of the papers' code for one image at the size of its mask.

    Timed are 20 of its 200 thresholds.
    """
    begin = time.process_time()
    image, mask = at_one_size(maps[-1], masks[-1])
    for threshold in np.linspace(image.min(), image.max(), 20, endpoint=False):
        predicted = image > threshold
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        for region in range(1, count + 1):
            rows, columns = np.nonzero(labels == region)
            predicted[rows, columns].sum()
        np.logical_and(~mask, predicted).sum()
    spent = (time.process_time() - begin) * 10
    begin = time.process_time()
    roc_auc_score(masks[-1].ravel(), image.ravel())
    return spent + time.process_time() - begin


def line_scan(kind: str) -> float:
    """Returns the most memory in bytes that this process took for a line scan."""
    mask = np.zeros(LINE_SCAN, np.bool_)
    if kind == "scratches":
        mask[::1000, 100:-100] = True
    else:
        mask[:, : LINE_SCAN[1] // 2] = True
    anomaly_map = np.random.default_rng(0).random((1, LARGE_MAP, LARGE_MAP), np.float32)
    evaluation = Evaluation(PIXELS)
    evaluation.add(anomaly_map, [mask])
    found = evaluation.figures(np.zeros(0, np.int8), np.zeros(0, np.float32))
    assert not evaluation.notes, evaluation.notes
    assert abs((found["pixel_auroc"] or 0) - 0.5) < 0.1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def large() -> bool:
    """Prints what very large masks are off by; returns whether all is as it must be."""
    fine = True
    # First: a process that is started has at least the memory of the one that starts it.
    for kind in ("scratches", "half"):
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = subprocess.check_output([sys.executable, __file__, kind], text=True)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime
        print(
            f"a line scan of {LINE_SCAN[0]} x {LINE_SCAN[1]}, {kind}: {float(said) / 1e9:.2f} GB "
            f"(must be less than {MEMORY / 1e9:.0f}), {seconds:.0f} s of a processor"
        )
        fine &= float(said) < MEMORY
    print("pixels         defects  way        pixel AUROC   AUPRO   off by")
    for shape in LARGE:
        for kind in ("thin", "small", "large"):
            maps, masks = draw_large(kind, shape)
            expected, found = truth(maps, masks), measured(maps, masks, "as_drawn")
            off = float(np.max(np.abs(np.subtract(found, expected))))
            where = "{} x {}".format(*shape)
            print(f"{where:14} {kind:8} {'truth':10} {expected[0]:11.4f} {expected[1]:7.4f}")
            print(
                f"{'':23} {'as_drawn':10} {found[0]:11.4f} {found[1]:7.4f}  {off:7.4f}", flush=True
            )
            fine &= off <= 0.002
    return fine


def main() -> int:
    """Returns the exit code: 0 if all is as it must be."""
    fine = True
    print("defects  way        pixel AUROC   AUPRO   off by")
    for kind in ("thin", "small", "large", "all"):
        maps, masks = draw(kind)
        expected = truth(maps, masks)
        rows = {way: measured(maps, masks, way) for way in get_args(MaskSize)}
        print(f"{kind:8} {'truth':10} {expected[0]:11.4f} {expected[1]:7.4f}")
        for way, found in rows.items():
            off = float(np.max(np.abs(np.subtract(found, expected))))
            print(f"{'':8} {way:10} {found[0]:11.4f} {found[1]:7.4f}  {off:7.4f}")
            fine &= way != "as_drawn" or off <= 0.002
    begin = time.process_time()
    measured(maps, masks, "as_drawn")
    ours = (time.process_time() - begin) / COUNT
    faster = loop_seconds(maps, masks) / ours
    print(
        f"{ours * 1e3:.0f} ms an image of {SIDE} x {SIDE}, {faster:.0f} times as fast as the "
        "papers' loop at that size (must be 30); as drawn must be within 0.002"
    )
    return 0 if large() and fine and faster >= 30 else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(line_scan(sys.argv[1]))
    else:
        sys.exit(main())
