"""The score network of SPR: a U-Net that is told how much noise its input carries.

Score-based perturbation resilience (Shin et al., ICCV 2023), Table 1 of the supplement; widths in
the middle of the decoder's blocks, the biases and the Fourier features are those of the official
code, whose parameter counts the tests reproduce.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EMBEDDING = 256
#: Standard deviation of the random frequencies.
_FREQUENCY_SCALE = 30.0
_GROUPS = 32


def perturbation_std(t: Tensor, sigma: float) -> Tensor:
    """Returns the standard deviation of the noise that is added up to time ``t``.

    For the variance-exploding SDE ``dx = sigma^t dw`` it is
    ``sqrt((sigma^(2 t) - 1) / (2 ln sigma))`` (official code).

    Args:
        t: Times, any shape, in ``[0, 1]``.
        sigma: Base of the SDE, above 1.
    """
    # At t = 1e-5 the difference to 1 keeps three digits in float32; expm1 keeps them all.
    rate = 2 * math.log(sigma)
    return torch.sqrt(torch.expm1(rate * t) / rate)


class FourierEmbedding(nn.Module):
    """Embeds times ``(B,)`` in ``(B, 256)``: waves of fixed random frequencies, then a layer."""

    def __init__(self) -> None:
        super().__init__()
        # A parameter that does not learn: the published size of the model counts it.
        self.frequencies = nn.Parameter(
            torch.randn(_EMBEDDING // 2) * _FREQUENCY_SCALE, requires_grad=False
        )
        self.linear = nn.Linear(_EMBEDDING, _EMBEDDING)

    def forward(self, t: Tensor) -> Tensor:
        """Returns the embedding."""
        phases = 2 * math.pi * t[:, None] * self.frequencies
        return F.silu(self.linear(torch.cat([phases.sin(), phases.cos()], dim=1)))


class DoubleConv(nn.Module):
    """Twice convolution, group norm and swish, then a bias per channel that depends on the time.

    Args:
        in_channels: Channels of the input.
        mid_channels: Channels after the first convolution.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 3, padding=1),
            _group_norm(mid_channels),
            nn.SiLU(),
            nn.Conv2d(mid_channels, out_channels, 3, padding=1),
            _group_norm(out_channels),
            nn.SiLU(),
        )
        self.time = nn.Linear(_EMBEDDING, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Returns ``(B, out_channels, h, w)`` from ``(B, in_channels, h, w)`` and ``(B, 256)``."""
        return self.add_time(self.convs(x), embedding)

    def add_time(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Returns the features ``(B, out_channels, h, w)`` with the bias of the time."""
        bias: Tensor = self.time(embedding)
        return features + bias[:, :, None, None]


def _group_norm(channels: int) -> nn.GroupNorm:
    """Returns group norm with 32 groups, fewer where they would have less than two channels.

    Two is what the groups of the paper's narrowest blocks have.
    """
    return nn.GroupNorm(math.gcd(_GROUPS, channels // 2), channels)


class ScoreNetwork(nn.Module):
    """Estimates the score, the gradient of the log density of noisy images.

    Args:
        width: Channels at full resolution, even; the paper has 64. All others are multiples.
        sigma: Base of the SDE, see `perturbation_std`.
    """

    def __init__(self, width: int = 64, sigma: float = 25.0) -> None:
        super().__init__()
        self._sigma = sigma
        w = width
        self.embedding = FourierEmbedding()
        self.inc = DoubleConv(3, w, w)
        self.down = nn.ModuleList(
            DoubleConv(c_in, c_out, c_out)
            for c_in, c_out in ((w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w), (8 * w, 8 * w))
        )
        self.up = nn.ModuleList(
            DoubleConv(c_in, c_in // 2, c_out)
            for c_in, c_out in ((16 * w, 4 * w), (8 * w, 2 * w), (4 * w, w), (2 * w, w))
        )
        self.outc = nn.Conv2d(w, 3, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Returns the scores ``(B, 3, H, W)``, float32.

        Args:
            x: Noisy images ``(B, 3, H, W)``; sides are multiples of 16.
            t: Their times ``(B,)`` in ``(0, 1]``.
        """
        with torch.autocast(x.device.type, enabled=False):
            # bfloat16 would round the image by as much as a tenth of small noise.
            embedding = self.embedding(t)
            first = self.inc.convs[0](x)
        skips = [self.inc.add_time(self.inc.convs[1:](first), embedding)]
        for block in self.down:
            skips.append(block(F.max_pool2d(skips[-1], 2), embedding))
        features: Tensor = skips.pop()
        for block in self.up:
            upsampled = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)
            features = block(torch.cat([skips.pop(), upsampled], dim=1), embedding)
        with torch.autocast(x.device.type, enabled=False):
            output: Tensor = self.outc(features.float())
            return output / perturbation_std(t, self._sigma)[:, None, None, None]
