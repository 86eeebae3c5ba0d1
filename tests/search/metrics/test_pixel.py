"""Pixel AUROC and both AUPROs against scikit-learn, exact definitions and the papers' own loop."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import auc, roc_auc_score

from anomtune.search.metrics.pixel import PixelMetrics

seeds = st.integers(0, 10_000)

# How a detector may spread its scores: what a histogram with fixed bins gets wrong.
SPREADS = {
    "unit": lambda x: x,
    "negative": lambda x: -5 - x,
    "signed": lambda x: x - 0.5,
    "offset": lambda x: 1000 + 0.02 * (x - 0.5),
    "narrow": lambda x: -1 + 1e-5 * x,
    "tiny": lambda x: 1e-30 * x,
    "decades": lambda x: 10 ** (60 * x - 30),
    "two_scales": lambda x: np.where(x < 0.5, 1e-6 * x, 1e4 + x),
    "levels": lambda x: np.floor(12 * x),
}


def draw(seed, spread="unit", n=4, side=14, signal=0.4):
    """Images of which the first is normal, with up to three rectangular defects each."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((n, side, side), np.uint8)
    for mask in masks[1:]:
        for _ in range(generator.integers(1, 4)):
            y, x = generator.integers(0, side - 2, 2)
            height, width = generator.integers(1, side // 2, 2)
            mask[y : y + height, x : x + width] = 1
    levels = generator.random(masks.shape) * (1 - signal) + signal * masks * generator.random()
    return SPREADS[spread](levels).astype(np.float32), masks


def measure(maps, masks, *cuts):
    metrics = PixelMetrics()
    for batch in np.split(np.arange(len(maps)), cuts):
        metrics.add(maps[batch], masks[batch])
    return metrics.result()


def regions_of(masks):
    """Every 8-connected region as a mask over all images."""
    for i, mask in enumerate(masks):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        for number in range(1, count + 1):
            region = np.zeros(masks.shape, bool)
            region[i] = labels == number
            yield region


def exact_aupro(maps, masks):
    """The definition: every distinct value is a threshold, segment by segment up to 0.3."""
    thresholds = np.unique(maps)[::-1]

    def passing(pixels):
        values = np.sort(maps[pixels])
        return 1 - np.searchsorted(values, thresholds) / len(values)

    rates = np.append(0, passing(masks == 0))
    overlaps = np.append(0, np.mean([passing(region) for region in regions_of(masks)], axis=0))
    area = 0.0
    for left, right, low, high in zip(
        rates[:-1], rates[1:], overlaps[:-1], overlaps[1:], strict=True
    ):
        if left < right and left < 0.3:
            stop = min(right, 0.3)
            at_stop = low + (high - low) * (stop - left) / (right - left)
            area += (stop - left) * (low + at_stop) / 2
    return area / 0.3


def official_aupro(maps, masks):
    """RD4AD's and ReContrast's function, image by image, plainly; their NaN as METHODS has it."""
    areas = []
    for image, mask in zip(maps, masks, strict=True):
        if not mask.any() or mask.all():
            continue
        pros, fprs = [], []
        for threshold in np.linspace(float(image.min()), float(image.max()), 200, endpoint=False):
            predicted = image.astype(np.float64) > threshold
            recalls = [predicted[region[0]].mean() for region in regions_of(mask[None])]
            fpr = (predicted & (mask == 0)).sum() / (mask == 0).sum()
            if fpr < 0.3:
                pros.append(np.mean(recalls))
                fprs.append(fpr)
        if not fprs:
            areas.append(0.0)
        elif max(fprs) == 0:
            areas.append(np.mean(pros))
        else:
            areas.append(auc(np.array(fprs) / max(fprs), pros) if len(fprs) > 1 else 0.0)
    return np.mean(areas)


@pytest.mark.parametrize("spread", SPREADS)
@settings(max_examples=10, deadline=None)
@given(seed=seeds, cuts=st.lists(st.integers(1, 3), max_size=3).map(sorted))
@example(seed=642, cuts=[1])  # the first batch has no anomalous pixel
def test_figures_are_the_exact_ones(spread, seed, cuts):
    maps, masks = draw(seed, spread)
    figures = measure(maps, masks, *cuts)
    assert figures.pixel_auroc == pytest.approx(
        roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-3
    )
    assert figures.aupro == pytest.approx(exact_aupro(maps, masks), abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 400))
def test_figures_are_exact_where_values_have_bins_of_their_own(seed, n_levels):
    maps, masks = draw(seed)
    maps = np.floor(maps * n_levels) / 8  # of these, ties are real ties
    figures = measure(maps, masks)
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert figures.pixel_auroc == pytest.approx(expected, abs=1e-12)
    assert figures.aupro == pytest.approx(exact_aupro(maps, masks), abs=1e-12)


@pytest.mark.parametrize("spread", SPREADS)
@settings(max_examples=4, deadline=None)
@given(seed=seeds)
def test_per_image_variant_is_the_official_loop(spread, seed):
    maps, masks = draw(seed, spread)
    expected = official_aupro(maps, masks)
    assert measure(maps, masks, 2).aupro_per_image == pytest.approx(expected, abs=1e-9)


@settings(max_examples=8, deadline=None)
@given(seeds, st.lists(st.integers(1, 23), max_size=24).map(sorted), st.sampled_from([0.05, 300]))
@example(1, list(range(1, 24)), 300)
def test_batches_change_nothing(seed, cuts, drift):
    """Nor does a drift from image to image, which no choice of bins at the start foresees."""
    maps, masks = draw(seed, n=24, side=24)
    maps += drift * np.random.default_rng(seed).normal(size=(24, 1, 1)).astype(np.float32)
    whole, batches = measure(maps, masks), measure(maps, masks, *cuts)
    assert batches.aupro_per_image == pytest.approx(whole.aupro_per_image, abs=1e-12)
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    for figures in (whole, batches):
        assert figures.pixel_auroc == pytest.approx(expected, abs=1e-4)
        assert figures.aupro == pytest.approx(exact_aupro(maps, masks), abs=1e-3)


def test_a_crowd_that_comes_late_is_told_apart():
    """The first images take all the bins; the others then come to a place that had few."""
    generator = np.random.default_rng(0)
    masks = np.zeros((20, 64, 64), np.uint8)
    masks[3:, 20:40, 20:40] = 1
    maps = generator.random(masks.shape).astype(np.float32)
    maps[3:] = 1000 + 0.01 * generator.random((17, 64, 64)) + 0.003 * masks[3:]
    figures = measure(maps, masks, *range(1, 20))
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert figures.pixel_auroc == pytest.approx(expected, abs=1e-4)
    assert figures.aupro == pytest.approx(exact_aupro(maps, masks), abs=1e-3)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from([np.exp, np.cbrt, lambda x: 1e4 * x - 7, lambda x: -1 / (x + 1)]))
def test_monotone_transform_changes_next_to_nothing(seed, transform):
    maps, masks = draw(seed)
    before = measure(maps, masks)
    after = measure(transform(maps.astype(np.float64)).astype(np.float32), masks)
    assert after.pixel_auroc == pytest.approx(before.pixel_auroc, abs=1e-4)
    assert after.aupro == pytest.approx(before.aupro, abs=1e-3)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(seeds)
def test_figures_stay_in_range_and_reversed_maps_mirror_the_area(seed):
    maps, masks = draw(seed, signal=0.8)
    figures, mirrored = measure(maps, masks), measure(-maps, masks)
    for area in (figures.pixel_auroc, figures.aupro, figures.aupro_per_image):
        assert 0 <= area <= 1
    assert mirrored.pixel_auroc == pytest.approx(1 - figures.pixel_auroc, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_perfect_inverted_and_constant_maps(seed):
    _, masks = draw(seed)
    perfect = measure(masks.astype(np.float32), masks, 1, 2)
    assert (perfect.pixel_auroc, perfect.aupro_per_image) == (1.0, pytest.approx(1.0))
    assert perfect.aupro == pytest.approx(1.0, abs=1e-12)
    inverted = measure(1 - masks.astype(np.float32), masks, 1, 2)
    # All normal pixels are tied: the curve rises from the origin only where its end is.
    assert (inverted.pixel_auroc, inverted.aupro, inverted.aupro_per_image) == (0.0, 0.0, 0.0)
    constant = measure(np.full(masks.shape, 0.7, np.float32), masks, 1, 2)
    assert constant.pixel_auroc == 0.5
    assert constant.aupro == pytest.approx(0.15)  # the diagonal: 0.3^2 / 2 / 0.3
    assert constant.aupro_per_image == 0.0


def test_every_region_counts_the_same_whatever_its_size():
    masks = np.zeros((1, 30, 30), np.uint8)
    masks[0, :10, :10] = masks[0, 20, 20] = masks[0, 21, 21] = 1  # 100 pixels; 2, by a corner
    maps = np.zeros(masks.shape, np.float32)
    maps[0, 20, 20] = maps[0, 21, 21] = 1  # found is the small one alone
    figures = measure(maps, masks)
    # From half of the overlap at rate 0, straight to all of it at rate 1.
    assert figures.aupro == pytest.approx(0.5 + 0.3 / 4, abs=1e-12)
    assert figures.aupro_per_image == pytest.approx(0.5)
    assert figures.pixel_auroc == pytest.approx((2 + 100 / 2) / 102)


def test_false_positives_of_normal_images_count():
    masks = np.zeros((2, 10, 10), np.uint8)
    masks[1, 0, 0] = 1
    maps = np.zeros(masks.shape, np.float32)
    maps[0, :5] = 2  # 50 of 199 normal pixels outscore the defect
    maps[1, 0, 0] = 1
    figures = measure(maps, masks, 1)
    assert figures.pixel_auroc == pytest.approx(149 / 199)
    # A straight line would reach the defect only at its vertical step.
    assert figures.aupro == pytest.approx(1 - 50 / 199 / 0.3, abs=1e-12)
    assert figures.aupro_per_image == pytest.approx(1.0)


def test_a_step_of_the_curve_right_at_the_limit_adds_nothing():
    masks = np.zeros((1, 1, 12), np.uint8)
    masks[0, 0, :2] = 1
    maps = np.array([[[1, 0, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0]]], np.float32)  # 3 of 10 above
    assert measure(maps, masks).aupro == pytest.approx(0.0, abs=1e-12)
    # The per-image variant keeps rates below 0.3 only: none is.
    assert measure(maps, masks).aupro_per_image == 0.0


@pytest.mark.parametrize("value", [0, 1])
def test_one_kind_of_pixels_has_no_figures(value):
    figures = measure(np.zeros((2, 4, 4), np.float32), np.full((2, 4, 4), value))
    assert figures == measure(np.zeros((0, 4, 4), np.float32), np.zeros((0, 4, 4)))
    assert (figures.pixel_auroc, figures.aupro, figures.aupro_per_image) == (None, None, None)


def test_an_image_that_is_all_defect_has_no_area_of_its_own():
    maps = np.array([[[0.0, 1.0]], [[2.0, 3.0]]], np.float32)
    figures = measure(maps, np.array([[[0, 0]], [[1, 1]]]))
    assert (figures.pixel_auroc, figures.aupro) == (1.0, 1.0)
    assert figures.aupro_per_image is None


def test_the_two_zeros_are_tied():
    maps = np.array([[[0.0, -0.0]]], np.float32)
    assert measure(maps, np.array([[[1, 0]]])).pixel_auroc == 0.5


def test_extreme_values_are_ordered():
    limit = np.finfo(np.float32)
    values = [-limit.max, -1, -limit.smallest_subnormal, 0, limit.smallest_subnormal, 1, limit.max]
    maps = np.array([[values]], np.float32)
    for first in range(1, 7):
        mask = (np.arange(7) >= first)[None, None]
        assert measure(maps, mask).pixel_auroc == 1.0
        assert measure(maps, ~mask).pixel_auroc == 0.0


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_maps_that_are_no_numbers_are_refused_and_leave_no_trace(wrong):
    maps, masks = draw(0)
    metrics = PixelMetrics()
    metrics.add(maps, masks)
    before = metrics.result()
    broken = maps.copy()
    broken[-1, 0, 0] = wrong
    with pytest.raises(ValueError, match="finite"):
        metrics.add(broken, masks)
    assert metrics.result() == before


@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 4, 4), (4, 4)])
def test_masks_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="masks"):
        PixelMetrics().add(np.zeros((2, 4, 4), np.float32), np.zeros(shape))
    with pytest.raises(ValueError, match="maps"):
        PixelMetrics().add(np.zeros((4, 4), np.float32), np.zeros((4, 4)))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images():
    maps, masks = draw(0, n=8, side=64)
    metrics = PixelMetrics()
    tracemalloc.start()
    used = []
    for _ in range(2):
        for _ in range(100):
            metrics.add(maps, masks)
        metrics.result()
        used.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert used[1] - used[0] < maps.nbytes / 10


def test_a_batch_larger_than_a_chunk_is_the_same_in_parts(monkeypatch):
    maps, masks = draw(3, "levels", n=6)
    whole = measure(maps, masks)
    monkeypatch.setattr("anomtune.search.metrics.pixel._CHUNK", 2 * maps[0].size)
    assert measure(maps, masks) == whole
