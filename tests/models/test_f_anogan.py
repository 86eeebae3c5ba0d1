from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anomtune.models.f_anogan import (
    FAnoGAN,
    FAnoGANHyperparameters,
    Networks,
    gradient_penalty,
)
from anomtune.models.testing import check_method

SMALL: dict[str, Any] = {"width": 2, "resolution": 32, "codes": 8, "batch_size": 3}


def build(**fields: Any) -> FAnoGAN:
    return FAnoGAN(FAnoGANHyperparameters(**{**SMALL, **fields}), image_size=32)


def images(n: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("length", [{}, {"iterations": 4, "encoder_part": 0.5}])
def test_it_keeps_the_contract(length: dict[str, Any]) -> None:
    hp = FAnoGANHyperparameters(**SMALL, **length)
    check_method(
        FAnoGAN, hp, diverging=hp.model_copy(update={"lr": 1e30, "encoder_lr": 1e30}), image_size=32
    )


def test_defaults_are_those_of_the_official_code() -> None:
    hp = FAnoGANHyperparameters()
    assert (hp.resolution, hp.width, hp.codes, hp.batch_size) == (64, 64, 128, 64)
    assert (hp.lr, hp.encoder_lr, hp.kappa, hp.penalty, hp.critic_steps) == (1e-4, 5e-5, 1, 10, 5)
    total = hp.training_iterations(10)
    assert total - hp.gan_iterations(total) == 50_000
    generator, critic, encoder = build().optimizers
    assert generator.param_groups[0]["betas"] == critic.param_groups[0]["betas"] == (0.0, 0.9)
    assert isinstance(encoder, torch.optim.RMSprop)


def block(before: int, after: int, up: bool) -> int:
    """Norms, two convolutions of which the first has no bias, and the shortcut."""
    middle = after if up else before
    norms = 2 * before + 2 * middle
    return norms + 9 * before * middle + (9 * middle + 1) * after + (before + 1) * after


def test_networks_have_the_official_layers() -> None:
    """Of the table of the code for 64 pixels, with three colours."""
    network = Networks(FAnoGANHyperparameters())
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in network.named_children()
    }
    down = sum(block(a, b, False) for a, b in ((64, 128), (128, 256), (256, 512), (512, 512)))
    up = sum(block(a, b, True) for a, b in ((512, 512), (512, 256), (256, 128), (128, 64)))
    first = 27 * 64 + 64
    assert counts == {
        "generator": 129 * 4 * 4 * 512 + up + 2 * 64 + 9 * 64 * 3 + 3,
        "critic": first + down + 4 * 4 * 512 + 1,
        "encoder": first + down + (4 * 4 * 512 + 1) * 128,
    }
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    assert network(pixels).shape == pixels.shape
    assert network.critic(pixels).shape == (2, 1)
    assert network.critic.body(pixels).shape == (2, 4 * 4 * 8 * 64)


def test_the_penalty_of_a_linear_critic_is_that_of_its_slope() -> None:
    slope = torch.randn(1, 3, 4, 4, dtype=torch.float64)

    def critic(x: Tensor) -> Tensor:
        return (slope * x).sum((1, 2, 3))

    real, fake = torch.rand(2, 5, 3, 4, 4, dtype=torch.float64)
    found = gradient_penalty(critic, real, fake, torch.rand(5, dtype=torch.float64))
    assert float(found) == pytest.approx((float(slope.norm()) - 1) ** 2)


def test_the_penalty_is_taken_between_real_and_made() -> None:
    """The slope of a square is twice the place."""
    real, fake = torch.zeros(2, 1, 1, 1), torch.full((2, 1, 1, 1), 4.0)
    parts = torch.tensor([0.25, 0.75])
    found = gradient_penalty(lambda x: x.square().sum((1, 2, 3)), real, fake, parts)
    assert float(found.detach()) == pytest.approx(((2 - 1) ** 2 + (6 - 1) ** 2) / 2)


def test_each_phase_moves_its_own_networks() -> None:
    detector = build(iterations=12, encoder_part=0.5, critic_steps=2)
    network = detector.network
    moved = []
    for _ in range(8):
        before = {name: weights(part) for name, part in network.named_children()}
        detector.fit(images(), 1)
        moved.append(
            {
                name
                for name, part in network.named_children()
                if not same(before[name], weights(part))
            }
        )
    critic, both, encoder = {"critic"}, {"critic", "generator"}, {"encoder"}
    assert moved == [critic, critic, both, critic, both, critic, encoder, encoder]


def test_the_generators_statistics_stay_while_the_encoder_learns() -> None:
    detector = build(iterations=4, encoder_part=0.5)
    detector.fit(images(), 2)
    before = {k: v.clone() for k, v in detector.network.generator.state_dict().items()}
    detector.fit(images(), 2)
    after = detector.network.generator.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_generator_is_drawn_to_what_the_critic_takes_for_real() -> None:
    """Its gradient is that of ``-D(G(z))``; the critic's that of its own loss alone."""
    detector = build(critic_steps=1)
    network, pixels = detector.network.double(), detector.inputs(images(3)).double()
    state = detector.generator.get_state()
    codes = torch.randn(3, 8, generator=detector.generator).double()
    parts = torch.rand(3, generator=detector.generator).double()
    made = network.generator(codes)
    expected = torch.autograd.grad(-network.critic(made).mean(), network.generator.output.weight)
    loss = network.critic(made.detach()).mean() - network.critic(pixels).mean()
    loss = loss + 10 * gradient_penalty(network.critic, pixels, made.detach(), parts)
    of_critic = torch.autograd.grad(loss, network.critic.output.weight)
    detector.network = network.float()
    detector.generator.set_state(state)
    detector.loss(pixels.float(), 1, 100).backward()  # type: ignore[no-untyped-call]
    for layer, wanted in ((network.generator, expected), (network.critic, of_critic)):
        found = layer.output.weight.grad
        assert found is not None
        torch.testing.assert_close(found, wanted[0].float(), rtol=1e-3, atol=1e-5)


def test_the_score_is_of_pixels_and_of_features() -> None:
    detector = build(iterations=4, kappa=2.5)
    detector.fit(images(), 4)
    network = detector.network.eval()
    with torch.no_grad():
        pixels = detector.inputs(images())
        back = network(pixels)
        a, b = network.critic.body(pixels).double(), network.critic.body(back).double()
    pixels, back = pixels.double(), back.double()
    expected = (pixels - back).square().mean((1, 2, 3)) + 2.5 * (a - b).square().mean(1)
    found = detector.observe(images())
    assert found.scores is not None
    np.testing.assert_allclose(found.scores.numpy(), expected.numpy(), rtol=1e-4)
    torch.testing.assert_close(found.maps[0].double(), (pixels - back).abs().mean(1))
    assert torch.equal(detector.predict(images())[1], found.scores)
