"""Levels of grids against nearest interpolation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from anomtune.models.layers.levels import levels_of

CPU = torch.device("cpu")


def test_grids_that_divide_each_other_are_the_levels() -> None:
    levels = levels_of(((8, 4), (4, 2), (2, 1)), CPU)
    assert (levels.grid, levels.counts, levels.own) == ((8, 4), (32, 8, 2), (None,) * 3)
    assert levels.parents[1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("side", [*range(1, 30), 56, 63])
def test_a_position_sees_what_nearest_interpolation_gives(side: int) -> None:
    for middle in {(side + 1) // 2, side // 2 or 1, side, max(1, side - 3)}:
        for coarse in {(middle + 1) // 2, middle, max(1, middle - 1), 1}:
            grids = ((side, side + 1), (middle, middle), (coarse, middle))
            levels = levels_of(grids, CPU)
            cells = torch.arange(side * (side + 1))
            for number, grid in enumerate(grids):
                values = torch.arange(float(grid[0] * grid[1]))
                seen = F.interpolate(values.view(1, 1, *grid), grids[0]).flatten()
                own = levels.own[number]
                assert levels.counts[number] == len(values if own is None else own)
                assert torch.equal((values if own is None else values[own])[cells], seen)
                if number < 2:
                    cells = levels.parents[number][cells]


def test_grids_that_do_not_divide_each_other_have_cells_for_each_combination() -> None:
    levels = levels_of(((13, 13), (7, 7), (4, 4)), CPU)
    # A row of the middle grid lies in two of the coarse one.
    assert levels.counts == (169, 64, 16)
