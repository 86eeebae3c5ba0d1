"""What torch does in place of Pillow is what Pillow does, to the last bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomtune.datasets.io import fast
from anomtune.datasets.io.imagefile import read_rgb, resize_image
from anomtune.errors import ImageError


@pytest.fixture(autouse=True)
def kinds() -> Iterator[dict[object, bool]]:
    """What is known of kinds of images; nothing at first."""
    fast._same.clear()
    yield fast._same
    fast._same.clear()


def drawn(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height))).astype(int)
    noisy = smooth + rng.normal(0, 9, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg(
    tmp_path: Path, kinds: dict[object, bool], mode: str, subsampling: int, progressive: bool
) -> None:
    for number, (height, width) in enumerate([(37, 50), (1, 1), (64, 48)]):
        path = tmp_path / f"{number}.jpg"
        how = {"subsampling": subsampling, "progressive": progressive, "quality": 80}
        drawn(height, width, number).convert(mode).save(path, **how)
        expected = np.asarray(Image.open(path).convert("RGB"))
        assert np.array_equal(read_rgb(path), expected)
    assert list(kinds.values()) == ([] if mode == "CMYK" else [True]), "it was torchvision"


def test_jpeg_that_says_how_the_camera_was_held(tmp_path: Path, kinds: dict[object, bool]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn(20, 30).save(tmp_path / "turned.jpg", exif=exif)
    turned = np.asarray(Image.open(tmp_path / "turned.jpg").transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(read_rgb(tmp_path / "turned.jpg"), turned)
    assert kinds


@pytest.mark.parametrize("left", [0.3, 0.9, 0.99])
def test_cut_jpeg_is_refused_as_ever(tmp_path: Path, left: float) -> None:
    path = tmp_path / "whole.jpg"
    drawn(64, 64).save(path)
    read_rgb(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    with pytest.raises(ImageError, match=r"(?i)truncated"):
        read_rgb(path)


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
@pytest.mark.parametrize("size", [4, 7, 16, 64])
def test_halvings(kinds: dict[object, bool], factor: int, size: int) -> None:
    rng = np.random.default_rng(factor)
    for _ in range(3):
        image = rng.integers(0, 256, (size * factor, size * factor, 3), dtype=np.uint8)
        expected = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        assert np.array_equal(resize_image(image, size), np.asarray(expected))
    assert list(kinds.values()) == [True], "it was torch"


def test_other_sizes_are_left_to_pillow(kinds: dict[object, bool]) -> None:
    for height, width in ((48, 48), (64, 32), (32, 64), (16, 16), (100, 64)):
        image = np.asarray(drawn(height, width))
        expected = Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)
        assert np.array_equal(resize_image(image, 16), np.asarray(expected))
    resize_image(np.asarray(drawn(32, 32)), 16, "lanczos")
    assert not kinds


def test_where_a_bit_differs_pillow_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: dict[object, bool]
) -> None:
    """As with a torchvision that was built with another libjpeg."""
    path = tmp_path / "image.jpg"
    drawn(40, 40).save(path)
    expected = np.asarray(Image.open(path))
    other = torch.zeros((3, 40, 40), dtype=torch.uint8)
    monkeypatch.setattr(fast, "_jpeg_operator", lambda: lambda *_: other)
    for _ in range(2):
        assert np.array_equal(read_rgb(path), expected)
    assert list(kinds.values()) == [False]
    exact = torch.nn.functional.interpolate
    monkeypatch.setattr(
        torch.nn.functional, "interpolate", lambda *a, **k: exact(*a, **k).bitwise_xor(1)
    )
    for _ in range(2):
        small = Image.fromarray(expected).resize((20, 20), Image.Resampling.BILINEAR)
        assert np.array_equal(resize_image(expected, 20), np.asarray(small))
    assert list(kinds.values()) == [False, False]


def test_torchvision_has_the_operator() -> None:
    """Not public; where it is gone, Pillow decodes, and a first opening takes longer."""
    assert fast._jpeg_operator() is not None


def test_torch_is_not_imported(tmp_path: Path) -> None:
    drawn(32, 32).save(tmp_path / "image.jpg")
    code = (
        "import sys; from pathlib import Path;"
        "from anomtune.datasets.io.imagefile import read_rgb, resize_image;"
        "resize_image(read_rgb(Path(sys.argv[1])), 16); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "image.jpg")]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
