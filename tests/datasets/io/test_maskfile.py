"""What a mask file says is anomalous: the same for every encoding, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from anomtune.datasets.io.maskfile import odd_mask, read_mask, read_masks, resize_mask
from anomtune.errors import ImageError

Mask = np.ndarray
Rng = np.random.Generator


def draw(rng: Rng) -> Mask:
    """Blobs, scratches and single pixels on a ground that is mostly normal."""
    height, width = rng.integers(24, 90, 2)
    y, x = np.mgrid[0:height, 0:width]
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        cy, cx = rng.integers(0, height), rng.integers(0, width)
        kind = rng.integers(3)
        if kind == 0:
            mask |= (y - cy) ** 2 + (x - cx) ** 2 <= rng.integers(2, 12) ** 2
        elif kind == 1:
            mask[cy : cy + rng.integers(1, 4), cx : cx + rng.integers(4, 60)] = True
        else:
            mask[cy, cx] = True
    return mask


def labels(mask: Mask, rng: Rng, most: int) -> Mask:
    """Numbers the regions, some of them alike.

    Above 32 what lies together has one number: a dot right beside another label is taken for its
    edge.
    """
    reach = 1 if most <= 32 else 17
    regions, count = ndimage.label(ndimage.binary_dilation(mask, np.ones((reach, reach))))
    numbers = np.append(0, rng.integers(1, most + 1, count))
    return numbers[regions] * mask


def grey(values: Mask, kind: type = np.uint8) -> Image.Image:
    return Image.fromarray(values.astype(kind))


def coloured(mask: Mask, rng: Rng) -> Mask:
    """Colours of VOC: none is black."""
    palette = rng.integers(0, 256, (11, 3))
    palette[:, 0] |= 64
    palette[0] = 0
    return palette[labels(mask, rng, 99) % 10 + mask].astype(np.uint8)


def layer(mask: Mask, rng: Rng) -> Image.Image:
    """A defect that is painted in one colour, the rest transparent over anything."""
    below = rng.integers(0, 256, 3) if rng.integers(2) else rng.integers(0, 256, (*mask.shape, 3))
    rgba = np.zeros((*mask.shape, 4), np.uint8)
    rgba[..., :3] = below
    rgba[mask, :3] = np.maximum(rng.integers(0, 256, 3), [1, 0, 0])
    rgba[..., 3] = mask * rng.integers(64, 256)
    return Image.fromarray(rgba)


def palette(mask: Mask, rng: Rng) -> Image.Image:
    """Numbers with a palette in which they have any place, and black is normal."""
    place = rng.permutation(256)[:4]
    image = Image.fromarray(place[labels(mask, rng, 99) % 3 + mask].astype(np.uint8))
    colours = rng.integers(0, 256, (256, 3)).astype(np.uint8)
    colours[:, 1] |= 32
    colours[place[0]] = 0
    image.putpalette(colours.ravel().tolist())
    return image


ENCODINGS: dict[str, Callable[[Mask, Rng], Image.Image]] = {
    "0 and 1": lambda mask, rng: grey(mask),
    "0 and 255": lambda mask, rng: grey(mask * 255),
    "0 and any": lambda mask, rng: grey(mask * rng.integers(1, 256)),
    "1 bit": lambda mask, rng: grey(mask * 255).convert("1"),
    "palette": palette,
    "16 bit": lambda mask, rng: grey(mask * 65535, np.uint16),
    "16 bit, any": lambda mask, rng: grey(mask * rng.integers(1, 65536), np.uint16),
    "16 bit labels": lambda mask, rng: grey(labels(mask, rng, 60) * 1000, np.uint16),
    "32 bit": lambda mask, rng: grey(labels(mask, rng, 1000) * 1000, np.int32),
    "labels": lambda mask, rng: grey(labels(mask, rng, 9)),
    "RGB": lambda mask, rng: grey(mask * 255).convert("RGB"),
    "colours": lambda mask, rng: Image.fromarray(coloured(mask, rng)),
    "layer": layer,
    "opaque layer": lambda mask, rng: grey(mask * 255).convert("RGBA"),
    "grey layer": lambda mask, rng: Image.merge("LA", [grey(mask * 0 + 200), grey(mask * 255)]),
}
#: What keeps 16 bits, 32 bits, a palette; the others go anywhere.
DEEP = {name for name in ENCODINGS if "bit" in name} | {"palette"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10_000), ext=st.sampled_from(["png", "tif", "bmp", "webp"]))
def test_whatever_the_encoding_the_mask_is_the_one_that_was_drawn(
    tmp_path: Path, encoding: str, seed: int, ext: str
) -> None:
    rng = np.random.default_rng(seed)
    mask = draw(rng)
    image = ENCODINGS[encoding](mask, rng)
    if encoding in DEEP or "layer" in encoding:
        ext = "tif" if encoding == "32 bit" else "png"
    path = tmp_path / f"x.{ext}"
    image.save(path, **({"lossless": True, "exact": True} if ext == "webp" else {}))
    assert (read_mask(path) == mask).all()


@pytest.mark.parametrize("quality", [30, 75, 95, 100])
@pytest.mark.parametrize("again", [False, True], ids=["jpeg", "saved as png since"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10_000))
def test_noise_of_jpeg_is_no_defect(tmp_path: Path, quality: int, again: bool, seed: int) -> None:
    mask = draw(np.random.default_rng(seed))
    # A line of one pixel or a dot may be washed out: that is refused, see below.
    mask = ndimage.binary_opening(mask, np.ones((3, 3)))
    assume(mask.any())
    path = tmp_path / "x.jpg"
    grey(mask * 255).save(path, quality=quality)
    expected = np.asarray(Image.open(path)) > 127
    if again:
        Image.open(path).save(tmp_path / "x.png")
        path = tmp_path / "x.png"
    if again or quality < 75:
        try:
            found = read_mask(path)
        except ImageError:
            return  # ambiguous
    else:
        found = read_mask(path)
    if again and (found != expected).any():
        # A few grey values that lie together pass for labels: the rim is taken in, no more.
        assert not (found & ~ndimage.binary_dilation(expected, np.ones((3, 3)), 8)).any()
        assert (found | ~expected).all()
        assert quality <= 75
    else:
        assert (found == expected).all()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10_000), peak=st.sampled_from([255, 200, 65535]))
def test_soft_edges_count_from_the_middle(tmp_path: Path, seed: int, peak: int) -> None:
    rng = np.random.default_rng(seed)
    canvas = Image.new("L", (600, 480))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 4)):
        x0, y0, x1, y1 = rng.integers(0, 480, 4)
        pen.line((x0, y0, x1, y1), fill=255, width=int(rng.integers(24, 60)))
        pen.ellipse((x0 - 60, y0 - 60, x0 + 60, y0 + 60), fill=255)
    soft = np.asarray(canvas.resize((75, 60), Image.Resampling.BOX)).astype(int) * peak // 255
    grey(soft, np.uint16 if peak > 255 else np.uint8).save(tmp_path / "x.png")
    assert (read_mask(tmp_path / "x.png") == (soft > soft.max() / 2)).all()


def save(values: list[list[int]] | np.ndarray, path: Path, kind: type = np.uint8) -> Path:
    grey(np.array(values), kind).save(path)
    return path


def region(height: int = 40, width: int = 40, **areas: tuple[int, int, int, int]) -> np.ndarray:
    """Areas ``v128=(top, left, height, width)`` on black."""
    values = np.zeros((height, width), int)
    for name, (top, left, high, wide) in areas.items():
        values[top : top + high, left : left + wide] = int(name[1:])
    return values


@pytest.mark.parametrize(
    "values",
    [
        region(v128=(2, 2, 8, 8), v255=(20, 20, 8, 8)),
        region(v128=(2, 2, 8, 8), v255=(2, 10, 8, 8)),  # side by side
        region(v85=(2, 2, 8, 8), v170=(2, 10, 8, 8), v255=(2, 18, 8, 8)),
        region(v1=(2, 2, 8, 8), v2=(20, 2, 1, 30)),  # a thin line of another label
        region(v100=(20, 2, 1, 30), v255=(2, 2, 8, 8)),
        region(v255=(4, 4, 20, 20), v1=(5, 5, 18, 18)),  # VOC: 255 is a rim around label 1
    ],
)
def test_no_label_is_lost(tmp_path: Path, values: np.ndarray) -> None:
    assert (read_mask(save(values, tmp_path / "x.png")) == (values > 0)).all()


NOISE = np.random.default_rng(0).integers(0, 256, (40, 40))
TEXTURE = ndimage.gaussian_filter(NOISE, 2)
TEXTURE[:2] = 0


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (region() + 1 + (NOISE > 128), "has several values but no black pixel"),
        (region() + 10 + 240 * (NOISE > 128), "has several values but no black pixel"),
        (TEXTURE, "grey values, which may be labels or soft edges"),
        (np.tile(np.arange(40) * 6, (40, 1)), "grey values, which may be labels or soft edges"),
    ],
)
def test_what_is_ambiguous_is_refused(tmp_path: Path, values: np.ndarray, what: str) -> None:
    with pytest.raises(ImageError, match=f"{what}.*save it with two values, 0 for normal") as error:
        read_mask(save(values, tmp_path / "x.png"))
    assert "\n" not in str(error.value)


def test_ambiguous_jpeg_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    save(region(v1=(2, 2, 20, 20)), path)
    with pytest.raises(ImageError, match="is a JPEG whose highest value is"):
        read_mask(path)
    save(region(80, 80, v128=(2, 2, 40, 40), v255=(50, 50, 20, 20)), path)
    with pytest.raises(ImageError, match="grey values far from anything white"):
        read_mask(path)
    save(region(v0=(0, 0, 1, 1)), path)
    assert not read_mask(path).any()
    save(region() + 255, path)
    assert read_mask(path).all()


def test_ambiguous_layers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"

    def layers(colour: np.ndarray, alpha: np.ndarray) -> None:
        rgba = np.dstack([np.broadcast_to(colour, (*alpha.shape, 3)), alpha]).astype(np.uint8)
        Image.fromarray(rgba).save(path)

    area = region(v255=(2, 2, 9, 9))
    layers(np.zeros(3), area)
    with pytest.raises(ImageError, match="nothing but black on a transparent ground; save it"):
        read_mask(path)
    layers(area[..., None], np.zeros((40, 40)))
    with pytest.raises(ImageError, match="transparent all over, with a picture hidden below; save"):
        read_mask(path)
    layers(np.full(3, 255), np.zeros((40, 40)))
    assert not read_mask(path).any(), "an empty layer"


def test_float_masks_and_deep_colours_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ImageError, match="floating-point mask; convert it to 8-bit grey"):
        read_mask(tmp_path / "x.tif")
    Image.fromarray(np.array([[0, -1]], np.int32)).save(tmp_path / "x.tif")
    with pytest.raises(ImageError, match="negative values; save it"):
        read_mask(tmp_path / "x.tif")


def test_several_files_are_united(tmp_path: Path) -> None:
    one, two = region(v1=(2, 2, 8, 8)), region(v200=(8, 8, 8, 8))
    files = [save(one, tmp_path / "a.png"), save(two, tmp_path / "b.png")]
    assert (read_masks(tmp_path, files) == ((one + two) > 0)).all()
    files.append(save(region(20), tmp_path / "c.png"))
    with pytest.raises(ImageError, match=r"c\.png is not of the size of the others"):
        read_masks(tmp_path, files)
    with pytest.raises(ImageError, match="holds no masks"):
        read_masks(tmp_path, [])


def test_resized_as_papers_do() -> None:
    mask = np.zeros((64, 64), bool)
    mask[10:11] = mask[32:] = True
    more = resize_mask(mask, 16)
    assert more[8:].all()
    assert not more[:7].any(), "less than half of any pixel"
    assert resize_mask(mask, 16, touched=True)[2].all()


@pytest.mark.parametrize(
    ("areas", "what"),
    [
        ({}, "empty mask"),
        ({"v1": (0, 0, 40, 40)}, "covers 100% of the image"),
        ({"v1": (0, 0, 39, 40)}, "covers 98% of the image"),
        ({"v1": (0, 0, 40, 40), "v0": (8, 8, 20, 20)}, "looks inverted: 75% of the image"),
        ({"v1": (2, 2, 36, 36)}, None),
        ({"v1": (2, 2, 6, 6)}, None),
    ],
)
def test_odd_masks(areas: dict[str, tuple[int, int, int, int]], what: str | None) -> None:
    found = odd_mask(region(**areas) > 0)
    assert (found is None) if what is None else str(found).startswith(what)
