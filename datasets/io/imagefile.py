"""Image files to arrays: what is accepted, what is refused and why."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
)

from anomtune.errors import ImageError

#: How images are resized; all of them are antialiased.
Resize = Literal["bilinear", "lanczos"]

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})

# Only these decoders are tried, whatever a file claims to be. Naming their plug-ins loads them now
# rather than in the middle of many threads.
_FORMATS = tuple(
    kind.format
    for kind in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
    )
)
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    zlib.error,
    struct.error,
    Image.DecompressionBombError,
)
# Formats in which further images are further pictures; in a JPEG they are its previews.
_PAGED = frozenset({TiffImagePlugin.TiffImageFile.format, PngImagePlugin.PngImageFile.format})
_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Decodes an image of 8 bits per channel as ``(H, W, 3)`` RGB.

    Grey, palette, 1-bit and CMYK images are converted; an alpha channel is accepted if it hides
    nothing.

    Raises:
        ImageError: If the file cannot be decoded, holds several images, has more than 8 bits per
            channel or is transparent somewhere.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _refuse_several(path, image)
            if image.mode in _DEEP_MODES or _stored_deep(image):
                raise ImageError(
                    str(path),
                    "has more than 8 bits per channel; convert it to 8 bits per channel",
                )
            image.load()
            if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
                rgba = np.asarray(image.convert("RGBA"))
                if rgba[..., 3].min() < 255:
                    raise ImageError(
                        str(path),
                        "is transparent in places; flatten it onto an opaque background",
                    )
                return np.ascontiguousarray(rgba[..., :3])
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except ImageError:
        raise
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from error


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Decodes a ground-truth mask as ``(H, W)``, true at anomalous pixels.

    A pixel is anomalous above half of the range (127 of 255); masks that hold only 0 and 1 are
    taken as they are, others that never get above half are refused. Of a coloured mask the
    strongest channel counts.

    Raises:
        ImageError: If the file cannot be decoded, holds several images or floating-point numbers,
            or numbers its labels instead of marking pixels.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _refuse_several(path, image)
            image.load()
            if image.mode == "F":
                raise ImageError(
                    str(path), "is a floating-point mask; convert it to 8-bit grey, 255 = anomalous"
                )
            if image.mode in _DEEP_MODES or image.mode in {"1", "L"}:
                values = np.asarray(image)
            elif image.mode == "LA":
                values = np.asarray(image)[..., 0]
            else:
                values = np.asarray(image.convert("RGB")).max(axis=2)
            deep = image.mode in _DEEP_MODES
    except ImageError:
        raise
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from error
    highest = values.max()
    if values.dtype == np.bool_ or highest <= 1:
        return np.asarray(values > 0)
    # Tools write 8-bit masks into 16-bit files without scaling them.
    half = 32767 if deep and highest > 255 else 127
    if highest <= half:  # A map of label numbers would pass for an empty mask.
        raise ImageError(str(path), f"highest value is {highest}: save anomalous pixels as 255")
    return np.asarray(values > half)


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
    how = {"bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}[resize]
    resized = Image.fromarray(image).resize((size, size), how)
    return np.asarray(resized, dtype=np.uint8)


def resize_mask(mask: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.uint8]:
    """Resizes ``(H, W)`` to ``(size, size)`` like an image; 1 where more than half is anomalous."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    resized = np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR))
    return (resized > 127).astype(np.uint8)


def hash_pixels(image: npt.NDArray[np.uint8]) -> str:
    """Returns a digest of the pixels and shape of ``(H, W, 3)``, whatever file they came from."""
    state = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    state.update(np.ascontiguousarray(image).data)
    return state.hexdigest()


def _stored_deep(image: Image.Image) -> bool:
    # Pillow reduces 16-bit colour to 8 bits silently; only the raw mode of the tiles tells.
    for tile in getattr(image, "tile", ()):
        args = tile[3]
        raw = str(args[0] if isinstance(args, tuple) else args)
        # BGR;15 and BGR;16 have so many bits per pixel, not per channel.
        if (";16" in raw or ";32" in raw) and not raw.startswith("BGR;1"):
            return True
    return False


def _refuse_several(path: Path, image: Image.Image) -> None:
    count = getattr(image, "n_frames", 1) if image.format in _PAGED else 1
    if count > 1:
        raise ImageError(str(path), f"holds {count} images; save one image per file")


def _unreadable(path: Path, error: Exception) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError(str(path), "no such file; it was moved or deleted, start again")
    if isinstance(error, PermissionError):
        return ImageError(str(path), "may not be read; change its permissions")
    detail = " ".join(str(error).split()).replace(f" {str(path)!r}", "")
    return ImageError(
        str(path),
        f"cannot be read as a PNG, JPEG, BMP or TIFF image ({detail}); replace or remove the file",
    )
