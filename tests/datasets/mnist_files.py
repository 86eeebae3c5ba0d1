"""Small copies of MNIST on disk, and what a listing and a sweep say of them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.mnist import MNIST
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation
from anomtune.errors import DataError
from tests.datasets.conftest import save


def grey(number: int) -> np.ndarray:
    image = np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8)
    image[:8] = 0
    return image


def write_idx(folder: Path, labels: dict[str, list[int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for prefix, numbers in labels.items():
        pixels = b"".join(grey(start + i).tobytes() for i in range(len(numbers)))
        header = struct.pack(">4i", 2051, len(numbers), 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels)
        header = struct.pack(">2i", 2049, len(numbers))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + bytes(numbers))
        start += len(numbers)


def messages(root: Path, *, fatal: bool) -> list[str]:
    return [str(p) for p in MNIST(root).scan("3")[1] if p.fatal == fatal]


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as error:
        load_search_split(MNIST(root), "3", 16, Validation())
    assert "\n" not in str(error.value)
    return str(error.value)


def write_raw(folder: Path) -> Path:
    """``MNIST/raw`` with 3 training and 4 test images per digit; returns ``folder``."""
    labels = {"train": [i % 10 for i in range(30)], "t10k": [(i + 7) % 10 for i in range(40)]}
    write_idx(folder / "MNIST/raw", labels)
    return folder


def write_png(folder: Path) -> Path:
    """The same as PNG files, named by their number in the files; returns ``folder``."""
    for part, count, first in (("training", 30, 0), ("testing", 40, 7)):
        for index in range(count):
            number = index + (30 if part == "testing" else 0)
            path = folder / f"{part}/{(index + first) % 10}/{index}.png"
            save(Image.fromarray(grey(number)), path)
    return folder
