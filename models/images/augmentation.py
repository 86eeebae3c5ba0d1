"""Random crops and symmetries of whole batches, drawn per image without leaving the device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Augmentation = Literal["none", "flips", "all"]


def random_crops(
    images: Tensor, n: int, size: int, generator: torch.Generator, rows: Tensor | None = None
) -> Tensor:
    """Cuts squares of the same side from random places of images.

    Args:
        images: ``(N, 3, H, H)``.
        n: Number of crops.
        size: Their side in pixels, at most ``H``.
        generator: On the CPU.
        rows: Which images ``(n,)``; None: random ones.

    Returns:
        ``(n, 3, size, size)``, where ``images`` lies.
    """
    device = images.device
    if rows is None:
        rows = torch.randint(len(images), (n,), generator=generator)
    corner = torch.randint(images.shape[-1] - size + 1, (2, n, 1), generator=generator)
    y, x = (corner + torch.arange(size)).to(device, non_blocking=True)
    rows = rows.to(device, non_blocking=True)
    return images[rows.view(n, 1, 1), :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def augment(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Flips each image ``(B, C, H, H)`` at random, or flips and turns it by multiples of 90."""
    if how == "none":
        return images
    # Both flips and a transposition make up all eight symmetries of the square.
    choice = torch.rand(3, len(images), 1, 1, 1, generator=generator) < 0.5
    vertical, horizontal, transpose = choice.to(images.device, non_blocking=True)
    images = torch.where(vertical, images.flip(-2), images)
    images = torch.where(horizontal, images.flip(-1), images)
    return torch.where(transpose, images.mT, images) if how == "all" else images
