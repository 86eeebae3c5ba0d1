"""Image files to arrays, upright: what is accepted, what is refused and why.

Every image and mask that anomtune reads from a file passes through `opened` and `upright`: how the
camera was held (EXIF) is settled here and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    ExifTags,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from anomtune.datasets.io import fast
from anomtune.errors import ImageError

#: How images are resized; all of them are antialiased.
Resize = Literal["bilinear", "lanczos"]

#: Of what `hash_pixels` returns.
PIXEL_HASH_LENGTH = 32

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

#: What messages call the formats that are read.
FORMATS = "PNG, JPEG, BMP, TIFF or WebP"

#: An image of more pixels is refused: as RGB this many take 1.6 GB, and thrice that on the way.
MAX_PIXELS = 1 << 29

_LARGE = 1 << 26  # Images of more pixels are decoded one at a time: bounds memory.
_one_large = threading.Lock()

# What Pillow's readers raise on files that are damaged, each in its own way.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,  # among them recursion, and what is not implemented
    zlib.error,
    struct.error,
    Image.DecompressionBombError,
)
# Formats in which further images are further pictures; in a JPEG they are its previews.
_PAGED = frozenset({"TIFF", "PNG", "WEBP"})
_LOSSY = frozenset({"JPEG", "MPO"})
_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})


class _TiffFile(TiffImagePlugin.TiffImageFile):
    """A TIFF of any size: Pillow's own refuses large ones a second time, while it decodes."""

    def load_prepare(self) -> None:
        if getattr(self, "_im", None) is None:
            self.im = Image.new(self.mode, getattr(self, "_tile_size", self.size)).im
        super().load_prepare()


# By how files begin, whatever they are called. Naming the plug-ins loads them now rather than in
# the middle of many threads; without `Image.open` the caller's `Image.MAX_IMAGE_PIXELS` is neither
# asked nor changed.
_READERS: tuple[tuple[bytes, Any], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.jpeg_factory),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II", _TiffFile),
    (b"MM", _TiffFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
)


@dataclass(frozen=True, slots=True)
class Opened:
    """A decoded file.

    Attributes:
        image: As it is stored, which need not be upright.
        orientation: How it must be turned, the EXIF value: 1 to 8.
        deep: Whether a channel is stored in more than 8 bits.
        grey_deep: Whether that is the only channel, whose values are all there.
        transparent: Whether it has an alpha channel or a transparent colour.
        lossy: Whether its pixels are only about those that were saved.
        rgb: ``(H, W, 3)``, its pixels where these are all that is wanted and there was a faster
            way to them than ``image``.
    """

    image: Image.Image
    orientation: int
    deep: bool
    grey_deep: bool
    transparent: bool
    lossy: bool
    rgb: npt.NDArray[np.uint8] | None = None


@contextmanager
def opened(path: Path, *, as_rgb: bool = False) -> Iterator[Opened]:
    """Decodes a file that holds one image.

    Args:
        path: The file.
        as_rgb: Whether only its RGB pixels are wanted.

    Raises:
        ImageError: If the file cannot be decoded, holds several images or too large a one; also
            for what goes wrong in the body of the ``with`` statement.
    """
    try:
        with path.open("rb") as file:
            image = _identify(path, file)
            _check_size(path, image.size)
            count = getattr(image, "n_frames", 1) if image.format in _PAGED else 1
            if count > 1:
                raise ImageError(str(path), f"holds {count} images; save one image per file")
            kind, mode = image.format, image.mode
            deep = mode in _DEEP_MODES or _stored_deep(image)
            large = image.size[0] * image.size[1] > _LARGE
            with _one_large if large else nullcontext():
                rgb = None
                if as_rgb and kind == "JPEG":
                    file.seek(0)
                    rgb = fast.decode_jpeg(image, np.fromfile(file, np.uint8))
                    file.seek(0)
                if rgb is None:
                    image.load()
                yield Opened(
                    image=image,
                    orientation=_orientation(image),
                    deep=deep,
                    grey_deep=mode in _DEEP_MODES,
                    transparent=mode in _ALPHA_MODES or "transparency" in image.info,
                    lossy=kind in _LOSSY,
                    rgb=rgb,
                )
    except ImageError:
        raise
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from error


def upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turns ``(H, W, ...)`` as an EXIF orientation says (EXIF 2.3, section 4.6.4, tag 274).

    Args:
        pixels: The array as it is stored.
        orientation: 1 to 8: what of the upright image the first row and the first column are.

    Returns:
        ``(H, W, ...)``, or ``(W, H, ...)`` for 5 to 8; contiguous.
    """
    if orientation in {3, 4, 6, 7}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 7, 8}:
        pixels = pixels[:, ::-1]
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels)


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Decodes an image of 8 bits per channel as upright ``(H, W, 3)`` RGB.

    Grey, palette, 1-bit and CMYK images are converted; an alpha channel is accepted if it hides
    nothing. An image that says how the camera was held is turned accordingly.

    Raises:
        ImageError: If the file cannot be decoded, holds several images, has more than 8 bits per
            channel or more than `MAX_PIXELS`, or is transparent somewhere.
    """
    with opened(path, as_rgb=True) as found:
        if found.deep:
            raise ImageError(
                str(path), "has more than 8 bits per channel; convert it to 8 bits per channel"
            )
        image = found.image
        if found.rgb is not None:
            pixels = found.rgb
        elif found.transparent:
            rgba = np.asarray(image.convert("RGBA"))
            if rgba[..., 3].min() < 255:
                raise ImageError(
                    str(path), "is transparent in places; flatten it onto an opaque background"
                )
            pixels = rgba[..., :3]
        else:
            pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return upright(pixels, found.orientation)


def digest_file(path: Path) -> str:
    """Returns a digest of the bytes of a file.

    Raises:
        ImageError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def resize_image(
    image: npt.NDArray[np.uint8], size: int, resize: Resize = "bilinear"
) -> npt.NDArray[np.uint8]:
    """Resizes ``(H, W, 3)`` to ``(size, size, 3)``, antialiased; squashed."""
    if resize == "bilinear" and (quick := fast.resize(image, size)) is not None:
        return quick
    how = {"bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}[resize]
    resized = Image.fromarray(image).resize((size, size), how)
    return np.asarray(resized, dtype=np.uint8)


def hash_pixels(image: npt.NDArray[np.uint8]) -> str:
    """Returns a digest of the pixels and shape of ``(H, W, 3)``, whatever file they came from."""
    state = hashlib.blake2b(repr(image.shape).encode(), digest_size=PIXEL_HASH_LENGTH // 2)
    state.update(np.ascontiguousarray(image).data)
    return state.hexdigest()


def _identify(path: Path, file: Any) -> ImageFile.ImageFile:
    begin = file.read(16)
    file.seek(0)
    for signature, reader in _READERS:
        if begin.startswith(signature):
            try:
                # Without a name Pillow maps nothing into memory: it would read a turned TIFF awry,
                # and a file that shrinks meanwhile would end the process.
                image: ImageFile.ImageFile = reader(file, "")
            except Image.DecompressionBombError:
                raise ImageError(
                    str(path), "has more pixels than are read of a WebP image; save it as PNG"
                ) from None
            return image
    raise SyntaxError("it begins like none of them" if begin else "the file is empty")


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            str(path),
            f"has {width}x{height} pixels, {width * height / 1e6:.0f} million; at most "
            f"{MAX_PIXELS / 1e6:.0f} million are read: cut it into tiles or make it smaller",
        )


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation; 1 where there is none, or what is there cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _stored_deep(image: Image.Image) -> bool:
    # Pillow reduces 16-bit colour to 8 bits silently; only the raw mode of the tiles tells.
    for tile in getattr(image, "tile", ()):
        args = tile[3]
        raw = str(args[0] if isinstance(args, tuple) else args)
        # BGR;15 and BGR;16 have so many bits per pixel, not per channel.
        if (";16" in raw or ";32" in raw) and not raw.startswith("BGR;1"):
            return True
    return False


def _unreadable(path: Path, error: Exception) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError(str(path), "no such file; it was moved or deleted, start again")
    if isinstance(error, PermissionError):
        return ImageError(str(path), "may not be read; change its permissions")
    detail = " ".join(str(error).split()).replace(f" {str(path)!r}", "")
    return ImageError(
        str(path), f"cannot be read as a {FORMATS} image ({detail}); replace or remove the file"
    )


def workers() -> int:
    """Returns how many threads decode at once: the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
