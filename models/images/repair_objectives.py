"""What a network that repairs corrupted images minimises (Bauer, Nakajima and Mueller)."""

from __future__ import annotations

import torch
from torch import Tensor

#: Keeps the objectives finite where a mask is empty.
_EPS = 1e-6


def filter_objective(
    output: Tensor, images: Tensor, mask: Tensor, lam: float, *, squared: bool = False
) -> Tensor:
    """Returns the mean of equation 1 over the batch: reconstruct, and repair what is corrupted.

    Args:
        output: Reconstructions of corrupted images, ``(B, C, H, W)``.
        images: The images before that.
        mask: What is corrupted, ``(B, 1, H, W)`` in ``[0, 1]``.
        lam: Weight of the corrupted regions.
        squared: Whether norms are squared.
    """
    error = output - images
    return (
        (1 - lam) * _relative_norm((1 - mask) * error, 1 - mask, squared)
        + lam * _relative_norm(mask * error, mask, squared)
    ).mean()


def amplify_objective(
    output: Tensor,
    images: Tensor,
    corrupted: Tensor,
    mask: Tensor,
    lam: float,
    *,
    squared: bool = False,
) -> Tensor:
    """Returns the mean of equation 4 over the batch: reconstruct, but not what is corrupted.

    Args:
        output: Reconstructions of corrupted images, ``(B, C, H, W)``.
        images: The images before that.
        corrupted: The corrupted images.
        mask: What is corrupted, ``(B, 1, H, W)`` in ``[0, 1]``.
        lam: Weight of the corrupted regions.
        squared: Whether norms are squared.
    """
    error = output - images
    return (
        (1 - lam) * _relative_norm((1 - mask) * error, 1 - mask, squared)
        - lam * _relative_norm((corrupted - images).abs() * error, mask, squared)
    ).mean()


def _relative_norm(values: Tensor, mask: Tensor, squared: bool) -> Tensor:
    """Returns ``||values||_2 / ||mask||_1`` per image, over pixels and channels."""
    values = values.flatten(1)
    norm = values.square().sum(1) if squared else torch.linalg.vector_norm(values, dim=1)
    area = mask.expand(-1, values[0].numel() // mask[0].numel(), -1, -1).flatten(1).sum(1)
    return norm / area.clamp_min(_EPS)
