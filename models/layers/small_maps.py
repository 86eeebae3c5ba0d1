"""Convolutions of small maps as matrix products, on CPUs.

A network ends in maps of a few points with many channels: 2 x 2 x 512 for ResNet18's student and
images of 64 pixels. There are more weights than points then, and what torch calls for a
convolution on a CPU (oneDNN) takes most of its time to rearrange the weights, and even more for
their gradient. As a product of two matrices, patches times weights, such a layer trains 2.3 to 5.1
times as fast (torch 2.15, `tests/benchmarks/small_maps.py`). With larger maps the copy of the
patches costs more than that saves.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

#: From how many points for each number that a point becomes a convolution is faster as such.
_POINTS = 3


class _Patches(Function):
    """What the kernel sees: ``(B, H, W, k k C)`` of a padded map ``(B, h, w, C)``."""

    @staticmethod
    def forward(padded: Tensor, kernel: int, stride: int) -> Tensor:
        windows = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)
        return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        padded, ctx.kernel, ctx.stride = inputs
        ctx.size = padded.shape[1:3]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Sum.apply(*gradients, ctx.kernel, ctx.stride, ctx.size), None, None


class _Sum(Function):
    """The transpose of `_Patches`: each number goes back to where it was seen, and is added."""

    @staticmethod
    def forward(patches: Tensor, kernel: int, stride: int, size: tuple[int, int]) -> Tensor:
        batch, height, width, _ = patches.shape
        taps = patches.reshape(batch, height, width, kernel, kernel, -1)
        # Each of up to k k numbers is small beside their sum: bfloat16 would round it away.
        wide = torch.promote_types(taps.dtype, torch.float32)
        total = torch.zeros(batch, *size, taps.shape[-1], dtype=wide)
        for row in range(kernel):
            for column in range(kernel):
                rows = slice(row, row + stride * (height - 1) + 1, stride)
                columns = slice(column, column + stride * (width - 1) + 1, stride)
                total[:, rows, columns] += taps[:, :, :, row, column]
        return total.to(patches.dtype)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, int, int, tuple[int, int]], output: Tensor
    ) -> None:
        _, ctx.kernel, ctx.stride, _ = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _Patches.apply(*gradients, ctx.kernel, ctx.stride), None, None, None


class SmallMapConv2d(nn.Conv2d):
    """A convolution that learns, and is one matrix product on small maps on a CPU.

    It has neither groups nor dilation, and is padded with zeros.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the layer would, but for rounding."""
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[-2:])
        if not _pays(self, x, height * width, self.out_channels):
            return super().forward(x)
        points = x.permute(0, 2, 3, 1)
        if padding:
            points = F.pad(points, (0, 0, padding, padding, padding, padding))
        patches = points
        if kernel > 1 or stride > 1:
            patches = cast(Tensor, _Patches.apply(points, kernel, stride))
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return _as_map(patches @ weight.t(), self.bias)


class SmallMapConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution that is one matrix product, as `SmallMapConv2d`.

    It has neither groups nor padding, and its stride is its kernel.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Returns what the layer would, but for rounding."""
        kernel = self.kernel_size[0]
        height, width = x.shape[-2:]
        if output_size or not _pays(self, x, height * width, kernel**2 * self.out_channels):
            return super().forward(x, output_size)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        tiles = x.permute(0, 2, 3, 1) @ weight
        # From (B, h, w, k k C) to (B, h k, w k, C).
        tiles = tiles.reshape(len(x), height, width, kernel, kernel, -1).transpose(2, 3)
        points = tiles.reshape(len(x), height * kernel, width * kernel, -1)
        return _as_map(points, self.bias)


def use_small_maps(network: nn.Module) -> None:
    """Makes all such convolutions of a network one of these two; their weights stay."""
    for layer in network.modules():
        # Not subclasses, which compute something else.
        if type(layer) is nn.Conv2d and _is_plain(layer):
            layer.__class__ = SmallMapConv2d
        elif type(layer) is nn.ConvTranspose2d and _is_plain(layer) and _is_tiled(layer):
            layer.__class__ = SmallMapConvTranspose2d


def _is_plain(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Returns whether a layer has nothing but a square kernel, a stride and zeros around it."""
    return (
        layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and all(len(set(pair)) == 1 for pair in (layer.kernel_size, layer.stride, layer.padding))
    )


def _is_tiled(layer: nn.ConvTranspose2d) -> bool:
    """Returns whether each point of a map becomes a tile of the output, which nothing cuts."""
    return layer.stride == layer.kernel_size and set(layer.padding) | set(layer.output_padding) == {
        0
    }


def _pays(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, points: int, numbers: int) -> bool:
    """Returns whether a layer is faster as a product, on so many points of each image.

    One that does not learn stays as it is: what it says of an image is kept (`KnownFeatures`), and
    its bits must not depend on how many images it is shown. Exported graphs have no such choice.
    """
    return (
        layer.weight.requires_grad
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dim() == 4
        and x.shape[0] * points <= _POINTS * numbers
    )


def _as_map(points: Tensor, bias: Tensor | None) -> Tensor:
    """Returns ``(B, C, h, w)`` of ``(B, h, w, C)``, with a bias if there is one."""
    return (points if bias is None else points + bias.to(points.dtype)).permute(0, 3, 1, 2)
