"""Fused optimisers step through flat views of weights, and do the same to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from anomtune.models.training.flat import FlatWeights

Build = Callable[[Iterable[Tensor], bool], Optimizer]


def network() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2), nn.PReLU()
    )
    return made.to(memory_format=torch.channels_last)


def gradients(made: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for number, weight in enumerate(made.parameters()):
        values = torch.randn(weight.shape, generator=generator)
        # Not every backward pass leaves them in the layout of the weight.
        weight.grad = values.to(memory_format=torch.channels_last) if number == 0 else values


@pytest.mark.parametrize(
    "build",
    [
        lambda weights, fused: Adam(weights, 0.1, fused=fused),
        lambda weights, fused: AdamW(weights, 0.1, weight_decay=0.1, fused=fused),
        lambda weights, fused: SGD(weights, 0.1, momentum=0.9, fused=fused),
        lambda weights, fused: SGD(weights, 0.1, momentum=0.9),
    ],
)
def test_steps_are_the_same(build: Build) -> None:
    plain, flat = network(), network()
    # Fused steps with a gradient in another layout than its weight are wrong (torch 2.14).
    optimizers = build(plain.parameters(), False), build(flat.parameters(), True)
    weights = FlatWeights(optimizers[1])
    for step in range(4):
        for made, optimizer in zip((plain, flat), optimizers, strict=True):
            gradients(made, step)
            if step == 2:
                made[2].zero_grad(set_to_none=True)  # takes no step, nor does it decay
            (weights if made is flat else optimizer).step()
        for one, other in zip(plain.parameters(), flat.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_network_that_was_cast_is_followed() -> None:
    made = network()
    optimizer = SGD(made.parameters(), 1.0, fused=True)
    weights = FlatWeights(optimizer)
    made.double()
    for weight in made.parameters():
        weight.grad = torch.ones_like(weight)
    before = [weight.detach().clone() for weight in made.parameters()]
    weights.step()
    for weight, was in zip(made.parameters(), before, strict=True):
        torch.testing.assert_close(weight.detach(), was - 1)


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_are_forgotten(fused: bool) -> None:
    made = network()
    optimizer = SGD(made.parameters(), 1.0, fused=fused)
    weights = FlatWeights(optimizer)
    gradients(made, 0)
    weights.step()
    weights.zero_grad()
    assert all(weight.grad is None for weight in made.parameters())
    assert all(one.grad is None for group in optimizer.param_groups for one in group["params"])
