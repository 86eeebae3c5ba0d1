"""PaDiM against its formulas: means, covariances and Mahalanobis distances in float64."""

from __future__ import annotations

import re
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
from anomtune.models.layers import gaussians
from anomtune.models.layers.levels import levels_of
from anomtune.models.layers.maps import gaussian_smooth
from anomtune.models.padim import PaDiM, PaDiMHyperparameters
from anomtune.models.testing import check_method
from anomtune.models.training.moments import n_numbers

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
    """Chosen features ``(N, d, P)`` in float64, all of them brought to the finest grid."""
    network = detector.network
    with torch.no_grad():
        stages = network.encoder(normalise(batch, detector.device))
        grid = stages[0].shape[-2:]
        parts = [
            torch.nn.functional.interpolate(stage[:, network.get_buffer(f"channels_{n}")], grid)
            for n, stage in enumerate(stages)
        ]
    return torch.cat(parts, 1).flatten(2).double().numpy()


def distances(detector: PaDiM, batch: Tensor) -> np.ndarray:
    """What the detector says ``(N, P)``."""
    with torch.no_grad():
        return detector.network.distances(normalise(batch, detector.device)).flatten(1).numpy()


def dense_distances(normal: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, float]:
    """Distances ``(N, P)`` by the formula, position by position, and the mean variance."""
    n_images, channels, n_positions = normal.shape
    found, variances = np.empty((len(test), n_positions)), []
    for position in range(n_positions):
        samples = normal[:, :, position]
        covariance = np.atleast_2d(np.cov(samples, rowvar=False)) if n_images > 1 else 0.0
        covariance = covariance + np.zeros((channels, channels))
        inverse = np.linalg.inv(covariance + 0.01 * np.eye(channels))
        variances.append(np.diag(covariance).mean())
        for image, patch in enumerate(test[:, :, position]):
            found[image, position] = mahalanobis(patch, samples.mean(0), inverse)
    return found, float(np.mean(variances))


def in_form(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Lets images be few, or many, however many there are."""
    sizes = (0, 1) if form == "few" else (1, 0)
    monkeypatch.setattr(padim, "n_numbers", lambda *_: sizes)


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


@pytest.mark.parametrize("form", ["few", "many"])
@pytest.mark.parametrize("n_images", [1, 2, 7, 20, 70])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.2, 100.0)])
def test_distances_are_those_of_the_formulas(
    n_images: int, scale: float, offset: float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_form(monkeypatch, form)
    detector = with_features(build(), scale, offset)
    report = detector.fit(images(n_images), 1)
    assert (len(detector.network.gaussians.get_buffer("rows_0")) > 0) == (form == "few")
    test = images(3, seed=2)
    expected, variance = dense_distances(
        features(detector, images(n_images)), features(detector, test)
    )
    actual = distances(detector, test)
    assert actual.shape == (3, 64)
    np.testing.assert_allclose(actual, expected, rtol=5e-3 if offset else 1e-4)
    assert report["variance"] == pytest.approx(variance, rel=1e-3)


@pytest.mark.parametrize("form", ["few", "many"])
@pytest.mark.parametrize("size", [52, 76])  # grids of 13, 7 and 4, and of 19, 10 and 5
def test_grids_that_do_not_divide_each_other(
    size: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_form(monkeypatch, form)
    detector = build(size)
    detector.fit(images(12, size), 1)
    test = images(2, size, seed=2)
    assert len(detector.network.gaussians.get_buffer("mean_0")) == (size // 4) ** 2
    expected, _ = dense_distances(features(detector, images(12, size)), features(detector, test))
    np.testing.assert_allclose(distances(detector, test), expected, rtol=1e-4)


@pytest.mark.parametrize("form", ["few", "many"])
def test_images_that_come_in_batches_are_one_set(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 70 images are 5 batches; each of them has another brightness.
    in_form(monkeypatch, form)
    batch = (images(70).float() * torch.linspace(0.2, 1, 70).view(-1, 1, 1, 1)).to(torch.uint8)
    detector = with_features(build())
    detector.fit(batch, 1)
    test = images(3, seed=2)
    expected, _ = dense_distances(features(detector, batch), features(detector, test))
    np.testing.assert_allclose(distances(detector, test), expected, rtol=1e-3)


@pytest.mark.parametrize("n_images", [6, 30])
@pytest.mark.parametrize("size", [32, 52])
def test_blocks_of_positions_change_nothing(
    monkeypatch: pytest.MonkeyPatch, n_images: int, size: int
) -> None:
    maps = []
    for block in (1, 3000, 1 << 23):
        monkeypatch.setattr(gaussians, "_BLOCK", block)
        detector = build(size)
        detector.fit(images(n_images, size), 1)
        maps.append(detector.anomaly_maps(images(3, size, seed=2)))
    torch.testing.assert_close(maps[0], maps[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps[1], maps[2], rtol=1e-4, atol=1e-5)


def test_maps_are_smooth_and_the_score_is_their_maximum() -> None:
    detector = build(size=64)
    detector.fit(images(size=64), 1)
    test = images(3, size=64, seed=2)
    maps, scores = detector.predict(test)
    found = torch.from_numpy(distances(detector, test)).view(3, 1, 16, 16)
    expected = torch.nn.functional.interpolate(found, (64, 64), mode="bilinear")
    torch.testing.assert_close(maps, gaussian_smooth(expected, 4.0 * 64 / 256).squeeze(1))
    torch.testing.assert_close(scores, maps.amax((1, 2)))


def test_channels_are_chosen_at_random_from_all_stages() -> None:
    detector = build(size=64, channels=60)
    network = detector.network
    batch = normalise(images(2, size=64), detector.device)
    with torch.no_grad():
        stages = network.encoder(batch)
        chosen, _ = network(batch)
    counts = [len(network.get_buffer(f"channels_{stage}")) for stage in range(3)]
    offsets = [0, 24, 56]
    indices = torch.cat(
        [network.get_buffer(f"channels_{stage}") + offsets[stage] for stage in range(3)]
    )
    assert sum(counts) == 60
    assert min(counts) > 0
    assert len(indices.unique()) == 60
    for number, (stage, found) in enumerate(zip(stages, chosen, strict=True)):
        own = stage[:, network.get_buffer(f"channels_{number}")]
        assert torch.equal(found, own.flatten(2).mT)
    assert counts == network.drawn.bincount().tolist() == list(network.gaussians.channels)
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


def size_of(detector: PaDiM) -> int:
    """Numbers in the Gaussians, but for the means."""
    buffers = detector.network.gaussians.named_buffers()
    return sum(buffer.numel() for name, buffer in buffers if not name.startswith("mean"))


def test_the_model_does_not_grow_with_many_images() -> None:
    sizes = {}
    for n in (3, 20, 60):
        detector = build()
        detector.fit(images(n), 1)
        sizes[n] = size_of(detector)
        counts, channels = (64, 16, 4), detector.network.gaussians.channels
        assert sizes[n] == min(n_numbers(counts, channels, n))
    one, two, three = channels
    assert sizes[3] == 3 * (64 * (3 + one) + 16 * two + 4 * three)
    assert sizes[60] == 64 * one * 20 + 16 * two * (two + three) + 4 * three**2
    assert sizes[3] < sizes[20] == sizes[60]


def test_a_model_that_is_too_large_names_how_many_channels_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for n, largest in ((30, 4 * 64 * 30), (6, 4 * 64 * 6 * 10)):
        monkeypatch.setattr(padim, "_LARGEST", largest)
        with pytest.raises(MethodError, match="or fewer, or a smaller resolution") as refusal:
            build(channels=100).fit(images(n), 1)
        fitting = int(re.search(r"use channels (\d+) or", str(refusal.value))[1])
        detector = build(channels=fitting)
        detector.fit(images(n), 1)
        assert 4 * size_of(detector) <= largest
        with pytest.raises(MethodError, match=f"use channels {fitting} or fewer"):
            build(channels=fitting + 1).fit(images(n), 1)


def test_the_papers_largest_model_is_not_too_large() -> None:
    """550 of the channels of wide_resnet50_2 at 256 pixels, and at 1024."""
    stages = torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor([256, 512, 1024]))
    drawn = stages[torch.randperm(1792, generator=torch.Generator().manual_seed(0))[:550]]
    at_256, at_1024 = (
        levels_of(((side, side), (side // 2,) * 2, (side // 4,) * 2), torch.device("cpu"))
        for side in (64, 256)
    )
    padim._check_size(drawn, at_256, 1000)
    with pytest.raises(MethodError, match=r"16\.\d GiB: use channels 3\d\d or fewer"):
        padim._check_size(drawn, at_1024, 1000)


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


def test_a_model_of_version_0_5_is_refused() -> None:
    detector = build()
    state = detector.inference_state()
    old = {k: v for k, v in state.items() if "gaussians" not in k}
    old |= {"network.mean": torch.zeros(64, 20), "network.factor": torch.zeros(64, 6, 20)}
    with pytest.raises(MethodError, match=r"the state has no network\.gaussians\.mean_0"):
        detector.load_inference_state(old)


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
