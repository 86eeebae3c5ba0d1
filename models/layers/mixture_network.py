"""The network of `gmm_contrastive`: projected patch features and mixtures of them, and its loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomtune.models.images.pixels import normalise, upload
from anomtune.models.layers.backbones import Backbone, Weights, load_backbone
from anomtune.models.layers.gaussian_mixture import GaussianMixture
from anomtune.models.layers.patch_features import PatchFeatures

#: Images per batch where no gradient is needed.
_BATCH = 16


class MixtureNetwork(nn.Module):
    """A backbone, a fixed projection of its patch features, and mixtures of these.

    Attributes:
        features: Backbone and patch features; batch norm always uses its stored statistics.
        mean: Mean of the first training features, ``(C,)``.
        projection: Whitened principal directions, ``(d, C)``.
        tau: Log of ``alpha / ((1 - alpha) L)``, a scalar.
        online: The mixture that follows the fine-tuning.
        final: The mixture of the features as they are now: that of the maps.

    Args:
        backbone: Name of the backbone.
        weights: Its weights.
        size: Side of the images that it will see, in pixels.
        floor: Added to the variances of the mixtures.
        diagonal: Whether their covariances are diagonal instead of full.
    """

    mean: Tensor
    projection: Tensor
    tau: Tensor

    def __init__(
        self,
        backbone: Backbone,
        weights: Weights,
        size: int | None = None,
        *,
        floor: float,
        diagonal: bool,
    ) -> None:
        super().__init__()
        self._floor, self._diagonal = floor, diagonal
        self.features = PatchFeatures(load_backbone(backbone, weights, size))
        self.register_buffer("mean", torch.zeros(self.features.channels))
        self.register_buffer("tau", torch.zeros(()))
        self.allocate(0, 0, 0)

    def new_mixture(self, components: int, dimensions: int) -> GaussianMixture:
        """Returns an empty mixture of the network's kind."""
        return GaussianMixture(components, dimensions, floor=self._floor, diagonal=self._diagonal)

    def allocate(self, online: int, final: int, dimensions: int) -> None:
        """Makes room for mixtures of so many components and a projection, on the same device."""
        device = self.mean.device
        self.online = self.new_mixture(online, dimensions).to(device)
        self.final = self.new_mixture(final, dimensions).to(device)
        shape = (dimensions, self.features.channels)
        self.register_buffer("projection", torch.zeros(shape, device=device))

    def whiten(self, images: Tensor, limit: int, dimensions: int, components: int) -> None:
        """Makes the projection, and room for the mixtures, from features of images.

        Args:
            images: uint8 ``(N, 3, I, I)``.
            limit: At most so many features are looked at.
            dimensions: At most so many are kept, see `whitening`.
            components: At most so many. With fewer features than the covariances have free
                values, normal images that were not seen lie far outside.
        """
        mean, projection, count = whitening(self.sample(images, limit), dimensions)
        kept = len(projection)
        values = kept if self._diagonal else kept * (kept + 1) // 2
        components = max(1, min(components, count // values))
        self.allocate(components, components, kept)
        self.mean, self.projection = mean, projection

    def train(self, mode: bool = True) -> MixtureNetwork:
        """Sets the mode; the backbone always stays in eval mode."""
        super().train(mode)
        self.features.eval()
        return self

    def patches(self, images: Tensor) -> Tensor:
        """Returns features ``(B h w, C)`` of uint8 images ``(B, 3, I, I)``, row by row."""
        features: Tensor = self.features(normalise(images, self.mean.device))
        return features.permute(0, 2, 3, 1).flatten(0, 2)

    def sample(self, images: Tensor, limit: int) -> Iterator[Tensor]:
        """Yields float32 patches ``(n, C)``, batch by batch; where all are too many, random ones.

        Args:
            images: uint8 ``(N, 3, I, I)``, any number, in the order that decides the choice.
            limit: At most so many patches, but one of each image.
        """
        self.eval()
        positions = (images.shape[-1] // self.features.stride) ** 2
        share = max(1, min(positions, limit // len(images)))
        generator = torch.Generator().manual_seed(0)
        for batch in torch.split(images, _BATCH):
            patches = self.patches(batch)
            if share < positions:
                chosen = torch.rand(len(batch), positions, generator=generator).argsort(1)
                rows = torch.arange(len(batch)).unsqueeze(1) * positions
                patches = patches[upload((rows + chosen[:, :share]).flatten(), patches.device)]
            yield patches.float()

    def features_of(self, images: Tensor, limit: int) -> Tensor:
        """Returns whitened features ``(<= limit, d)`` of images; see `sample`."""
        return torch.cat([self.project(part) for part in self.sample(images, limit)])

    def project(self, patches: Tensor) -> Tensor:
        """Returns whitened features ``(N, d)``, float32, of patches ``(N, C)``."""
        with torch.autocast(patches.device.type, enabled=False):
            return F.linear(patches.float() - self.mean, self.projection)

    def log_odds(self, features: Tensor) -> Tensor:
        """Returns ``s(u) = log G(u) - tau``, the log odds of being normal, of ``(N, d)``."""
        with torch.autocast(features.device.type, enabled=False):
            return self.online.log_density(features) - self.tau


def contrastive_loss(positive: Tensor, negative: Tensor, kept: Tensor) -> Tensor:
    """Returns the mean of ``L_pos`` plus that of ``L_neg`` over the negatives that are kept.

    With ``s = log G - tau`` the supplement's equations 1 to 4 are ``L_pos = softplus(-s)`` and
    ``L_neg = softplus(s)`` (equation 4 prints u+ where u- is meant).

    Args:
        positive: Log odds ``(N,)`` of normal features.
        negative: Log odds ``(M,)`` of negative features.
        kept: Which of the latter learn, ``(M,)``, at least one.
    """
    losses = torch.where(kept, F.softplus(negative), 0.0)
    return F.softplus(-positive).mean() + losses.sum() / kept.sum()


def outliers(log_odds: Tensor, fraction: float) -> Tensor:
    """Returns which negatives learn: those outside the mixture, or the most outside.

    Args:
        log_odds: ``(M,)``; below 0 is outside.
        fraction: If fewer than this share is outside, so many with the lowest log odds learn.
    """
    lowest = log_odds.detach().topk(math.ceil(fraction * len(log_odds)), largest=False).indices
    # Where enough are outside, the lowest are among them.
    return (log_odds < 0).index_fill(0, lowest, True)


def some_of(patches: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Returns at most ``limit`` of the patches ``(N, C)``, at random."""
    if len(patches) <= limit:
        return patches
    chosen = torch.randperm(len(patches), generator=generator)[:limit]
    return patches[upload(chosen, patches.device)]


def whitening(batches: Iterator[Tensor], dimensions: int) -> tuple[Tensor, Tensor, int]:
    """Returns the mean and the whitened principal directions of features.

    Args:
        batches: Features ``(n, C)``, float32, at least one batch.
        dimensions: At most so many directions. Directions with less than a millionth of the
            greatest variance are left out, and there are fewer than features.

    Returns:
        Mean ``(C,)``, directions over their deviations ``(d, C)``, and the number of features.
    """
    batch = next(batches)
    # Sums are taken around the mean of the first batch, so that no digits are lost.
    origin = batch.mean(0)
    first = torch.zeros_like(origin, dtype=torch.float64)
    second = torch.zeros(len(origin), len(origin), dtype=torch.float64, device=origin.device)
    count = 0
    for part in itertools.chain([batch], batches):
        centred = part - origin
        first += centred.sum(0)
        second += centred.T @ centred
        count += len(part)
    shift = first / count
    values, vectors = torch.linalg.eigh(second / count - shift.outer(shift))
    values, vectors = values.flip(0), vectors.flip(1)
    useful = int((values > 1e-6 * values[0]).sum())
    kept = max(1, min(dimensions, useful, count - 1))
    projection = (vectors[:, :kept] / values[:kept].clamp_min(1e-12).sqrt()).T
    return (origin + shift).float(), projection.float().contiguous(), count
