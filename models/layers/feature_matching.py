"""Matching the distribution of test features to those of a reference image (GNL, eq. 1).

Between the stages of an encoder, each channel of a test image's features takes on, in part, the
distribution of values that the channel has for a reference image. Exact matching (EFDM) replaces
values by rank, MixStyle matches mean and deviation alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anomtune.models.layers.encoder import Encoder

Matching = Literal["efdm", "mixstyle", "both"]

_EPS = 1e-6


@dataclass(frozen=True)
class Distribution:
    """The values of every channel of one image's features ``(C, h, w)``.

    Attributes:
        ordered: Ascending, ``(C, h * w)``.
        mean: ``(C, 1, 1)``.
        std: ``(C, 1, 1)``, unbiased, with an eps of 1e-6 added to the variance.
    """

    ordered: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Distribution:
        """Returns the distribution of features ``(C, h, w)``, in float32 at least."""
        features = _wide(features)
        mean, std = _statistics(features)
        return cls(features.flatten(1).sort(dim=1).values, mean, std)


class MatchedEncoder:
    """An encoder that draws features to those of a reference image after chosen stages.

    Matched features are the input of the next stage. The reference's own features pass through
    the encoder unmatched; they are computed and sorted once, here.

    Args:
        encoder: In eval mode; its weights must not change afterwards.
        reference: Normalised image ``(1, 3, S, S)``.
        matching: ``efdm``, ``mixstyle`` or ``both``, their mean.
        weight: 0 leaves features as they are, 1 gives them the reference's distribution.
        stages: After which stages, out of 1 to 3.
    """

    def __init__(
        self,
        encoder: Encoder,
        reference: Tensor,
        matching: Matching,
        weight: float,
        stages: Collection[int],
    ) -> None:
        self._encoder = encoder
        self._matching: Matching = matching
        self._weight = weight
        maps = encoder(reference)
        self._distributions = {k: Distribution.of(maps[k - 1][0]) for k in stages}

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Returns the three maps of normalised images ``(B, 3, S, S)``."""
        return self._encoder.maps(images, self._change)

    def _change(self, number: int, x: Tensor) -> Tensor:
        if number not in self._distributions:
            return x
        return match(x, self._distributions[number], self._matching, self._weight)


def match(features: Tensor, reference: Distribution, matching: Matching, weight: float) -> Tensor:
    """Returns features ``(B, C, h, w)`` drawn to a reference distribution, channel by channel."""
    if matching == "efdm":
        return match_order(features, reference, weight)
    if matching == "mixstyle":
        return match_statistics(features, reference, weight)
    by_order = match_order(features, reference, weight)
    return (by_order + match_statistics(features, reference, weight)) / 2


def match_order(features: Tensor, reference: Distribution, weight: float) -> Tensor:
    """Returns ``(1 - weight) c + weight v``, where v is the reference value of c's rank (eq. 1).

    Equal values are ranked by their place, so that the result is always the same.

    Args:
        features: ``(B, C, h, w)``.
        reference: Of features of the same size.
        weight: a in [0, 1].
    """
    features = _wide(features)
    values = features.flatten(2).contiguous()
    if torch.compiler.is_compiling():
        # ONNX knows no sort but a stable one, and torch has a translation of the plain one alone.
        ranks = values.sort(dim=-1).indices
    else:
        ranks = values.argsort(dim=-1, stable=True)
    partners = torch.empty_like(values).scatter_(-1, ranks, reference.ordered.expand_as(values))
    return torch.lerp(features, partners.view(features.shape), weight)


def match_statistics(features: Tensor, reference: Distribution, weight: float) -> Tensor:
    """Returns features whose mean and deviation are drawn to the reference's (MixStyle).

    Args:
        features: ``(B, C, h, w)``.
        reference: Of features of the same channels.
        weight: Share of the reference's mean and deviation, in [0, 1].
    """
    features = _wide(features)
    mean, std = _statistics(features)
    scale = torch.lerp(std, reference.std.expand_as(std), weight) / std
    shift = torch.lerp(mean, reference.mean.expand_as(mean), weight)
    return (features - mean) * scale + shift


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation over the positions, ``(..., C, 1, 1)``."""
    variance, mean = torch.var_mean(features, dim=(-2, -1), keepdim=True)
    return mean, (variance + _EPS).sqrt()


def _wide(features: Tensor) -> Tensor:
    """Returns features in float32 at least: 16 bits leave too few distinct values to rank."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
