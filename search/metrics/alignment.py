"""An anomaly map and a mask brought to one size: at the mask's, so that no defect is lost.

A map has the size of a sweep's images, a mask the size at which its defects were drawn. Papers
resize the mask: a defect narrower than a pixel of the map is gone then, and counts as normal where
the detector finds it. Here the map is brought to the mask; what papers do is there by name.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomtune.datasets.io.maskfile import resize_mask

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

#: How map and mask are brought to one size. ``as_drawn``: the map is interpolated to the size of
#: the mask. ``resized``: the mask is resized to the map, a pixel is anomalous where more than half
#: of it is (the code of RD4AD). ``touched``: the same, where any part is (that of ReContrast).
MaskSize = Literal["as_drawn", "resized", "touched"]

#: A mask of more pixels (4096 x 4096) is reduced by a whole number first: bounds the memory that an
#: image takes to about 1 GB, and its time to a second. Lines of few pixels get wider by that.
MOST_PIXELS = 1 << 24


def check_mask_size(masks: str) -> None:
    """Raises ValueError if there is no such way to bring maps and masks to one size."""
    if masks not in get_args(MaskSize):
        raise ValueError(f"masks={masks!r}: there is {', '.join(get_args(MaskSize))}")


def at_one_size(anomaly_map: Map, mask: Mask, masks: MaskSize = "as_drawn") -> tuple[Map, Mask]:
    """Returns a map and a mask of the same size.

    Args:
        anomaly_map: ``(h, w)``.
        mask: ``(H, W)``, true in defects; it shows the same image, maybe at another aspect ratio.
        masks: Which of the two is changed.

    Returns:
        Both ``(H, W)`` or both ``(h, w)``. A mask of more than `MOST_PIXELS` is reduced first; of
        what becomes one pixel there any part that is anomalous makes it so: nothing vanishes.
    """
    if masks != "as_drawn":
        small = resize_mask(mask, anomaly_map.shape[0], touched=masks == "touched")
        return anomaly_map, small.view(np.bool_)
    mask = _reduced(mask)
    if anomaly_map.shape == mask.shape:
        return anomaly_map, mask
    height, width = mask.shape
    resized = Image.fromarray(np.ascontiguousarray(anomaly_map, dtype=np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return np.asarray(resized), mask


def _reduced(mask: Mask) -> Mask:
    if mask.size <= MOST_PIXELS:
        return mask
    factor = math.ceil(math.sqrt(mask.size / MOST_PIXELS))
    for axis, length in enumerate(mask.shape):
        mask = np.logical_or.reduceat(mask, np.arange(0, length, factor), axis=axis)
    return mask
