"""A very large mask in cells: the figures are those of its pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anomtune.search.metrics import cells as subject
from anomtune.search.metrics import evaluation
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
    found = cells_of(mask)
    labels, regions = ndimage.label(mask, np.ones((3, 3)))
    assert found.regions == regions
    place = spread(np.arange(found.pixels.size).reshape(found.pixels.shape), mask.shape)
    assert (found.pixels.ravel() == np.bincount(place.ravel())).all()
    inside = np.bincount(place.ravel(), mask.ravel())
    assert (found.anomalous.ravel() == inside).all()
    shares = np.append(0, 1 / np.bincount(labels.ravel(), minlength=regions + 1)[1:])
    weights = np.bincount(place.ravel(), shares[labels].ravel())
    np.testing.assert_allclose(found.weights, weights[inside > 0])


@small
@given(masks, st.integers(2, 12))
def test_figures_in_cells_are_those_of_pixels(drawn, levels):
    """Exactly so where the map is the same all over a cell."""
    mask = random_mask(*drawn)
    cells = cells_of(mask)
    rng = np.random.default_rng(drawn[2])
    values = rng.integers(0, levels, cells.pixels.shape).astype(np.float32)
    whole, reduced = PixelMetrics(), PixelMetrics()
    whole.add(spread(values, mask.shape)[None], mask[None])
    reduced.add_cells(values, cells)
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
    found = cells_of(mask)
    assert found.regions == 2
    assert found.weights.sum() == pytest.approx(2)
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


def test_what_does_not_fit_is_refused_and_leaves_no_trace():
    cells = cells_of(np.eye(20, dtype=bool))
    metrics = PixelMetrics()
    with pytest.raises(ValueError, match=r"the map is \(7, 6\), the cells are \(7, 7\)"):
        metrics.add_cells(np.zeros((7, 6), np.float32), cells)
    with pytest.raises(ValueError, match="not finite"):
        metrics.add_cells(np.full((7, 7), np.nan, np.float32), cells)
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
