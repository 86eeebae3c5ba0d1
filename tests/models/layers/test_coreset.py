"""Greedy k-center selection: the same picks as the plain loop, what it covers, what it holds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomtune.models.layers import coreset
from anomtune.models.layers.coreset import CoresetBuilder, greedy_coreset, random_projection


def points(n: int, channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, generator=generator, dtype=torch.float64)


def plain(points: Tensor, size: int, first: int) -> tuple[list[int], float]:
    """Algorithm 1 of PatchCore, one pass over all points per pick."""
    x = points.numpy()
    picks = [first]
    nearest = np.linalg.norm(x - x[first], axis=1)
    while len(picks) < size:
        picks.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(x - x[picks[-1]], axis=1))
    return picks, float(nearest.max())


def radius(points: Tensor, picks: Tensor) -> float:
    return float(torch.cdist(points, points[picks]).amin(1).max())


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 120),
    channels=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    candidates=st.sampled_from([1, 2, 7, 1024]),
    block=st.sampled_from([1, 50, 1 << 22]),
    data=st.data(),
)
def test_the_picks_are_those_of_the_plain_loop(
    n: int, channels: int, seed: int, candidates: int, block: int, data: st.DataObject
) -> None:
    size, first = data.draw(st.integers(1, n)), data.draw(st.integers(0, n - 1))
    cloud = points(n, channels, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset, "_CANDIDATES", candidates)
        patch.setattr(coreset, "_BLOCK", block)
        picks, covering = greedy_coreset(cloud, size, first)
    expected, expected_covering = plain(cloud, size, first)
    assert picks.tolist() == expected
    assert float(covering[-1]) == pytest.approx(expected_covering, abs=1e-7)


def approximate(points: Tensor, size: int, start: list[int]) -> list[int]:
    """The approximate selection of PatchCore's official code, pick by pick."""
    x = points.numpy()
    nearest = np.mean([np.linalg.norm(x - x[i], axis=1) for i in start], axis=0)
    picks: list[int] = []
    while len(picks) < size:
        picks.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(x - x[picks[-1]], axis=1))
    return picks


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(3, 120),
    channels=st.integers(2, 6),
    seed=st.integers(0, 10_000),
    candidates=st.sampled_from([1, 7, 1024]),
    data=st.data(),
)
def test_the_approximate_picks_are_those_of_the_official_loop(
    n: int, channels: int, seed: int, candidates: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, n))
    # Fewer points, or points of a line, are equally far from the start: any may come first.
    start = data.draw(st.lists(st.integers(0, n - 1), min_size=3, max_size=10, unique=True))
    cloud = points(n, channels, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset, "_CANDIDATES", candidates)
        picks, _ = greedy_coreset(cloud, size, start=torch.tensor(start))
    assert picks.tolist() == approximate(cloud, size, start)


def test_the_picks_are_those_of_the_plain_loop_on_clusters_of_unlike_size() -> None:
    # Many candidates in one place: few of them are picked before another cluster's turn.
    sizes = (400, 40, 4, 4)
    cloud = torch.cat(
        [points(n, 3, k) * 0.1 + 5 * points(1, 3, 7 + k) for k, n in enumerate(sizes)]
    )
    picks, _ = greedy_coreset(cloud, 200, 3)
    assert picks.tolist() == plain(cloud, 200, 3)[0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 3))
def test_the_radius_is_at_most_twice_the_best_one(seed: int, size: int) -> None:
    cloud = points(9, 2, seed)
    _, covering = greedy_coreset(cloud, size)
    best = min(
        radius(cloud, torch.tensor(choice)) for choice in itertools.combinations(range(9), size)
    )
    assert best - 1e-9 <= float(covering[-1]) <= 2 * best + 1e-9


def test_float32_picks_cover_as_well() -> None:
    cloud = points(3000, 16)
    picks, covering = greedy_coreset(cloud.float(), 300)
    assert float(covering[-1]) == pytest.approx(plain(cloud, 300, 0)[1], rel=1e-3)
    assert float(covering[-1]) == pytest.approx(radius(cloud, picks), rel=1e-3)
    assert len(set(picks.tolist())) == 300


def test_no_point_is_picked_twice_whatever_the_rounding() -> None:
    cloud = points(60, 3).float() + 1000  # squared distances with errors of their own size
    picks, _ = greedy_coreset(cloud, 60)
    assert len(picks) > 30
    assert len(set(picks.tolist())) == len(picks)


def test_coinciding_points_are_picked_once() -> None:
    cloud = torch.eye(3).repeat(4, 1)
    picks, covering = greedy_coreset(cloud, 10)
    assert sorted((picks % 3).tolist()) == [0, 1, 2]
    assert covering[-1] == 0


def test_a_random_projection_about_keeps_distances() -> None:
    cloud = points(60, 1000).float()
    projection = random_projection(1000, 128, torch.Generator().manual_seed(0))
    assert projection.shape == (1000, 128)
    ratios = torch.pdist(cloud @ projection).square() / torch.pdist(cloud).square()
    assert float(ratios.mean()) == pytest.approx(1, abs=0.05)
    assert float(ratios.std()) == pytest.approx((2 / 128) ** 0.5, rel=0.25)
    assert 0.5 < float(ratios.min()) < float(ratios.max()) < 1.6


def build(cloud: Tensor, size: int, capacity: int, batch: int = 7, projected: int = 99) -> Tensor:
    builder = CoresetBuilder(size, capacity, projected, torch.Generator().manual_seed(0))
    for part in torch.split(cloud, batch):
        builder.add(part)
    return builder.finish()[0]


def test_points_that_fit_are_selected_as_if_they_came_at_once() -> None:
    cloud = points(100, 4)
    first = int(torch.randint(100, (), generator=torch.Generator().manual_seed(0)))
    picks, covering = greedy_coreset(cloud, 20, first)
    builder = CoresetBuilder(20, 100, 99, torch.Generator().manual_seed(0))
    for part in torch.split(cloud, 33):
        builder.add(part)
    selected, reported = builder.finish()
    assert torch.equal(selected, cloud[picks])
    assert reported == pytest.approx(float(covering[-1]))


def test_all_points_are_kept_if_all_are_wanted() -> None:
    cloud = points(30, 4)
    assert torch.equal(build(cloud, 30, 30), cloud)


@pytest.mark.parametrize("batch", [1, 13, 40, 1000])
def test_more_points_than_fit_are_thinned_as_they_come(batch: int) -> None:
    cloud = points(1000, 3)
    builder = CoresetBuilder(20, 80, 99, torch.Generator().manual_seed(0))
    for part in torch.split(cloud, batch):
        builder.add(part)
        assert builder._held is not None
        assert builder._held.shape == (80, 3)
    selected, reported = builder.finish()
    assert selected.shape == (20, 3)
    assert selected.untyped_storage().nbytes() == 20 * 3 * 8, "the room is given back"
    actual = float(torch.cdist(cloud, selected).amin(1).max())
    assert 0.5 * reported <= actual <= 1.7 * reported
    # The guarantee of the merge is weaker; in practice it is about as good as one selection.
    assert actual <= 1.7 * plain(cloud, 20, 0)[1]


def test_rare_points_survive_the_thinning() -> None:
    cloud = points(1000, 3)
    cloud[17] += 50
    assert float(torch.cdist(cloud[17:18], build(cloud, 10, 40)).min()) == 0


def test_selection_looks_at_projections_but_keeps_the_points() -> None:
    cloud = points(200, 50)
    selected = build(cloud, 20, 200, projected=8)
    assert selected.shape == (20, 50)
    assert (selected[:, None] == cloud).all(2).any(1).all()
    assert not torch.equal(selected, build(cloud, 20, 200))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 120), seed=st.integers(0, 10_000), data=st.data())
def test_few_picks_are_the_first_of_many(n: int, seed: int, data: st.DataObject) -> None:
    few = data.draw(st.integers(1, n - 1))
    cloud = points(n, 3, seed)
    many, radii = greedy_coreset(cloud, n)
    picks, covering = greedy_coreset(cloud, few)
    assert picks.tolist() == many[:few].tolist()
    assert float(covering[-1]) == pytest.approx(float(radii[few - 1]), abs=1e-7)
    assert (radii[1:] <= radii[:-1] + 1e-9).all()


def test_an_order_is_that_of_all_points_and_none_where_points_were_thinned() -> None:
    cloud = points(100, 4)
    builder = CoresetBuilder(20, 100, 99, torch.Generator().manual_seed(0))
    for part in torch.split(cloud, 33):
        builder.add(part)
    order, _ = builder.order()
    assert torch.equal(cloud[order], build(cloud, 20, 100))
    small = CoresetBuilder(20, 80, 99, torch.Generator().manual_seed(0))
    small.add(cloud)
    with pytest.raises(AssertionError):
        small.order()
