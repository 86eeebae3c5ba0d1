"""Image files to arrays: what is accepted, what is refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.datasets.folder import Folder
from anomtune.errors import ImageError
from tests.datasets.conftest import one_line, save

Draw = Callable[..., Image.Image]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_eight_bit_images_become_rgb(tree: Path, picture: Draw, mode: str) -> None:
    ext = "tif" if mode in {"CMYK", "YCbCr"} else "png"
    path = save(picture(5).convert(mode), tree / "part/train/good" / f"m.{ext}")
    image = Folder(tree).read_image("part", f"train/good/m.{ext}")
    assert image.shape == (16, 20, 3)
    assert image.dtype == np.uint8
    assert (image == np.asarray(Image.open(path).convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_accepted_if_opaque(tree: Path, picture: Draw, mode: str) -> None:
    image = picture(5).convert(mode)
    path = tree / "part/train/good/alpha.png"
    save(image, path)
    assert Folder(tree).read_image("part", "train/good/alpha.png").shape == (16, 20, 3)
    image.putpixel((3, 3), (0,) * (len(mode) - 1) + (254,))
    save(image, path)
    with pytest.raises(ImageError, match="transparent in places; flatten"):
        Folder(tree).read_image("part", "train/good/alpha.png")


def test_transparent_palette_is_refused(tree: Path, picture: Draw) -> None:
    path = tree / "part/train/good/p.png"
    picture(5).convert("P").save(path, transparency=int(np.asarray(picture(5).convert("P"))[0, 0]))
    with pytest.raises(ImageError, match="transparent"):
        Folder(tree).read_image("part", "train/good/p.png")


def test_deep_images_are_refused(tree: Path) -> None:
    good = tree / "part/train/good"
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(good / "deep.png")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(good / "deep.tif")
    for name in ("deep.png", "deep.tif"):
        with pytest.raises(ImageError, match="convert it to 8 bits per channel") as error:
            Folder(tree).read_image("part", f"train/good/{name}")
        assert name in one_line(error)


def test_sixteen_bit_colour_is_refused_though_pillow_would_reduce_it(tree: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    rows = b"".join(b"\0" + bytes(range(4 * 6)) for _ in range(4))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tree / "part/train/good/rgb16.png").write_bytes(data)
    with pytest.raises(ImageError, match="convert it to 8 bits per channel"):
        Folder(tree).read_image("part", "train/good/rgb16.png")


@pytest.mark.parametrize("masks", [(0xF800, 0x07E0, 0x001F), (0x7C00, 0x03E0, 0x001F)])
def test_sixteen_bits_per_pixel_are_not_too_deep(tree: Path, masks: tuple[int, int, int]) -> None:
    pixels = struct.pack("<4H", masks[0], masks[1], masks[2], 0)  # red and green below the others
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    body = header + struct.pack("<3I", *masks) + pixels
    start = struct.pack("<2sIHHI", b"BM", 14 + len(body), 0, 0, 14 + len(body) - len(pixels))
    (tree / "part/train/good/x.bmp").write_bytes(start + body)
    image = Folder(tree).read_image("part", "train/good/x.bmp")
    assert image.tolist() == [[[0, 0, 255], [0, 0, 0]], [[255, 0, 0], [0, 255, 0]]]


def test_a_file_of_several_pages_is_refused(tree: Path, picture: Draw) -> None:
    good, mask = tree / "part/train/good/x.tif", tree / "part/ground_truth/dent/x.tif"
    for path in (good, mask):
        picture(1).save(path, save_all=True, append_images=[picture(2)])
    dataset = Folder(tree)
    with pytest.raises(ImageError, match="holds 2 images; save one image per file"):
        dataset.read_image("part", "train/good/x.tif")
    with pytest.raises(ImageError, match="holds 2 images; save one image per file"):
        dataset.read_mask("part", "ground_truth/dent/x.tif")
    picture(1).save(good)
    assert (dataset.read_image("part", "train/good/x.tif") == np.asarray(picture(1))).all()


def test_a_photo_with_a_preview_inside_is_one_image(tree: Path, picture: Draw) -> None:
    path = tree / "part/train/good/x.jpg"
    picture(1).save(path, format="MPO", save_all=True, append_images=[picture(2)])
    assert Folder(tree).read_image("part", "train/good/x.jpg").shape == (16, 20, 3)


@pytest.mark.parametrize("ext", ["png", "jpg", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_truncated_images_are_named(tree: Path, picture: Draw, ext: str, share: float) -> None:
    path = save(picture(5, (64, 64)), tree / "part/train/good" / f"cut.{ext}")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ImageError, match="cannot be read as a PNG, JPEG, BMP or TIFF") as error:
        Folder(tree).read_image("part", f"train/good/cut.{ext}")
    assert f"cut.{ext}" in one_line(error)


def test_mask_values(tree: Path) -> None:
    where = tree / "part/ground_truth/dent/000_mask.png"

    def read(image: Image.Image) -> list[bool]:
        save(image, where)
        mask = Folder(tree).read_mask("part", "ground_truth/dent/000_mask.png")
        return [bool(v) for v in mask.ravel()]

    def grey(values: list[int], kind: type = np.uint8) -> Image.Image:
        return Image.fromarray(np.array([values], kind))

    assert read(grey([0, 127, 128, 255])) == [False, False, True, True]
    assert read(grey([0, 1])) == [False, True]
    assert read(grey([0, 255]).convert("1")) == [False, True]
    assert read(grey([0, 65535, 20000], np.uint16)) == [False, True, False]
    assert read(grey([0, 255], np.uint16)) == [False, True]
    assert read(Image.fromarray(np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8))) == [True, False]
    assert read(grey([0, 0])) == [False, False]
    for values, kind in (([0, 3], np.uint8), ([0, 100], np.uint16), ([0, 9000], np.uint16)):
        with pytest.raises(
            ImageError, match=f"highest value is {values[1]}: save anomalous pixels as 255"
        ):
            read(grey(values, kind))
