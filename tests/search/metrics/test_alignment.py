"""Pixel metrics are true to the masks as drawn; what papers do is there by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from anomtune.models.layers.maps import surround
from anomtune.search.metrics.alignment import at_one_size, middle
from anomtune.search.metrics.evaluation import Evaluation
from anomtune.search.metrics.metric import BUILT_IN
from anomtune.search.metrics.pixel import PixelMetrics

PIXELS = [metric for metric in BUILT_IN if metric.level == "pixel"]


def measure(maps, masks, way="as_drawn"):
    evaluation = Evaluation(PIXELS, masks=way)
    for start in range(0, len(maps), 3):
        evaluation.add(maps[start : start + 3], masks[start : start + 3])
    figures = evaluation.figures(np.zeros(0, np.int8), np.zeros(0, np.float32))
    assert evaluation.notes == []
    return figures


def draw(seed, shapes):
    """Smooth maps of 16 x 16 and masks of other sizes with a line of 2 pixels and a block each."""
    rng = np.random.default_rng(seed)
    maps = ndimage.gaussian_filter(rng.normal(size=(len(shapes), 16, 16)), (0, 1, 1))
    masks = [np.zeros(shape, bool) for shape in shapes]
    for mask in masks[1:]:
        row = rng.integers(mask.shape[0] - 2)
        mask[row : row + 2, 3:-3] = True
        mask[: mask.shape[0] // 5, : mask.shape[1] // 5] = True
    return maps.astype(np.float32), masks


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.tuples(st.integers(17, 90), st.integers(17, 90)), min_size=2, max_size=6),
)
def test_figures_are_those_at_the_size_of_the_masks(seed, shapes):
    maps, masks = draw(seed, shapes)
    large = [
        np.asarray(Image.fromarray(m).resize(k.shape[::-1], Image.Resampling.BILINEAR))
        for m, k in zip(maps, masks, strict=True)
    ]
    figures = measure(maps, masks)
    values, labels = (np.concatenate([a.ravel() for a in arrays]) for arrays in (large, masks))
    assert figures["pixel_auroc"] == pytest.approx(roc_auc_score(labels, values), abs=1e-3)
    plain = PixelMetrics()
    for anomaly_map, mask in zip(large, masks, strict=True):
        plain.add(anomaly_map[None], mask[None])
    assert figures["aupro"] == pytest.approx(plain.result().aupro, abs=1e-3)
    assert figures["aupro_per_image"] == pytest.approx(plain.result().aupro_per_image, abs=1e-6)


def test_a_scratch_thinner_than_a_pixel_of_the_map_is_not_lost():
    masks = [np.zeros((128, 128), bool) for _ in range(3)]
    masks[1][40:43, 10:100] = True  # not found
    masks[2][80:112, 16:48] = True  # found
    maps = np.random.default_rng(0).random((3, 16, 16)).astype(np.float32) * 0.1
    maps[2, 10:14, 2:6] = 1
    drawn, resized = measure(maps, masks), measure(maps, masks, "resized")
    assert resized["aupro"] > 0.9, "as papers have it: the scratch is gone"
    assert drawn["aupro"] < 0.7
    assert drawn["pixel_auroc"] < resized["pixel_auroc"]


def test_what_papers_do_by_name():
    """RD4AD: more than half of a pixel (METHODS 8); ReContrast: any part of it (14, row 10)."""
    mask = np.zeros((64, 64), bool)
    mask[9, :] = mask[32:] = True
    anomaly_map = np.zeros((16, 16), np.float32)
    plain = np.asarray(
        Image.fromarray(mask).convert("L").resize((16, 16), Image.Resampling.BILINEAR)
    )
    for way, expected in (("resized", plain > 127), ("touched", plain > 0)):
        same, found = at_one_size(anomaly_map, mask, way)
        assert same is anomaly_map
        assert (found == expected).all()
    assert at_one_size(anomaly_map, mask, "touched")[1].sum() > 9 * 16


def test_another_way_is_refused():
    with pytest.raises(ValueError, match="masks='drawn': there is as_drawn, resized, touched"):
        Evaluation(PIXELS, masks="drawn")


def test_the_rim_is_what_surrounds_the_maps_of_a_method_that_crops():
    for size, side in ((256, 224), (64, 56), (33, 20), (16, 16)):
        maps = np.random.default_rng(0).random((1, side, side)).astype(np.float32)
        whole = surround(torch.from_numpy(maps), size)[0].numpy()
        assert (middle(whole, side / size) == maps[0]).all()
    with pytest.raises(ValueError, match="a rim is left out where masks are resized"):
        Evaluation(PIXELS, seen=0.9)


def test_a_map_of_the_size_of_its_mask_is_left_alone():
    anomaly_map, mask = np.zeros((8, 8), np.float32), np.zeros((8, 8), bool)
    assert at_one_size(anomaly_map, mask)[0] is anomaly_map
