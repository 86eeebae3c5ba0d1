"""PatchCore against its formulas: nearest neighbours, re-weighting, the bank and its bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from scipy.spatial.distance import cdist
from torch import Tensor

from anomtune.errors import MethodError
from anomtune.models import patchcore
from anomtune.models.images.pixels import normalise
from anomtune.models.layers.evidence import image_scores
from anomtune.models.layers.maps import gaussian_smooth, surround
from anomtune.models.patchcore import MemoryBank, PatchCore, PatchCoreHyperparameters
from anomtune.models.testing import check_method

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"backbone": "mobilenet_v2", "weights": "random"}


def images(n: int = 6, size: int = 64, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def build(size: int = 64, seed: int = 0, **fields: Any) -> PatchCore:
    return PatchCore(PatchCoreHyperparameters(**{**SMALL, **fields}), image_size=size, seed=seed)


def bank_of(patches: Tensor) -> MemoryBank:
    bank = MemoryBank("mobilenet_v2", "random", 3)
    bank.fill(patches)
    return bank


def test_it_keeps_the_contract() -> None:
    check_method(PatchCore, PatchCoreHyperparameters(**SMALL))


def test_a_resnet_with_a_small_bank_and_no_weights_keeps_the_contract() -> None:
    scoring = {"n_neighbours": 1, "sigma": 0.0}
    fields: dict[str, Any] = {"neighbourhood": 1, "max_bank": 10, "scoring": scoring}
    hp = PatchCoreHyperparameters(backbone="resnet18", weights="random", **fields)
    check_method(PatchCore, hp, image_size=52)


def test_defaults_are_the_papers() -> None:
    hp = PatchCoreHyperparameters()
    assert (hp.backbone, hp.weights, hp.neighbourhood) == ("wide_resnet50_2", "imagenet", 3)
    assert (hp.coreset_ratio, hp.projected_channels, hp.scoring.sigma) == (0.1, 128, 4)
    assert (hp.scoring.scales, hp.scoring.reduce) == (("patches",), "own")
    assert hp.training_iterations(1) == hp.training_iterations(1000) == 1
    assert {"weights", "max_bank", "projected_channels"}.isdisjoint(hp.search_space())


@pytest.mark.parametrize(
    "fields",
    [
        {"coreset_ratio": 0},
        {"coreset_ratio": 1.1},
        {"neighbourhood": 2},
        {"scoring": {"n_neighbours": 0}},
        {"max_bank": 0},
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PatchCoreHyperparameters(**fields)


@pytest.mark.parametrize("block", [1, 300, 1 << 22])
def test_nearest_neighbours_are_exact_far_from_the_origin_too(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(patchcore, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(90, 128, generator=generator) + 100
    bank = bank_of(patches[:50])
    with torch.no_grad():
        indices = bank.nearest(patches - bank.centre)
        parts = bank.distances(patches - bank.centre, indices)
    distances = parts[0]
    # What each layer has of a distance: 32 channels of the one stage, 96 of the other.
    away = patches - patches[:50][indices]
    for part, channels in zip(parts[1:], (away[:, :32], away[:, 32:]), strict=True):
        torch.testing.assert_close(part, channels.norm(dim=1), rtol=1e-4, atol=1e-4)
    expected = cdist(patches.double(), patches[:50].double())
    assert (indices.numpy() == expected.argmin(1)).all()
    np.testing.assert_allclose(distances, expected.min(1), rtol=1e-4, atol=1e-4)
    assert float(distances[:50].max()) == 0, "no error of cancellation"


@pytest.mark.parametrize("n", [2, 3, 9, 1000])
def test_weights_are_those_of_equation_7(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    bank_patches = torch.randn(40, 128, generator=generator) / 8
    tests = torch.randn(5, 128, generator=generator) / 8
    bank = bank_of(bank_patches)
    shifted = tests - bank.centre
    indices = bank.nearest(shifted)
    distances = bank.distances(shifted, indices)[0]
    weights = bank.weight(shifted, distances, indices, n)
    for row, test in enumerate(tests.double().numpy()):
        to_bank = np.linalg.norm(bank_patches.double().numpy() - test, axis=1)
        nearest = to_bank.argmin()
        around = cdist(bank_patches[nearest : nearest + 1].double(), bank_patches.double())[0]
        neighbours = around.argsort()[:n]  # the nearest itself is the first
        expected = 1 - np.exp(to_bank[nearest]) / np.exp(to_bank[neighbours]).sum()
        assert float(weights[row]) == pytest.approx(expected, rel=1e-4)


def test_no_neighbours_no_weight() -> None:
    bank = bank_of(torch.randn(4, 128))
    patches = torch.randn(2, 128)
    indices = bank.nearest(patches)
    distances = bank.distances(patches, indices)[0]
    assert bank.weight(patches, distances, indices, 1).tolist() == [1, 1]
    lonely = bank_of(torch.randn(1, 128))
    indices = lonely.nearest(patches)
    distances = lonely.distances(patches, indices)[0]
    assert lonely.weight(patches, distances, indices, 9).tolist() == [1, 1]


def test_equal_patches_in_the_bank_count_the_nearest_once() -> None:
    patch = torch.randn(1, 128)
    bank = bank_of(torch.cat([patch, patch, patch, patch + 0.1]))
    test = patch + 0.01 - bank.centre
    indices = bank.nearest(test)
    distances = bank.distances(test, indices)[0]
    weight = bank.weight(test, distances, indices, 3)
    assert float(weight) == pytest.approx(2 / 3, rel=1e-4)


def test_large_distances_do_not_overflow_the_weights() -> None:
    bank = bank_of(torch.randn(20, 128))
    patches = torch.randn(2, 128) * 1e4
    indices = bank.nearest(patches)
    distances = bank.distances(patches, indices)[0]
    assert bank.weight(patches, distances, indices, 9).isfinite().all()


@pytest.mark.parametrize("n_neighbours", [1, 9])
def test_scores_and_maps_are_those_of_the_formulas(n_neighbours: int) -> None:
    detector = build(scoring={"n_neighbours": n_neighbours}, backbone="resnet18")
    detector.fit(images(), 1)
    test = images(3, seed=2)
    maps, scores = detector.predict(test)
    network = detector.network
    bank = (network.bank + network.centre).double().numpy()
    with torch.no_grad():
        features = network.features(normalise(test, detector.device)).double()
    for image, patches in enumerate(features.flatten(2).mT.numpy()):
        table = cdist(patches, bank)
        nearest = table.min(1)
        place = nearest.argmax()
        center = table[place].argmin()
        neighbours = cdist(bank[center : center + 1], bank)[0].argsort()[:9]
        weight = 1.0
        if n_neighbours > 1:
            weight -= np.exp(nearest[place]) / np.exp(table[place][neighbours]).sum()
        expected = weight * nearest[place]
        assert float(scores[image]) == pytest.approx(expected, rel=1e-3)
        shape = torch.nn.functional.interpolate(
            torch.from_numpy(nearest).view(1, 1, 8, 8), (64, 64), mode="bilinear"
        )
        # The map is left alone: only the score is re-weighted.
        shape = gaussian_smooth(shape[0, 0], 4.0 * 64 / 256)
        torch.testing.assert_close(maps[image].double(), shape, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(detector.score(test, batch_size=2), scores)
    with pytest.raises(MethodError, match="use predict"):
        image_scores(maps, detector.scoring)


def test_patches_of_the_bank_are_normal() -> None:
    detector = build(coreset_ratio=1.0)
    detector.fit(images(), 1)
    assert len(detector.network.bank) == 6 * 8 * 8
    foreign = detector.score(images(seed=2))
    assert float(detector.score(images()).max()) < 1e-3 * float(foreign.min())


def test_the_bank_covers_the_training_patches() -> None:
    detector = build()
    report = detector.fit(images(20), 1)
    assert report["bank_size"] == len(detector.network.bank) == round(0.1 * 20 * 64)
    network = detector.network
    with torch.no_grad():
        patches = network(normalise(images(20), detector.device)).flatten(0, 2)
        indices = network.nearest(patches - network.centre)
        distances = network.distances(patches - network.centre, indices)[0]
    # 128 channels: the selection sees them as they are.
    assert float(distances.max()) == pytest.approx(report["covering_radius"], rel=1e-2)


def test_memory_is_bounded_by_the_bank_and_not_by_the_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []
    original = torch.Tensor.new_empty

    def record(self: Tensor, *size: Any, **kwargs: Any) -> Tensor:
        sizes.append(size)
        return original(self, *size, **kwargs)

    monkeypatch.setattr(torch.Tensor, "new_empty", record)
    monkeypatch.setattr(patchcore, "_HELD_NUMBERS", 10 * 128)  # of 10 patches
    for n in (8, 80):
        detector = build(size=32, max_bank=16)
        detector.fit(images(n, size=32), 1)
        assert len(detector.network.bank) == min(round(0.1 * n * 16), 16)
    assert sizes == [(64, 128), (64, 128)]


def test_a_bank_is_never_empty() -> None:
    detector = build(size=32, coreset_ratio=0.001)
    detector.fit(images(1, size=32), 1)
    assert len(detector.network.bank) == 1
    assert detector.score(images(2, size=32)).isfinite().all()


def test_further_iterations_change_nothing() -> None:
    detector = build()
    assert detector.fit(images(), 0) == {}
    assert len(detector.network.bank) == 0
    assert detector.fit(images(), 1).keys() == {"bank_size", "covering_radius"}
    before = detector.state_dict()
    assert detector.fit(images(seed=3), 5) == {}
    assert detector.iteration == 6
    for name, value in detector.state_dict().items():
        assert name == "iteration" or torch.equal(value, before[name])


def test_a_state_fits_a_detector_that_holds_another_bank() -> None:
    original, copy = build(), build(seed=1)
    original.fit(images(), 1)
    copy.fit(images(3, seed=3), 1)
    copy.load_state_dict(load(save(original.state_dict())))
    assert torch.equal(original.score(images()), copy.score(images()))
    # And back to nothing: a detector that has not seen an image yet.
    copy.load_state_dict(load(save(build().state_dict())))
    copy.fit(images(), 1)
    assert torch.equal(original.score(images()), copy.score(images()))


def test_a_detector_without_a_bank_says_so() -> None:
    with pytest.raises(MethodError, match="bank is empty: fit the detector first"):
        build().anomaly_maps(images())


def test_no_images_is_an_error() -> None:
    with pytest.raises(MethodError, match="no training image"):
        build().fit(images(0), 1)


def test_a_tiny_image_is_refused() -> None:
    with pytest.raises(MethodError, match="use 32 or more"):
        build(size=16)


def test_nothing_learns_and_the_encoder_stays_in_eval_mode() -> None:
    detector = build()
    encoder = {n: v.clone() for n, v in detector.network.features.state_dict().items()}
    detector.fit(images(), 1)
    assert not any(parameter.requires_grad for parameter in detector.network.parameters())
    assert not any(module.training for module in detector.network.modules())
    for name, value in detector.network.features.state_dict().items():
        assert torch.equal(value, encoder[name])


def test_the_parameters_are_those_of_the_encoder() -> None:
    detector = build()
    detector.fit(images(), 1)
    count = sum(p.numel() for p in detector.network.parameters())
    assert count == sum(p.numel() for p in detector.network.features.encoder.parameters())
    assert not detector.network.bank.requires_grad


OFFICIAL = {**PatchCoreHyperparameters.presets["official"], "resolution": 64, "crop": 56}


def test_the_official_preset_is_that_of_the_official_code() -> None:
    hp = PatchCoreHyperparameters(**PatchCoreHyperparameters.presets["official"])
    assert (hp.backbone, hp.input_size(256), hp.input_size(512), hp.crop) == (
        *("wide_resnet50_2", 256, 256),
        224,
    )
    assert (hp.embedding, hp.coreset, hp.max_bank) == (1024, "approximate", None)
    assert (hp.scoring.n_neighbours, hp.scoring.squared, hp.coreset_ratio) == (1, True, 0.1)
    assert (hp.scoring.sigma, hp.scoring.scales, hp.scoring.reduce) == (4, ("patches",), "own")


def test_the_official_preset_keeps_the_contract() -> None:
    check_method(PatchCore, PatchCoreHyperparameters(**SMALL, **OFFICIAL))


def test_the_official_preset_sees_the_middle_of_images_and_pools_their_features() -> None:
    detector = build(size=128, **OFFICIAL)
    training = images()
    detector.fit(training, 1)
    assert detector.network.bank.shape == (round(0.1 * 6 * 7 * 7), 1024)
    test = images(2, seed=3)
    maps, scores = detector.predict(test)
    around = test.clone()
    around[:, :, :4] = around[:, :, -4:] = 0
    around[..., :4] = around[..., -4:] = 255
    assert torch.equal(detector.predict(around)[0], maps)
    # 56 of 64 pixels are 112 of 128; around them nothing is seen.
    assert maps.shape == (2, 128, 128)
    assert (maps[:, 8:-8, 8:-8] > 0).all()
    assert not surround(maps[:, 8:-8, 8:-8], 128).sub(maps).any()
    with torch.no_grad():
        patches = detector.network(detector.inputs(test))
    bank = detector.network.bank + detector.network.centre
    distances = torch.cdist(patches.flatten(1, 2), bank).amin(2)
    torch.testing.assert_close(scores, distances.square().amax(1), rtol=1e-3, atol=1e-4)
    # Squared distances are interpolated, and smoothed by 4 pixels of a whole image of 256.
    squares = distances.square().view(2, 1, 7, 7)
    inner = torch.nn.functional.interpolate(squares, (112, 112), mode="bilinear").squeeze(1)
    torch.testing.assert_close(
        maps[:, 8:-8, 8:-8], gaussian_smooth(inner, 2.0), rtol=1e-3, atol=1e-4
    )


def test_a_crop_that_is_larger_than_the_images_is_refused() -> None:
    with pytest.raises(MethodError, match=r"crop 224 of images of 64 pixels: set resolution"):
        build(crop=224)


def test_the_smoothing_takes_no_part_in_its_own_scores_and_is_not_searched_with_them() -> None:
    judged = PatchCoreHyperparameters().scorings()
    assert [scoring.sigma for scoring in judged if scoring.reduce == "own"] == [4]
    plain, smooth = (build(scoring={"sigma": sigma}) for sigma in (0.0, 8.0))
    for detector in (plain, smooth):
        detector.fit(images(), 1)
    test = images(3, seed=2)
    assert torch.equal(plain.score(test), smooth.score(test))
    assert not torch.equal(plain.anomaly_maps(test), smooth.anomaly_maps(test))
