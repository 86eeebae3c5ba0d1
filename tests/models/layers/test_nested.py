"""Neighbours in every beginning of a bank: those that a search of that beginning finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomtune.models.layers import nested
from anomtune.models.layers.nested import nearest_changes, nearest_in


@settings(max_examples=60, deadline=None)
@given(
    points=st.integers(1, 20),
    neighbours=st.integers(1, 200),
    channels=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    block=st.sampled_from([1, 700, 1 << 20]),
    data=st.data(),
)
def test_they_are_those_of_a_search(points, neighbours, channels, seed, block, data):
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.randn(points, channels, generator=generator, dtype=torch.float64)
    bank = torch.randn(neighbours, channels, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nested, "_BLOCK", block)
        changes = nearest_changes(cloud, bank)
    assert changes.dtype == torch.int32
    assert (changes[:, 0] == 0).all()
    size = data.draw(st.integers(1, neighbours))
    expected = torch.cdist(cloud, bank[:size]).argmin(1)
    assert torch.equal(nearest_in(changes, size), expected)


def test_of_equal_neighbours_the_first_stays():
    bank = torch.tensor([[2.0], [1.0], [1.0], [-1.0], [0.0]])
    changes = nearest_changes(torch.zeros(1, 1), bank)
    assert [int(nearest_in(changes, size)) for size in range(1, 6)] == [0, 1, 1, 1, 4]
