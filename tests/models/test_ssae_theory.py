"""What Bauer, Nakajima and Mueller prove of partly corrupted images (section 3.4, appendix)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

Vector = npt.NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)


def square(x: Vector) -> float:
    return float(x @ x)


@given(seeds, st.integers(1, 12), st.integers(0, 12), st.floats(0.1, 3))
def test_lemma_3(seed: int, changed: int, kept: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.random((2, changed + kept))
    corrupted = x.copy()
    corrupted[:changed] = scale * rng.random(changed)
    s, rest = slice(0, changed), slice(changed, None)
    left = square(corrupted - x) - square(corrupted - y)
    right = square(corrupted[s] - x[s]) - square(corrupted[s] - y[s]) - square(x[rest] - y[rest])
    # The two inequalities hold together, as both sides differ by the same amount.
    assert left == pytest.approx(right, abs=1e-9)


@given(seeds, st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.booleans())
@settings(max_examples=300)
def test_proposition_1(seed: int, changed: int, kept: int, share: float, swap: bool) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.random((2, changed + kept))
    s, rest = slice(0, changed), slice(changed, None)
    assume(np.linalg.norm(x[s] - y[s]) <= np.linalg.norm(x[rest] - y[rest]))
    corrupted = x.copy()
    # Convex combinations of both, among them a swapped patch, or anything.
    corrupted[s] = (1 - share) * x[s] + share * y[s] if swap else 3 * rng.random(changed) - 1
    line = y[s] - x[s]
    projected = x[s] + line * (line @ (corrupted[s] - x[s])) / (line @ line)
    condition = np.linalg.norm(x[s] - projected) <= 1e-12 + max(
        np.linalg.norm(x[s] - y[s]), np.linalg.norm(y[s] - projected)
    )
    assert condition or not swap
    assume(condition)
    assert np.linalg.norm(corrupted - x) <= np.linalg.norm(corrupted - y) + 1e-9


def textures(n: int, side: int, rng: np.random.Generator) -> Vector:
    """Grey images of correlated pixels whose marginals are all the same, ``(n, side ** 2)``."""
    noise = rng.random((n, side, side))
    smooth = sum(np.roll(noise, shift, axis) for axis in (1, 2) for shift in (0, 1, 2))
    return np.asarray(smooth / 6).reshape(n, -1)


def test_proposition_2() -> None:
    rng = np.random.default_rng(0)
    side, pairs = 16, 4000
    x, y = textures(pairs, side, rng), textures(pairs, side, rng)
    variance = float(x.var())
    for changed in (20, 64, 128, 200):
        # A patch, not any pixels: Proposition 2 does not need independent ones.
        inside = np.arange(side * side) < changed
        difference = (x - y) ** 2
        gap = difference[:, inside].sum(1) - difference[:, ~inside].sum(1)
        expected = (2 * changed - side * side) * 2 * variance
        error = gap.std() / pairs**0.5
        assert abs(gap.mean() - expected) < 5 * error


def test_theorem_2() -> None:
    rng = np.random.default_rng(0)
    violations = []
    for side in (4, 8, 16, 32):
        x, y = textures(500, side, rng), textures(500, side, rng)
        variance, n = float(x.var()), side * side
        ratio = 2 * variance
        # As printed the bound compares with pixels in [0, 1]: it is a strict one.
        changed = max(1, int(n * ratio / (1 + ratio)))
        difference = (x - y) ** 2
        violated = difference[:, :changed].sum(1) > difference[:, changed:].sum(1)
        violations.append(float(violated.mean()))
    assert violations[-1] == 0
    assert violations == sorted(violations, reverse=True)


def test_the_bound_of_theorem_2_is_a_third_of_the_image_at_best() -> None:
    variance = 0.25  # the largest of pixels in [0, 1]: half of them 0, the others 1
    assert np.var([0.0, 1.0]) == variance
    assert 2 * variance / (1 + 2 * variance) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("width", "low", "high"), [(0.3, 1, 1), (0.6, 0.95, 1), (0.95, 0, 0.1)])
def test_images_with_a_foreign_patch_are_nearest_to_their_source(
    width: float, low: float, high: float
) -> None:
    """The first plot of figure 9: as long as less than half of the image is replaced."""
    rng = np.random.default_rng(0)
    side, n = 64, 40
    patch = round(width * side)
    images = textures(n, side, rng).reshape(n, side, side)
    hits = 0
    for index in range(n):
        other = (index + rng.integers(1, n)) % n
        top, left = rng.integers(side - patch + 1, size=2)
        corrupted = images[index].copy()
        box = (slice(top, top + patch), slice(left, left + patch))
        corrupted[box] = images[other][box]
        hits += int(((images - corrupted) ** 2).sum((1, 2)).argmin()) == index
    assert low <= hits / n <= high
