from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anomtune.errors import MethodError
from anomtune.models.deep_svdd import (
    Autoencoder,
    DeepSVDD,
    DeepSVDDHyperparameters,
    away_from_zero,
    contrast_normalised,
    soft_boundary_loss,
)
from anomtune.models.testing import check_method

SOFT: dict[str, Any] = {"objective": "soft_boundary"}
DIGITS: dict[str, Any] = {"network": "mnist", "resolution": 28}


def images(n: int = 7, size: int = 32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def build(seed: int = 0, **fields: Any) -> DeepSVDD:
    hp = DeepSVDDHyperparameters(**{"batch_size": 4, **fields})
    return DeepSVDD(hp, image_size=32, seed=seed)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {**DIGITS, **SOFT, "iterations": 4, "pretraining": 0.5, "warm_up": 0.0},
        {"pretraining": 0.0, "iterations": 4},
    ],
)
def test_it_keeps_the_contract(fields: dict[str, Any]) -> None:
    hp = DeepSVDDHyperparameters(batch_size=3, **fields)
    check_method(DeepSVDD, hp, diverging=hp.model_copy(update={"lr": 1e30}))


def test_defaults_are_the_papers() -> None:
    hp = DeepSVDDHyperparameters()
    assert (hp.batch_size, hp.lr, hp.weight_decay, hp.nu) == (200, 1e-4, 1e-6, 0.1)
    assert hp.pretraining_iterations(hp.training_iterations(5000)) == 350 * 25
    digits = DeepSVDDHyperparameters(**DeepSVDDHyperparameters.paper_values("mnist", "3"))
    assert (digits.network, digits.resolution) == ("mnist", 28)
    assert digits.pretraining_iterations(digits.training_iterations(6000)) == 150 * 30


@pytest.mark.parametrize(
    ("network", "side", "encoder", "decoder", "outputs"),
    [("mnist", 28, 7_272, 1_200, 32), ("cifar", 32, 520_544, 284_000, 128)],
)
def test_networks_are_the_official_ones(
    network: Any, side: int, encoder: int, decoder: int, outputs: int
) -> None:
    """Five by five filters without bias: 25 (1 8 + 8 4) + 4 7 7 32, and so on."""
    autoencoder = Autoencoder(network, side)
    assert (count(autoencoder.encoder), count(autoencoder.decoder)) == (encoder, decoder)
    pixels = torch.rand(2, 1 if network == "mnist" else 3, side, side)
    codes = autoencoder(pixels)
    assert codes.shape == (2, outputs)
    assert autoencoder.decoder(codes).shape == pixels.shape
    assert not any("bias" in name for name, _ in autoencoder.named_parameters())
    # Without bias nothing comes of nothing (proposition 2: else the sphere could collapse).
    fresh = Autoencoder(network, side).eval()
    assert torch.equal(fresh(torch.zeros_like(pixels)), torch.zeros(2, outputs))


@pytest.mark.parametrize("size", [8, 24, 64])
def test_other_sizes_are_reconstructed_whole(size: int) -> None:
    for network, channels in (("mnist", 1), ("cifar", 3)):
        autoencoder = Autoencoder(network, size)  # type: ignore[arg-type]
        pixels = torch.rand(2, channels, size, size)
        assert autoencoder.decoder(autoencoder(pixels)).shape == pixels.shape


def test_a_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(MethodError, match="resolution 28 does not suit the network cifar: use 32"):
        build(resolution=28)


def test_the_centre_stays_away_from_zero() -> None:
    centre = torch.tensor([0.0, 0.01, -0.01, -0.5, 0.1, 2.0])
    assert away_from_zero(centre).tolist() == pytest.approx([0.1, 0.1, -0.1, -0.5, 0.1, 2.0])


def test_the_soft_boundary_by_hand() -> None:
    distances = torch.tensor([1.0, 4.0, 6.0, 12.0])
    # R^2 = 4: 2 and 8 stand out, on average 2.5, and 2.5 / 0.5 = 5.
    assert float(soft_boundary_loss(distances, torch.tensor(2.0), 0.5)) == pytest.approx(9.0)


def test_the_radius_is_best_at_the_quantile() -> None:
    """Equation 3 is least where a part ``nu`` of the distances lies outside."""
    distances = torch.rand(2000, generator=torch.Generator().manual_seed(0)) * 9
    radii = torch.linspace(0.01, 3, 300)
    for nu in (0.01, 0.1, 0.5):
        losses = torch.stack([soft_boundary_loss(distances, radius, nu) for radius in radii])
        best = float(distances.sqrt().quantile(1 - nu))
        assert float(radii[losses.argmin()]) == pytest.approx(best, abs=0.03)


def test_the_radius_follows_the_batch_after_the_warm_up() -> None:
    detector = build(**SOFT, iterations=20, pretraining=0.0, warm_up=0.25, nu=0.3, batch_size=7)
    assert detector.fit(images(), 5)["radius"] == 0
    detector.fit(images(), 1)
    expected = np.quantile(detector._distances.sqrt().numpy(), 0.7)
    assert float(detector.radius) == pytest.approx(expected, rel=1e-6)


def test_contrast_is_normalised_by_the_mean_absolute_value() -> None:
    pixels = torch.rand(4, 3, 5, 5, dtype=torch.float64) * torch.tensor([1, 9, 0.1, 4]).view(
        4, 1, 1, 1
    )
    found = contrast_normalised(pixels).flatten(1)
    assert found.mean(1).abs().max() < 1e-12
    torch.testing.assert_close(found.abs().mean(1), torch.ones(4, dtype=torch.float64))
    assert contrast_normalised(torch.full((1, 3, 4, 4), 0.5)).isfinite().all()


def test_training_images_fill_the_unit_range() -> None:
    for fields in ({}, DIGITS):
        detector = build(**fields)
        given = images(size=detector.input_size)
        detector.fit(given, 1)
        seen = detector.inputs(given)
        assert seen.shape[1] == (1 if fields else 3)
        assert float(seen.min()) == pytest.approx(0, abs=1e-6)
        assert float(seen.max()) == pytest.approx(1, abs=1e-6)


def test_scores_are_squared_distances_to_the_mean_representation() -> None:
    detector = build(iterations=10, pretraining=0.5)
    given, others = images(), images(3, seed=2)
    detector.fit(given, 8)
    centre = detector.centre
    assert centre is not None
    with torch.no_grad():
        codes = detector.network.eval()(detector.inputs(others))
    expected = ((codes - centre).double().numpy() ** 2).sum(1)
    maps, scores = detector.predict(others)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)
    # The image is judged as a whole: its map says the same everywhere.
    torch.testing.assert_close(maps, scores.view(-1, 1, 1).expand(3, 32, 32))
    assert not detector.hyperparameters.localises


def test_the_centre_is_that_of_the_pretrained_encoder_and_then_stays() -> None:
    detector = build(iterations=10, pretraining=0.5)
    given = images()
    detector.fit(given, 5)
    with torch.no_grad():
        expected = away_from_zero(detector.network.eval()(detector.inputs(given)).mean(0))
    first = detector.centre
    assert first is not None
    torch.testing.assert_close(first, expected)
    detector.fit(given, 1)
    assert torch.equal(first, detector.centre)


def test_phases_have_their_own_learning_rates_and_optimiser() -> None:
    detector = build(iterations=20, pretraining=0.5, pretraining_drop=0.4, drop=0.2, lr=1.0)
    rates, steps = [], []
    for iteration in range(20):
        detector.before_step(iteration, 20)
        rates.append(detector.optimizers[0].param_groups[0]["lr"])
    assert rates == pytest.approx([1] * 4 + [0.1] * 6 + [1] * 2 + [0.1] * 8)
    detector = build(iterations=20, pretraining=0.5)
    for _ in range(12):
        detector.fit(images(), 1)
        states = detector.optimizers[0].state.values()
        steps.append({int(state["step"]) for state in states})
    assert steps == [*({i} for i in range(1, 11)), {1}, {2}]
    assert len(detector.optimizers[0].state) == 4, "the decoder rests"


def test_weights_decay_by_lambda() -> None:
    (group,) = build(weight_decay=1e-3).optimizers[0].param_groups
    assert group["weight_decay"] == 1e-3


def test_without_a_fit_there_is_no_centre() -> None:
    with pytest.raises(MethodError, match="no centre yet: fit the detector first"):
        build().score(images())
