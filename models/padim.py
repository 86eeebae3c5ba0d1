"""PaDiM: a patch distribution modeling framework for anomaly detection (Defard et al., 2020).

Each position of the image has a Gaussian of the features that normal images show there; a patch is
as anomalous as its Mahalanobis distance is large. Features of three stages are concatenated, and
a random choice of their channels is kept, which is the paper's reduction of the rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from anomtune.errors import MethodError
from anomtune.models.layers.backbones import Backbone, Weights, load_backbone
from anomtune.models.layers.blocks import block_size
from anomtune.models.layers.evidence import Evidence
from anomtune.models.ranges import IntRange
from anomtune.models.training.one_pass import OnePassDetector, OnePassHyperparameters
from anomtune.models.training.report import Report

#: Added to the diagonal of the covariances (paper, eq. 1).
_EPSILON = 0.01
#: Numbers in one block of positions, at least one position.
_BLOCK = 1 << 23
#: Most bytes of a model. The paper's largest (550 channels at 256 pixels) takes 4.6 GiB.
_LARGEST = 6 * 2**30


class PaDiMHyperparameters(OnePassHyperparameters):
    """What can be set of `PaDiM`."""

    channels: Annotated[int, IntRange(low=50, high=550, log=True)] = Field(
        default=550,
        ge=1,
        description="Channels chosen at random from the three stages; all of them if there are "
        "fewer (wide_resnet50_2 1792, resnet18 448, mobilenet_v2 152). Source: paper (550 for "
        "wide_resnet50_2, 100 for resnet18); range inferred.",
    )


class PatchGaussians(nn.Module):
    """An encoder, and one Gaussian per position of its finest stage.

    The inverse covariance is kept as a factor W that whitens: with as many images as channels or
    more it is the inverse Cholesky factor, and the squared distance of x is ``|W x|^2``. Fewer
    images span fewer dimensions, all others have variance epsilon, and the matrix inversion lemma
    gives ``(|x|^2 - |W x|^2) / epsilon`` with one row of W per image: the same distance from a
    smaller model in less time.

    Args:
        backbone: Name of the encoder.
        weights: Its weights.
        channels: Channels to choose, at most as many as there are.
        generator: Where the choice comes from.
        size: Side of the images that the encoder will see, in pixels.

    Attributes:
        mean: Means ``(P, d)`` of the P = h w positions.
        factor: Factors W ``(P, min(N, d), d)``, N being the number of training images.
    """

    mean: Tensor
    factor: Tensor

    def __init__(
        self,
        backbone: Backbone,
        weights: Weights,
        channels: int,
        generator: torch.Generator,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = load_backbone(backbone, weights, size)
        total = sum(self.encoder.channels)
        chosen = torch.randperm(total, generator=generator)[:channels].sort().values
        for stage, count in enumerate(self.encoder.channels):
            inside = (chosen >= 0) & (chosen < count)
            self.register_buffer(f"channels_{stage}", chosen[inside])
            chosen = chosen - count
        self.register_buffer("mean", torch.empty(0, len(chosen)))
        self.register_buffer("factor", torch.empty(0, 0, len(chosen)))

    def forward(self, images: Tensor) -> Tensor:
        """Returns float32 features ``(B, d, h, w)`` of normalised images ``(B, 3, S, S)``."""
        stages = self.encoder(images)
        grid = stages[0].shape[-2:]
        # Each position takes the features of the coarser patch that it lies in.
        parts = [
            F.interpolate(stage.index_select(1, chosen), grid, mode="nearest")
            for number, stage in enumerate(stages)
            if len(chosen := self.get_buffer(f"channels_{number}"))
        ]
        return torch.cat(parts, 1)

    def fill(self, mean: Tensor, factor: Tensor) -> None:
        """Takes means ``(P, d)`` and factors ``(P, min(N, d), d)``."""
        self.mean, self.factor = mean, factor

    def distances(self, features: Tensor) -> Tensor:
        """Returns Mahalanobis distances ``(B, h, w)`` of features ``(B, d, h, w)`` (eq. 2)."""
        n_images, channels, height, width = features.shape
        by_position = features.flatten(2).permute(2, 1, 0)
        rank = self.factor.shape[1]
        squares = []
        for block in _blocks(len(self.mean), channels * max(n_images, rank)):
            x = (by_position[block] - self.mean[block, :, None]).contiguous()
            square = torch.bmm(self.factor[block], x).square().sum(1)
            if rank < channels:
                square = (x.square().sum(1) - square) / _EPSILON
            squares.append(square)
        distances = torch.cat(squares).clamp_min_(0).sqrt_()
        return distances.T.reshape(n_images, height, width)


def _blocks(n_positions: int, numbers: int) -> Iterator[slice]:
    """Yields parts of the positions, each of which has so many numbers."""
    step = block_size(max(1, _BLOCK // numbers), n_positions)
    return (slice(start, start + step) for start in range(0, n_positions, step))


class _Samples:
    """Features of fewer images than channels: kept, and turned into factors in place."""

    def __init__(self, n_images: int, first: Tensor) -> None:
        n_positions, _, channels = first.shape
        self._rows = first.new_empty(n_positions, n_images, channels)
        self._count = 0

    def add(self, features: Tensor) -> None:
        """Takes features ``(P, B, d)``."""
        self._rows[:, self._count : self._count + features.shape[1]] = features
        self._count += features.shape[1]

    def finish(self) -> tuple[Tensor, Tensor, float]:
        """Returns means, factors and the mean variance."""
        n_positions, n, channels = self._rows.shape
        mean = self._rows.mean(1)
        total = 0.0
        for block in _blocks(n_positions, n * channels):
            rows = (self._rows[block].double() - mean[block, None]) / math.sqrt(max(1, n - 1))
            gram = rows @ rows.mT
            total += float(gram.diagonal(dim1=1, dim2=2).sum())
            gram.diagonal(dim1=1, dim2=2).add_(_EPSILON)
            root = torch.linalg.cholesky(gram)
            self._rows[block] = torch.linalg.solve_triangular(root, rows, upper=False).float()
        return mean, self._rows, total / mean.numel()


class _Moments:
    """First and second moments of any number of images, turned into factors in place."""

    def __init__(self, n_images: int, first: Tensor) -> None:
        n_positions, _, channels = first.shape
        self._n = n_images
        # Near the mean, or the square of the mean would drown the variance.
        self._origin = first.mean(1)
        self._sum = torch.zeros_like(self._origin)
        self._products = first.new_zeros(n_positions, channels, channels)

    def add(self, features: Tensor) -> None:
        """Takes features ``(P, B, d)``."""
        x = features - self._origin[:, None]
        self._sum += x.sum(1)
        self._products.baddbmm_(x.mT, x)

    def finish(self) -> tuple[Tensor, Tensor, float]:
        """Returns means, factors and the mean variance."""
        n_positions, channels = self._sum.shape
        shift = self._sum / self._n
        one = torch.eye(channels, dtype=torch.float64, device=shift.device)
        total = 0.0
        for block in _blocks(n_positions, channels**2):
            away = shift[block].double()
            covariance = self._products[block].double()
            covariance -= self._n * away[:, :, None] * away[:, None]
            covariance /= max(1, self._n - 1)
            total += float(covariance.diagonal(dim1=1, dim2=2).sum())
            root = torch.linalg.cholesky(covariance + _EPSILON * one)
            self._products[block] = torch.linalg.solve_triangular(root, one, upper=False).float()
        return self._origin + shift, self._products, total / shift.numel()


class PaDiM(OnePassDetector[PaDiMHyperparameters]):
    """The detector of one category; see `Detector` for the arguments.

    Its model has ``4 h w d min(N, d)`` bytes for N training images, and fitting takes little
    more; beyond 6 GiB it is refused.
    """

    network: PatchGaussians

    def build(self) -> PatchGaussians:
        """Returns encoder and empty statistics; see `Detector.build`."""
        hp = self.hyperparameters
        return PatchGaussians(hp.backbone, hp.weights, hp.channels, self.generator, self.input_size)

    def learn(self, images: Tensor) -> Report:
        """Fills the statistics; see `OnePassDetector.learn`."""
        statistics: _Samples | _Moments | None = None
        for batch in self._batches(images):
            features = self.network(batch).flatten(2).permute(2, 0, 1)
            if statistics is None:
                n_positions, _, channels = features.shape
                _check_size(n_positions, channels, len(images))
                kind = _Samples if len(images) < channels else _Moments
                statistics = kind(len(images), features)
            statistics.add(features)
        assert statistics is not None
        mean, factor, variance = statistics.finish()
        self.network.fill(mean, factor)
        return {"variance": variance}

    def evidence(self, images: Tensor) -> Evidence:
        """Returns the distances of the positions; see `Detector.evidence`.

        Raises:
            MethodError: If there are no Gaussians yet.
        """
        if len(self.network.mean) == 0:
            raise MethodError("there are no Gaussians yet: fit the detector first")
        features = self.network(self.inputs(images))
        return Evidence((self.network.distances(features),))


def _check_size(n_positions: int, channels: int, n_images: int) -> None:
    """Raises a `MethodError` if the Gaussians would need too much memory."""
    size = 4 * n_positions * channels * min(channels, n_images)
    if size > _LARGEST:
        room = _LARGEST // (4 * n_positions)
        fitting = max(math.isqrt(room), room // n_images)
        raise MethodError(
            f"Gaussians of {channels} channels at {n_positions} positions take "
            f"{size / 2**30:.1f} GiB: use channels {fitting} or fewer, or a smaller resolution"
        )
