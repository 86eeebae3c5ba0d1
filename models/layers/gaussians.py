"""One Gaussian per position, of features that come from grids of several sizes.

Positions that lie in the same cell of a coarse stage see the same features there. What depends on
these alone is computed, and kept, once for the cell; features are never brought to the fine grid.
There are two forms.

Few images: the matrix inversion lemma turns the covariance of d channels into the Gram matrix of N
images. With X the centred images by ``sqrt(N - 1)``, ``L L^T = X X^T + epsilon`` and x a centred
patch, the squared distance is ``(|x|^2 - |L^-1 X x|^2) / epsilon``; Gram matrices, products
``X x`` and norms are sums over the stages.

Many images: the density of a patch is that of its coarsest features times that of the finer ones
given the coarser. With the coarsest channels first, the rows of the inverse Cholesky factor that
belong to them are the same for all positions of a cell, and so on: the squared distance is the sum
over the stages of ``|W_s x|^2``, x being the features of stage s and of all coarser ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from anomtune.models.layers.blocks import block_size
from anomtune.models.layers.levels import Levels

#: Added to the diagonal of the covariances (PaDiM, eq. 1).
EPSILON = 0.01
#: Numbers in one block of cells, at least one cell: on a CPU 4 MB, which its caches hold.
_BLOCK, _BLOCK_ON_GPU = 1 << 20, 1 << 25
#: Images that usually come at a time. Not asked, as there is no answer in a graph for any number.
_BATCH = 32


class Gaussians(nn.Module):
    """Gaussians of the P positions of the finest of several levels.

    Args:
        channels: Channels d_s of each stage, from fine to coarse.

    Attributes:
        mean_0, mean_1, ...: Means ``(cells, d_s)`` of each level.
        rows_0, rows_1, ...: Few images: what each has beyond the mean, by ``sqrt(N - 1)``,
            ``(N, cells, d_s)``. Many: empty.
        factor_0, factor_1, ...: Few images: the first is the inverse Cholesky factor
            ``(P, N, N)``, the others are empty. Many: W_s ``(cells, d_s, D_s)``, D_s being the
            channels of the stage and of all coarser ones.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        for level, count in enumerate(channels):
            self.register_buffer(f"mean_{level}", torch.empty(0, count))
            for name in ("rows", "factor"):
                self.register_buffer(f"{name}_{level}", torch.empty(0, 0, 0))

    def fill(
        self, mean: Sequence[Tensor], rows: Sequence[Tensor], factor: Sequence[Tensor]
    ) -> None:
        """Takes what was learnt, each by level as far as there is any."""
        for name, tensors in (("mean", mean), ("rows", rows), ("factor", factor)):
            for level in range(len(self.channels)):
                # Each a tensor of its own: of one that is shared only the first name is known.
                there = level < len(tensors)
                tensor = tensors[level] if there else mean[level].new_empty(0, 0, 0)
                setattr(self, f"{name}_{level}", tensor)

    def forward(self, features: Sequence[Tensor], levels: Levels) -> Tensor:
        """Returns Mahalanobis distances ``(P, B)`` of features ``(B, cells, d_s)`` by level."""
        centred = [x - self.get_buffer(f"mean_{level}") for level, x in enumerate(features)]
        few = len(self.get_buffer("rows_0")) > 0
        squares = self._of_few(centred, levels) if few else self._of_many(centred, levels)
        return squares.clamp_min_(0).sqrt_()

    def _of_few(self, features: Sequence[Tensor], levels: Levels) -> Tensor:
        above: tuple[Tensor, Tensor] | None = None
        for level in reversed(range(1, len(features))):
            above = self._products(level, features[level], slice(None), levels, above)
        factor, squares = self.get_buffer("factor_0"), []
        rank = factor.shape[1]
        for block in blocks(len(factor), rank * max(rank, _BATCH), factor.device):
            product, norm = self._products(0, features[0], block, levels, above)
            squares.append((norm - torch.bmm(factor[block], product).square().sum(1)) / EPSILON)
        return torch.cat(squares)

    def _products(
        self,
        level: int,
        features: Tensor,
        block: slice,
        levels: Levels,
        above: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Returns ``X x``, ``(cells, N, B)``, and ``|x|^2``, ``(cells, B)``, of a block of cells.

        Both are those of the level and, ``above``, of the coarser ones.
        """
        rows, x = self.get_buffer(f"rows_{level}")[:, block], features[:, block]
        product = torch.bmm(rows.transpose(0, 1), x.permute(1, 2, 0))
        norm = x.square().sum(2).T
        if above is None:
            return product, norm
        parents = levels.parents[level][block]
        products, norms = (of_cells.index_select(0, parents) for of_cells in above)
        return product.add_(products), norms.add_(norm)

    def _of_many(self, features: Sequence[Tensor], levels: Levels) -> Tensor:
        squares = torch.zeros(0)
        joined: Tensor | None = None
        for level in reversed(range(len(features))):
            factor, x, parts = self.get_buffer(f"factor_{level}"), features[level], []
            count, own, whole = factor.shape
            for block in blocks(count, whole * max(own, _BATCH), factor.device):
                both = with_coarser(level, x, block, levels, joined)
                parts.append(torch.bmm(factor[block], both.permute(1, 2, 0)).square().sum(1))
            found = torch.cat(parts)
            squares = found if joined is None else found + squares[levels.parents[level]]
            if level > 0:
                joined = with_coarser(level, x, slice(None), levels, joined)
        return squares


def with_coarser(
    level: int, features: Tensor, cells: slice | Tensor, levels: Levels, coarser: Tensor | None
) -> Tensor:
    """Returns the features of some cells of a level ``(B, cells, D_s)``, its own ones first.

    Args:
        level: Which.
        features: Those of the level ``(B, cells, d_s)``.
        cells: Of the level.
        levels: How they lie in each other.
        coarser: All features of the next level, ``(B, cells, D_s+1)``, if there is one.
    """
    if coarser is None:
        return features[:, cells]
    parents = levels.parents[level][cells]
    return torch.cat([features[:, cells], coarser.index_select(1, parents)], 2)


def blocks(count: int, numbers: int, device: torch.device) -> Iterator[slice]:
    """Yields parts of so many cells, each of which has so many numbers."""
    most = _BLOCK if device.type == "cpu" else _BLOCK_ON_GPU
    step = block_size(max(1, most // max(1, numbers)), count)
    return (slice(start, start + step) for start in range(0, count, step))
