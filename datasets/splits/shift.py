"""Corrupted copies of test images: what a change of light, focus or camera does to a detector.

The four corruptions of ImageNet-C that GNL is measured with (METHODS.md sections 5.6 and 5.7),
by the formulas of the package ``imagecorruptions``. Where that package repeats nothing (it draws
its noise from the global generator) the copies here are the same on every machine: the hash of a
split depends on their pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator
from scipy import fft, ndimage

from anomtune.datasets.base import Dataset, Problem, Published, Sample
from anomtune.datasets.io.imagefile import hash_pixels
from anomtune.datasets.io.store import digest
from anomtune.errors import DataError, suggest
from anomtune.settings import Settings

Image = npt.NDArray[np.uint8]

VERSION = 1  # Raise it when any corrupted pixel changes: cached categories are found by it.

SEVERITIES = range(1, 6)
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
_DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))  # radius, sigma of the antialiasing
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)

_SEPARATOR = "@"
_TILE = 256  # Side of what is blurred at once, in pixels.
_BLOCK = 1 << 18  # Values of noise drawn at once: bounds memory, and is faster than all at once.
# The blur sums whole numbers: one level is this many units, and results that lie less than the
# slack below a level are on it. So the weights' rounding does not darken what is uniform.
_UNIT = 1 << 30
_SLACK = _UNIT // 10_000


def corrupt(image: Image, name: str, severity: int, seed: int) -> Image:
    """Returns a corrupted copy of an image; equal channels stay equal, but for noise.

    Args:
        image: ``(H, W, 3)`` RGB, of any size.
        name: One of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Draws the noise.

    Returns:
        ``(H, W, 3)`` uint8. Like those of the reference, values are truncated, not rounded.

    Raises:
        DataError: If there is no such corruption or severity.
    """
    _check(name)
    if severity not in SEVERITIES:
        raise DataError(f"severity {severity}: must be 1, 2, 3, 4 or 5")
    return CORRUPTIONS[name](image, severity, seed)


def _brightness(image: Image, severity: int, seed: int) -> Image:
    """Adds to the value of HSV."""
    value = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    index = value[..., None].astype(np.uint16) * 256 + image
    return np.asarray(_brightness_table(severity).take(index))


@lru_cache(maxsize=len(SEVERITIES))
def _brightness_table(severity: int) -> Image:
    """Returns the new level of a channel at ``256 * value + level``."""
    level = np.arange(256) / 255
    value = np.clip(level + _BRIGHTNESS[severity - 1], 0, 1)
    # Hue and saturation stay, so all channels grow as the greatest does; black turns grey.
    share = np.ones((256, 256))
    share[1:] = np.minimum(np.arange(256) / np.arange(1, 256)[:, None], 1)
    return (value[:, None] * share * 255).astype(np.uint8).ravel()


def _contrast(image: Image, severity: int, seed: int) -> Image:
    """Moves every level towards the mean of its channel."""
    result = np.empty_like(image)
    level = np.arange(256) / 255
    for channel in range(3):
        plane = image[..., channel]
        # A sum of whole numbers: no order of adding changes it.
        mean = int(plane.sum(dtype=np.int64)) / plane.size / 255
        moved = (level - mean) * _CONTRAST[severity - 1] + mean
        result[..., channel] = (np.clip(moved, 0, 1) * 255).astype(np.uint8)[plane]
    return result


def _defocus_blur(image: Image, severity: int, seed: int) -> Image:
    """Filters each channel with a disk; the image is mirrored about its edge pixels.

    Tile by tile through Fourier transforms: of 1024 x 1024 pixels that takes a twelfth of the time
    of summing the kernel's up to 429 weights, and no more memory for larger images.
    """
    kernel = _disk(severity)
    margin = kernel.shape[0] // 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    high, wide = (
        fft.next_fast_len(min(side, _TILE) + 2 * margin, real=True) for side in image.shape[:2]
    )
    weights = fft.rfft2(kernel, (high, wide))
    result = np.empty_like(image)
    for y in range(0, image.shape[0], high - 2 * margin):
        for x in range(0, image.shape[1], wide - 2 * margin):
            tile = np.moveaxis(padded[y : y + high, x : x + wide], 2, 0).astype(np.float64)
            sums = fft.irfft2(fft.rfft2(tile, (high, wide)) * weights, (high, wide))
            target = result[y : y + high - 2 * margin, x : x + wide - 2 * margin]
            # What wraps around at the edge of the transform is left out.
            sums = sums[:, 2 * margin :, 2 * margin :][:, : target.shape[0], : target.shape[1]]
            # A transform's errors are some ten thousandths of a unit, so rounding gives the exact
            # sum, on any machine.
            level = (np.rint(sums) + _SLACK) / _UNIT
            target[:] = np.moveaxis(np.minimum(level, 255).astype(np.uint8), 0, 2)
    return result


@lru_cache(maxsize=len(SEVERITIES))
def _disk(severity: int) -> npt.NDArray[np.float64]:
    """Returns an antialiased disk ``(K, K)`` in whole units.

    The antialiasing blurs the kernel within its square and mirrors at the border, as OpenCV does
    by default. Disks that touch it (severities 4 and 5) thereby gain 1 % of weight.
    """
    radius, sigma = _DEFOCUS[severity - 1]
    reach, taps = (8, 3) if radius <= 8 else (radius, 5)
    offset = np.arange(-reach, reach + 1)
    disk = (offset**2 + offset[:, None] ** 2 <= radius**2).astype(np.float64)
    tap = np.arange(taps) - taps // 2
    weights = np.exp(-(tap**2) / (2 * sigma**2))
    weights /= weights.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, weights, axis=axis, mode="mirror")
    count = np.count_nonzero(offset**2 + offset[:, None] ** 2 <= radius**2)
    return np.asarray(np.rint(disk / count * _UNIT))


def _gaussian_noise(image: Image, severity: int, seed: int) -> Image:
    """Adds independent noise to every pixel and channel."""
    rng = np.random.Generator(np.random.PCG64(seed))
    flat = image.reshape(-1)
    result = np.empty(flat.shape, dtype=np.uint8)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK] / 255
        block += rng.standard_normal(block.size) * _NOISE[severity - 1]
        result[start : start + _BLOCK] = np.clip(block, 0, 1) * 255
    return result.reshape(image.shape)


#: What `corrupt` can do, by name.
CORRUPTIONS: dict[str, Callable[[Image, int, int], Image]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "defocus_blur": _defocus_blur,
    "gaussian_noise": _gaussian_noise,
}


class Shift(Settings):
    """Which corrupted copies of the test images to add; they neither train nor validate.

    Attributes:
        corruptions: Names from `CORRUPTIONS`.
        severity: 1 to 5; GNL takes 3 for MVTec AD and 5 for CIFAR-10 (METHODS.md section 5.6).
    """

    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    severity: int = Field(3, ge=SEVERITIES[0], le=SEVERITIES[-1])

    @field_validator("corruptions")
    @classmethod
    def _exist_once(cls, corruptions: tuple[str, ...]) -> tuple[str, ...]:
        if not corruptions or len(set(corruptions)) < len(corruptions):
            raise ValueError(f"name at least one and none twice, of {', '.join(CORRUPTIONS)}")
        for name in corruptions:
            _check(name)
        return corruptions

    @property
    def domains(self) -> dict[str, str]:
        """The name of each domain (``brightness-3``) and its corruption."""
        return {f"{name}-{self.severity}": name for name in self.corruptions}


class CorruptedDataset(Dataset):
    """A dataset with corrupted copies of its test images, each corruption a domain of its own.

    A copy keeps defect type and mask of its original: no corruption moves a pixel. Images that are
    of a shifted domain already have no copies. The copies are made from the full-resolution image
    whenever it is read, so the cache keeps them like any other.

    Args:
        original: What the images come from; all but the copies is as there.
        shift: Which copies to add.
    """

    def __init__(self, original: Dataset, shift: Shift) -> None:
        super().__init__(original.root)
        self.name = original.name
        # For the type checker it belongs to the class; here it is the wrapped dataset's.
        self.one_class = original.one_class
        self.division = original.division
        self.shift = shift
        self.original = original
        self._domains = shift.domains

    def categories(self) -> tuple[str, ...]:
        """Returns the names of the categories, sorted."""
        return self.original.categories()

    def scan(self, category: str) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        """Lists a category and the copies: their keys end in ``@`` and the name of the domain."""
        samples, problems = self.original.scan(category)
        taken = tuple(
            Problem(category, sample.key, f"rename it: no name may end in {domain!r}")
            for sample in samples
            if (domain := self._parse(sample.key)[1])
        )
        copies = [
            Sample(
                key=f"{sample.key}{_SEPARATOR}{domain}",
                part=sample.part,
                defect=sample.defect,
                mask=sample.mask,
                domain=domain,
                origin=sample.key,
                group=sample.group,
            )
            for sample in samples
            if sample.part != "train" and not sample.domain
            for domain in self._domains
        ]
        return tuple(sorted([*samples, *copies], key=lambda s: s.key)), taken + problems

    def published(self, category: str) -> Published | None:
        """Returns what a complete download of the category holds, without copies."""
        return self.original.published(category)

    def warnings(self) -> tuple[Problem, ...]:
        """Returns what was passed over beside the categories."""
        return self.original.warnings()

    def places(self) -> tuple[Path, ...]:
        """Returns the folders that the images lie in."""
        return self.original.places()

    def settings(self) -> dict[str, Any]:
        """Returns what the dataset was given."""
        return self.original.settings()

    def fingerprint(self, category: str) -> str | None:
        """Returns a digest that changes with the files and with the corruptions."""
        known = self.original.fingerprint(category)
        return None if known is None else digest(known, VERSION, sorted(self._domains))

    def file_digest(self, category: str, key: str) -> str:
        """Returns a digest of the encoded bytes of an image or mask, and of what is done to it."""
        origin, domain = self._parse(key)
        known = self.original.file_digest(category, origin)
        return digest(known, VERSION, domain) if domain else known

    def read_image(self, category: str, key: str) -> Image:
        """Returns an image as ``(H, W, 3)`` RGB."""
        origin, domain = self._parse(key)
        image = self.original.read_image(category, origin)
        if not domain:
            return image
        # From the pixels, so that a renamed image and its copies look the same.
        seed = int(hash_pixels(image), 16)
        return corrupt(image, self._domains[domain], self.shift.severity, seed)

    def read_mask(self, category: str, key: str) -> npt.NDArray[np.bool_]:
        """Returns a ground-truth mask as ``(H, W)``, true at anomalous pixels."""
        return self.original.read_mask(category, key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.original!r}, {self.shift!r})"

    def _parse(self, key: str) -> tuple[str, str]:
        """Returns the key of the original and the domain, or the key itself and ""."""
        origin, _, domain = key.rpartition(_SEPARATOR)
        return (origin, domain) if domain in self._domains else (key, "")


def _check(name: str) -> None:
    if name not in CORRUPTIONS:
        raise DataError(f"no corruption {name!r}{suggest(name, CORRUPTIONS)}")
