"""Grids of an encoder's stages that lie in each other, so that coarse features stay coarse."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """Cells of each level, from fine to coarse: all positions of a cell see the same features.

    Level s has a cell for each combination of cells of the stages s, s + 1, ... that some position
    of the finest grid sees. Where grids divide each other that is the stage's own grid.

    Attributes:
        grid: Size ``(h, w)`` of the finest one.
        counts: Number of cells of each level.
        own: Which cell of its stage each cell of a level shows, ``(cells,)``; ``None``: all in
            their order.
        parents: In which cell of the next level each cell lies, ``(cells,)``; of all but the last.
    """

    grid: tuple[int, int]
    counts: tuple[int, ...]
    own: tuple[Tensor | None, ...]
    parents: tuple[Tensor, ...]


@lru_cache(maxsize=32)
@torch.inference_mode(mode=False)
def levels_of(grids: tuple[tuple[int, int], ...], device: torch.device) -> Levels:
    """Returns the levels of stages whose grids are ``(h, w)``, from fine to coarse.

    A position of the finest grid sees the cell of a coarser one that nearest interpolation gives.

    Args:
        grids: Sizes of the stages' grids.
        device: Where the indices shall be.
    """
    rows, columns = (_line(sides) for sides in zip(*grids, strict=True))
    counts = tuple(len(r) * len(c) for (r, _), (c, _) in zip(rows, columns, strict=True))
    own, parents = [], []
    for number, (_, width) in enumerate(grids):
        (row, row_parent), (column, column_parent) = rows[number], columns[number]
        shown = (row[:, None] * width + column).flatten()
        whole = torch.arange(grids[number][0] * width)
        own.append(None if torch.equal(shown, whole) else shown.to(device))
        if number + 1 < len(grids):
            across = len(columns[number + 1][0])
            parents.append((row_parent[:, None] * across + column_parent).flatten().to(device))
    return Levels(grids[0], counts, tuple(own), tuple(parents))


def _line(sides: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Returns for each level of one axis what it shows of its stage, and its parents."""
    # Interpolated, not calculated: the rule rounds in its own way.
    seen = [
        F.interpolate(torch.arange(side, dtype=torch.float32)[None, None], sides[0])[0, 0].long()
        for side in sides
    ]
    levels: list[tuple[Tensor, Tensor]] = []
    above = torch.zeros_like(seen[0])
    for stage in reversed(seen):
        # All indices grow along the axis, so a new combination begins where one of them changes.
        _, number = torch.unique_consecutive(
            torch.stack([stage, above]), return_inverse=True, dim=1
        )
        first = torch.cat([number.new_ones(1), number.diff()]).nonzero().flatten()
        levels.append((stage[first], above[first]))
        above = number
    return levels[::-1]
