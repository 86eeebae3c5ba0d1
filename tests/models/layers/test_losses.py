from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomtune.models.layers.losses import (
    alpha_schedule,
    easy_points,
    feature_loss,
    global_hm_loss,
    global_loss,
    region_loss,
)

SHAPES = ((3, 8, 6, 6), (3, 16, 3, 3))


@pytest.fixture
def pairs() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(shape, generator=generator),
            torch.randn(shape, generator=generator).requires_grad_(),
        )
        for shape in SHAPES
    ]


def plain_global(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    return sum(
        (1 - F.cosine_similarity(t.flatten(1), p.flatten(1), dim=1)).mean() for t, p in pairs
    )


def gradients(loss: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [prediction for _, prediction in pairs]))


def test_global_and_region_losses_are_their_formulas(pairs: list[tuple[Tensor, Tensor]]) -> None:
    torch.testing.assert_close(global_loss(pairs), plain_global(pairs))
    region = sum((1 - F.cosine_similarity(t, p, dim=1)).mean() for t, p in pairs)
    torch.testing.assert_close(region_loss(pairs), region)
    assert feature_loss("region", pairs) == region_loss(pairs)
    assert feature_loss("global", pairs) == global_loss(pairs)


@pytest.mark.parametrize("alpha", [-3.0, -1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("factor", [0.0, 0.3])
@pytest.mark.parametrize("target_learns", [False, True])
def test_mining_masks_the_gradient_of_the_plain_loss(
    pairs: list[tuple[Tensor, Tensor]], alpha: float, factor: float, target_learns: bool
) -> None:
    pairs = [(target.requires_grad_(target_learns), p) for target, p in pairs]
    mined = global_hm_loss(pairs, alpha, factor)
    assert mined.item() == pytest.approx(global_loss(pairs).item(), abs=1e-6)
    for actual, plain, (target, prediction) in zip(
        gradients(global_hm_loss(pairs, alpha, factor), pairs),
        gradients(plain_global(pairs), pairs),
        pairs,
        strict=True,
    ):
        distance = 1 - F.cosine_similarity(target, prediction, dim=1)
        std, mean = torch.std_mean(distance)
        easy = (distance < mean + alpha * std)[:, None]
        torch.testing.assert_close(actual, torch.where(easy, factor * plain, plain))
    if target_learns:
        targets = [target for target, _ in pairs]
        actual_targets = torch.autograd.grad(mined, targets)
        plain_targets = torch.autograd.grad(plain_global(pairs), targets)
        torch.testing.assert_close(actual_targets, plain_targets)


@pytest.mark.parametrize(
    ("alpha", "rate"),
    [
        (-3, 0.0013),
        (-2, 0.0228),
        (-1, 0.1587),
        (0, 0.5),
        (0.5, 0.6915),
        (1, 0.8413),
        (1.5, 0.9332),
        (2, 0.9772),
    ],
)
def test_discard_rates_of_gaussian_distances(alpha: float, rate: float) -> None:
    distance = torch.randn(16, 256, 256, generator=torch.Generator().manual_seed(0))
    assert easy_points(distance, alpha).float().mean() == pytest.approx(rate, abs=1.5e-3)


def test_alpha_rises_linearly_and_stays() -> None:
    total = 2000
    values = [alpha_schedule(iteration, total) for iteration in (0, 100, 150, 200, 1999, 5000)]
    assert values == pytest.approx([-3, -1, 0, 1, 1, 1])
    assert alpha_schedule(200, total, ramp=0.2) == pytest.approx(-1)
    assert alpha_schedule(100, total, final=-2) == pytest.approx(-2.5)
    assert alpha_schedule(700, total, final=2) == 2


def test_equal_features_cost_nothing(pairs: list[tuple[Tensor, Tensor]]) -> None:
    same = [(target, target.clone()) for target, _ in pairs]
    for loss in (region_loss(same), global_loss(same), global_hm_loss(same, 1.0)):
        assert loss.item() == pytest.approx(0, abs=1e-6)


def test_scaling_invariances(pairs: list[tuple[Tensor, Tensor]]) -> None:
    scaled = [(t, 7.5 * p) for t, p in pairs]
    torch.testing.assert_close(global_loss(scaled), global_loss(pairs))
    by_point = [(t, p * torch.linspace(0.1, 5, p.shape[-1])) for t, p in pairs]
    torch.testing.assert_close(region_loss(by_point), region_loss(pairs))
    assert (global_loss(by_point) - global_loss(pairs)).abs() > 1e-4
    # Proportional point by point, not as a whole: no distance anywhere, but a global loss.
    uneven = [(t, t * torch.linspace(0.1, 5, t.shape[-1])) for t, _ in pairs]
    assert region_loss(uneven).item() == pytest.approx(0, abs=1e-6)
    assert global_loss(uneven) > 0.05


def test_gradient_is_that_of_the_formula_and_orthogonal() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1, 5, 4, 4, generator=generator, dtype=torch.float32)
    b = torch.randn(1, 5, 4, 4, generator=generator, dtype=torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(global_loss([(a, b)]), b)
    norm_a, norm_b = a.norm(), b.norm()
    cosine = (a * b).sum() / (norm_a * norm_b)
    torch.testing.assert_close(gradient, -(a / norm_a - cosine * b / norm_b) / norm_b)
    assert (gradient * b).sum().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", ["region", "global", "global_hm"])
@pytest.mark.parametrize("target_learns", [False, True])
def test_sixteen_bit_features_are_compared_in_32(
    pairs: list[tuple[Tensor, Tensor]], loss: str, target_learns: bool
) -> None:
    short = [(t.bfloat16().requires_grad_(target_learns), p.bfloat16()) for t, p in pairs]
    value = feature_loss(loss, short)  # type: ignore[arg-type]
    wide = [(t.float(), p.float()) for t, p in short]
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, feature_loss(loss, wide))  # type: ignore[arg-type]
    value.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("loss", ["region", "global", "global_hm"])
def test_dead_features_have_finite_gradients(loss: str) -> None:
    target, prediction = torch.rand(2, 3, 4, 4), torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = feature_loss(loss, [(target, prediction)])  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(value, prediction)
    assert value.item() == pytest.approx(1)
    assert gradient.isfinite().all()
