"""PaDiM against its formulas: means, covariances and Mahalanobis distances in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from scipy.spatial.distance import mahalanobis
from torch import Tensor

from anomtune.errors import MethodError
from anomtune.models import padim
from anomtune.models.images.pixels import normalise
from anomtune.models.layers.maps import gaussian_smooth
from anomtune.models.padim import PaDiM, PaDiMHyperparameters
from anomtune.models.testing import check_method

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"backbone": "mobilenet_v2", "weights": "random", "channels": 20}


def images(n: int = 6, size: int = 32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def build(size: int = 32, seed: int = 0, **fields: Any) -> PaDiM:
    return PaDiM(PaDiMHyperparameters(**{**SMALL, **fields}), image_size=size, seed=seed)


def with_features(detector: PaDiM, scale: float = 1.0, offset: float = 0.0) -> PaDiM:
    """Replaces the encoder by one whose features are colours of coarser and coarser images."""

    class Colours(torch.nn.Module):
        channels = (24, 32, 96)

        def forward(self, batch: Tensor) -> list[Tensor]:
            stages = []
            for number, channels in enumerate(self.channels):
                pooled = torch.nn.functional.avg_pool2d(batch, 4 * 2**number)
                mix = torch.randn(channels, 3, generator=torch.Generator().manual_seed(number))
                mixed = torch.einsum("oc,bchw->bohw", mix, pooled)
                stages.append(scale * (mixed + 0.3 * mixed.square()) + offset)
            return stages

    detector.network.encoder = Colours()  # type: ignore[assignment]
    return detector


def features(detector: PaDiM, batch: Tensor) -> np.ndarray:
    """Chosen features ``(N, d, P)`` in float64."""
    with torch.no_grad():
        return detector.network(normalise(batch, detector.device)).flatten(2).double().numpy()


@pytest.mark.parametrize("channels", [20, 5])  # more and fewer than the 7 images
def test_it_keeps_the_contract(channels: int) -> None:
    check_method(PaDiM, PaDiMHyperparameters(**{**SMALL, "channels": channels}))


def test_a_resnet_keeps_the_contract() -> None:
    hp = PaDiMHyperparameters(
        backbone="resnet18", weights="random", channels=6, scoring={"sigma": 0.0}
    )
    check_method(PaDiM, hp, image_size=52)


def test_defaults_are_the_papers() -> None:
    hp = PaDiMHyperparameters()
    assert (hp.backbone, hp.weights, hp.channels, hp.scoring.sigma) == (
        "wide_resnet50_2",
        "imagenet",
        550,
        4,
    )
    assert hp.training_iterations(1) == hp.training_iterations(1000) == 1
    assert "weights" not in hp.search_space()
    with pytest.raises(ValidationError):
        PaDiMHyperparameters(channels=0)


@pytest.mark.parametrize("n_images", [1, 2, 19, 20, 21, 70])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.2, 100.0)])
def test_gaussians_and_distances_are_those_of_the_formulas(
    n_images: int, scale: float, offset: float
) -> None:
    detector = with_features(build(), scale, offset)
    report = detector.fit(images(n_images), 1)
    normal, test = features(detector, images(n_images)), features(detector, images(3, seed=2))
    with torch.no_grad():
        actual = detector.network.distances(
            detector.network(normalise(images(3, seed=2), detector.device))
        )
    assert actual.shape == (3, 8, 8)
    variances = []
    for position in range(64):
        samples = normal[:, :, position]
        mean = samples.mean(0)
        covariance = np.cov(samples, rowvar=False) if n_images > 1 else np.zeros((20, 20))
        inverse = np.linalg.inv(covariance + 0.01 * np.eye(20))
        variances.append(np.diag(covariance).mean())
        np.testing.assert_allclose(detector.network.mean[position], mean, rtol=1e-4, atol=1e-5)
        for image in range(3):
            expected = mahalanobis(test[image, :, position], mean, inverse)
            distance = float(actual.flatten(1)[image, position])
            assert distance == pytest.approx(expected, rel=5e-3 if offset else 1e-3)
    assert report["variance"] == pytest.approx(np.mean(variances), rel=1e-3)


def test_images_that_come_in_batches_give_the_moments_of_all() -> None:
    # 70 images are 5 batches; each of them has another brightness.
    batch = (images(70).float() * torch.linspace(0.2, 1, 70).view(-1, 1, 1, 1)).to(torch.uint8)
    detector = with_features(build())
    detector.fit(batch, 1)
    samples = features(detector, batch)
    for position in (0, 27):
        covariance = np.cov(samples[:, :, position], rowvar=False) + 0.01 * np.eye(20)
        factor = detector.network.factor[position].double().numpy()
        np.testing.assert_allclose(factor @ covariance @ factor.T, np.eye(20), atol=1e-3)


@pytest.mark.parametrize("n_images", [6, 30])
def test_blocks_of_positions_change_nothing(monkeypatch: pytest.MonkeyPatch, n_images: int) -> None:
    maps = []
    for block in (1, 3000, 1 << 23):
        monkeypatch.setattr(padim, "_BLOCK", block)
        detector = build()
        detector.fit(images(n_images), 1)
        maps.append(detector.anomaly_maps(images(3, seed=2)))
    torch.testing.assert_close(maps[0], maps[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps[1], maps[2], rtol=1e-4, atol=1e-5)


def test_maps_are_smooth_and_the_score_is_their_maximum() -> None:
    detector = build(size=64)
    detector.fit(images(size=64), 1)
    test = images(3, size=64, seed=2)
    maps, scores = detector.predict(test)
    with torch.no_grad():
        distances = detector.network.distances(
            detector.network(normalise(test, detector.device))
        ).unsqueeze(1)
    expected = torch.nn.functional.interpolate(distances, (64, 64), mode="bilinear")
    torch.testing.assert_close(maps, gaussian_smooth(expected, 4.0 * 64 / 256).squeeze(1))
    torch.testing.assert_close(scores, maps.amax((1, 2)))


def test_channels_are_chosen_at_random_from_all_stages_and_taken_to_the_finest_grid() -> None:
    detector = build(size=64, channels=60)
    network = detector.network
    batch = normalise(images(2, size=64), detector.device)
    with torch.no_grad():
        stages = network.encoder(batch)
        everything = torch.cat(
            [
                stage.repeat_interleave(2**n, dim=2).repeat_interleave(2**n, dim=3)
                for n, stage in enumerate(stages)
            ],
            dim=1,
        )
        chosen = network(batch)
    counts = [len(network.get_buffer(f"channels_{stage}")) for stage in range(3)]
    offsets = [0, 24, 56]
    indices = torch.cat(
        [network.get_buffer(f"channels_{stage}") + offsets[stage] for stage in range(3)]
    )
    assert sum(counts) == 60
    assert min(counts) > 0
    assert len(indices.unique()) == 60
    assert torch.equal(chosen, everything[:, indices])
    other = build(size=64, channels=60, seed=1).network
    assert not all(
        torch.equal(network.get_buffer(name), other.get_buffer(name))
        for name in ("channels_0", "channels_1", "channels_2")
    )


def test_more_channels_than_there_are_means_all() -> None:
    network = build(channels=550).network
    counts = [len(network.get_buffer(f"channels_{stage}")) for stage in range(3)]
    assert counts == [24, 32, 96]


def test_one_channel_is_enough() -> None:
    for seed in range(4):  # of one stage alone, also a coarse one
        detector = build(channels=1, seed=seed)
        detector.fit(images(), 1)
        assert detector.anomaly_maps(images(2)).shape == (2, 32, 32)


def test_the_model_does_not_grow_with_the_images() -> None:
    sizes = {}
    for n in (5, 20, 60):
        detector = build()
        detector.fit(images(n), 1)
        sizes[n] = detector.network.factor.numel()
    assert sizes == {5: 64 * 5 * 20, 20: 64 * 20 * 20, 60: 64 * 20 * 20}


def test_a_model_that_is_too_large_names_how_many_channels_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(padim, "_LARGEST", 4 * 64 * 150)
    with pytest.raises(MethodError, match="use channels 12 or fewer"):
        build().fit(images(30), 1)
    build(channels=12).fit(images(30), 1)
    with pytest.raises(MethodError, match="use channels 25 or fewer"):
        build(channels=26).fit(images(6), 1)
    build(channels=25).fit(images(6), 1)


def test_the_papers_largest_model_is_not_too_large() -> None:
    padim._check_size(64 * 64, 550, 1000)
    with pytest.raises(MethodError, match=r"18.5 GiB: use channels 313 or fewer"):
        padim._check_size(128 * 128, 550, 1000)


def test_normal_images_score_lower_than_foreign_ones() -> None:
    detector = with_features(build())
    detector.fit(images(60), 1)
    dark = images(8, seed=3) // 8
    assert float(detector.score(images(60)).max()) < float(detector.score(dark).min())


def test_further_iterations_change_nothing() -> None:
    detector = build()
    assert detector.fit(images(), 0) == {}
    assert detector.fit(images(), 1).keys() == {"variance"}
    before = detector.state_dict()
    assert detector.fit(images(seed=3), 5) == {}
    assert detector.iteration == 6
    for name, value in detector.state_dict().items():
        assert name == "iteration" or torch.equal(value, before[name])


def test_a_state_fits_a_detector_with_other_channels_and_images() -> None:
    original, copy = build(), build(seed=1)
    original.fit(images(), 1)
    copy.fit(images(9, seed=3), 1)
    copy.load_state_dict(load(save(original.state_dict())))
    assert torch.equal(original.score(images()), copy.score(images()))
    copy.load_state_dict(load(save(build().state_dict())))
    copy.fit(images(), 1)
    assert torch.equal(original.score(images()), copy.score(images()))


def test_a_detector_without_gaussians_says_so() -> None:
    with pytest.raises(MethodError, match="fit the detector first"):
        build().anomaly_maps(images())


def test_no_images_is_an_error() -> None:
    with pytest.raises(MethodError, match="no training image"):
        build().fit(images(0), 1)


def test_nothing_learns_and_the_encoder_stays_in_eval_mode() -> None:
    detector = build()
    detector.fit(images(), 1)
    count = sum(p.numel() for p in detector.network.parameters())
    assert count == sum(p.numel() for p in detector.network.encoder.parameters())
    assert not any(parameter.requires_grad for parameter in detector.network.parameters())
    assert not any(module.training for module in detector.network.modules())
