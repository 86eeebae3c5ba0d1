"""Masks: which pixels of a file are anomalous. One rule for every encoding.

The rule (`docs/images.md`, "Masks", says the same):

1. **Black is normal, and so is what is transparent; anything else is drawn.** Where only one value
   is drawn, it is the defect: 0 and 1, 0 and 255, 1 bit, 0 and 65535, one colour of a palette, a
   layer that is opaque over the defect.
2. **Greys that are edges or noise count from half of the highest value upwards.** Greys are what
   is drawn at less than three quarters of it. They are edges within 2 pixels of what is drawn more
   strongly (a soft brush, a mask that was resized), and noise of JPEG within 8 pixels, the side of
   its blocks, up to a quarter of the highest value. In a JPEG an eighth and less is black.
3. **Values that are labels are all anomalous:** numbers up to 32, or at most 32 values in a file
   that keeps what was saved, whose greys are areas of one value for the most part, or not all edges
   or noise.
4. **Anything else is refused:** greys that are neither, a mask without a normal pixel that has
   several values, an opaque picture on which nothing but black is drawn, floating-point numbers.

Several mask files for an image (a folder of them) are each read so; the mask is their union.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomtune.datasets.io.imagefile import Opened, opened, upright
from anomtune.errors import ImageError

Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.unsignedinteger[Any]]

_LABELS = 32  # A file of more values does not number its labels.
_STRONG = 0.75  # Share of the highest value above which nothing is an edge.
_FAINT = 1 / 8  # Share of it up to which noise of JPEG usually reaches.
_EDGE, _BLOCK = 2, 8  # How far edges and that noise reach, in pixels.

_REMEDY = "save it with two values, 0 for normal and 255 for anomalous pixels"


def read_mask(path: Path) -> Mask:
    """Decodes a ground-truth mask as upright ``(H, W)``, true at anomalous pixels.

    What is anomalous says the rule at the head of this module.

    Raises:
        ImageError: If the file cannot be decoded, holds several images, or the rule refuses it.
    """
    with opened(path) as found:
        strength, identity = _values(path, found)
    try:
        mask = anomalous(strength, identity, lossy=found.lossy)
    except ValueError as error:
        raise ImageError(str(path), str(error)) from None
    return upright(mask, found.orientation)


def read_masks(folder: Path, files: list[Path]) -> Mask:
    """Returns the union of several masks of one image, ``(H, W)``.

    Args:
        folder: Where they lie, for messages.
        files: The mask files, at least one.

    Raises:
        ImageError: If one cannot be read or their sizes differ.
    """
    if not files:
        raise ImageError(str(folder), "holds no masks; copy them again")
    union: Mask | None = None
    for file in files:
        try:
            mask = read_mask(file)
        except ImageError as error:
            raise ImageError(str(folder), f"{file.name} {error.reason}") from error
        if union is None:
            union = mask
        elif mask.shape == union.shape:
            union |= mask  # In place: masks of line scans are large.
        else:
            raise ImageError(
                str(folder), f"{file.name} is not of the size of the others; copy it again"
            )
    assert union is not None
    return union


def anomalous(strength: Values, identity: Values | None = None, *, lossy: bool = False) -> Mask:
    """Says which pixels of a mask are anomalous, by the rule at the head of this module.

    Args:
        strength: ``(H, W)`` numbers, 0 = black.
        identity: ``(H, W)``, which colour a pixel has, 0 = black; default: ``strength``.
        lossy: Whether the pixels are only about those that were saved.

    Returns:
        ``(H, W)`` bool.

    Raises:
        ValueError: If the rule refuses it; the message says why and what to do.
    """
    identity = strength if identity is None else identity
    highest = int(strength.max())
    if lossy:
        if 0 < highest <= 127:  # labels, or a thin line that the compression has washed out
            raise ValueError(f"is a JPEG whose highest value is {highest}; {_REMEDY}")
        strength = np.where(strength > highest * _FAINT, strength, 0)
    drawn, strong = strength > 0, strength > highest * _STRONG
    grey = drawn & ~strong
    first = identity.ravel()[int(drawn.argmax())]
    one = not grey.any() if lossy else bool(((identity == first) | ~drawn).all())
    numbers = highest <= _LABELS and not lossy
    if drawn.all() and not one:
        raise ValueError(f"has several values but no black pixel; {_REMEDY}")
    if one or numbers or not grey.any():
        return drawn
    count = int(np.count_nonzero(np.unique(identity)))
    few = count <= _LABELS and not lossy
    noise = _near(strong, _BLOCK) & (strength <= highest * 2 * _FAINT)
    explained = not (grey & ~noise & ~_near(strong, _EDGE)).any()
    if explained and not (few and _is_flat(identity, grey)):
        return strength > highest / 2
    if few:
        return drawn
    kind = "grey values far from anything white" if lossy else f"{count} grey values"
    raise ValueError(f"has {kind}, which may be labels or soft edges; {_REMEDY}")


def resize_mask(mask: Mask, size: int, *, touched: bool = False) -> npt.NDArray[np.uint8]:
    """Resizes ``(H, W)`` to ``(size, size)`` bilinearly, as papers do; 1 in defects.

    Args:
        mask: True at anomalous pixels.
        size: Side of the result.
        touched: Whether a pixel is anomalous as soon as any part of it is (the code of ReContrast),
            rather than where more than half of it is (that of RD4AD).
    """
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    resized = np.asarray(grey.resize((size, size), Image.Resampling.BILINEAR))
    return (resized > (0 if touched else 127)).astype(np.uint8)


def odd_mask(mask: Mask) -> str | None:
    """Says what is odd about the mask of an anomalous image, and what to do; ``None`` if nothing.

    Args:
        mask: ``(H, W)``, true at anomalous pixels.
    """
    share = float(mask.mean())
    if share == 0:
        return (
            "empty mask of an anomalous image, which is left out of pixel metrics; draw the "
            "defect, or remove the mask"
        )
    edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if share >= 0.95:
        return f"covers {share:.0%} of the image; draw the defect alone, or invert the mask"
    if share > 0.5 and edge.mean() > 0.9:
        return (
            f"looks inverted: {share:.0%} of the image and its rim are anomalous; black is normal, "
            "white is the defect"
        )
    return None


def _values(path: Path, found: Opened) -> tuple[Values, Values | None]:
    """Returns how strong each pixel is and, where colours tell more than that, which one it has."""
    image = found.image
    if image.mode == "F":
        raise ImageError(
            str(path), "is a floating-point mask; convert it to 8-bit grey, 255 = anomalous"
        )
    if found.deep and not found.grey_deep:  # Small numbers would have become 0.
        raise ImageError(str(path), f"has colours of 16 bits; {_REMEDY}")
    if found.grey_deep:
        values = np.asarray(image)
        if values.min() < 0:
            raise ImageError(str(path), f"has negative values; {_REMEDY}")
        return values.astype(np.uint32), None
    if not found.transparent and image.mode in {"1", "L"}:
        return np.asarray(image).astype(np.uint8), None
    if found.transparent:
        colours = _on_black(path, np.asarray(image.convert("RGBA")))
    else:
        colours = np.asarray(image.convert("RGB"))
    identity = colours[..., 0].astype(np.uint32)
    for channel in (1, 2):
        identity <<= 8
        identity |= colours[..., channel]
    return colours.max(axis=2), identity


def _on_black(path: Path, rgba: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Returns the colours ``(H, W, 3)`` that a viewer with a black background shows, rounded.

    Raises:
        ImageError: If what is transparent may not be what is normal.
    """
    alpha, below = rgba[..., 3:], rgba[..., :3]
    # Whole numbers: a large mask has no room for floats.
    colours = ((below * alpha.astype(np.uint16) + 127) // 255).astype(np.uint8)
    clear = alpha[..., 0] == 0
    if clear.any() and not colours.any():
        if not clear.all():
            what = "has nothing but black on a transparent ground"
        elif (below != below[0, 0]).any():
            what = "is transparent all over, with a picture hidden below"
        else:
            return colours  # an empty layer
        raise ImageError(str(path), f"{what}; {_REMEDY}")
    return colours


def _is_flat(identity: Values, grey: Mask) -> bool:
    """Whether most grey pixels belong to 3 x 3 pixels of one and the same value, as in no edge."""
    from scipy import ndimage  # noqa: PLC0415 - not where detectors are only used

    same = ndimage.minimum_filter(identity, 3) == ndimage.maximum_filter(identity, 3)
    flat = ndimage.maximum_filter(grey & same, 3) & grey
    return 2 * int(np.count_nonzero(flat)) >= int(np.count_nonzero(grey))


def _near(strong: Mask, reach: int) -> Mask:
    """Returns the pixels from which a strong one is at most so many rows and columns away."""
    from scipy import ndimage  # noqa: PLC0415 - not where detectors are only used

    return np.asarray(ndimage.maximum_filter(strong, 2 * reach + 1, mode="constant"))
