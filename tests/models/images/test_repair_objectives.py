"""SSAE's objectives 1 and 4 are the equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomtune.models import ssae
from anomtune.models.images.repair_objectives import amplify_objective, filter_objective
from anomtune.models.ssae import SSAE, SSAEHyperparameters

SMALL: dict[str, Any] = {
    "resolution": 32,
    "width": 2,
    "batch_size": 3,
    "iterations": 4,
    "scoring": {"k": 3},
}
lams = st.floats(0, 1)


def build(image_size: int = 32, seed: int = 0, **fields: Any) -> SSAE:
    hp = SSAEHyperparameters(**{**SMALL, **fields})
    return SSAE(hp, image_size=image_size, seed=seed)


def photos(n: int = 6, size: int = 32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def reference(
    output: Tensor,
    target: Tensor,
    mask: Tensor,
    lam: float,
    squared: bool,
    corrupted: Tensor | None,
) -> float:
    """The equations, image by image with masks of all channels."""
    losses = []
    for index in range(len(output)):
        m = mask[index].expand(3, -1, -1).double()
        error = (output[index] - target[index]).double()
        power = 2 if squared else 1
        first = ((1 - m) * error).norm() ** power / (1 - m).sum()
        weights = m if corrupted is None else (corrupted[index] - target[index]).abs().double()
        second = (weights * error).norm() ** power / m.sum()
        sign = 1 if corrupted is None else -1
        losses.append((1 - lam) * first + sign * lam * second)
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("squared", [False, True])
@given(lam=lams)
@settings(max_examples=10)
def test_objectives_are_the_equations(squared: bool, lam: float) -> None:
    output, target, corrupted = uniform(3, 2, 3, 8, 8)
    mask = uniform(2, 1, 8, 8, seed=1)
    assert float(filter_objective(output, target, mask, lam, squared=squared)) == pytest.approx(
        reference(output, target, mask, lam, squared, None), rel=1e-4
    )
    value = amplify_objective(output, target, corrupted, mask, lam, squared=squared)
    expected = reference(output, target, mask, lam, squared, corrupted)
    assert float(value) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_an_unrepaired_image_costs_what_is_corrupted() -> None:
    images, noise = uniform(2, 2, 3, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 3:7] = 1
    corrupted = images + mask * (noise - images)
    value = filter_objective(corrupted, images, mask, 1.0)
    expected = (mask * (corrupted - images)).flatten(1).norm(dim=1) / mask.flatten(1).sum(1) / 3
    assert value == pytest.approx(float(expected.mean()), rel=1e-5)


@pytest.mark.parametrize("squared", [False, True])
def test_a_perfect_repair_costs_nothing(squared: bool) -> None:
    images, corrupted = uniform(2, 2, 3, 8, 8)
    mask = uniform(2, 1, 8, 8)
    assert filter_objective(images, images, mask, 0.4, squared=squared) == 0
    assert amplify_objective(images, images, corrupted, mask, 0.4, squared=squared) == 0


@given(lam=lams, squared=st.booleans())
@settings(max_examples=20)
def test_objective_4_is_never_above_its_first_term(lam: float, squared: bool) -> None:
    output, images, corrupted = uniform(3, 2, 3, 8, 8)
    mask = uniform(2, 1, 8, 8)
    first = (1 - lam) * filter_objective(output, images, mask, 0.0, squared=squared)
    value = amplify_objective(output, images, corrupted, mask, lam, squared=squared)
    assert value <= first + 1e-7
    assert amplify_objective(output, images, images, mask, lam, squared=squared) == pytest.approx(
        float(first), rel=1e-5
    )  # nothing is corrupted: nothing to amplify


@given(lam=lams, squared=st.booleans())
@settings(max_examples=20)
def test_under_a_mask_of_one_half_both_terms_are_equal(lam: float, squared: bool) -> None:
    output, images = uniform(2, 2, 3, 8, 8)
    mask = torch.full((2, 1, 8, 8), 0.5)
    one, other = (filter_objective(output, images, mask, x, squared=squared) for x in (lam, 0.5))
    assert one == pytest.approx(float(other), rel=1e-5)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_masks_have_a_finite_loss_and_gradient(value: float, squared: bool) -> None:
    images = uniform(2, 3, 8, 8)
    output = images.clone().requires_grad_()
    mask = torch.full((2, 1, 8, 8), value)
    for loss in (
        filter_objective(output, images, mask, 0.5, squared=squared),
        amplify_objective(output, images, images, mask, 0.5, squared=squared),
        filter_objective(output * 0.9, images, mask, 0.5, squared=squared),
    ):
        (gradient,) = torch.autograd.grad(loss, output)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("objective", ["1", "4"])
def test_training_minimises_the_objective_that_was_asked_for(
    objective: str, squared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "filter_objective" if objective == "1" else "amplify_objective"
    original = getattr(ssae, name)
    seen = []

    def note(*args: Any, squared: bool) -> Tensor:
        seen.append((args[-1], squared))
        return torch.as_tensor(original(*args, squared=squared))

    monkeypatch.setattr(ssae, name, note)
    build(objective=objective, squared=squared, lam=0.3).fit(photos(), 2)
    assert seen == [(0.3, squared)] * 2
