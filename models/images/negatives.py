"""Negatives of contrastive training: crops of natural images in the colours of normal ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anomtune.models.images.color_transfer import Transfer, transfer_colors
from anomtune.models.images.pixels import upload


@torch.no_grad()
def draw_negatives(
    count: int,
    pool: Tensor,
    normal: Tensor,
    device: torch.device,
    generator: torch.Generator,
    *,
    rho: float | None,
    transfer: Transfer,
) -> Tensor:
    """Returns uint8 ``(count, 3, I, I)`` on the device.

    Args:
        count: Number of negatives.
        pool: What they are cut out of, uint8 ``(M, 3, H, W)``.
        normal: Images of which each negative gets the colours of one, uint8 ``(B, 3, I, I)``.
        device: Where the work is done; pool and normal images may lie elsewhere.
        generator: Randomness, on the CPU.
        rho: How far the colours go, see `transfer_colors`; None draws it from [0.5, 1] for each.
        transfer: How they are moved.
    """
    draws = torch.rand(count, 8, generator=generator)
    # One copy for all, and both devices may be others than this one.
    source = pool[upload((draws[:, 0] * len(pool)).long(), pool.device)]
    target = normal[upload((draws[:, 1] * len(normal)).long(), normal.device)]
    numbers = upload(draws[:, 2:], device)
    share = numbers[:, 0] / 2 + 0.5 if rho is None else rho
    with torch.autocast(device.type, enabled=False):
        crops = random_resized_crops(
            source.to(device, non_blocking=True), normal.shape[-1], numbers[:, 1:]
        )
        colours = target.to(device, non_blocking=True).float() / 255
        moved = transfer_colors(crops, colours, share, transfer)
    # As coarse as an image from a file, so that nothing tells them apart but what they show.
    return moved.mul_(255).round_().to(torch.uint8)


def random_resized_crops(images: Tensor, size: int, draws: Tensor) -> Tensor:
    """Returns crops of random place, size and aspect ratio, some mirrored, ``(B, 3, size, size)``.

    A crop has 25 to 100 % of the area and an aspect ratio of 3:4 to 4:3 (inferred), as far as
    it fits in the image.

    Args:
        images: uint8 ``(B, 3, H, W)``.
        size: Side of the crops in pixels.
        draws: Uniform random numbers in [0, 1), ``(B, 5)``.

    Returns:
        float32 in [0, 1].
    """
    area, aspect, x, y, mirror = draws.unbind(1)
    side = (0.25 + 0.75 * area).sqrt()
    stretch = (4 / 3) ** (aspect - 0.5)
    width, height = (side * stretch).clamp_max(1), (side / stretch).clamp_max(1)
    sign = torch.where(mirror < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(width)
    rows = [
        torch.stack([sign * width, zero, (2 * x - 1) * (1 - width)], 1),
        torch.stack([zero, height, (2 * y - 1) * (1 - height)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [len(images), 3, size, size], align_corners=False)
    pixels = images.float() / 255
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
