"""Corrupted copies of test images, against plain transcriptions of METHODS.md section 5.7."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from pydantic import ValidationError

from anomtune.datasets.splits import shift as shift_module
from anomtune.datasets.splits.shift import CORRUPTIONS, Shift, corrupt
from anomtune.errors import DataError

NAMES = tuple(CORRUPTIONS)
ALL = [(name, severity) for name in NAMES for severity in range(1, 6)]


def coloured(height: int = 40, width: int = 37, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[:4] = 0
    image[4:8] = 255
    image[8:12] = (200, 10, 10)
    return image


def grey(height: int = 40, width: int = 37, seed: int = 0) -> np.ndarray:
    return np.repeat(coloured(height, width, seed)[..., 1:2], 3, axis=2)


def truncated(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize(("name", "severity"), ALL)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (28, 28), (31, 300), (290, 33)])
def test_any_size_stays_as_it_is(name: str, severity: int, size: tuple[int, int]) -> None:
    image = coloured(*size)
    before = image.copy()
    result = corrupt(image, name, severity, 1)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    assert np.array_equal(image, before)
    assert np.array_equal(result, corrupt(image, name, severity, 1))
    assert np.array_equal(result, corrupt(np.asfortranarray(image), name, severity, 1))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "gaussian_noise"])
@pytest.mark.parametrize("severity", range(1, 6))
def test_grey_stays_grey(name: str, severity: int) -> None:
    result = corrupt(grey(), name, severity, 0)
    assert np.ptp(result, axis=2).max() == 0


@pytest.mark.parametrize("name", NAMES)
def test_severity_grows(name: str) -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(30, 120, (64, 64, 3), dtype=np.uint8)
    change = [
        np.abs(corrupt(image, name, severity, 0).astype(float) - image).mean()
        for severity in range(1, 6)
    ]
    assert change == sorted(change)
    assert len(set(change)) == 5


@pytest.mark.parametrize("severity", range(1, 6))
def test_brightness_is_that_of_hsv(severity: int) -> None:
    add = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    image = coloured()
    expected = np.empty(image.shape)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
        expected[place] = colorsys.hsv_to_rgb(hue, saturation, min(value + add, 1))
    result = corrupt(image, "brightness", severity, 0)
    # Where the exact level is whole, the last bit of a float decides what truncation leaves.
    assert np.abs(result - expected * 255).max() < 1 + 1e-6
    assert (result == truncated(expected)).mean() > 0.99
    # Grey levels have no such doubt: the addition is all there is.
    assert np.array_equal(
        corrupt(grey(), "brightness", severity, 0), truncated(grey() / 255.0 + add)
    )


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("image", [coloured(), grey()], ids=["coloured", "grey"])
def test_contrast(severity: int, image: np.ndarray) -> None:
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    x = image / 255.0
    mean = x.mean(axis=(0, 1), keepdims=True)
    expected = truncated((x - mean) * factor + mean)
    assert np.array_equal(corrupt(image, "contrast", severity, 0), expected)


@pytest.mark.parametrize("severity", range(1, 6))
def test_gaussian_noise(severity: int) -> None:
    sigma = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    flat = np.full((300, 300, 3), 128, np.uint8)  # more values than are drawn at once
    result = corrupt(flat, "gaussian_noise", severity, 7)
    noise = np.random.Generator(np.random.PCG64(7)).standard_normal(flat.shape)
    assert np.array_equal(result, truncated(flat / 255.0 + sigma * noise))
    assert not np.array_equal(result, corrupt(flat, "gaussian_noise", severity, 8))
    assert not np.array_equal(result[..., 0], result[..., 1])


def mirrored(index: int, count: int) -> int:
    """Folds an index back, the edge not repeated: ... 2 1 | 0 1 2 ..."""
    while count > 1 and not 0 <= index < count:
        index = -index if index < 0 else 2 * (count - 1) - index
    return index if count > 1 else 0


def disk(severity: int) -> np.ndarray:
    """The kernel, tap by tap."""
    radius, sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    reach = 8 if radius <= 8 else radius
    side = 2 * reach + 1
    plain = np.zeros((side, side))
    for y in range(side):
        for x in range(side):
            plain[y, x] = (x - reach) ** 2 + (y - reach) ** 2 <= radius**2
    plain /= plain.sum()
    half = 1 if radius <= 8 else 2
    weight = {d: np.exp(-(d**2) / (2 * sigma**2)) for d in range(-half, half + 1)}
    total = sum(weight.values())
    kernel = np.zeros_like(plain)
    for y in range(side):
        for x in range(side):
            for dy, wy in weight.items():
                for dx, wx in weight.items():
                    source = plain[mirrored(y + dy, side), mirrored(x + dx, side)]
                    kernel[y, x] += source * wy * wx / total**2
    return kernel


@pytest.mark.parametrize("severity", range(1, 6))
def test_defocus_blur_is_the_plain_convolution(severity: int) -> None:
    image = coloured(30, 23)
    kernel = disk(severity)
    reach = kernel.shape[0] // 2
    height, width = image.shape[:2]
    rows = [mirrored(y, height) for y in range(-reach, height + reach)]
    columns = [mirrored(x, width) for x in range(-reach, width + reach)]
    padded = (image / 255.0)[rows][:, columns]
    expected = sum(
        kernel[y, x] * padded[y : y + height, x : x + width]
        for y in range(kernel.shape[0])
        for x in range(kernel.shape[1])
    )
    result = corrupt(image, "defocus_blur", severity, 0)
    levels = np.minimum(expected * 255, 255)
    # Truncation: at most a level below the exact value, above it only by what rounding may do.
    assert (levels - result < 1).all()
    assert (levels - result > -2e-4).all()


def test_blur_in_tiles_is_the_blur_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    image = coloured(150, 131)
    whole = corrupt(image, "defocus_blur", 4, 0)
    monkeypatch.setattr(shift_module, "_TILE", 20)
    assert np.array_equal(corrupt(image, "defocus_blur", 4, 0), whole)


@pytest.mark.parametrize("severity", [1, 2, 3])
@pytest.mark.parametrize("level", [0, 1, 77, 254, 255])
def test_blur_leaves_uniform_images_alone(severity: int, level: int) -> None:
    image = np.full((33, 40, 3), level, np.uint8)
    assert np.array_equal(corrupt(image, "defocus_blur", severity, 0), image)


@pytest.mark.parametrize(
    ("corruptions", "severity", "message"),
    [
        (("fog",), 3, "no corruption 'fog'; there is brightness, contrast"),
        (("contrast",), 0, "severity\n.*greater than or equal to 1"),
        (("contrast",), 6, "severity\n.*less than or equal to 5"),
        (("contrasts",), 3, "did you mean 'contrast'"),
        ((), 3, "name at least one"),
        (("contrast", "contrast"), 3, "none twice"),
    ],
)
def test_a_wrong_shift_is_refused(corruptions: tuple, severity: int, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Shift(corruptions=corruptions, severity=severity)


def test_a_wrong_name_is_refused() -> None:
    with pytest.raises(DataError, match="no corruption 'snow'"):
        corrupt(coloured(), "snow", 1, 0)
    with pytest.raises(DataError, match="severity 6: must be 1, 2, 3, 4 or 5"):
        corrupt(coloured(), "contrast", 6, 0)


def test_a_shift_is_the_section_of_a_file() -> None:
    assert Shift() == Shift.model_validate({"corruptions": list(NAMES), "severity": 3})
    assert Shift().model_dump(mode="json") == {"corruptions": list(NAMES), "severity": 3}
    with pytest.raises(ValidationError, match="strength"):
        Shift.model_validate({"strength": 3})


SUMS = {
    "brightness-1": 1700198,
    "brightness-5": 2032362,
    "contrast-1": 1529742,
    "contrast-5": 1529215,
    "defocus_blur-1": 1530344,
    "defocus_blur-5": 1558602,
    "gaussian_noise-1": 1534971,
    "gaussian_noise-5": 1553485,
}


def test_pixels_are_those_of_version_1() -> None:
    """Whoever changes a pixel must raise VERSION, else caches mix old and new copies."""
    image = coloured(64, 64)
    assert shift_module.VERSION == 1
    assert {
        f"{name}-{severity}": int(corrupt(image, name, severity, 5).sum(dtype=np.int64))
        for name, severity in ALL
        if severity in (1, 5)
    } == SUMS
