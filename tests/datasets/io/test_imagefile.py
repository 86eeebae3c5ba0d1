"""Image files to arrays: what is accepted, what is refused."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from anomtune.datasets.folder import Folder
from anomtune.datasets.io import imagefile
from anomtune.datasets.io.cache import open_category
from anomtune.datasets.io.imagefile import read_rgb
from anomtune.datasets.io.maskfile import read_mask
from anomtune.datasets.splits.audit import audit
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


@pytest.mark.parametrize("ext", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_truncated_images_are_named(tree: Path, picture: Draw, ext: str, share: float) -> None:
    path = save(picture(5, (64, 64)), tree / "part/train/good" / f"cut.{ext}")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(
        ImageError, match="cannot be read as a PNG, JPEG, BMP, TIFF or WebP"
    ) as error:
        Folder(tree).read_image("part", f"train/good/cut.{ext}")
    assert f"cut.{ext}" in one_line(error)


UNDONE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    orientation=st.integers(1, 8),
    ext=st.sampled_from(["png", "jpg", "tif", "webp"]),
    mode=st.sampled_from(["RGB", "L", "P", "1"]),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
)
def test_whatever_way_the_camera_was_held_the_image_is_upright(
    tmp_path: Path, orientation: int, ext: str, mode: str, width: int, height: int
) -> None:
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.stack([x * 4 + 40, y * 4 + 40, (x + y) * 2 + 20], axis=2).astype(np.uint8)
    if mode in {"P", "1"} and ext in {"jpg", "webp"}:
        mode = "L"
    image = Image.fromarray(ramp).convert(mode)
    path = tmp_path / f"x.{ext}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turn = UNDONE.get(orientation)
    stored = image if turn is None else image.transpose(turn)
    lossless = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(ext, {})
    stored.save(path, exif=exif, **lossless)
    found = read_rgb(path).astype(int)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert found.shape == expected.shape
    # JPEG halves the resolution of colours: an even ramp is off by a few levels.
    assert np.abs(found - expected).max() <= (14 if ext == "jpg" else 0)
    if mode != "1":
        return
    mask = np.asarray(image)
    assert (read_mask(path) == mask).all()


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_there_is_not_turns_nothing(
    tmp_path: Path, picture: Draw, value: int
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    picture(1).save(tmp_path / "x.png", exif=exif)
    assert (read_rgb(tmp_path / "x.png") == np.asarray(picture(1))).all()


def test_the_hash_is_that_of_the_upright_image(tree: Path, picture: Draw) -> None:
    """So a picture from a camera held sideways and its upright copy are one: a leak."""
    good = tree / "part/train/good"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture(0).transpose(Image.Transpose.ROTATE_90).save(good / "turned.png", exif=exif)
    hashes = open_category(Folder(tree), "part", 8)
    found = dict(zip((s.key for s in hashes.samples), hashes.pixel_hashes, strict=True))
    assert found["train/good/turned.png"] == found["train/good/000.png"]
    (problem,) = audit(Folder(tree))
    assert "same pixels as train/good/000.png" in problem.message


@pytest.mark.parametrize("ext", ["png", "tif", "bmp", "jpg", "webp"])
def test_large_images_are_read_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ext: str
) -> None:
    """Pillow warns from `MAX_IMAGE_PIXELS` on and refuses twice as many."""
    path = tmp_path / f"x.{ext}"
    Image.new("L", (60, 50), 200).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_rgb(path).shape == (50, 60, 3)
        if ext != "webp":  # its plug-in asks for itself
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
            assert read_rgb(path).shape == (50, 60, 3)
            assert read_mask(path).shape == (50, 60)
            assert Image.MAX_IMAGE_PIXELS == 200


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
def test_large_compressed_tiff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    path = tmp_path / "x.tif"
    Image.new("L", (60, 50), 120).save(path, compression=compression)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    assert (read_rgb(path) == 120).all()


def test_images_beyond_the_limit_are_refused_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (60, 50)).save(tmp_path / "x.png")
    monkeypatch.setattr(imagefile, "MAX_PIXELS", 2_000)
    for read in (read_rgb, read_mask):
        with pytest.raises(ImageError, match=r"60x50 pixels.*at most .* are read: cut it into"):
            read(tmp_path / "x.png")


def test_a_webp_that_pillow_refuses_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (60, 50)).save(tmp_path / "x.webp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(ImageError, match="more pixels than are read of a WebP image; save it as"):
        read_rgb(tmp_path / "x.webp")


def test_a_mask_that_was_drawn_on_the_stored_image_is_refused(tree: Path, picture: Draw) -> None:
    """The photo lies on its side in the file; whoever drew the mask looked at the bare pixels."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture(50, (16, 20)).save(tree / "part/test/dent/000.png", exif=exif)
    mask = Image.new("L", (16, 20))
    mask.paste(255, (4, 4, 9, 9))
    mask.save(tree / "part/ground_truth/dent/000_mask.png")
    with pytest.raises(ImageError, match=r"is 16x20 .* is 20x16 when it is upright \(see its EXIF"):
        open_category(Folder(tree), "part", 8)
    mask.transpose(Image.Transpose.ROTATE_270).save(tree / "part/ground_truth/dent/000_mask.png")
    assert open_category(Folder(tree), "part", 8).masks.drawn.sum() == 7
