"""A very large mask in cells: the figures are those of its pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anomtune.search.metrics import cells as subject
from anomtune.search.metrics import evaluation
from anomtune.search.metrics.alignment import at_one_size
from anomtune.search.metrics.cells import cells_of
from anomtune.search.metrics.evaluation import Evaluation
from anomtune.search.metrics.metric import BUILT_IN, Metric
from anomtune.search.metrics.pixel import PixelMetrics
from tests.search.metrics.test_alignment import PIXELS, draw, measure

small = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def small_cells(monkeypatch):
    """At most 7 cells a side, looked at a few rows at a time."""
    monkeypatch.setattr(subject, "_SIDE", 7)
    monkeypatch.setattr(subject, "_STRIP", 200)
    monkeypatch.setattr(evaluation, "MOST_PIXELS", 100)


def spread(values, shape):
    """Returns cells ``(h, w)`` as pixels ``(H, W)``."""
    for axis, length in enumerate(shape):
        sizes = np.diff(subject._starts(length), append=length)
        assert sizes.max() - sizes.min() <= 1
        values = np.repeat(values, sizes, axis=axis)
    return values


masks = st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10_000), st.floats(0, 1))


def random_mask(height, width, seed, share):
    noise = np.random.default_rng(seed).random((height, width))
    return ndimage.uniform_filter(noise, 3) < share


@small
@given(masks)
def test_cells_count_the_pixels_and_the_regions_of_the_mask(drawn):
    mask = random_mask(*drawn)
    anomaly_map = np.random.default_rng(drawn[2]).random((5, 4)).astype(np.float32)
    found = cells_of(anomaly_map, mask)
    labels, regions = ndimage.label(mask, np.ones((3, 3)))
    assert found.regions == regions
    place = spread(np.arange(found.normal.size).reshape(found.normal.shape), mask.shape).ravel()
    assert (found.normal.ravel() == np.bincount(place, ~mask.ravel())).all()
    assert (found.anomalous.ravel() == np.bincount(place, mask.ravel())).all()
    shares = np.append(0, 1 / np.bincount(labels.ravel(), minlength=regions + 1)[1:])
    overlap = np.bincount(place, shares[labels].ravel())
    np.testing.assert_allclose(found.overlap.ravel(), overlap)
    # The means of the map at the size of the mask, in rows of cells where anything is drawn.
    values, near = at_one_size(anomaly_map, mask)[0], np.zeros(found.normal.shape, bool)
    near[found.anomalous.any(axis=1)] = True
    for of_class, means in ((~mask, found.normal_map), (mask, found.anomalous_map)):
        counts = np.bincount(place, of_class.ravel())
        some = (counts > 0) & near.ravel()
        sums = np.bincount(place, (values * of_class).ravel())
        np.testing.assert_allclose(means.ravel()[some], (sums / np.maximum(counts, 1))[some], 1e-4)


@small
@given(masks, st.integers(2, 12))
def test_figures_in_cells_are_those_of_pixels(drawn, levels):
    """Exactly so where the map is the same all over a cell."""
    mask = random_mask(*drawn)
    shape = tuple(min(length, 7) for length in mask.shape)
    rng = np.random.default_rng(drawn[2])
    values = rng.integers(0, levels, shape).astype(np.float32)
    large = spread(values, mask.shape)
    whole, reduced = PixelMetrics(), PixelMetrics()
    whole.add(large[None], mask[None])
    cells = cells_of(large, mask)
    # Where nothing is drawn it would be interpolated between cells.
    drawn_there = cells.anomalous.any(axis=1, keepdims=True)
    normal_map = np.where(drawn_there, cells.normal_map, values)
    reduced.add_cells(replace(cells, normal_map=normal_map))
    for metrics in (whole, reduced):  # one of the usual size beside it
        metrics.add(values[None], np.zeros(values.shape)[None])
    for name in ("pixel_auroc", "aupro", "aupro_per_image"):
        expected, found = (getattr(m.result(), name) for m in (whole, reduced))
        assert found == (expected if expected is None else pytest.approx(expected, abs=1e-9))


@pytest.mark.parametrize("seed", range(6))
def test_very_large_masks_are_measured_as_drawn(seed, monkeypatch):
    """With ten cells for a pixel of a map that is not even smoothed; in truth there are more."""
    monkeypatch.setattr(subject, "_SIDE", 160)
    shapes = [(380, 322), (8, 9), (820, 260), (500, 530)]
    maps, drawn = draw(seed, shapes)
    found = measure(maps, drawn)
    monkeypatch.setattr(evaluation, "MOST_PIXELS", 1 << 24)
    expected = measure(maps, drawn)
    for name, figure in found.items():
        assert figure == pytest.approx(expected[name], abs=0.002)
        assert figure != expected[name], "measured in cells"


def test_scratches_that_share_their_cells_stay_two_and_thin():
    mask = np.zeros((70, 70), bool)
    mask[10, 1:69] = mask[12, 1:69] = True
    found = cells_of(np.zeros((7, 7), np.float32), mask)
    assert found.regions == 2
    assert found.overlap.sum() == pytest.approx(2)
    assert found.anomalous.sum() == 2 * 68


def test_a_metric_of_somebody_else_is_given_cells_as_masks():
    given_masks = []

    class Touched:
        def add(self, maps, masks):
            assert maps.shape == masks.shape
            given_masks.append(masks)

        def result(self):
            return 0.5

    measured = Evaluation([*PIXELS, Metric("touched", "t", "T.", Touched, "pixel")])
    mask = np.zeros((70, 70), bool)
    mask[33, 12] = True
    measured.add(np.zeros((1, 16, 16), np.float32), [mask])
    figures = measured.figures(np.zeros(0, np.int8), np.zeros(0, np.float32))
    assert measured.notes == []
    assert figures["touched"] == figures["pixel_auroc"] == 0.5
    (found,) = given_masks
    assert np.argwhere(found).tolist() == [[0, 3, 1]]


def test_a_map_that_is_no_number_is_refused_and_leaves_no_trace():
    cells = cells_of(np.full((7, 7), np.nan, np.float32), np.eye(20, dtype=bool))
    metrics = PixelMetrics()
    with pytest.raises(ValueError, match="not finite"):
        metrics.add_cells(cells)
    assert metrics.result().pixel_auroc is None


def test_one_mask_of_another_way_of_measuring_is_not_in_cells():
    """What papers do resizes the mask, however large it is."""
    measured = Evaluation([m for m in BUILT_IN if m.name == "aupro"], masks="resized")
    mask = np.zeros((64, 64), bool)
    mask[:32] = True
    anomaly_map = np.zeros((1, 32, 32), np.float32)
    anomaly_map[0, :16] = 1
    measured.add(anomaly_map, [mask])
    figures = measured.figures(np.zeros(0, np.int8), np.zeros(0, np.float32))
    assert figures["aupro"] == pytest.approx(1.0)
