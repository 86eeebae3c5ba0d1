"""What an encoder is: images in, maps of its stages out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anomtune.models.layers.frozen import KnownFeatures

#: Takes the number of a stage, 1 to 3, and its map; returns what the next stage is to see.
ChangeMap = Callable[[int, Tensor], Tensor]


class Encoder(nn.Module):
    """What encoders share.

    Attributes:
        known: Features of images that a frozen encoder is shown again and again; ``None``: none
            are known, or its weights have changed.
        n_stages: Number of maps: three of every backbone.
        channels: Channels of each map.
        strides: Pixels between neighbouring positions of each of them.
        signed: Whether the features can be negative.
        blocks: Number of residual blocks of each stage of the decoder that mirrors it.
        expansion: Of those blocks: 1 for basic, 4 for bottleneck blocks.
        base_width: Width of the bottleneck blocks per 64 planes.
    """

    known: KnownFeatures | None = None
    n_stages: int = 3
    channels: tuple[int, ...]
    strides: tuple[int, ...] = (4, 8, 16)
    signed: bool = True
    blocks: tuple[int, ...] = (2, 2, 2)
    expansion: int = 1
    base_width: int = 64

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the maps ``(B, C, h, w)`` of normalised images ``(B, 3, S, S)``."""
        if self.known is not None and (found := self.known.find(images)) is not None:
            return found
        return self.maps(images)

    def maps(self, images: Tensor, change: ChangeMap | None = None) -> list[Tensor]:
        """Returns the maps, computed; each is changed before the next stage sees it."""
        maps: list[Tensor] = []
        x = images
        for number in range(1, self.n_stages + 1):
            x = self.stage(number, x)
            if change is not None:
                x = change(number, x)
            maps.append(x)
        return maps

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Returns the map of a stage, from 1 on, of the map before it; stage 1 takes images."""
        raise NotImplementedError

    def digest(self) -> str:
        """Returns what names the weights and statistics, whatever file they came from."""
        content = hashlib.blake2b(digest_size=16)
        for name, value in self.state_dict().items():
            content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            content.update(value.cpu().contiguous().view(-1).numpy())
        return content.hexdigest()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.known = None


class StridedDepthwise(nn.Conv2d):
    """Depthwise convolution with a stride, which CPUs compute in float32.

    For its gradient in bfloat16 they have no kernel, and take 9 to 45 times as long (torch 2.14).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the layer would."""
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype))


def use_strided_depthwise(network: nn.Module) -> None:
    """Makes all such convolutions of a network `StridedDepthwise`."""
    for layer in network.modules():
        # Not subclasses, which compute something else.
        if type(layer) is nn.Conv2d and layer.groups > 1 and layer.stride != (1, 1):
            layer.__class__ = StridedDepthwise
