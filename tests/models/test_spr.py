from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.ndimage import uniform_filter
from torch import Tensor

from anomtune.errors import MethodError
from anomtune.models.layers.score_network import perturbation_std
from anomtune.models.ranges import Choice, FloatRange, ranges_of
from anomtune.models.spr import (
    SPR,
    SPRHyperparameters,
    SPRScoring,
    decayed_lr,
    mean_filter,
    restoration_error,
    score_matching_loss,
    warmed_up_decay,
)
from anomtune.models.testing import check_method

pytestmark = pytest.mark.slow

SIGMA = 25.0
SMALL: dict[str, Any] = {"width": 4, "resolution": 32, "batch_size": 3}


def settings(**fields: Any) -> SPRHyperparameters:
    return SPRHyperparameters(**{**SMALL, **fields})


def build(image_size: int = 32, seed: int = 0, **fields: Any) -> SPR:
    return SPR(settings(**fields), image_size=image_size, seed=seed)


def images(n: int = 5, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"scoring": {"draws": 1, "smoothing": 1}, "ema_decay": 0.0, "epochs": 2},
        {"width": 6, "scoring": {"t_star": 1e-2}, "sigma": 10.0, "batch_size": 7, "epochs": 3},
    ],
)
def test_it_keeps_the_contract(fields: dict[str, Any]) -> None:
    check_method(SPR, settings(**fields), diverging=settings(**fields, lr=1e30), image_size=32)


def test_defaults_and_ranges_are_the_papers() -> None:
    hp = SPRHyperparameters()
    assert (hp.resolution, hp.width, hp.epochs, hp.batch_size) == (192, 64, 3000, 16)
    assert (hp.lr, hp.weight_decay, hp.ema_decay, hp.sigma) == (1e-4, 1e-3, 0.9999, 25.0)
    how = hp.scoring
    assert (how.t_star, how.draws, how.smoothing) == (1e-3, 3, 31)
    assert (how.sigma, how.reduce) == ("own", "max")
    assert hp.training_iterations(209) == 3000 * 14
    assert hp.input_size(256) == 192
    assert hp.foreign_images() is None
    assert SPRHyperparameters.search_space() == {
        "resolution": Choice(choices=(128, 192, 256)),
        "sigma": FloatRange(low=10, high=50, log=True),
    }
    judged = ranges_of(SPRScoring)
    assert judged["t_star"] == Choice(choices=(3e-4, 1e-3, 3e-3))
    assert judged["draws"] == Choice(choices=(3, 9))


@pytest.mark.parametrize(
    "fields",
    [
        {"resolution": 100},
        {"resolution": 0},
        {"width": 5},
        {"scoring": {"smoothing": 30}},
        {"scoring": {"t_star": 1e-6}},
        {"scoring": {"t_star": 2.0}},
        {"scoring": {"draws": 0}},
        {"ema_decay": 1.0},
        {"sigma": 1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**fields)


def test_an_even_filter_is_told_the_next_odd_one() -> None:
    with pytest.raises(ValidationError, match="use 31 or another odd number"):
        settings(scoring={"smoothing": 30})


def test_no_images_is_an_error() -> None:
    with pytest.raises(MethodError, match="no training image"):
        build().fit(images(0), 1)


# The loss


def test_the_score_of_a_single_image_has_no_loss() -> None:
    x, z = normal(4, 3, 8, 8), normal(4, 3, 8, 8, seed=1)
    t = torch.tensor([1e-5, 1e-3, 0.1, 1.0], dtype=torch.float64)

    def score(noisy: Tensor, times: Tensor) -> Tensor:
        return -(noisy - x) / perturbation_std(times, SIGMA).reshape(-1, 1, 1, 1).square()

    assert float(score_matching_loss(score, x, t, z, SIGMA)) == pytest.approx(0, abs=1e-18)


def test_without_a_score_the_loss_is_the_number_of_values() -> None:
    x, z = normal(64, 3, 16, 16), normal(64, 3, 16, 16, seed=1)
    t = torch.full((64,), 0.5, dtype=torch.float64)
    loss = score_matching_loss(lambda noisy, times: 0 * noisy, x, t, z, SIGMA)
    assert float(loss) == pytest.approx(3 * 16 * 16, rel=0.02)
    assert float(loss) == pytest.approx(float(z.square().sum() / 64))


def test_the_network_sees_images_with_the_noise_of_their_time() -> None:
    x, z = normal(3, 3, 4, 4), normal(3, 3, 4, 4, seed=1)
    t = torch.tensor([1e-4, 1e-2, 1.0], dtype=torch.float64)
    seen: list[Tensor] = []

    def score(noisy: Tensor, times: Tensor) -> Tensor:
        seen.extend([noisy, times])
        return noisy

    score_matching_loss(score, x, t, z, SIGMA)
    stds = [0.0100016, 0.101631, 9.845215]
    for index, std in enumerate(stds):
        torch.testing.assert_close(seen[0][index], x[index] + std * z[index], rtol=1e-5, atol=1e-5)
    assert torch.equal(seen[1], t)


def test_training_draws_new_times_and_noise_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def loss(score: Any, x: Tensor, t: Tensor, z: Tensor, sigma: float) -> Tensor:
        calls.append((x, t, z))
        return score_matching_loss(score, x, t, z, sigma)

    monkeypatch.setattr("anomtune.models.spr.score_matching_loss", loss)
    pixels = torch.full((3, 3, 32, 32), 255, dtype=torch.uint8)
    pixels[:, 0] = 0
    build().fit(pixels, 40)
    x, t, z = (torch.stack(part) for part in zip(*calls, strict=True))
    assert x[:, :, 0].eq(-1).all()
    assert x[:, :, 1:].eq(1).all()
    assert t.shape == (40, 3)
    assert len(t.unique()) == 120
    assert 1e-5 <= t.min() < 0.05
    assert 0.95 < t.max() <= 1
    assert len(z.flatten(2)[..., 0].unique()) == 120
    assert float(z.mean()) == pytest.approx(0, abs=0.01)
    assert float(z.std()) == pytest.approx(1, abs=0.01)


def test_sigma_sets_the_noise_of_training_and_hardly_that_of_the_test() -> None:
    base, other = build(), build(sigma=50.0)
    pixels = images(3)
    losses = [detector.fit(pixels, 1)["loss"] for detector in (base, other)]
    assert losses[0] != losses[1]
    stds = [float(perturbation_std(torch.tensor(1e-3), sigma)) for sigma in (10.0, 50.0)]
    assert stds[0] == pytest.approx(stds[1], rel=2e-3)  # sqrt(t), to first order


def test_sigma_reaches_the_network() -> None:
    base, other = build(), build(sigma=50.0)
    x, t = normal(1, 3, 32, 32, dtype=torch.float32), torch.ones(1)
    with torch.no_grad():  # the same weights, so they differ by the division alone
        ratio = base.network(x, t) / other.network(x, t)
    expected = perturbation_std(t, 50.0) / perturbation_std(t, 25.0)
    torch.testing.assert_close(ratio, expected.expand_as(ratio))


def test_it_learns() -> None:
    detector = build(lr=3e-3, epochs=100, width=8)
    pixels = images(1).expand(3, 3, 32, 32)
    first = detector.fit(pixels, 5)["loss"]
    detector.fit(pixels, 60)
    assert detector.fit(pixels, 10)["loss"] < 0.7 * first


@pytest.mark.parametrize("total", [1, 2, 3, 10, 3000])
def test_the_learning_rate_falls_after_each_third(total: int) -> None:
    for iteration in range(total + 5):
        thirds = (iteration >= total / 3) + (iteration >= 2 * total / 3)
        assert decayed_lr(0.5, iteration, total) == pytest.approx(0.5 * 0.1**thirds)


def test_the_optimiser_uses_the_decayed_learning_rate() -> None:
    detector = build(epochs=3, batch_size=5, lr=0.1)
    rates = []
    for _ in range(4):
        detector.fit(images(5), 1)
        group = detector.optimizers[0].param_groups[0]
        rates.append(group["lr"])
    assert rates == pytest.approx([0.1, 0.01, 0.001, 0.001])
    assert isinstance(detector.optimizers[0], torch.optim.AdamW)
    assert group["weight_decay"] == 1e-3


def test_the_frequencies_do_not_learn_and_depend_on_the_seed() -> None:
    detector = build(lr=0.1)
    before = detector.network.embedding.frequencies.clone()
    detector.fit(images(), 2)
    assert torch.equal(detector.network.embedding.frequencies, before)
    assert not torch.equal(build(seed=1).network.embedding.frequencies, before)


# The averaged weights


def test_the_average_is_warmed_up() -> None:
    assert warmed_up_decay(0.9999, 1) == 2 / 11
    assert warmed_up_decay(0.9999, 90) == 0.91
    assert warmed_up_decay(0.9999, 10**6) == 0.9999
    assert warmed_up_decay(0.5, 10) == 0.5


def test_the_average_follows_every_step() -> None:
    detector = build(lr=1e-2, ema_decay=0.3)
    expected = {k: v.clone() for k, v in detector.network.state_dict().items()}
    for decay in (2 / 11, 3 / 12, 0.3, 0.3):
        detector.fit(images(), 1)
        for key, value in detector.network.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value
    for key, value in expected.items():
        torch.testing.assert_close(detector.state_dict()[f"average.module.{key}"], value)
    difference = expected["outc.weight"] - detector.network.outc.weight
    assert difference.abs().max() > 1e-4


def test_maps_come_from_the_averaged_weights() -> None:
    detector = build(lr=1e-2)
    detector.fit(images(), 3)
    before = detector.anomaly_maps(images())
    with torch.no_grad():
        for parameter in detector.network.parameters():
            parameter.zero_()
    assert torch.equal(detector.anomaly_maps(images()), before)


# The map


@given(st.floats(1e-4, 1e-2), st.floats(-3, 3), st.floats(-3, 3))
def test_what_lies_off_the_manifold_is_recovered(t: float, a: float, b: float) -> None:
    """Gaussian data with covariance S = diag(1, 0): s(x) = -(S + std^2)^-1 x."""
    x = torch.tensor([[a, b]], dtype=torch.float64).reshape(1, 2, 1, 1)
    z = normal(1, 2, 1, 1)
    variances = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(2, 1, 1)

    def score(noisy: Tensor, times: Tensor) -> Tensor:
        std = perturbation_std(times, SIGMA).reshape(-1, 1, 1, 1)
        return -noisy / (variances + std**2)

    std = float(perturbation_std(torch.tensor(t, dtype=torch.float64), SIGMA))
    on, off = restoration_error(score, x, t, z, SIGMA).flatten().tolist()
    assert off == pytest.approx(-b, abs=1e-12)
    noise = std * float(z[0, 0])
    assert on == pytest.approx((a + noise) / (1 + std**2) - a, abs=1e-12)
    assert on == pytest.approx(noise, abs=std**2 * (abs(a) + abs(noise)))


def test_the_restoration_error_of_correlated_gaussian_data_is_tweedies() -> None:
    factor = normal(5, 5, seed=3)
    covariance = factor @ factor.T
    x, z = normal(2, 5, seed=4), normal(2, 5, seed=5)
    std = float(perturbation_std(torch.tensor(5e-3, dtype=torch.float64), SIGMA))
    noisy_covariance = covariance + std**2 * torch.eye(5, dtype=torch.float64)

    def score(noisy: Tensor, times: Tensor) -> Tensor:
        return -torch.linalg.solve(noisy_covariance, noisy.flatten(1).T).T.reshape(noisy.shape)

    shape = (2, 5, 1, 1)
    error = restoration_error(score, x.reshape(shape), 5e-3, z.reshape(shape), SIGMA)
    noisy = x + std * z
    expected = (covariance @ torch.linalg.solve(noisy_covariance, noisy.T)).T - x
    torch.testing.assert_close(error.flatten(1), expected)


def test_the_map_averages_squared_errors_over_channels_and_draws() -> None:
    detector = build(image_size=48, scoring={"draws": 2, "smoothing": 15, "t_star": 2e-3})
    detector.fit(images(), 2)
    pixels = images(2)
    x = pixels.float() / 127.5 - 1
    maps = torch.zeros(2, 32, 32)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        z = torch.randn(3, 32, 32, generator=generator)
        with torch.no_grad():
            error = restoration_error(detector.average, x, 2e-3, z, 25.0)
        maps += error.square().mean(1) / 2
    resized = F.interpolate(maps[:, None], size=(48, 48), mode="bilinear", align_corners=False)
    # 15 pixels of a map of 256 are 2.8 of one of 48.
    expected = F.avg_pool2d(resized, 3, 1, padding=1).squeeze(1)
    found, scores = detector.predict(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
    assert detector.scoring.rule == "max"
    assert torch.equal(scores, found.flatten(1).amax(1))


@pytest.mark.parametrize("side", [1, 3, 15, 31])
@pytest.mark.parametrize("size", [8, 40])
def test_the_filter_counts_the_zeros_outside(side: int, size: int) -> None:
    maps = normal(2, size, size, dtype=torch.float32)
    expected = np.stack([uniform_filter(m, side, mode="constant") for m in maps.numpy()])
    torch.testing.assert_close(
        mean_filter(maps, side), torch.from_numpy(expected), rtol=1e-4, atol=1e-5
    )


def test_equal_images_have_equal_maps_whatever_is_beside_them() -> None:
    detector = build(image_size=40)
    detector.fit(images(), 2)
    pixels = images(4)
    maps = detector.anomaly_maps(pixels[[0, 1, 0, 2]])
    torch.testing.assert_close(maps[0], maps[2])
    torch.testing.assert_close(detector.anomaly_maps(pixels[:1])[0], maps[0], rtol=1e-4, atol=1e-9)


def test_more_draws_begin_with_the_same_noise() -> None:
    few, many = build(), build(seed=3)
    assert torch.equal(few._noise_of_tests(2), many._noise_of_tests(5)[:2])
    assert len({float(noise[0, 0, 0]) for noise in many._noise_of_tests(5)}) == 5
    # What is kept of more draws serves fewer, and fewer are not mistaken for more.
    assert torch.equal(many._noise_of_tests(2), few._noise_of_tests(2))
    assert torch.equal(few._noise_of_tests(5), many._noise_of_tests(5))


@pytest.mark.parametrize("field", ["t_star", "draws", "smoothing"])
def test_settings_of_the_map_change_its_scores(field: str) -> None:
    values = {"t_star": 5e-3, "draws": 1, "smoothing": 3}
    first, second = build(), build(scoring={field: values[field]})
    second.load_state_dict(first.state_dict())
    scores = first.score(images())
    assert not torch.allclose(scores, second.score(images()), rtol=1e-3, atol=0)


def test_the_network_sees_its_resolution_and_maps_have_the_image_size() -> None:
    detector = build(image_size=50, resolution=48)
    assert detector.input_size == 48
    pixels = images(3, 48)
    detector.fit(pixels, 1)
    assert detector.anomaly_maps(pixels).shape == (3, 50, 50)


def test_looking_does_not_change_the_modes_of_training() -> None:
    detector = build()
    detector.fit(images(), 1)
    state = detector.state_dict()
    detector.anomaly_maps(images())
    assert all(torch.equal(value, state[key]) for key, value in detector.state_dict().items())
    assert not any(p.requires_grad for p in detector.average.parameters())
