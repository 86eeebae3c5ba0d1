"""No difference that rounding can make changes a verdict."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from anomtune.search.detector.threshold import choose_threshold
from anomtune.search.metrics.image import f1_threshold

SCORES = arrays.arrays(
    np.float32, st.integers(2, 30), elements=st.floats(0, 100, width=32) | st.sampled_from([0, 1])
)


@given(SCORES, st.sampled_from([0.0, 1e-6, 1e-3, 1.0]), st.randoms(use_true_random=False))
def test_rounding_crosses_no_threshold(scores, rounding, random):
    labels = np.array([1, 0] + [random.randint(0, 1) for _ in scores[2:]], np.int8)
    found = choose_threshold(labels, scores, rounding)
    rounded = scores.astype(float) + rounding * np.array([random.uniform(-1, 1) for _ in scores])
    assert np.array_equal(rounded >= found.value, scores >= found.value)
    assert found.flagged == (scores >= found.value).sum()
    accuracy = ((scores >= found.value) == (labels == 1)).mean()
    assert found.accuracy == pytest.approx(accuracy)


def test_scores_that_are_clear_get_the_best_threshold():
    labels, scores = np.array([0, 0, 1, 1], np.int8), np.array([1, 2, 4, 5], np.float32)
    found = choose_threshold(labels, scores, 0.0)
    assert (found.value, found.f1, found.flagged) == (3.0, 1.0, 2)
    assert found[1:3] == f1_threshold(labels, scores)[1:]


@pytest.mark.parametrize("value", [0.0, 1e-30, 3.5, 1e6])
def test_equal_scores_are_all_above_with_a_margin(value):
    scores = np.full(6, value, np.float32)
    found = choose_threshold(np.array([0, 0, 0, 1, 1, 1], np.int8), scores, 0.0)
    assert found.flagged == 6
    assert found.value < value - 2 * np.spacing(np.float32(value))
