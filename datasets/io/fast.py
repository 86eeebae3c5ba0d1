"""What torch does faster than Pillow, and bit for bit as Pillow does it.

The digest of an image's pixels decides which part it plays, so there is no room for almost the
same. Each of the two functions here compares itself with Pillow on the first image of a kind that
a process meets, and leaves that kind to Pillow if a bit differs. Neither imports torch: where a
process has not, Pillow does the work.

JPEG is decoded by torchvision, which writes RGB where Pillow goes by way of four bytes a pixel and
pieces of 64 kB. Its operator is found without `torchvision`, whose import takes a second.

A square image is resized by torch where its side is the wanted one times a power of two. Both work
in two passes, rows first, with weights of whole numbers: Pillow's of 22 bits, torch's of as many as
fit into 16, 15 to 22 after the point. The triangle over ``2n`` pixels has multiples of
``1 / (2 n^2)``, so both have them exactly, but for the first and the last row and column, where it
is cut off and the rest scaled up: these are Pillow's. At other sizes up to a hundredth of the
values would differ by 1.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_Pixels = npt.NDArray[np.uint8]

_MODE_RGB = 3  # torchvision.io.ImageReadMode.RGB
_FACTORS = frozenset({2, 4, 8, 16, 32})

# By kind, whether Pillow gives the same.
_same: dict[object, bool] = {}


def decode_jpeg(image: Any, encoded: _Pixels) -> _Pixels | None:
    """Decodes a JPEG file as it is stored, not turned.

    Args:
        image: The file opened by Pillow, not loaded; it is loaded where the two are compared.
        encoded: ``(B,)``, the bytes of the file.

    Returns:
        ``(H, W, 3)`` RGB, or ``None`` if Pillow has to do it.
    """
    operator = _jpeg_operator() if "torch" in sys.modules else None
    if operator is None or image.mode not in {"L", "RGB"}:
        return None
    sampling = tuple(layer[1:3] for layer in getattr(image, "layer", ()))
    kind = ("jpeg", image.mode, sampling, "progressive" in image.info, "adobe" in image.info)
    if not _same.get(kind, True):
        return None
    try:
        pixels: _Pixels = operator(_tensor(encoded), _MODE_RGB).permute(1, 2, 0).numpy()
    except (RuntimeError, ValueError):
        return None  # Pillow says what is wrong with it, if anything is.
    if kind not in _same:
        _same[kind] = np.array_equal(pixels, np.asarray(image.convert("RGB")))
    return pixels if _same[kind] else None


def resize(image: _Pixels, size: int) -> _Pixels | None:
    """Resizes ``(H, W, 3)`` to ``(size, size, 3)``, bilinear and antialiased.

    Returns:
        The image, or ``None`` if Pillow has to do it.
    """
    factor = image.shape[0] // size
    if factor not in _FACTORS or image.shape[:2] != (size * factor,) * 2 or size < 4:
        return None
    kind = ("resize", factor, size)
    if "torch" not in sys.modules or not _same.get(kind, True):
        return None
    from torch.nn.functional import interpolate  # noqa: PLC0415

    pixels = _tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    resized = interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    result: _Pixels = resized[0].permute(1, 2, 0).contiguous().numpy()
    result[0], result[-1] = _rows(image, 2 * factor, size)
    result[:, 0], result[:, -1] = _columns(image, 2 * factor, size)
    if kind not in _same:
        whole = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        _same[kind] = np.array_equal(result, np.asarray(whole))
    return result if _same[kind] else None


def _rows(image: _Pixels, reach: int, size: int) -> tuple[_Pixels, _Pixels]:
    """Returns the first and the last row, each of which depends on so many rows at most."""
    first, last = (_in_turn(strip, size, 2) for strip in (image[:reach], image[-reach:]))
    return first[0], last[1]


def _columns(image: _Pixels, reach: int, size: int) -> tuple[_Pixels, _Pixels]:
    first, last = (_in_turn(strip, 2, size) for strip in (image[:, :reach], image[:, -reach:]))
    return first[:, 0], last[:, 1]


def _in_turn(image: _Pixels, width: int, height: int) -> _Pixels:
    """Resizes rows, then columns: of a narrow image Pillow would take the columns first."""
    narrow = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(narrow.resize((width, height), Image.Resampling.BILINEAR))


def _tensor(array: _Pixels) -> Any:
    from torch import from_numpy  # noqa: PLC0415

    if not array.flags.writeable:  # torch warns of these; nothing here writes
        return from_numpy(np.array(array))
    return from_numpy(array)


@cache
def _jpeg_operator() -> Callable[..., Any] | None:
    """Returns torchvision's operator, ``None`` where there is none.

    ``torchvision.io`` loads the same library, which can be loaded twice.
    """
    import torch  # noqa: PLC0415

    operators: Any = torch.ops
    found = importlib.util.find_spec("torchvision")
    for folder in (found and found.submodule_search_locations) or ():
        for library in sorted(Path(folder).glob("image*")):
            if library.suffix not in {".so", ".pyd", ".dylib"}:
                continue
            try:
                operators.load_library(str(library))
                operator: Callable[..., Any] = operators.image.decode_jpeg
            except (OSError, AttributeError, RuntimeError):
                continue
            return operator
    return None
