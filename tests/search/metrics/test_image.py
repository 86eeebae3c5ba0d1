"""AUROC, its interval and the paired test, against definitions, brute force and scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearns_roc_curve

from anomtune.search.metrics.image import (
    are_tied,
    auroc,
    f1_threshold,
    paired_delong_p,
    roc_curve,
)

# Few distinct values, so that ties are common.
problems = st.lists(
    st.tuples(st.integers(0, 1), st.integers(-4, 4).map(float)), min_size=2, max_size=40
).filter(lambda rows: len({label for label, _ in rows}) == 2)


def arrays(rows):
    return np.array([r[0] for r in rows]), np.array([r[1] for r in rows])


@given(problems)
def test_value_is_scikit_learns(rows):
    labels, scores = arrays(rows)
    assert auroc(labels, scores).value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(problems)
def test_interval_holds_the_value_and_stays_in_range(rows):
    area = auroc(*arrays(rows))
    assert 0 <= area.low <= area.value <= area.high <= 1


@given(problems)
def test_monotone_transform_changes_nothing(rows):
    labels, scores = arrays(rows)
    assert auroc(labels, scores) == auroc(labels, np.exp(scores) * 3)


@given(problems)
def test_reversed_scores_mirror_the_area(rows):
    labels, scores = arrays(rows)
    forward, backward = auroc(labels, scores), auroc(labels, -scores)
    assert forward.value == pytest.approx(1 - backward.value)
    assert forward.low == pytest.approx(1 - backward.high)


def brute_force(labels, first, second):
    """Difference of mean areas, and its sources of variance with their degrees of freedom.

    From an O(n^2) kernel and whole covariance matrices, as DeLong's paper writes it: of all
    trainings of both configs, with the contrast that averages each and subtracts.
    """

    def components(scores):
        x, y = scores[labels == 1], scores[labels == 0]
        kernel = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
        return kernel.mean(1), kernel.mean(0), kernel.mean()

    v10, v01, areas = zip(*(components(s) for s in (*first, *second)), strict=True)
    contrast = np.r_[np.full(len(first), 1 / len(first)), np.full(len(second), -1 / len(second))]
    sources = [
        (contrast @ np.atleast_2d(np.cov(v)) @ contrast / len(v[0]), len(v[0]) - 1)
        for v in (v10, v01)
    ]
    for own in (areas[: len(first)], areas[len(first) :]):
        if len(own) > 1:
            sources.append((np.var(own, ddof=1) / len(own), len(own) - 1))
    return contrast @ areas, sources


trainings = st.integers(1, 4)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.booleans(), trainings, trainings)
def test_paired_test_equals_brute_force(seed, rounded, n_first, n_second):
    generator = np.random.default_rng(seed)
    labels = np.r_[np.zeros(9, int), np.ones(7, int)]
    first, second = (generator.normal(size=(n, 16)) + labels for n in (n_first, n_second))
    if rounded:
        first, second = first.round(0), second.round(0)
    difference, sources = brute_force(labels, first, second)
    variance = sum(v for v, _ in sources)
    if sources[0][0] + sources[1][0] < 1e-20 or abs(difference) < 1e-12:
        return  # no variance: nothing to compare with
    freedom = variance**2 / sum(v**2 / n for v, n in sources)
    expected = 2 * t.sf(abs(difference) / math.sqrt(variance), freedom)
    assert paired_delong_p(labels, first, second) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@settings(max_examples=50)
@given(st.integers(0, 10_000), trainings)
def test_interval_equals_brute_force(seed, n):
    generator = np.random.default_rng(seed)
    labels = np.r_[np.zeros(9, int), np.ones(7, int)]
    scores = generator.normal(size=(n, 16)) + labels
    # Against a config that is always right about nothing: constant, without a variance.
    value, sources = brute_force(labels, scores, np.zeros((1, 16)))
    value += 0.5
    area = auroc(labels, scores)
    assert area.value == pytest.approx(value)
    if value == 1.0:
        return
    images = sum(v for v, _ in sources[:2])
    freedom = images**2 / sum(v**2 / n for v, n in sources[:2])
    squared = t.ppf(0.975, freedom) ** 2 * images
    squared += sum(t.ppf(0.975, n) ** 2 * v for v, n in sources[2:])
    half = math.sqrt(squared) / (value * (1 - value))
    centre = math.log(value / (1 - value))
    assert [area.low, area.high] == pytest.approx(
        [1 / (1 + math.exp(half - centre)), 1 / (1 + math.exp(-half - centre))]
    )


several = st.tuples(problems, st.integers(1, 4), st.integers(0, 10_000)).map(
    lambda drawn: (
        arrays(drawn[0])[0],
        arrays(drawn[0])[1]
        + np.random.default_rng(drawn[2]).integers(-2, 3, size=(drawn[1], len(drawn[0]))),
    )
)


@given(several, st.integers(0, 10_000))
def test_trainings_have_no_order_and_images_have_none(drawn, seed):
    labels, scores = drawn
    generator = np.random.default_rng(seed)
    order, images = generator.permutation(len(scores)), generator.permutation(len(labels))
    one, other = auroc(labels, scores), auroc(labels[images], scores[order][:, images])
    assert [one.value, one.low, one.high] == pytest.approx([other.value, other.low, other.high])
    assert 0 <= one.low <= one.value + 1e-12
    assert one.value <= one.high + 1e-12 <= 1 + 1e-12
    assert one.value == pytest.approx(np.mean([auroc(labels, row).value for row in scores]))


@given(several)
def test_the_same_training_again_says_nothing_new(drawn):
    """Copies of one training: seeds that change nothing change neither interval nor test."""
    labels, scores = drawn
    once, often = auroc(labels, scores[0]), auroc(labels, np.repeat(scores[:1], 3, axis=0))
    assert [once.low, once.high] == pytest.approx([often.low, often.high])
    p = paired_delong_p(labels, scores[0], -scores[0])
    copies = np.repeat(scores[:1], 2, axis=0)
    assert paired_delong_p(labels, copies, -copies) == pytest.approx(p)


@given(several, several.map(lambda drawn: drawn[1]))
def test_the_test_has_two_sides(drawn, other):
    labels, first = drawn
    second = np.resize(other, first.shape)
    p = paired_delong_p(labels, first, second)
    assert 0 <= p <= 1
    assert p == pytest.approx(paired_delong_p(labels, second, first))
    assert p == pytest.approx(paired_delong_p(labels, np.exp(first), 3 * second))
    assert paired_delong_p(labels, first, first) == 1.0
    assert are_tied(labels, first, first) is True


def test_seeds_that_differ_widen_the_interval_and_weaken_the_test():
    generator = np.random.default_rng(3)
    labels = np.repeat([0, 1], 60)
    image = generator.normal(size=120)
    near, far = (
        np.stack([image + distance * labels for distance in distances])
        for distances in ((1.9, 2.0, 2.1), (1.0, 2.0, 3.0))
    )
    assert auroc(labels, near).low > auroc(labels, far).low
    other = image + 0.6 * labels + 0.1 * generator.normal(size=(3, 120))
    assert are_tied(labels, near, other) is False
    assert are_tied(labels, far, other) is True


def test_of_single_trainings_it_is_never_known_that_configs_differ():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    good, bad = labels + 0.4 * generator.normal(size=200), generator.normal(size=200)
    assert paired_delong_p(labels, good, bad) < 1e-6
    assert are_tied(labels, good, bad) is None
    assert are_tied(labels, np.stack([good, good]), bad) is None
    assert are_tied(labels, np.stack([good, good]), np.stack([bad, bad])) is False
    assert are_tied(labels, good, labels + 0.4 * generator.normal(size=200)) is True


def test_paired_test_tells_apart_and_does_not():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    good = labels + 0.4 * generator.normal(size=200)
    bad = generator.normal(size=200)
    assert paired_delong_p(labels, good, bad) < 1e-6
    assert paired_delong_p(labels, good, good * 2) == 1.0
    assert paired_delong_p(labels, bad, good) == pytest.approx(paired_delong_p(labels, good, bad))


def test_coverage_of_the_interval():
    """95 of 100 intervals hold the true area of two shifted Gaussians, give or take 3."""
    truth = norm.cdf(1 / math.sqrt(2))
    labels = np.repeat([0, 1], 30)
    generator = np.random.default_rng(1)
    areas = [auroc(labels, generator.normal(size=60) + labels) for _ in range(1000)]
    covered = np.mean([area.low <= truth <= area.high for area in areas])
    assert covered == pytest.approx(0.95, abs=0.03)


def test_a_perfect_score_on_few_images_is_not_certain():
    few = auroc(np.array([0, 0, 0, 1, 1, 1]), np.arange(6.0))
    many = auroc(np.repeat([0, 1], 200), np.arange(400.0))
    assert few.value == many.value == 1.0
    assert few.low < 0.5
    assert many.low > 0.97


@pytest.mark.slow
@given(st.integers(0, 10_000))
def test_equal_areas_are_equal_bits(seed):
    """Selection takes the earliest of equals: rounding must not choose."""
    generator = np.random.default_rng(seed)
    labels = np.r_[np.zeros(20, int), np.ones(21, int)]
    areas = [auroc(labels, generator.permutation(41) + 0.0).value for _ in range(20)]
    assert len({round(area * 420) for area in areas}) == len(set(areas))


def test_scores_that_are_all_alike_are_not_certain():
    labels = np.array([0, 0, 0, 1, 1, 1])
    constant = auroc(labels, np.ones(6))
    assert (constant.value, constant.low, constant.high) == (0.5, 0.0, 1.0)
    assert paired_delong_p(labels, np.arange(6.0), np.ones(6)) == pytest.approx(0.25)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="finite"):
        auroc(np.array([0, 1]), np.array([0.0, wrong]))


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
def test_one_class_is_refused(labels):
    with pytest.raises(ValueError, match="normal and anomalous"):
        auroc(np.array(labels), np.array([0.0, 1.0]))


def test_every_order_of_four_images():
    for scores in itertools.product(range(3), repeat=4):
        labels = np.array([0, 1, 0, 1])
        expected = roc_auc_score(labels, scores)
        assert auroc(labels, np.array(scores, float)).value == expected


@given(problems)
def test_roc_curve_is_scikit_learns(rows):
    labels, scores = arrays(rows)
    expected = sklearns_roc_curve(labels, scores)[:2]
    for ours, theirs in zip(roc_curve(labels, scores), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_roc_curve_refuses_what_has_none():
    with pytest.raises(ValueError, match="normal and anomalous"):
        roc_curve(np.ones(3, int), np.arange(3.0))
    with pytest.raises(ValueError, match="finite"):
        roc_curve(np.array([0, 1]), np.array([0.0, math.nan]))


@pytest.mark.slow
@given(problems)
def test_best_f1_is_brute_forces(rows):
    labels, scores = arrays(rows)
    f1s = {t: f1_score(labels, scores >= t) for t in sorted(set(scores), reverse=True)}
    best = max(f1s.values())
    threshold, f1, accuracy = f1_threshold(labels, scores)
    assert f1 == pytest.approx(best, abs=1e-12)
    assert threshold == next(t for t, value in f1s.items() if value > best - 1e-12)
    assert accuracy == pytest.approx(np.mean((scores >= threshold) == labels), abs=1e-12)


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 10_000))
def test_best_f1_of_separable_scores_is_one(n_anomalous, n_normal, seed):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat([1, 0], [n_anomalous, n_normal]))
    scores = (labels + generator.random(len(labels)) / 2).astype(np.float32)
    threshold, f1, accuracy = f1_threshold(labels, scores)
    assert (f1, accuracy) == (1.0, 1.0)
    assert threshold == scores[labels == 1].min()


def test_among_equal_f1_the_highest_threshold_wins():
    labels = np.array([1, 0, 0, 1])  # F1 is 2/3 at 4 as well as at 1
    assert f1_threshold(labels, np.array([4.0, 3.0, 2.0, 1.0])) == (4.0, 2 / 3, 0.75)


def test_f1_refuses_what_has_none():
    with pytest.raises(ValueError, match="anomalous"):
        f1_threshold(np.zeros(3, int), np.arange(3.0))
    with pytest.raises(ValueError, match="finite"):
        f1_threshold(np.array([0, 1]), np.array([0.0, math.nan]))
