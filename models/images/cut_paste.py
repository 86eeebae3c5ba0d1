"""CutPaste of whole batches on their device (Li et al., CVPR 2021): a patch is pasted elsewhere.

A patch of an image, or a thin and turned one (scar), gets other colours and is pasted at a random
place of the same image. Colours change in brightness, contrast, saturation and hue; hue is turned
around the grey axis of RGB, which keeps the values apart that the conversion to HSV would clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Part of the area of the image that a patch has, and its shorter side by its longer one.
AREA = (0.02, 0.15)
ASPECT = (0.3, 1.0)
#: Sides of a scar in pixels of an image of 256, and how far it is turned, in degrees.
SCAR_WIDTH, SCAR_LENGTH = (2.0, 16.0), (10.0, 25.0)
SCAR_ANGLE = 45.0
_REFERENCE_SIDE = 256

_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Patches:
    """What is cut out of each of B images of side 1, and where it goes.

    Attributes:
        sides: Height and width ``(B, 2)``.
        angles: How far it is turned, in radians ``(B,)``.
        sources: Row and column of the middle of what is cut out ``(B, 2)``.
        targets: Those of where it is pasted; the turned patch lies in the image.
    """

    sides: Tensor
    angles: Tensor
    sources: Tensor
    targets: Tensor


def draw_patches(n: int, generator: torch.Generator) -> Patches:
    """Draws rectangles of 2 to 15 % of the area, half of them upright and half of them lying."""
    area = _uniform(AREA, n, generator)
    ratio = _uniform(ASPECT, n, generator)
    upright = torch.rand(n, generator=generator) < 0.5
    aspect = torch.where(upright, ratio, 1 / ratio)
    sides = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], 1).clamp_max(1)
    return _placed(sides, torch.zeros(n), generator)


def draw_scars(n: int, generator: torch.Generator) -> Patches:
    """Draws thin rectangles that are turned by up to 45 degrees."""
    width = _uniform(SCAR_WIDTH, n, generator) / _REFERENCE_SIDE
    length = _uniform(SCAR_LENGTH, n, generator) / _REFERENCE_SIDE
    angles = _uniform((-SCAR_ANGLE, SCAR_ANGLE), n, generator) * (math.pi / 180)
    return _placed(torch.stack([length, width], 1), angles, generator)


def _uniform(limits: tuple[float, float], n: int, generator: torch.Generator) -> Tensor:
    low, high = limits
    return low + (high - low) * torch.rand(n, generator=generator)


def _placed(sides: Tensor, angles: Tensor, generator: torch.Generator) -> Patches:
    cos, sin = angles.cos().abs()[:, None], angles.sin().abs()[:, None]
    turned = sides * cos + sides.flip(1) * sin
    middles = [
        extent / 2 + torch.rand(sides.shape, generator=generator) * (1 - extent).clamp_min(0)
        for extent in (sides, turned)
    ]
    return Patches(sides, angles, *middles)


def paste(images: Tensor, contents: Tensor, patches: Patches) -> Tensor:
    """Returns images ``(B, 3, H, H)`` with patches of ``contents`` (of the same size) in them."""
    device, side = images.device, images.shape[-1]
    at = (torch.arange(side, device=device) + 0.5) / side
    sides, sources, targets, angles = (
        part.to(device, non_blocking=True)
        for part in (patches.sides, patches.sources, patches.targets, patches.angles)
    )
    # At least a pixel: a scar of a small image would else fall between them.
    sides = sides.clamp_min(1 / side)
    rows = at[None, :, None] - targets[:, 0, None, None]
    columns = at[None, None, :] - targets[:, 1, None, None]
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    down, right = rows * cos + columns * sin, columns * cos - rows * sin
    inside = (down.abs() <= sides[:, 0, None, None] / 2) & (
        right.abs() <= sides[:, 1, None, None] / 2
    )
    y, x = (
        ((place + middle[:, None, None]) * side).long().clamp(0, side - 1)
        for place, middle in ((down, sources[:, 0]), (right, sources[:, 1]))
    )
    index = (y * side + x).flatten(1)[:, None].expand(-1, 3, -1)
    moved: Tensor = contents.flatten(2).gather(2, index).view_as(images)
    return torch.where(inside[:, None], moved, images)


def jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Returns images ``(B, 3, H, W)`` in [0, 1] in other colours, each in its own.

    Args:
        images: Any number.
        strength: Brightness, contrast and saturation change by at most this part, hue by at most
            this part of a turn.
        generator: On the CPU.
    """
    draws = strength * (2 * torch.rand(4, len(images), 1, 1, 1, generator=generator) - 1)
    brightness, contrast, saturation, hue = draws.to(images.device, non_blocking=True)
    images = images * (1 + brightness)
    weights = torch.tensor(_GREY, device=images.device).view(1, 3, 1, 1)
    mean = (images * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = mean + (images - mean) * (1 + contrast)
    grey = (images * weights).sum(1, keepdim=True)
    images = grey + (images - grey) * (1 + saturation)
    # Rodrigues' formula for the axis (1, 1, 1).
    angle = 2 * math.pi * hue
    mean = images.mean(1, keepdim=True)
    across = (images.roll(1, 1) - images.roll(-1, 1)) / math.sqrt(3)
    turned = mean + (images - mean) * angle.cos() + across * angle.sin()
    clipped: Tensor = turned.clamp(0, 1)
    return clipped
