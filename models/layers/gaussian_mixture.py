"""Gaussian mixtures: densities in log space, EM, and EM that follows a stream of features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomtune.models.layers.blocks import split_rows

#: Components with a smaller share of the features keep their mean and covariance.
SMALLEST_SHARE = 1e-4

#: Features per block where no gradient is needed: bounds memory to a few times this times K d.
_BLOCK = 4096

_KMEANS_STEPS = 20


class GaussianMixture(nn.Module):
    """A mixture of ``K`` Gaussians in ``d`` dimensions.

    It has buffers and no parameters: it is fitted by EM, not by gradients, and densities carry
    gradients to the features alone. Every covariance includes ``floor`` times the identity.

    Args:
        components: Number ``K`` of Gaussians.
        dimensions: Number ``d`` of dimensions.
        floor: What is added to the diagonal of every covariance.
        diagonal: Whether covariances are diagonal.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    whitening: Tensor
    log_scales: Tensor

    def __init__(
        self, components: int, dimensions: int, *, floor: float = 1e-3, diagonal: bool = False
    ) -> None:
        super().__init__()
        self._floor = floor
        self._diagonal = diagonal
        identities = torch.eye(dimensions).repeat(components, 1, 1)
        self.register_buffer("weights", torch.full((components,), 1 / max(1, components)))
        self.register_buffer("means", torch.zeros(components, dimensions))
        self.register_buffer("covariances", identities)
        # Inverse Cholesky factors and log of weight over sqrt((2 pi)^d det): made once per
        # update, not once per density.
        self.register_buffer("whitening", identities.clone())
        self.register_buffer("log_scales", torch.zeros(components))
        self._set(self.weights, self.means, self.covariances)

    @property
    def components(self) -> int:
        """The number ``K`` of Gaussians."""
        return len(self.weights)

    def log_joint(self, features: Tensor) -> Tensor:
        """Returns ``log pi_k N(u | mu_k, Sigma_k)``, ``(N, K)``, of features ``(N, d)``."""
        k, d = self.means.shape
        # |W_k (u - mu_k)|^2 for all k as one matrix product.
        flat = self.whitening.reshape(k * d, d)
        offsets = (self.whitening @ self.means.unsqueeze(-1)).reshape(k * d)
        white = F.linear(features, flat, -offsets).view(-1, k, d)
        return self.log_scales - white.square().sum(-1) / 2

    def log_density(self, features: Tensor) -> Tensor:
        """Returns ``log G(u)``, ``(N,)``, of features ``(N, d)``, with gradients to them."""
        return self.log_joint(features).logsumexp(1)

    @torch.no_grad()
    def log_densities(self, features: Tensor) -> Tensor:
        """Returns ``log G(u)``, ``(N,)``, of any number of features, block by block."""
        return torch.cat([self.log_density(block) for block in split_rows(features, _BLOCK)])

    @torch.no_grad()
    def update(self, features: Tensor, eta: float = 1.0) -> Tensor:
        """Does a step of stepwise EM; with ``eta`` 1 it is a step of EM.

        The running sums ``N_k``, ``S1_k`` and ``S2_k`` of responsibilities, features and their
        products become ``(1 - eta)`` times the old ones plus ``eta`` times the means over these
        features (Cappe and Moulines, "On-line expectation-maximization algorithm for latent data
        models", 2009). Shares below 1e-4 leave mean and covariance of their component as they
        are. The GPU is not waited for.

        Args:
            features: ``(N, d)``.
            eta: Weight of the new features, in [0, 1].

        Returns:
            The mean of ``log G(u)`` before the step, a scalar tensor.
        """
        share, first, second, log_density = self._moments(features)
        # Sums are taken around the old means: the same as around 0, and no digits are lost.
        kept = (1 - eta) * self.weights
        shares = kept + eta * share
        safe = shares.clamp_min(SMALLEST_SHARE)
        shift = eta * first / safe[:, None]
        spread = self.covariances - self._floor_matrix()
        spread = (kept[:, None, None] * spread + eta * second) / safe[:, None, None]
        spread = spread - shift.unsqueeze(-1) * shift.unsqueeze(-2)
        alive = shares >= SMALLEST_SHARE
        self._set(
            shares / shares.sum(),
            torch.where(alive[:, None], self.means + shift, self.means),
            torch.where(alive[:, None, None], spread + self._floor_matrix(), self.covariances),
        )
        return log_density

    def fit(self, features: Tensor, steps: int, tolerance: float = 1e-3) -> float:
        """Runs EM from the present parameters.

        Args:
            features: ``(N, d)``.
            steps: At most so many.
            tolerance: EM stops when the mean of ``log G(u)`` rises by less than this.

        Returns:
            The mean of ``log G(u)`` before the last step; not finite if features are not.
        """
        before = -math.inf
        for _ in range(steps):
            now = float(self.update(features))
            # Also stops where it is not finite.
            if not now - before >= tolerance:
                return now
            before = now
        return before

    @torch.no_grad()
    def initialise(self, features: Tensor, generator: torch.Generator) -> None:
        """Starts from the clusters of k-means.

        Args:
            features: ``(N, d)``, at least as many as there are components.
            generator: Randomness of the first centres, on the CPU.
        """
        centres = _kmeans(features, self.components, generator)
        labels = _nearest(features, centres)
        onehot = torch.zeros(len(features), self.components).to(features)
        onehot.scatter_(1, labels.unsqueeze(1), 1)
        self._set(self.weights.to(features), centres, self.covariances.to(features))
        share, first, second = self._weighted_sums(features, onehot)
        share, first, second = (part / len(features) for part in (share, first, second))
        safe = share.clamp_min(SMALLEST_SHARE)
        shift = first / safe[:, None]
        spread = second / safe[:, None, None] - shift.unsqueeze(-1) * shift.unsqueeze(-2)
        self._set(share / share.sum(), centres + shift, spread + self._floor_matrix())

    def _moments(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns means over features: responsibilities, their sums around the means, log G."""
        totals: list[Tensor] = []
        for block in torch.split(features, _BLOCK):
            joint = self.log_joint(block)
            density = joint.logsumexp(1)
            parts = [
                *self._weighted_sums(block, (joint - density.unsqueeze(1)).exp()),
                density.sum(),
            ]
            totals = parts if not totals else [a + b for a, b in zip(totals, parts, strict=True)]
        share, first, second, density = (total / len(features) for total in totals)
        return share, first, second, density

    def _weighted_sums(self, features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns sums of weights ``(N, K)``, and of features around the means, ``K`` each."""
        share = torch.zeros_like(self.weights)
        first = torch.zeros_like(self.means)
        second = torch.zeros_like(self.covariances)
        for block, weight in zip(
            torch.split(features, _BLOCK), torch.split(weights, _BLOCK), strict=True
        ):
            offsets = block.unsqueeze(0) - self.means.unsqueeze(1)  # (K, N, d)
            weighted = offsets * weight.T.unsqueeze(-1)
            share += weight.sum(0)
            first += weighted.sum(1)
            second += weighted.mT @ offsets
        return share, first, second

    def _floor_matrix(self) -> Tensor:
        d = self.means.shape[1]
        return self._floor * torch.eye(d, dtype=self.means.dtype, device=self.means.device)

    def _set(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Takes over parameters and makes what densities need of them."""
        if self._diagonal:
            covariances = torch.diag_embed(covariances.diagonal(dim1=-2, dim2=-1))
        d = means.shape[1]
        # Not cholesky, which would make the CPU wait for the GPU; a bad factor is not finite
        # or gives a loss that is not.
        factors, _ = torch.linalg.cholesky_ex(covariances)
        identity = torch.eye(d, dtype=means.dtype, device=means.device).expand_as(factors)
        self.whitening = torch.linalg.solve_triangular(factors, identity, upper=False)
        log_determinants = self.whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_weights = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
        self.log_scales = log_weights + log_determinants - d / 2 * math.log(2 * math.pi)
        self.weights, self.means, self.covariances = weights, means, covariances


def _kmeans(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns ``(count, d)`` centres: k-means++ seeds, then Lloyd's algorithm."""
    draws = torch.rand(count, generator=generator, dtype=torch.float64).to(features.device)
    first = (draws[0] * len(features)).long().clamp_max(len(features) - 1)
    centres = features[first].unsqueeze(0)
    distances = (features - centres).square().sum(1)
    for draw in draws[1:]:
        # Farther features are likelier seeds: inverse of the cumulated squared distances.
        cumulated = distances.double().cumsum(0)
        index = torch.searchsorted(cumulated, draw * cumulated[-1]).clamp_max(len(features) - 1)
        centres = torch.cat([centres, features[index].view(1, -1)])
        distances = torch.minimum(distances, (features - centres[-1]).square().sum(1))
    for _ in range(_KMEANS_STEPS):
        labels = _nearest(features, centres)
        sums = torch.zeros_like(centres).index_add_(0, labels, features)
        counts = torch.bincount(labels, minlength=count).to(features).unsqueeze(1)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return centres


def _nearest(features: Tensor, centres: Tensor) -> Tensor:
    """Returns the index ``(N,)`` of the nearest centre of each feature."""
    # |u|^2 is the same for all centres.
    half = centres.square().sum(1) / 2
    return torch.cat(
        [(half - block @ centres.T).argmin(1) for block in torch.split(features, _BLOCK)]
    )
