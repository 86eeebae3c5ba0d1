"""A small set of points that covers many: greedy k-center selection.

PatchCore (Roth et al., CVPR 2022, algorithm 1) keeps the patches that such a selection picks: each
time the point farthest from all picked ones, seen through a random projection. Written down as it
is told, that is one pass over all points per pick. Here one pass serves a hundred picks and more,
and they are the same picks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Farthest points among which the next picks are sought: many give many picks per pass over all
#: points, few give a small table of distances.
_CANDIDATES = 1024
#: Numbers in one block of a distance matrix: 16 MB, which stays in a CPU's caches.
_BLOCK = 1 << 22


def random_projection(inputs: int, outputs: int, generator: torch.Generator) -> Tensor:
    """Returns a matrix ``(inputs, outputs)`` that about keeps the distances of row vectors.

    Its entries are normal with variance ``1 / outputs``, so that squared distances keep their
    mean; their relative deviation is ``sqrt(2 / outputs)`` (Johnson and Lindenstrauss, 1984).

    Args:
        inputs: Length of the vectors.
        outputs: Length of their projections.
        generator: Where the random numbers come from; on the CPU.
    """
    return torch.randn(inputs, outputs, generator=generator).div_(outputs**0.5)


@torch.no_grad()
def greedy_coreset(
    points: Tensor, size: int, first: int = 0, *, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Picks points one by one, each time the one farthest from those picked so far.

    The radius is at most twice that of the best choice of as many points (Gonzalez, 1985).

    With ``start`` each point begins as far away as these few are on average, and the first pick is
    the one that is farthest so: the approximate selection of PatchCore's official code.

    No pick is approximate. A round takes the candidates that are farthest away and picks among
    them alone, for as long as the farthest candidate is at least as far as every other point was
    at the start of the round: distances only shrink, so nothing else can be farther. Then one
    matrix product brings the distances of all points up to date.

    Args:
        points: Points ``(N, D)``, N > 0. Distances come from products, so points that lie far
            from the origin should be centred.
        size: Number of picks. Fewer are returned if all points coincide with picked ones before.
        first: Index of the first pick, unless there is a ``start``.
        start: Indices ``(k,)`` of the points to begin with.

    Returns:
        Indices ``(<= size,)`` in the order of picking, without repetition, and covering radii of
        as many: the largest distance of a point to the nearest of the picks up to each. The first
        picks of many are those of few.
    """
    # Half of a squared distance is |a|^2 / 2 + |b|^2 / 2 - ab: one fused product.
    half_norms = points.square().sum(1).div_(2)
    if start is None:
        nearest = torch.full_like(half_norms, torch.inf)
    else:
        nearest = torch.cdist(points, points[start]).mean(1).square().div_(2)
        first = int(nearest.argmax())
    new = torch.tensor([first], device=points.device)
    picks = [new]
    # As far as a pick was from the picks before it, no other point was farther.
    away: list[float] = []
    missing = size - 1
    while True:
        _approach(nearest, points, half_norms, new)
        nearest[new] = -torch.inf  # a rounding error away from zero: never again
        if missing <= 0:
            break
        distances, candidates = nearest.topk(min(_CANDIDATES, len(points)))
        places, left = _pick_among(points[candidates], distances, missing)
        if not places:
            break
        new = candidates[torch.tensor(places, device=points.device)]
        picks.append(new)
        away += left
        missing -= len(places)
    radii = points.new_tensor([*away, float(nearest.amax())])
    return torch.cat(picks), radii.clamp_min_(0).mul_(2).sqrt_()


def _approach(nearest: Tensor, points: Tensor, half_norms: Tensor, new: Tensor) -> None:
    """Brings half squared distances ``(N,)`` to the nearest pick up to date with new picks."""
    centres, centre_norms = points[new], half_norms[new]
    rows = max(1, _BLOCK // len(new))
    for start in range(0, len(points), rows):
        block = slice(start, start + rows)
        distances = torch.addmm(centre_norms, points[block], centres.T, alpha=-1).amin(1)
        distances += half_norms[block]
        nearest[block] = torch.minimum(nearest[block], distances)


def _pick_among(candidates: Tensor, distances: Tensor, limit: int) -> tuple[list[int], list[float]]:
    """Returns which candidates, in this order, are the next picks among all points.

    Beside them, half their squared distances to the picks before each.

    Args:
        candidates: Points ``(M, D)``.
        distances: Their half squared distances ``(M,)`` to the picks, descending; no other point
            is farther than the last.
        limit: Most picks to return.
    """
    half_norms = candidates.square().sum(1).div_(2)
    mutual = torch.addmm(half_norms, candidates, candidates.T, alpha=-1).add_(half_norms[:, None])
    # Hundreds of tiny steps that wait for each other: numpy on the CPU is quickest at those.
    table, left = mutual.cpu().numpy(), distances.cpu().numpy().copy()
    threshold = max(float(left[-1]), 0.0)
    picks: list[int] = []
    away: list[float] = []
    while len(picks) < limit:
        place = int(left.argmax())
        if left[place] < threshold or left[place] <= 0:
            break
        picks.append(place)
        away.append(float(left[place]))
        np.minimum(left, table[place], out=left)
        left[place] = -np.inf
    return picks, away


class CoresetBuilder:
    """Selects a coreset of points that come in batches, in memory that does not grow with them.

    As long as all points fit into ``capacity`` the result is that of `greedy_coreset` on all of
    them. Else points are gathered until there is no room, thinned to ``size`` by the same greedy
    selection, and gathered on: a coreset of coresets. Its radius is at most the sum of the radii
    of the rounds and in practice near the largest of them.

    Args:
        size: Number of points to select; below ``capacity`` unless all points fit.
        capacity: Most points to hold.
        projected: Distances are taken between random projections of this length if the points
            are longer.
        generator: Where projection and first picks come from; on the CPU.
        start: Begin with so many points as `greedy_coreset` does with ``start``; 0 = with one pick.
    """

    def __init__(
        self,
        size: int,
        capacity: int,
        projected: int,
        generator: torch.Generator,
        *,
        start: int = 0,
    ) -> None:
        self._size = size
        self._capacity = capacity
        self._projected = projected
        self._generator = generator
        self._start = start
        self._held: Tensor | None = None
        self._projection: Tensor | None = None
        self._count = 0
        self._radius = 0.0

    def add(self, points: Tensor) -> None:
        """Takes points ``(n, D)``."""
        if self._held is None:
            n_channels = points.shape[1]
            self._held = points.new_empty(self._capacity, n_channels)
            if n_channels > self._projected:
                projection = random_projection(n_channels, self._projected, self._generator)
                self._projection = projection.to(points)
        while len(points):
            if self._count == self._capacity:
                self._thin()
            fitting, points = points.tensor_split([self._capacity - self._count])
            self._held[self._count : self._count + len(fitting)] = fitting
            self._count += len(fitting)

    def finish(self) -> tuple[Tensor, float]:
        """Returns the selected points ``(<= size, D)`` and their covering radius.

        The radius is that of the projections; of several rounds, the largest of a round.
        """
        if self._count > self._size:
            self._thin()
        assert self._held is not None, "no points"
        return self._held[: self._count].clone(), self._radius

    def order(self) -> tuple[Tensor, Tensor]:
        """Returns which of the points are selected, in the order of picking, and covering radii.

        They are those of `greedy_coreset`. To be called instead of `finish`, where all points fit.
        """
        assert self._held is not None, "no points"
        assert self._radius == 0, "what was thinned has lost its order"
        return self._pick(self._held[: self._count])

    def _thin(self) -> None:
        assert self._held is not None
        held = self._held[: self._count]
        picks, radii = self._pick(held)
        self._held[: len(picks)] = held[picks]
        self._count = len(picks)
        self._radius = max(self._radius, float(radii[-1]))

    def _pick(self, held: Tensor) -> tuple[Tensor, Tensor]:
        points = held - held.mean(0)
        if self._projection is not None:
            points = points @ self._projection
        if self._start:
            start = torch.randperm(len(held), generator=self._generator)[: self._start]
            return greedy_coreset(points, self._size, start=start.to(points.device))
        first = int(torch.randint(len(held), (), generator=self._generator))
        return greedy_coreset(points, self._size, first)
