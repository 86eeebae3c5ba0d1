"""The autoencoder with stacked dilated convolutions of Bauer, Nakajima and Mueller, Table 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_DILATIONS = (1, 2, 4, 8, 16, 32)


class SDC(nn.Module):
    """Six parallel convolutions of different dilation, put together, and a 3 x 3 convolution.

    Batch norm and ReLU follow each of them; for the parallel ones that is done once, after they
    are put together, which is the same.

    Args:
        channels: Channels of the input.
        width: Filters of each dilated convolution.
        kernel: Side of the dilated kernels.
    """

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(
            nn.Conv2d(
                channels, width, kernel, padding=kernel // 2 * rate, dilation=rate, bias=False
            )
            for rate in _DILATIONS
        )
        stacked = len(_DILATIONS) * width
        self.norm = nn.Sequential(nn.BatchNorm2d(stacked), nn.ReLU(inplace=True))
        self.mix = _conv(stacked, stacked)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(B, 6 width, H, W)`` of features ``(B, channels, H, W)``."""
        stacked = torch.cat([conv(x) for conv in self.dilated], dim=1)
        mixed: Tensor = self.mix(self.norm(stacked))
        return mixed


class SDCAutoencoder(nn.Module):
    """Reconstructs images; fully convolutional, for sides that are multiples of 8.

    Convolutions have no bias where batch norm follows; borders are zero-padded.

    Args:
        width: Filters of the first layer; the paper's is 64.
        kernel: Side ``f`` of the dilated kernels, 3 or 5 in the paper.
    """

    def __init__(self, width: int = 64, kernel: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            _conv(3, width),
            _conv(width, width),
            nn.MaxPool2d(2),
            _conv(width, 2 * width),
            _conv(2 * width, 2 * width),
            nn.MaxPool2d(2),
            _conv(2 * width, 4 * width),
            _conv(4 * width, 4 * width),
            nn.MaxPool2d(2),
        )
        stacked = len(_DILATIONS) * width
        self.context = nn.Sequential(
            SDC(4 * width, width, kernel), *(SDC(stacked, width, kernel) for _ in range(3))
        )
        self.decoder = nn.Sequential(
            _double(stacked, 4 * width),
            _conv(4 * width, 4 * width),
            _conv(4 * width, 4 * width),
            _double(4 * width, 2 * width),
            _conv(2 * width, 2 * width),
            _conv(2 * width, 2 * width),
            _double(2 * width, width),
            _conv(width, width),
            _conv(width, width),
        )
        self.output = nn.Conv2d(width, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns reconstructions ``(B, 3, H, W)``, float32 in ``[0, 1]``, of such images."""
        features = self.decoder(self.context(self.encoder(images)))
        # The error of a good reconstruction is smaller than what bfloat16 can tell apart.
        with torch.autocast(images.device.type, enabled=False):
            return torch.sigmoid(self.output(features.float()))


def _conv(channels: int, filters: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3, padding=1, bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(inplace=True),
    )


def _double(channels: int, filters: int) -> nn.Sequential:
    """A transposed convolution that doubles the side exactly."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, filters, 3, stride=2, padding=1, output_padding=1, bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(inplace=True),
    )
