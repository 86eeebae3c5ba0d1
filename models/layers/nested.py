"""Nearest neighbours in every beginning of a bank, found with one comparison.

Greedy selection is nested: the bank of 1 % is the beginning of that of 10 %. As a bank grows, the
nearest neighbour of a point changes only where a nearer one joins, a dozen times in thousands. With
these changes written down, the neighbour in a bank of any size is looked up.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Neighbours that are compared with each other only where the nearest of them is nearer.
_RUN = 64
#: Numbers in one block of a distance matrix: 4 MB, which a CPU's caches hold.
_BLOCK = 1 << 20
#: Stands where a point has no further change.
_NONE = torch.iinfo(torch.int32).max


@torch.no_grad()
def nearest_changes(points: Tensor, bank: Tensor) -> Tensor:
    """Returns the neighbours ``(P, K)``, int32, that are nearer than all of the bank before them.

    Args:
        points: Points ``(P, D)`` on the CPU, near the origin: distances come from products.
        bank: Neighbours ``(M, D)``, M > 0, in the order in which they join.

    Returns:
        Ascending in each row, of which the first is 0; what is left of a row is larger than all
        indices of the bank.
    """
    half_norms = bank.square().sum(1).div_(2)
    missing = -len(bank) % _RUN
    # Neighbours infinitely far away make the bank as long as whole runs.
    half_norms = torch.cat([half_norms, half_norms.new_full((missing,), torch.inf)])
    joined = torch.cat([bank, bank.new_zeros(missing, bank.shape[1])]).T
    found = [
        _changes(torch.addmm(half_norms, block, joined, alpha=-1))
        for block in torch.split(points, max(1, _BLOCK // len(half_norms)))
    ]
    most = max(changes.shape[1] for changes in found)
    return torch.cat(
        [torch.nn.functional.pad(c, (0, most - c.shape[1]), value=_NONE) for c in found]
    )


def nearest_in(changes: Tensor, size: int) -> Tensor:
    """Returns the nearest ``(P,)``, int64, of the first ``size`` neighbours, from the changes."""
    last = (changes < size).sum(1, keepdim=True) - 1
    return changes.gather(1, last).squeeze(1).long()


def _changes(distances: Tensor) -> Tensor:
    """Returns where each row ``(M,)`` falls below all before, as `nearest_changes` does."""
    count = len(distances)
    runs = distances.view(count, -1, _RUN).numpy()
    # Of each run the smallest, and the smallest of all runs before it.
    smallest = torch.from_numpy(runs).amin(2).numpy()
    before = np.full_like(smallest, np.inf)
    np.minimum.accumulate(smallest[:, :-1], axis=1, out=before[:, 1:])
    rows, chosen = np.nonzero(smallest < before)
    inside = runs[rows, chosen]
    least = np.empty_like(inside)
    least[:, 0] = before[rows, chosen]
    np.minimum.accumulate(inside[:, :-1], axis=1, out=least[:, 1:])
    np.minimum(least, before[rows, chosen, None], out=least)
    which, within = np.nonzero(inside < least)
    owner, place = rows[which], chosen[which] * _RUN + within
    per_row = np.bincount(owner, minlength=count)
    changes = np.full((count, per_row.max()), _NONE, np.int32)
    # The how manieth of its row each change is: they come row by row, ascending.
    starts = np.concatenate([[0], np.cumsum(per_row)[:-1]])
    changes[owner, np.arange(len(owner)) - starts[owner]] = place
    return torch.from_numpy(changes)
