"""Batch norm with small variances replaced: the official scripts' rule, and appendix E's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anomtune.models.layers.batch_norm import PartialNorm

#: Of the pretrained layer; the second is far above both thresholds.
PRETRAINED = torch.tensor([1e-4, 1.0, 1.0])


def layer() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3)
    norm.running_var = PRETRAINED.clone()
    norm.weight.data = torch.tensor([1.0, 2.0, 3.0])
    return norm


def images(batch: int = 8) -> Tensor:
    """Returns two channels that hardly vary, and one that does."""
    generator = torch.Generator().manual_seed(0)
    deviations = torch.tensor([1e-3, 1e-3, 2.0]).view(1, 3, 1, 1)
    return torch.randn(batch, 3, 4, 4, generator=generator) * deviations + 1


@pytest.mark.parametrize(
    ("threshold", "pretrained", "substitutes"),
    [
        # The stable scripts: min(5e-4, pretrained variance).
        (5e-4, False, [1e-4, 5e-4]),
        # Appendix E: what is below 1e-3 gives way to the pretrained variance itself.
        (1e-3, True, [1e-4, 1.0]),
    ],
)
def test_small_variances_are_replaced(
    threshold: float, pretrained: bool, substitutes: list[float]
) -> None:
    norm, x = layer(), images()
    partial = PartialNorm(norm, threshold, pretrained=pretrained)
    assert partial.eps == 1e-6
    y = partial.train()(x)
    centred = x - x.mean((0, 2, 3), keepdim=True)
    roots = torch.tensor(substitutes).add(1e-6).sqrt().view(1, 2, 1, 1)
    expected = centred[:, :2] / roots * norm.weight[:2].view(1, 2, 1, 1)
    torch.testing.assert_close(y[:, :2], expected, rtol=1e-3, atol=1e-5)
    plain = nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.1, 1e-6)
    torch.testing.assert_close(y[:, 2], plain[:, 2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        partial.running_var[:2], 0.9 * PRETRAINED[:2] + 0.1 * torch.tensor(substitutes)
    )


def test_the_running_variance_is_unbiased() -> None:
    """As torch's own, and as the official code takes it from there."""
    x = images(1)
    partial = PartialNorm(layer(), 5e-4).train()
    partial(x)
    unbiased = x.var((0, 2, 3), correction=1)[2]
    biased = x.var((0, 2, 3), correction=0)[2]
    assert abs(unbiased / biased - 1) > 0.05
    torch.testing.assert_close(partial.running_var[2], 0.9 * PRETRAINED[2] + 0.1 * unbiased)


def test_what_is_small_is_decided_by_the_unbiased_variance() -> None:
    x = images(1)
    variance = x.var((0, 2, 3), correction=1)[2]
    threshold = float(x.var((0, 2, 3), correction=0)[2] + variance) / 2
    norm = layer()
    norm.running_var = torch.full((3,), 100.0)
    partial = PartialNorm(norm, threshold).train()
    partial(x)
    torch.testing.assert_close(partial.running_var[2], 0.9 * norm.running_var[2] + 0.1 * variance)


def test_in_eval_mode_it_is_ordinary_batch_norm() -> None:
    norm, x = layer(), images()
    partial = PartialNorm(norm, 5e-4, pretrained=True)
    partial.train()(x)
    norm.running_mean, norm.running_var, norm.eps = partial.running_mean, partial.running_var, 1e-6
    torch.testing.assert_close(partial.eval()(x), norm.eval()(x))
