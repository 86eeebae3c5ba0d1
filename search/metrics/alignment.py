"""An anomaly map and a mask brought to one size: at the mask's, so that no defect is lost.

A map has the size of a sweep's images, a mask the size at which its defects were drawn. Papers
resize the mask: a defect narrower than a pixel of the map is gone then, and counts as normal where
the detector finds it. Here the map is brought to the mask; what papers do is there by name.
"""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomtune.datasets.io.maskfile import resize_mask

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)

#: How map and mask are brought to one size. ``as_drawn``: the map is interpolated to the size of
#: the mask. ``resized``: the mask is resized to the map, a pixel is anomalous where more than half
#: of it is (the code of RD4AD). ``touched``: the same, where any part is (that of ReContrast).
MaskSize = Literal["as_drawn", "resized", "touched"]


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
        Both ``(H, W)`` or both ``(h, w)``.
    """
    if masks != "as_drawn":
        small = resize_mask(mask, anomaly_map.shape[0], touched=masks == "touched")
        return anomaly_map, small.view(np.bool_)
    return at_size(anomaly_map, mask.shape), mask


def middle(pixels: npt.NDArray[Scalar], seen: float) -> npt.NDArray[Scalar]:
    """Returns the middle of a map or mask ``(H, W)``, as much of each side as is seen.

    It is where a method that sees the middle of an image alone puts its map
    (`anomtune.models.layers.maps.surround`).
    """
    for axis, length in enumerate(pixels.shape):
        side = round(seen * length)
        before = (length - side) // 2
        pixels = pixels[(slice(None),) * axis + (slice(before, before + side),)]
    return pixels


def at_size(anomaly_map: Map, shape: tuple[int, int], rows: slice | None = None) -> Map:
    """Returns a map ``(h, w)`` interpolated to ``(H, W)``, or some rows of that."""
    if anomaly_map.shape == shape:
        return anomaly_map if rows is None else anomaly_map[rows]
    height, width = shape
    first, last, _ = (rows or slice(None)).indices(height)
    scale = anomaly_map.shape[0] / height
    resized = Image.fromarray(np.ascontiguousarray(anomaly_map, dtype=np.float32)).resize(
        (width, last - first),
        Image.Resampling.BILINEAR,
        box=(0, first * scale, anomaly_map.shape[1], last * scale),
    )
    return np.asarray(resized)
