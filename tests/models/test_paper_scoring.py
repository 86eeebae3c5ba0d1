"""Maps and scores of the papers' own scoring, written down again from METHODS in numpy and scipy.

Evidence and features are the detectors': what is tested is what follows on them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch import Tensor

from anomtune.models.base import Detector
from anomtune.models.padim import PaDiM
from anomtune.registry import METHODS

pytestmark = pytest.mark.slow

Array = npt.NDArray[np.float64]
Expected = tuple[Array, Array]

INPUT = 64
SMALL = {"backbone": "mobilenet_v2", "weights": "random"}
SIZES = [INPUT, 48, 96]


def images(n: int = 3, size: int = INPUT, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, size, size, 3), generator=generator)
    # Each of another contrast: their scores must differ.
    contrast = torch.linspace(0.1, 1, n).view(-1, 1, 1, 1)
    return (pixels * contrast).to(torch.uint8).permute(0, 3, 1, 2)


def fitted(method: str, size: int, **fields: Any) -> Detector[Any]:
    kind = METHODS.get(method)
    detector: Detector[Any] = kind(kind.Hyperparameters(**fields), image_size=size, device="cpu")
    detector.fit(images(6, detector.input_size, seed=1), 2)
    detector.network.eval()
    return detector


def check(detector: Detector[Any], expected: Expected) -> None:
    """Compares with what is predicted: to 1e-5 of the largest value."""
    maps, scores = detector.predict(images(size=detector.input_size))
    assert maps.shape[1:] == (detector.image_size,) * 2
    for found, wanted in zip((maps, scores), expected, strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found.double().numpy() / scale, wanted / scale, atol=1e-5)
        assert wanted.std() > 1e-4 * scale, "there is something to compare"


def bilinear(maps: Array, size: int, *, corners: bool = False, antialias: bool = False) -> Array:
    found = F.interpolate(
        torch.from_numpy(maps)[:, None],
        size=(size, size),
        mode="bilinear",
        align_corners=corners,
        antialias=antialias,
    )
    return found[:, 0].numpy()


def smooth(maps: Array, sigma: float) -> Array:
    return np.stack([gaussian_filter(one, sigma) for one in maps])


def nearest_odd(length: float) -> int:
    return min(range(1, 200, 2), key=lambda side: abs(side - length))


@pytest.mark.parametrize("method", ["rd4ad", "recontrast", "gnl"])
@pytest.mark.parametrize("size", SIZES)
def test_the_distillation_family(method: str, size: int) -> None:
    """Section 0: sum of the pairs' upsampled cosine distances, Gaussian of 4, maximum."""
    detector = fitted(method, size, **SMALL, batch_size=3, resolution=INPUT)
    with torch.no_grad():
        pairs = detector.pairs(detector.inputs(images()))
    assert len(pairs) == (6 if method == "recontrast" else 3)
    total = np.zeros((3, size, size))
    for target, prediction in pairs:
        a, b = target.double().numpy(), prediction.double().numpy()
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        total += bilinear(1 - (a * b).sum(1) / np.maximum(norms, 1e-8), size, corners=True)
    maps = smooth(total, 4 * size / 256)
    check(detector, (maps, maps.max((1, 2))))


@pytest.mark.parametrize("size", SIZES)
def test_padim(size: int) -> None:
    """Distances of the positions, upsampled, Gaussian of 4, maximum."""
    detector = fitted("padim", size, **SMALL, channels=20, resolution=INPUT)
    assert isinstance(detector, PaDiM)
    with torch.no_grad():
        distances = detector.network.distances(detector.inputs(images()))
    maps = smooth(bilinear(distances.double().numpy(), size), 4 * size / 256)
    check(detector, (maps, maps.max((1, 2))))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"crop": 48},
        {"crop": 48, "embedding": 64, "scoring": {"n_neighbours": 1, "squared": True}},
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_patchcore(size: int, fields: dict[str, Any]) -> None:
    """Equations 6 and 7: the farthest patch, re-weighted; the map has the distances."""
    detector = fitted("patchcore", size, **SMALL, resolution=INPUT, **fields)
    network: Any = detector.network
    with torch.no_grad():
        patches = (network(detector.inputs(images())) - network.centre).double().numpy()
    bank, side = network.bank.double().numpy(), patches.shape[1]
    scoring = fields.get("scoring", {"n_neighbours": 9, "squared": False})
    distances, scores = [], []
    for image in patches.reshape(3, side * side, -1):
        table = cdist(image, bank)
        nearest = table.min(1)
        farthest = nearest.argmax()
        around = cdist(bank[[table[farthest].argmin()]], bank)[0].argsort()
        others = table[farthest][around[: scoring["n_neighbours"]]]
        weight = 1 - np.exp(nearest[farthest]) / np.exp(others).sum() if len(others) > 1 else 1.0
        power = 2 if scoring["squared"] else 1
        distances.append(nearest.reshape(side, side) ** power)
        scores.append(weight * nearest[farthest] ** power)
    seen = round(size * fields.get("crop", INPUT) / INPUT)
    maps = smooth(bilinear(np.stack(distances), seen), 4 * size / 256)
    rim = (size - seen) // 2
    whole = np.pad(maps, ((0, 0), (rim, size - seen - rim), (rim, size - seen - rim)))
    check(detector, (whole, np.array(scores)))


@pytest.mark.parametrize("size", [INPUT, 32])
def test_gmm_contrastive(size: int) -> None:
    """Section 4.3: -log G(u) of the positions, upsampled, Gaussian of 4, maximum."""
    detector = fitted(
        "gmm_contrastive", size, **SMALL, batch_size=2, dimensions=4, components=2, em_steps=3
    )
    network: Any = detector.network
    with torch.no_grad():
        features = network.project(network.patches(images(size=size))).double().numpy()
    mixture = network.final
    logs = [
        np.log(weight) + multivariate_normal(mean, covariance).logpdf(features)
        for weight, mean, covariance in zip(
            mixture.weights.double().numpy(),
            mixture.means.double().numpy(),
            mixture.covariances.double().numpy(),
            strict=True,
        )
    ]
    density = logsumexp(logs, axis=0).reshape(3, size // 8, size // 8)
    maps = smooth(bilinear(-density, size), 4 * size / 256)
    check(detector, (maps, maps.max((1, 2))))


@pytest.mark.parametrize("size", [32, 24, 48])
def test_spr(size: int) -> None:
    """Section 6.3: squared errors of restoration over three draws, mean over 31 x 31, maximum."""
    detector = fitted("spr", size, width=4, resolution=32, batch_size=3)
    average: Any = detector
    x = images(size=32).float() / 127.5 - 1
    std = math.sqrt((25 ** (2 * 1e-3) - 1) / (2 * math.log(25)))
    errors = np.zeros((3, 32, 32))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        noise = std * torch.randn(3, 32, 32, generator=generator)
        with torch.no_grad():
            score = average.average(x + noise, torch.full((3,), 1e-3))
        restored = std**2 * score.double() + noise
        errors += restored.square().mean(1).numpy() / 3
    window = nearest_odd(31 * size / 256)
    maps = np.stack(
        [uniform_filter(one, window, mode="constant") for one in bilinear(errors, size)]
    )
    check(detector, (maps, maps.max((1, 2))))


def squared(pixels: Array, output: Array) -> Array:
    return ((pixels - output) ** 2).mean(1)


def ssim(pixels: Array, output: Array) -> Array:
    def mean(x: Array) -> Array:
        return gaussian_filter(x, 1.5, mode="reflect", radius=5, axes=(-2, -1))

    a, b = mean(pixels), mean(output)
    cov = mean(pixels * output) - a * b
    var = mean(pixels**2) - a**2 + mean(output**2) - b**2
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * a * b + c1) * (2 * cov + c2) / ((a**2 + b**2 + c1) * (var + c2))
    return ((1 - value) / 2).mean(1)


@pytest.mark.parametrize("diff", [squared, ssim])
@pytest.mark.parametrize("objective", ["1", "ensemble"])
@pytest.mark.parametrize(("size", "t"), [(32, 0), (32, 2), (24, 1), (48, 3)])
def test_ssae(size: int, t: int, objective: str, diff: Any) -> None:
    """Section 3.5: smooth differences, weighted by the average map, the larger one; their sum."""
    detector: Any = fitted(
        "ssae",
        size,
        width=2,
        resolution=32,
        batch_size=3,
        iterations=4,
        objective=objective,
        scoring={"diff": diff.__name__, "n": 2, "k": 81, "t": t},
    )
    window = nearest_odd(81 * 32 / 512)
    assert window == 5

    def anomap(network: Any, photos: Tensor) -> Array:
        pixels = photos.float() / 255
        with torch.no_grad():
            output = network(pixels).double().numpy()
        maps = diff(pixels.double().numpy(), output)
        for _ in range(2):
            maps = np.stack([uniform_filter(one, window, mode="reflect") for one in maps])
        return maps

    training = images(6, 32, seed=1)
    held_out = training[detector.split[:1]]
    maps = np.stack(
        [
            anomap(network, images(size=32)) * (1 - anomap(network, held_out).mean(0)) ** t
            for network in detector.network
        ]
    ).max(0)
    maps = bilinear(maps, size, antialias=True) if size != 32 else maps
    check(detector, (maps, maps.sum((1, 2))))
