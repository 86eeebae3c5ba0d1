"""How the Gaussians of PaDiM are learnt: few images are kept, of many their moments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from anomtune.models.layers.gaussians import EPSILON, Gaussians, blocks, with_coarser
from anomtune.models.layers.levels import Levels

#: Blocks of moments are so many times larger than others: cells of one parent share work.
_MORE = 8


def n_numbers(counts: Sequence[int], channels: Sequence[int], n_images: int) -> tuple[int, int]:
    """Returns how many numbers the Gaussians of few images have, and those of many.

    Args:
        counts: Cells of each level, from fine to coarse.
        channels: Channels d_s of each stage.
        n_images: Number of training images.
    """
    per_level = list(zip(counts, channels, strict=True))
    few = counts[0] * n_images**2 + n_images * sum(cells * d for cells, d in per_level)
    wholes = reversed(list(accumulate(reversed(channels))))
    many = sum(cells * d * whole for (cells, d), whole in zip(per_level, wholes, strict=True))
    return few, many


class FewImages:
    """Features of all images, which become the Gaussians in place.

    Args:
        n_images: How many there will be.
        first: Features ``(B, cells, d_s)`` of the first ones by level.
        levels: How cells lie in each other.
    """

    def __init__(self, n_images: int, first: Sequence[Tensor], levels: Levels) -> None:
        self._levels = levels
        self._rows = [x.new_empty(n_images, *x.shape[1:]) for x in first]
        self._count = 0

    def add(self, features: Sequence[Tensor]) -> None:
        """Takes features ``(B, cells, d_s)`` by level."""
        end = self._count + len(features[0])
        for rows, x in zip(self._rows, features, strict=True):
            rows[self._count : end] = x
        self._count = end

    def finish(self, gaussians: Gaussians) -> float:
        """Fills the Gaussians; returns the mean variance."""
        n, count, _ = self._rows[0].shape
        means = [rows.mean(0) for rows in self._rows]
        for rows, mean in zip(self._rows, means, strict=True):
            rows.sub_(mean).div_(math.sqrt(max(1, n - 1)))
        device = self._rows[0].device
        factor = self._rows[0].new_empty(count, n, n)
        total = torch.zeros((), dtype=torch.float64, device=device)
        everywhere = torch.arange(count, device=device)
        for block in blocks(count, n**2, device):
            gram = self._gram(0, everywhere[block])
            total += gram.diagonal(dim1=1, dim2=2).sum()
            factor[block] = _inverse_root(gram)
        gaussians.fill(means, self._rows, [factor])
        return float(total) / (count * sum(gaussians.channels))

    def _gram(self, level: int, cells: Tensor) -> Tensor:
        """Returns ``X X^T`` of some cells of a level and of what is coarser, in float64."""
        rows = self._rows[level][:, cells].transpose(0, 1).double()
        gram = torch.bmm(rows, rows.mT)
        if level < len(self._levels.parents):
            parents, inverse = torch.unique(self._levels.parents[level][cells], return_inverse=True)
            gram += self._gram(level + 1, parents)[inverse]
        return gram


class ManyImages:
    """First and second moments, which become the Gaussians in place.

    See `FewImages` for the arguments.
    """

    def __init__(self, n_images: int, first: Sequence[Tensor], levels: Levels) -> None:
        self._n, self._levels = n_images, levels
        # Near the mean, or the square of the mean would drown the variance.
        self._origins = [x.mean(0) for x in first]
        self._sums = [torch.zeros_like(origin) for origin in self._origins]
        channels = [x.shape[2] for x in first]
        #: Products of the features of a level with these and all coarser ones.
        self._products = [
            x.new_zeros(*x.shape[1:], sum(channels[level:])) for level, x in enumerate(first)
        ]

    def add(self, features: Sequence[Tensor]) -> None:
        """Takes features ``(B, cells, d_s)`` by level."""
        coarser: Tensor | None = None
        for level in reversed(range(len(features))):
            x = features[level] - self._origins[level]
            products = self._products[level]
            self._sums[level] += x.sum(0)
            count, own, whole = products.shape
            for block in blocks(count, whole * max(own, len(x)), x.device):
                both = with_coarser(level, x, block, self._levels, coarser)
                products[block].baddbmm_(x[:, block].permute(1, 2, 0), both.transpose(0, 1))
            if level > 0:
                coarser = with_coarser(level, x, slice(None), self._levels, coarser)

    def finish(self, gaussians: Gaussians) -> float:
        """Fills the Gaussians; returns the mean variance."""
        self._sums = [total / self._n for total in self._sums]
        means = [origin + shift for origin, shift in zip(self._origins, self._sums, strict=True)]
        variance = self._variance() / (len(means[0]) * sum(gaussians.channels))
        # From fine to coarse, in place: each level needs the moments of those that are coarser.
        for level, products in enumerate(self._products):
            order = torch.arange(len(products), device=products.device)
            if level < len(self._levels.parents):  # cells of one parent share most of the work
                order = self._levels.parents[level].argsort(stable=True)
            for block in blocks(len(order), products.shape[2] ** 2 // _MORE, order.device):
                cells = order[block]
                products[cells] = self._factor(level, cells).float()
        gaussians.fill(means, [], self._products)
        return variance

    def _factor(self, level: int, cells: Tensor) -> Tensor:
        """Returns W ``(cells, d_s, D_s)``: x of a level given what is coarser, whitened."""
        covariance = self._covariance(level, cells)
        own = covariance.shape[1]
        within, across = torch.split(covariance, [own, covariance.shape[2] - own], 2)
        if across.shape[2] == 0:
            return _inverse_root(within)
        parents, inverse = torch.unique(self._levels.parents[level][cells], return_inverse=True)
        # Of the parents once, and products are faster than solving for each cell.
        root = _inverse_root(self._whole(level + 1, parents))[inverse]
        half = across @ root.mT
        own_root = _inverse_root(within - half @ half.mT)
        return torch.cat([own_root, -own_root @ (half @ root)], 2)

    def _covariance(self, level: int, cells: Tensor) -> Tensor:
        """Returns the covariance of a level with itself and what is coarser, in float64."""
        away = self._away(level, cells)
        covariance = self._products[level][cells].double()
        covariance -= self._n * away[:, : covariance.shape[1], None] * away[:, None]
        return covariance.div_(max(1, self._n - 1))

    def _whole(self, level: int, cells: Tensor) -> Tensor:
        """Returns the covariance ``(cells, D_s, D_s)`` of a level and what is coarser."""
        covariance = self._covariance(level, cells)
        own = covariance.shape[1]
        if level == len(self._levels.parents):
            return covariance
        parents, inverse = torch.unique(self._levels.parents[level][cells], return_inverse=True)
        rest = self._whole(level + 1, parents)[inverse]
        return torch.cat([covariance, torch.cat([covariance[:, :, own:].mT, rest], 2)], 1)

    def _away(self, level: int, cells: Tensor) -> Tensor:
        """Returns the means ``(cells, D_s)`` less the origins, in float64."""
        away = self._sums[level][cells].double()
        if level == len(self._levels.parents):
            return away
        return torch.cat([away, self._away(level + 1, self._levels.parents[level][cells])], 1)

    def _variance(self) -> float:
        """Returns the sum of the variances of all positions and channels."""
        total = 0.0
        positions = self._sums[0].new_ones(len(self._sums[0]), dtype=torch.float64)
        for level, (products, away) in enumerate(zip(self._products, self._sums, strict=True)):
            squares = products.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64)
            squares -= self._n * away.square().sum(1, dtype=torch.float64)
            total += float(squares @ positions) / max(1, self._n - 1)
            if level < len(self._levels.parents):
                parents = self._levels.parents[level]
                below, positions = positions, positions.new_zeros(int(parents.max()) + 1)
                positions.index_add_(0, parents, below)
        return total


def _inverse_root(covariance: Tensor) -> Tensor:
    """Adds epsilon to the diagonals of covariances, and returns the inverse Cholesky factor."""
    covariance.diagonal(dim1=1, dim2=2).add_(EPSILON)
    one = torch.eye(covariance.shape[1], dtype=covariance.dtype, device=covariance.device)
    root = torch.linalg.cholesky(covariance)
    inverse: Tensor = torch.linalg.solve_triangular(root, one, upper=False)
    return inverse
