"""Linear transfer of the colours of one image to those of another.

The Monge-Kantorovich map is the optimal transport between two Gaussians with the images' mean and
covariance (Pitie and Kokaram, "The linear Monge-Kantorovitch linear colour mapping for
example-based colour transfer", CVMP 2007). Unlike the diagonal map, which treats each channel on
its own, it turns an image grey if the target is grey (Artola et al., supplement, Figure 1).
Colours are RGB in [0, 1]; the paper names no colour space (inferred).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Transfer = Literal["monge_kantorovich", "diagonal"]

#: Floor of the source's variances, in squared units of [0, 1] colours: below 8-bit rounding.
_FLOOR = 1e-8


def transfer_colors(
    images: Tensor,
    targets: Tensor,
    rho: Tensor | float = 1.0,
    transfer: Transfer = "monge_kantorovich",
    *,
    clip: bool = True,
) -> Tensor:
    """Returns images with the colour distribution of their targets.

    Args:
        images: Colours in [0, 1], ``(B, 3, H, W)``.
        targets: The same of the images whose colours are wanted, ``(B, 3, h, w)``.
        rho: How far to go, per image ``(B,)`` or for all: 0 changes nothing, 1 is the whole way.
        transfer: ``monge_kantorovich`` or ``diagonal``.
        clip: Whether to clip the result to [0, 1].

    Returns:
        ``(B, 3, H, W)`` in the type of ``images``.
    """
    pixels = images.flatten(2).double()
    mean, covariance = color_statistics(pixels)
    target_mean, target_covariance = color_statistics(targets.flatten(2).double())
    make = monge_kantorovich if transfer == "monge_kantorovich" else diagonal
    matrix = make(covariance, target_covariance)
    share = rho.double().view(-1, 1, 1) if isinstance(rho, Tensor) else rho
    # (1 - rho) c + rho (T (c - m) + m_target), as one affine map.
    matrix = (1 - share) * torch.eye(3, dtype=torch.float64, device=images.device) + share * matrix
    shift = mean + share * (target_mean - mean)
    moved = (matrix @ (pixels - mean) + shift).view(images.shape)
    return (moved.clamp(0, 1) if clip else moved).to(images.dtype)


def color_statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean ``(B, 3, 1)`` and covariance ``(B, 3, 3)`` of pixels ``(B, 3, P)``."""
    mean = pixels.mean(2, keepdim=True)
    centred = pixels - mean
    return mean, centred @ centred.mT / pixels.shape[2]


def monge_kantorovich(source: Tensor, target: Tensor) -> Tensor:
    """Returns the symmetric ``T >= 0`` with ``T source T = target``.

    ``T = S^-1/2 (S^1/2 V S^1/2)^1/2 S^-1/2`` for source ``S`` and target ``V`` (Pitie and
    Kokaram).

    Args:
        source: Covariances ``(B, 3, 3)``; eigenvalues below 1e-8 are raised to it.
        target: Covariances ``(B, 3, 3)``; may be singular.
    """
    values, vectors = torch.linalg.eigh(source)
    roots = values.clamp_min(_FLOOR).sqrt().unsqueeze(-2)
    half = vectors * roots @ vectors.mT
    inverse = vectors / roots @ vectors.mT
    values, vectors = torch.linalg.eigh(half @ target @ half)
    middle = vectors * values.clamp_min(0).sqrt().unsqueeze(-2) @ vectors.mT
    matrix: Tensor = inverse @ middle @ inverse
    return (matrix + matrix.mT) / 2


def diagonal(source: Tensor, target: Tensor) -> Tensor:
    """Returns the diagonal matrices that give each channel the target's deviation."""
    variances = source.diagonal(dim1=-2, dim2=-1).clamp_min(_FLOOR)
    scales = (target.diagonal(dim1=-2, dim2=-1) / variances).sqrt()
    return torch.diag_embed(scales)
