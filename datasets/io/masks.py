"""The masks of many images as they were drawn, each at the size of its image, in little memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from anomtune.bounded import inflate
from anomtune.datasets.io.imagefile import MAX_PIXELS
from anomtune.datasets.io.store import cache_root
from anomtune.errors import DataError

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PackedMask:
    """One mask.

    Attributes:
        shape: Height and width in pixels.
        bits: Its pixels, eight to a byte and deflated; empty where nothing is drawn.
    """

    shape: tuple[int, int]
    bits: bytes

    def unpack(self) -> Mask:
        """Returns the mask, ``(H, W)`` bool.

        Raises:
            DataError: If the bits are not those of a mask of that shape.
        """
        count = self.shape[0] * self.shape[1]
        try:
            if not 0 < count <= MAX_PIXELS:
                raise ValueError(f"{count} pixels")
            if not self.bits:
                return np.zeros(self.shape, np.bool_)
            packed = np.frombuffer(inflate(self.bits, -(-count // 8)), np.uint8)
            if 8 * len(packed) < count:
                raise ValueError(f"{len(packed)} bytes for {count} pixels")
            return np.unpackbits(packed, count=count).reshape(self.shape).view(np.bool_)
        except ValueError as error:
            raise DataError(
                f"{cache_root()}: a mask there is damaged ({error}); remove its folder categories, "
                "which is written anew"
            ) from error


def pack(mask: Mask) -> PackedMask:
    """Packs a mask ``(H, W)``; a thousand of 1024 x 1024 pixels take a few megabytes."""
    bits = zlib.compress(np.packbits(mask).tobytes(), 1) if mask.any() else b""
    return PackedMask((mask.shape[0], mask.shape[1]), bits)


class Masks(Sequence[Mask]):
    """Masks by index, each unpacked when it is asked for: ``(H, W)`` bool, true in defects.

    Args:
        packed: The masks; of an image without one, a mask of its size with nothing drawn.
    """

    def __init__(self, packed: Iterable[PackedMask]) -> None:
        self.packed = tuple(packed)

    def __len__(self) -> int:
        return len(self.packed)

    @overload
    def __getitem__(self, index: int) -> Mask: ...
    @overload
    def __getitem__(self, index: slice) -> Masks: ...
    def __getitem__(self, index: int | slice) -> Mask | Masks:
        if isinstance(index, slice):
            return Masks(self.packed[index])
        return self.packed[index].unpack()

    def take(self, indices: Iterable[int]) -> Masks:
        """Returns some of the masks."""
        return Masks(self.packed[index] for index in indices)

    @property
    def drawn(self) -> Mask:
        """``(N,)`` bool, in which masks anything is drawn."""
        return np.array([bool(mask.bits) for mask in self.packed], dtype=np.bool_)
