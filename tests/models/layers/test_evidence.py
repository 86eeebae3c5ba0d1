from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from anomtune.errors import MethodError
from anomtune.models.layers.evidence import Evidence, combined, image_scores, inner
from anomtune.models.layers.maps import Pair, distance_maps
from anomtune.models.patchcore import PatchCoreScoring
from anomtune.models.rd4ad import RD4AD, RD4ADHyperparameters
from anomtune.models.scoring import Scoring


def judged(pairs: list[Pair], size: int, **scoring: Any) -> tuple[Tensor, Tensor]:
    """Maps and scores that a method of the distillation kind draws from pairs of features."""
    detector = RD4AD(
        RD4ADHyperparameters(backbone="mobilenet_v2", weights="random"), image_size=size
    )
    return detector.judge(Evidence(distance_maps(pairs)), Scoring(**scoring))


@pytest.mark.parametrize("size", [64, 96, 256])
def test_the_map_is_the_smoothed_sum_of_interpolated_distances(size: int) -> None:
    """The papers' Gaussian of 4 pixels belongs to maps of 256: it scales with the map."""
    torch.manual_seed(0)
    pairs = [
        (torch.randn(2, c, s, s), torch.randn(2, c, s, s))
        for c, s in ((4, 16), (8, 8), (6, 4), (4, 16), (8, 8), (6, 4))
    ]
    expected = np.zeros((2, size, size), dtype=np.float32)
    for target, prediction in pairs:
        distance = 1 - F.cosine_similarity(target, prediction, dim=1)
        one = F.interpolate(distance[:, None], size=size, mode="bilinear", align_corners=True)
        expected += one[:, 0].numpy()
    expected = np.stack([gaussian_filter(m, 4 * size / 256) for m in expected])
    maps, scores = judged(pairs, size, sigma=4.0)
    np.testing.assert_allclose(maps.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(scores.numpy(), expected.max((1, 2)), atol=1e-5)


def test_maps_are_bounded() -> None:
    # Three non-negative pairs: at most 3. Six pairs of any sign: at most 12.
    sides = (16, 8, 4)
    ones = [torch.ones(1, 1, side, side) for side in sides]
    orthogonal = [(torch.cat([o, 0 * o], 1), torch.cat([0 * o, o], 1)) for o in ones]
    assert judged(orthogonal, 64)[0].max() == pytest.approx(3)
    assert judged([(o, -o) for o in ones] * 2, 64)[0].max() == pytest.approx(12)
    torch.manual_seed(0)
    random = [(torch.rand(1, 3, side, side), torch.rand(1, 3, side, side)) for side in sides]
    maps, _ = judged(random, 64, sigma=4.0)
    assert 0 <= maps.min() <= maps.max() <= 3


def test_score_rules() -> None:
    maps = torch.arange(400.0).reshape(1, 20, 20)
    assert image_scores(maps, Scoring(reduce="max")).tolist() == [399]
    assert image_scores(maps, Scoring(reduce="mean")).tolist() == [199.5]
    assert image_scores(maps, Scoring(reduce="sum")).tolist() == [199.5 * 400]
    assert image_scores(maps, Scoring(reduce="top")).tolist() == [(399 + 398 + 397 + 396) / 4]
    assert image_scores(maps, Scoring(reduce="top", share=0.005)).tolist() == [398.5]
    assert image_scores(maps, Scoring(reduce="top", share=1)).tolist() == [199.5]
    # Of few pixels the highest one is left.
    assert image_scores(maps[:, :5, :5], Scoring(reduce="top")).tolist() == [84]


def test_scores_that_are_not_drawn_from_maps_are_refused() -> None:
    with pytest.raises(MethodError, match="use predict"):
        image_scores(torch.rand(1, 4, 4), PatchCoreScoring(reduce="own"))


@pytest.mark.parametrize("reduce", ["max", "top", "mean", "sum"])
def test_the_border_takes_no_part_in_scores(reduce: Any) -> None:
    maps = torch.rand(3, 32, 32)
    scoring = Scoring(reduce=reduce, border=0.0625)
    found = image_scores(maps, scoring)
    maps[:, :2] = maps[:, -2:] = 9
    maps[..., :2] = maps[..., -2:] = 9
    assert torch.equal(image_scores(maps, scoring), found)
    assert torch.equal(found, image_scores(maps[:, 2:-2, 2:-2], scoring.changed({"border": 0})))


@given(side=st.integers(1, 70), border=st.floats(0, 0.4999))
def test_a_middle_is_always_left(side: int, border: float) -> None:
    left = inner(torch.rand(1, side, side), border)
    assert 1 <= left.shape[1] == left.shape[2] <= side
    assert (side - left.shape[1]) % 2 == 0
    if side > 20:
        assert left.shape[1] == pytest.approx(side * (1 - 2 * border), abs=2)


def test_maps_are_combined_pixel_by_pixel() -> None:
    a, b, c = torch.rand(3, 2, 4, 4).unbind(0)
    torch.testing.assert_close(combined([a, b, c], "sum"), a + b + c)
    torch.testing.assert_close(combined([a, b, c], "product"), a * b * c)
    assert torch.equal(combined([a, b, c], "maximum"), torch.maximum(a, torch.maximum(b, c)))
    for how in ("sum", "product", "maximum"):
        assert combined([a], how) is a


def test_evidence_of_some_images_at_a_time_is_joined() -> None:
    maps, scores = [torch.rand(5, 4, 4), torch.rand(5, 2, 2)], torch.rand(5)
    parts = [
        Evidence(tuple(one[rows] for one in maps), scores[rows])
        for rows in (slice(0, 2), slice(2, 5))
    ]
    joined = Evidence.joined(parts)
    assert all(torch.equal(a, b) for a, b in zip(joined.maps, maps, strict=True))
    assert joined.scores is not None
    assert torch.equal(joined.scores, scores)
    assert Evidence.joined([Evidence(part.maps) for part in parts]).scores is None
