"""The student of reverse distillation: a one-class bottleneck and a decoder.

Source: RD4AD (Deng and Li, CVPR 2022) and its official code; ReContrast (NeurIPS 2023) shares
both and adds output heads. The decoder mirrors the encoder stage by stage. For MobileNetV2 and
timm's networks, which neither paper uses, the student is ResNet18's at the encoder's own widths
(with the blocks of ResNet50 where the third is 512 or more), with heads, as their features can be
negative and those of the blocks cannot. Between maps of the same stride, as a vision transformer
has them, nothing is resampled.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from anomtune.models.layers.backbones import ResNetEncoder
from anomtune.models.layers.encoder import Encoder


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions.

    Args:
        inputs: Input channels.
        planes: Output channels.
        resample: ``down`` and ``up`` halve and double the size with the first convolution.
        base_width: Not used: basic blocks have no inner width.
    """

    expansion = 1

    def __init__(self, inputs: int, planes: int, resample: str = "", base_width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv3x3(inputs, planes, resample),
            nn.BatchNorm2d(planes),
            nn.ReLU(inplace=True),
            _conv3x3(planes, planes),
            nn.BatchNorm2d(planes),
        )
        self.shortcut = _shortcut(inputs, planes, resample)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, inputs, h, w)`` to ``(B, planes, h', w')``, non-negative."""
        return cast(Tensor, self.relu(self.body(x) + self.shortcut(x)))


class BottleneckBlock(nn.Module):
    """Residual block 1x1, 3x3, 1x1 with 4 times as many output channels as planes.

    Args:
        inputs: Input channels.
        planes: A quarter of the output channels.
        resample: ``down`` and ``up`` halve and double the size with the middle convolution.
        base_width: Width of the middle per 64 planes: 128 for WideResNet50-2.
    """

    expansion = 4

    def __init__(self, inputs: int, planes: int, resample: str = "", base_width: int = 64) -> None:
        super().__init__()
        width = planes * base_width // 64
        outputs = planes * self.expansion
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            _conv3x3(width, width, resample),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = _shortcut(inputs, outputs, resample)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, inputs, h, w)`` to ``(B, 4 planes, h', w')``, non-negative."""
        return cast(Tensor, self.relu(self.body(x) + self.shortcut(x)))


Block = type[BasicBlock] | type[BottleneckBlock]


class OneClassBottleneck(nn.Module):
    """Multi-scale feature fusion (MFF) and one-class embedding (OCE).

    Brings the three maps to the stride of the third, 16 of most encoders, joins them and compresses
    them to twice that stride.

    Args:
        encoder: Gives channels and kind of blocks.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        first, second, third = encoder.channels
        to_second, to_third = _halvings(encoder)
        self.fuse1 = nn.Sequential(
            *_bring(first, second, to_second), *_bring(second, third, to_third)
        )
        self.fuse2 = nn.Sequential(*_bring(second, third, to_third))
        # The official module: 2 blocks for ResNet18, 3 for the deeper networks.
        n_blocks = 2 if encoder.blocks == (2, 2, 2) else 3
        self.embed = _stage(encoder, 3 * third, 2 * third, n_blocks, "down")
        if isinstance(encoder, ResNetEncoder):
            # Never used: the official module declares this layer, and the parameter counts
            # published by both papers include it.
            self.dead = nn.Sequential(
                nn.Conv2d(4 * third, 2 * third, 1, bias=False), nn.BatchNorm2d(2 * third)
            )
        _initialise(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Returns ``(B, 2 C3, h/2, w/2)`` from the maps, the third being ``(B, C3, h, w)``."""
        first, second, third = features
        joined = torch.cat([self.fuse1(first), self.fuse2(second), third], dim=1)
        return cast(Tensor, self.embed(joined))


class Decoder(nn.Module):
    """The encoder upside down, with one set of output heads per view.

    Args:
        encoder: Gives channels and number and kind of blocks.
        views: Number of sets of 1x1 output convolutions, one per scale. 0 gives the maps as
            they leave the blocks: non-negative, like those of a ResNet.
    """

    def __init__(self, encoder: Encoder, views: int) -> None:
        super().__init__()
        first, second, third = encoder.channels
        # Numbers of blocks in the encoder's order, as in the official code.
        n3, n2, n1 = encoder.blocks
        to_second, to_third = _halvings(encoder)
        self.up3 = _stage(encoder, 2 * third, third, n3, "up")
        self.up2 = _stage(encoder, third, second, n2, "up", times=to_third)
        self.up1 = _stage(encoder, second, first, n1, "up", times=to_second)
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(channels, channels, 1) for channels in encoder.channels)
            for _ in range(views)
        )
        _initialise(self)

    def forward(self, embedding: Tensor) -> list[list[Tensor]]:
        """Returns, for each view, the three maps of its share of the batch.

        Args:
            embedding: ``(V B, 2 C3, h/2, w/2)``: the batches of the V views one after another.
        """
        third = self.up3(embedding)
        second = self.up2(third)
        maps = [self.up1(second), second, third]
        if not self.heads:
            return [maps]
        # Not chunk, whose number of parts an exported graph cannot know for every batch.
        shares = zip(*(part.unflatten(0, (len(self.heads), -1)) for part in maps), strict=True)
        return [
            [head(part) for head, part in zip(cast(nn.ModuleList, heads), share, strict=True)]
            for heads, share in zip(self.heads, shares, strict=True)
        ]


class Student(nn.Module):
    """Bottleneck and decoder: predicts the features of ``views`` encoders.

    Args:
        encoder: The network to mirror.
        views: Number of encoders whose features are decoded together.
    """

    def __init__(self, encoder: Encoder, views: int = 1) -> None:
        super().__init__()
        # One view needs no head, unless the features can be negative and the blocks' cannot.
        heads = views if views > 1 or encoder.signed else 0
        self.bottleneck = OneClassBottleneck(encoder)
        self.decoder = Decoder(encoder, heads)

    def forward(self, *views: list[Tensor]) -> list[list[Tensor]]:
        """Returns the prediction decoded from each view's features, in the same order.

        All views pass together, so that batch norm sees their mixture (ReContrast).
        """
        joined = [torch.cat(maps) for maps in zip(*views, strict=True)] if len(views) > 1 else None
        return cast(list[list[Tensor]], self.decoder(self.bottleneck(joined or views[0])))


def _stage(
    encoder: Encoder, inputs: int, outputs: int, blocks: int, resample: str, *, times: int = 1
) -> nn.Module:
    """Returns residual blocks, of which the first ``times`` halve or double the size."""
    block: Block = BottleneckBlock if encoder.expansion == 4 else BasicBlock
    planes = outputs // block.expansion
    return nn.Sequential(
        *(
            block(
                outputs if number else inputs,
                planes,
                resample if number < times else "",
                encoder.base_width,
            )
            for number in range(max(blocks, times))
        )
    )


def _halvings(encoder: Encoder) -> tuple[int, int]:
    """Returns how often maps are halved from the first to the second, and on to the third."""
    first, second, third = encoder.strides
    return (second // first).bit_length() - 1, (third // second).bit_length() - 1


def _conv3x3(inputs: int, outputs: int, resample: str = "") -> nn.Module:
    if resample == "up":
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    stride = 2 if resample == "down" else 1
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _shortcut(inputs: int, outputs: int, resample: str) -> nn.Module:
    if not resample and inputs == outputs:
        return nn.Identity()
    convolution: nn.Module
    if resample == "up":
        convolution = nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    else:
        convolution = nn.Conv2d(inputs, outputs, 1, stride=2 if resample else 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _bring(inputs: int, outputs: int, halvings: int) -> list[nn.Module]:
    """Returns convolutions that halve maps so often, at least one."""
    layers: list[nn.Module] = []
    for number in range(max(1, halvings)):
        resample = "down" if number < halvings else ""
        convolution = _conv3x3(outputs if number else inputs, outputs, resample)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return layers


def _initialise(module: nn.Module) -> None:
    """Initialises convolutions; transposed ones keep PyTorch's default, as in the papers' code."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
