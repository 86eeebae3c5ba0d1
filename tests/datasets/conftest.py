"""Small datasets on disk, and a cache of its own for every test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.errors import DataError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setenv("ANOMTUNE_CACHE", str(place))
    return place


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Draws a random image; the same number gives the same pixels."""

    def draw(number: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
        rng = np.random.default_rng(number)
        return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))

    return draw


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def age(root: Path, seconds: float = 60) -> None:
    """Makes files look as if they had not been touched for a while (their change time stays)."""
    for path in root.rglob("*"):
        info = path.stat()
        os.utime(path, (info.st_atime - seconds, info.st_mtime - seconds))


@pytest.fixture
def tree(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    """One category ``data/part``: 6 train, 4 good, 4 scratch and 3 dent with masks."""
    root = tmp_path / "data"
    part = root / "part"
    numbers = iter(range(1000))
    for where, count in (
        ("train/good", 6),
        ("test/good", 4),
        ("test/scratch", 4),
        ("test/dent", 3),
    ):
        for i in range(count):
            save(picture(next(numbers)), part / where / f"{i:03d}.png")
            if where in {"test/scratch", "test/dent"}:
                mask = Image.new("L", (20, 16))
                mask.paste(255, (4, 4, 12, 12))
                save(mask, part / where.replace("test", "ground_truth") / f"{i:03d}_mask.png")
    return root


@pytest.fixture
def real() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        if not (SHARED / name).is_dir():
            pytest.skip(f"real data {name!r} is not at ../shared/data")
        return SHARED / name

    return find
