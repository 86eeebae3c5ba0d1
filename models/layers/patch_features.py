"""Features of image patches: maps of several stages of an encoder, brought to one grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomtune.models.layers.encoder import Encoder


class PatchFeatures(nn.Module):
    """An encoder whose chosen stages are averaged over neighbourhoods and concatenated.

    Every position of the finest chosen stage gets one feature vector; coarser stages are brought
    to its grid by bilinear interpolation. With a neighbourhood of 3 and the second and third
    stage these are the locally aware patch features of PatchCore (Roth et al., CVPR 2022, eq. 2
    and 3).

    Args:
        encoder: Gives three maps. Its mode and gradients are the caller's business.
        stages: Which of its maps, ascending, 0 to 2.
        neighbourhood: Side of the averaged neighbourhood in positions of the stage; odd.
        pooled: Length of the feature vectors, to which each stage and then both together are
            pooled as in PatchCore's official code; 0: the means are concatenated as they are.

    Attributes:
        channels: Length of a feature vector.
        stride: Pixels between neighbouring positions.
    """

    def __init__(
        self,
        encoder: Encoder,
        stages: Sequence[int] = (1, 2),
        neighbourhood: int = 3,
        *,
        pooled: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels = pooled or sum(encoder.channels[stage] for stage in stages)
        self.stride = encoder.strides[stages[0]]
        self._stages = tuple(stages)
        self._neighbourhood = neighbourhood
        self._pooled = pooled

    def forward(self, images: Tensor) -> Tensor:
        """Returns features ``(B, channels, h, w)`` of normalised images ``(B, 3, S, S)``."""
        stages = self.encoder(images)
        reduce = self._pool if self._pooled else self._average
        maps = [reduce(stages[stage]) for stage in self._stages]
        grid = maps[0].shape[-2:]
        features = torch.cat(
            [maps[0], *(F.interpolate(m, grid, mode="bilinear") for m in maps[1:])], dim=1
        )
        if not self._pooled:
            return features
        pooled = F.adaptive_avg_pool1d(features.flatten(2).mT, self._pooled).mT
        return pooled.reshape(len(images), self._pooled, *grid)

    def split(self, features: Tensor) -> tuple[Tensor, ...]:
        """Returns features ``(N, channels)`` by the stage that they come from."""
        widths = [self.encoder.channels[stage] for stage in self._stages]
        if self._pooled:
            # Both stages are as long when they are pooled together.
            widths = [self._pooled // len(widths)] * (len(widths) - 1)
            widths.append(self._pooled - sum(widths))
        return torch.split(features, widths, dim=1)

    def _average(self, stage: Tensor) -> Tensor:
        n = self._neighbourhood
        # Zeros beyond the border count, as in PatchCore's official code: means of fewer values
        # would vary more there, and borders would stand out in every map.
        return F.avg_pool2d(stage, n, 1, n // 2) if n > 1 else stage

    def _pool(self, stage: Tensor) -> Tensor:
        """Returns neighbourhoods ``(B, pooled, h, w)``, channel after channel laid out and pooled.

        Where that makes two numbers of a channel, as of WideResNet50's second stage, they share
        the middle of the neighbourhood: together they weigh it double.
        """
        n = self._neighbourhood
        laid_out = F.unfold(stage, n, padding=n // 2)
        # Pooled before they are interpolated, not after: both are linear, and this is less work.
        pooled = F.adaptive_avg_pool1d(laid_out.mT, self._pooled).mT
        return pooled.reshape(len(stage), self._pooled, *stage.shape[-2:])
