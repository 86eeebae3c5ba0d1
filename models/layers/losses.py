"""Losses of reverse distillation: the cosine distance of teacher and student features.

Every loss takes pairs of target and prediction ``(B, C, h, w)``, one per scale, and returns the
sum over scales (all layer weights are 1). Stopping the gradient of a target is the caller's
business: a detached target gets none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from anomtune.models.layers.maps import Pair

Loss = Literal["region", "global", "global_hm"]

#: Squared eps of `torch.nn.functional.cosine_similarity`: a floor of squared norms.
_EPS_SQUARED = 1e-16


def feature_loss(
    loss: Loss, pairs: Sequence[Pair], *, alpha: float = 1.0, hm_factor: float = 0.0
) -> Tensor:
    """Returns the scalar loss of that name; ``alpha`` and ``hm_factor`` are for mining alone."""
    if loss == "region":
        return region_loss(pairs)
    if loss == "global":
        return global_loss(pairs)
    return global_hm_loss(pairs, alpha, hm_factor)


def region_loss(pairs: Sequence[Pair]) -> Tensor:
    """Sum over scales of the mean of ``1 - cos`` at every point (RD4AD; ReContrast, eq. 2)."""
    return torch.stack([1 - _cosine(*_products(*pair)).mean() for pair in _wide(pairs)]).sum()


def global_loss(pairs: Sequence[Pair]) -> Tensor:
    """Sum over scales of ``1 - cos`` of whole feature maps as vectors (ReContrast, eq. 3 and 4).

    It is also what RD4AD's official code computes instead of its formula.
    """
    return torch.stack([_global(*_products(*pair)) for pair in _wide(pairs)]).sum()


def global_hm_loss(pairs: Sequence[Pair], alpha: float, hm_factor: float = 0.0) -> Tensor:
    """The global loss, with easy points of the prediction kept from learning (ReContrast, eq. 5).

    A point is easy if its ``1 - cos`` lies below mean + alpha * std over all points of this
    minibatch, scale and pair. The value is that of `global_loss`.

    Args:
        pairs: Target and prediction of every scale.
        alpha: Threshold in standard deviations; -inf discards nothing.
        hm_factor: Factor of the gradient of easy points (0 in the paper).
    """
    losses = []
    for target, prediction in _wide(pairs):
        dot, target_square, prediction_square = _products(target, prediction)
        easy = easy_points(1 - _cosine(dot, target_square, prediction_square).detach(), alpha)
        # The prediction enters through its products alone, so stopping the gradient of these
        # (B, h, w) is the same as stopping that of the features (B, C, h, w), and C times less.
        fixed = (target * prediction.detach()).sum(1) if target.requires_grad else dot.detach()
        losses.append(
            _global(
                torch.where(easy, torch.lerp(fixed, dot, hm_factor), dot),
                target_square,
                torch.where(
                    easy,
                    torch.lerp(prediction_square.detach(), prediction_square, hm_factor),
                    prediction_square,
                ),
            )
        )
    return torch.stack(losses).sum()


def easy_points(distance: Tensor, alpha: float) -> Tensor:
    """Returns where distances ``(B, h, w)`` are below mean + alpha * (unbiased) std of them all."""
    std, mean = torch.std_mean(distance)
    return distance < mean + alpha * std


def alpha_schedule(iteration: int, total: int, *, final: float = 1.0, ramp: float = 0.1) -> float:
    """Returns alpha: linear from -3 to ``final`` over the first ``ramp`` of all iterations.

    Source: ReContrast, section 4 and official code.

    Args:
        iteration: Optimiser steps done so far.
        total: Optimiser steps of the full run.
        final: Value after the ramp.
        ramp: Fraction of ``total``.
    """
    return min(-3 + (final + 3) * iteration / (ramp * total), final)


def _wide(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """Yields the pairs in float32 at least: 16 bits do not do for sums over whole maps."""
    for target, prediction in pairs:
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        yield target.to(dtype), prediction.to(dtype)


def _products(target: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the dot product and both squared norms at every point, ``(B, h, w)`` each.

    Distances of points and of whole maps both follow from these three.
    """
    return (
        (target * prediction).sum(1),
        (target * target).sum(1),
        (prediction * prediction).sum(1),
    )


def _cosine(dot: Tensor, target_square: Tensor, prediction_square: Tensor) -> Tensor:
    # Flooring before the root keeps the gradient of an all-zero feature finite.
    norms = target_square.clamp_min(_EPS_SQUARED).sqrt()
    return dot / (norms * prediction_square.clamp_min(_EPS_SQUARED).sqrt())


def _global(dot: Tensor, target_square: Tensor, prediction_square: Tensor) -> Tensor:
    sums = [part.flatten(1).sum(1) for part in (dot, target_square, prediction_square)]
    return 1 - _cosine(*sums).mean()
