"""The built-in dataset: drawn, not stored, so that anomtune can be tried without any data.

Five products of 128 x 128 pixels with exact masks. Each image is drawn from a seed of its own, so
any of them can be had alone, and all are the same on every machine.
"""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from anomtune.datasets.base import GOOD, Dataset, Problem, Sample
from anomtune.datasets.drawing.scenes import PRODUCTS, SIZE
from anomtune.datasets.drawing.shapes import Field, grid, noise
from anomtune.datasets.io.store import digest
from anomtune.errors import DataError, StorageError

VERSION = 2  # Raise it when any image changes: cached categories are found by it.
N_TRAIN = 40
N_TEST_GOOD = 60
N_PER_DEFECT = 20

# Pixels that a defect changes by at least so many grey levels are anomalous.
_VISIBLE = 8.0
_LEAST_PIXELS = 10


class Synthetic(Dataset):
    """Five drawn products (three textures, two objects) that need no files.

    Args:
        root: Unused: there are no files.
    """

    name = "synthetic"

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(None)

    def categories(self) -> tuple[str, ...]:
        """Returns the names of the products, sorted."""
        return tuple(sorted(PRODUCTS))

    def scan(self, category: str) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
        """Lists a product's images; nothing is ever wrong with them."""
        return tuple(sorted(_samples(category).values(), key=lambda s: s.key)), ()

    def fingerprint(self, category: str) -> str:
        """Returns a digest of the version of the drawings."""
        return digest("synthetic", VERSION, category)

    def file_digest(self, category: str, key: str) -> str:
        """Returns a digest of what the image is drawn from."""
        return digest("synthetic", VERSION, category, key)

    def read_image(self, category: str, key: str) -> npt.NDArray[np.uint8]:
        """Draws an image, ``(128, 128, 3)`` RGB."""
        samples = _samples(category)
        if key not in samples:
            raise DataError(f"synthetic: no image {key!r} in {category!r}")
        return _draw(category, key, samples[key].defect)[0].copy()

    def read_mask(self, category: str, key: str) -> npt.NDArray[np.bool_]:
        """Draws a mask, ``(128, 128)``."""
        for sample in _samples(category).values():
            if sample.mask == key:
                return _draw(category, sample.key, sample.defect)[1].copy()
        raise DataError(f"synthetic: no mask {key!r} in {category!r}")

    def write(self, root: Path) -> None:
        """Writes the dataset as PNG files in the layout that `Folder` reads.

        Raises:
            StorageError: If a file cannot be written.
        """
        try:
            for category in self.categories():
                for sample in self.scan(category)[0]:
                    _save(root / category / sample.key, self.read_image(category, sample.key))
                    if sample.mask:
                        mask = self.read_mask(category, sample.mask)
                        _save(root / category / sample.mask, mask.astype(np.uint8) * 255)
        except OSError as error:
            raise StorageError(
                f"{root}: cannot be written ({error.strerror or error}); choose another folder"
            ) from error


def _save(path: Path, image: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@cache
def _samples(category: str) -> dict[str, Sample]:
    if category not in PRODUCTS:
        raise DataError(f"synthetic: no category {category!r}; it has {', '.join(PRODUCTS)}")
    listed = [Sample(f"train/{GOOD}/{i:03d}.png", "train", GOOD) for i in range(N_TRAIN)]
    listed += [Sample(f"test/{GOOD}/{i:03d}.png", "test", GOOD) for i in range(N_TEST_GOOD)]
    listed += [
        Sample(f"test/{kind}/{i:03d}.png", "test", kind, f"ground_truth/{kind}/{i:03d}_mask.png")
        for kind in PRODUCTS[category].defects
        for i in range(N_PER_DEFECT)
    ]
    return {sample.key: sample for sample in listed}


# An anomalous image is asked for twice, for its pixels and for its mask.
@lru_cache(maxsize=32)
def _draw(
    category: str, key: str, defect: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    seed = int(hashlib.sha256(f"{VERSION} {category} {key}".encode()).hexdigest()[:16], 16)
    draw = PRODUCTS[category].draw

    def picture(kind: str | None, strength: float) -> Field:
        # The same seeds every time: with and without its defect it is the same piece.
        piece, flaw = (np.random.Generator(np.random.PCG64([seed, i])) for i in range(2))
        return _expose(draw(piece, kind, flaw, strength), piece)

    # The exact mask is what the defect changes, before the noise of the camera.
    normal = picture(None, 0.0)
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    if defect == GOOD:
        return _develop(normal, seed), mask
    # From subtle to plain over the images of a type, in a mixed-up order.
    number = int(Path(key).stem)
    strength = (number * 7 % N_PER_DEFECT + 0.5) / N_PER_DEFECT
    shown = normal
    while np.count_nonzero(mask) < _LEAST_PIXELS and strength < 2:
        shown = picture(defect, strength)
        changed = np.abs(shown - normal).max(axis=2) >= _VISIBLE
        closed = np.asarray(ndimage.binary_closing(changed, iterations=2)) | changed
        mask = np.asarray(ndimage.binary_fill_holes(closed))
        strength += 0.25
    return _develop(shown, seed), mask


def _expose(scene: Field, rng: np.random.Generator) -> Field:
    """Lights a scene: brightness, colour and a gradient that differ from shot to shot."""
    x, y = grid(SIZE, SIZE)
    way, slope = rng.uniform(0, 2 * np.pi), abs(rng.normal(0, 0.05))
    gradient = ((x / SIZE - 0.5) * np.cos(way) + (y / SIZE - 0.5) * np.sin(way)) * slope * 2
    gain = np.clip(rng.normal(1, 0.04), 0.88, 1.12)
    tint = 1 + rng.normal(0, 0.009, size=3)
    lit = scene * gain * (1 + gradient)[..., None] * tint
    focus = rng.uniform(0.3, 0.7)
    return np.asarray(ndimage.gaussian_filter(lit, (focus, focus, 0)))


def _develop(light: Field, seed: int) -> npt.NDArray[np.uint8]:
    """Adds the noise of the sensor and rounds to 8 bits."""
    rng = np.random.Generator(np.random.PCG64([seed, 2]))
    grain = (
        1.6 * rng.standard_normal((SIZE, SIZE, 3)) + 1.2 * noise(SIZE, SIZE, 1.0, rng)[..., None]
    )
    return np.clip(np.rint(light + grain), 0, 255).astype(np.uint8)
