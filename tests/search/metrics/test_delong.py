"""The interval and the test over trainings: leading axes, ties, and how often they are right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import rankdata

from anomtune.search.metrics.delong import (
    _midranks,
    errors_against_first,
    foretold_intervals,
    intervals,
    p_values,
)

LABELS = np.r_[np.zeros(5, int), np.ones(4, int)]


@given(st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=1, max_size=4))
def test_ranks_are_scipys(rows):
    values = np.array(rows, float)
    np.testing.assert_array_equal(_midranks(values), rankdata(values, axis=-1))


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 3))
def test_leading_axes_are_one_problem_each(seed, n_first, n_second):
    generator = np.random.default_rng(seed)
    first = generator.integers(-2, 3, size=(2, 3, n_first, 9)).astype(float)
    second = generator.integers(-2, 3, size=(2, 3, n_second, 9)).astype(float)
    found = intervals(LABELS, first)
    p = p_values(LABELS, first, second)
    assert found.value.shape == p.shape == (2, 3)
    for place in np.ndindex(2, 3):
        single = intervals(LABELS, first[place])
        # But for the rounding of sums.
        assert [part[place] for part in found] == pytest.approx([float(part) for part in single])
        assert p[place] == pytest.approx(p_values(LABELS, first[place], second[place]))


@pytest.mark.parametrize(
    "scores",
    [
        [[9, 9, 9, 9, 9, 9, 9, 9, 9]],  # nothing to be told
        [[0, 0, 0, 0, 0, 1, 1, 1, 1]] * 3,  # perfect with every seed
        [[1, 1, 1, 1, 1, 0, 0, 0, 0]] * 2,  # the reverse
        [[0, 0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0, 0]],  # seeds alone differ
    ],
)
def test_where_there_is_no_variance_nothing_is_certain(scores):
    value, low, high = (float(part) for part in intervals(LABELS, np.array(scores, float)))
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.5
    other = np.array([[0, 1, 0, 2, 0, 1, 0, 2, 0]], float)
    assert 0 < p_values(LABELS, np.array(scores, float), other) <= 1


def test_one_image_of_a_class_is_not_certain():
    labels = np.array([0, 1, 1, 1])
    scores = np.array([[1.0, 0, 2, 3], [1.0, 2, 0, 3]])
    assert [float(part) for part in intervals(labels, scores)][1:] == [0, 1]
    assert p_values(labels, scores, -scores) == 1


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_equal_methods_are_seldom_told_apart_and_intervals_hold(spread):
    """A small one of tests/benchmarks/intervals.py: 60 images, three seeds that shift the AUROC."""
    generator = np.random.default_rng(4)
    labels = np.repeat([0, 1], 30)
    scores = 0.5 * generator.normal(size=(1500, 1, 1, 60)) + generator.normal(size=(1500, 2, 1, 60))
    distances = 2 + spread * generator.normal(size=(1500, 2, 3, 1))
    scores = scores + labels * distances
    truth = ndtr(2 / np.sqrt(2 * 1.25 + spread**2))
    found = intervals(labels, scores)
    assert np.mean((found.low <= truth) & (truth <= found.high)) > 0.93
    told = np.mean(p_values(labels, scores[:, 0], scores[:, 1]) <= 0.05)
    assert 0.01 < told < 0.065
    if spread:  # images alone, as it was before, see differences that the seeds have made
        mean_scores = scores.mean(2, keepdims=True)
        assert np.mean(p_values(labels, mean_scores[:, 0], mean_scores[:, 1]) <= 0.05) > told


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_errors_against_the_first_are_those_of_other_images(spread):
    """Of many draws of the images, the differences spread by what one of them says."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [40, 60])
    found, errors = [], []
    for _ in range(400):
        seen = labels * 1.5 + generator.normal(size=100)
        scores = np.stack([seen, seen + spread * generator.normal(size=100), seen])
        found.append(np.diff(intervals(labels, scores[:, None]).value[:2])[0])
        errors.append(errors_against_first(labels, scores))
    mean = np.mean(errors, axis=0)
    assert mean[0] == mean[2] == 0
    assert mean[1] == pytest.approx(np.std(found), rel=0.15)
    assert errors_against_first(np.array([0, 1]), np.array([[0.0, 1.0], [1.0, 0.0]])).max() == 0


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_what_more_images_would_give(n_seeds):
    generator = np.random.default_rng(2)
    labels = np.repeat([0, 1], [12, 30])
    scores = labels * 1.2 + generator.normal(size=(n_seeds, 42))
    now = intervals(labels, scores)
    np.testing.assert_allclose(foretold_intervals(labels, scores, 12, 30), now, rtol=1e-12)
    # Each image ten times over is no more knowledge, but it is as many images of the same scatter.
    often = intervals(np.repeat(labels, 10), np.repeat(scores, 10, axis=1))
    found = foretold_intervals(labels, scores, 120, 300)
    assert found.value == now.value
    assert found.high - found.low == pytest.approx(often.high - often.low, rel=0.06)
    endless = foretold_intervals(labels, scores, 10**9, 10**9)
    if n_seeds == 1:
        assert endless.high - endless.low < 1e-3
    else:
        assert 0.1 < (endless.high - endless.low) / (now.high - now.low) < 1


def test_nothing_is_foretold_where_nothing_is_known():
    perfect = np.array([[0, 1, 2, 3, 4, 6, 7, 8, 9]], float)
    bound = 0.025 ** (1 / 40)
    assert foretold_intervals(LABELS, perfect, 50, 40)[1:] == pytest.approx((bound, 1))
    one = np.array([0, 0, 0, 1])
    assert foretold_intervals(one, np.array([[1.0, 2, 4, 3]]), 30, 30)[1:] == (0, 1)
