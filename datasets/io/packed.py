"""Images that come many to a file: the IDX files of MNIST, the binary batches of CIFAR-10.

Plain files are mapped into memory; compressed ones are unpacked once per process.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomtune.bounded import read_at_most
from anomtune.errors import DataError, ImageError, one_line

U8 = npt.NDArray[np.uint8]

_IDX_UBYTE = 0x0800  # The type of the values, in the upper part of an IDX file's magic number.
#: Of a file that is unpacked in memory: five times the largest of its kind.
_MOST_BYTES = 1 << 28
_AGAIN = "copy or download it again"

# Size, time and number of a file: what was read of it is kept for as long as they stay.
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Packed:
    """The images of one part of a dataset, in the order of their files.

    Attributes:
        blocks: Arrays of images, all of one length but the last: grey ``(N, H, W)``, or colour by
            planes ``(N, 3, H, W)``.
        labels: Number of the class of each image.
    """

    blocks: tuple[U8, ...]
    labels: U8

    def image(self, index: int) -> U8:
        """Returns an image as ``(H, W, 3)`` RGB; grey is replicated."""
        block, row = divmod(index, len(self.blocks[0]))
        image = np.asarray(self.blocks[block][row])
        if image.ndim == 2:
            return np.repeat(image[..., None], 3, axis=2)
        return np.ascontiguousarray(image.transpose(1, 2, 0))


class PackedError(DataError):
    """A file of many images cannot be used.

    Args:
        path: The file.
        reason: What is wrong and what to do.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.reason}")


def read_idx_pair(images: Path, labels: Path) -> Packed:
    """Opens an IDX file of grey images and the one of their labels, either possibly gzipped.

    Raises:
        PackedError: If one is damaged or incomplete, or they do not belong together.
    """
    return _idx_pair(images, _stamp(images), labels, _stamp(labels))


@lru_cache(maxsize=4)  # Maps are cheap to keep and not so cheap to make for every image.
def _idx_pair(images: Path, _1: _Stamp, labels: Path, _2: _Stamp) -> Packed:
    pixels, numbers = _idx(images, 3), _idx(labels, 1)
    if len(pixels) != len(numbers):
        raise PackedError(
            labels, f"{len(numbers)} labels for the {len(pixels)} images of {images.name}; {_AGAIN}"
        )
    return Packed((pixels,), numbers)


def read_cifar_batches(batches: Sequence[Path], side: int = 32) -> Packed:
    """Opens binary batches of CIFAR-10: records of a label and three planes of pixels.

    Raises:
        PackedError: If a file is not a whole number of records.
    """
    return _cifar_batches(tuple((path, _stamp(path)) for path in batches), side)


@lru_cache(maxsize=4)
def _cifar_batches(batches: tuple[tuple[Path, _Stamp], ...], side: int) -> Packed:
    record = 1 + 3 * side * side
    rows = []
    for path, _ in batches:
        values = _map(path)
        if not len(values) or len(values) % record:
            raise PackedError(path, f"{len(values)} bytes are no records of {record}; {_AGAIN}")
        rows.append(values.reshape(-1, record))
    if any(len(block) != len(rows[0]) for block in rows[:-1]) or len(rows[-1]) > len(rows[0]):
        raise PackedError(batches[0][0], f"the batches differ in length; {_AGAIN}")
    return Packed(
        tuple(block[:, 1:].reshape(-1, 3, side, side) for block in rows),
        np.concatenate([block[:, 0] for block in rows]),
    )


def packed_key(part: str, kind: str, index: int) -> str:
    """Returns the key of an image that has no file: ``test/cat/00012``."""
    return f"{part}/{kind}/{index:05d}"


def parse_key(key: str, packed: Mapping[str, Packed], classes: Sequence[str]) -> U8:
    """Returns the image of a key of `packed_key`.

    Args:
        key: The key.
        packed: The parts by name.
        classes: Names of the classes by number.

    Raises:
        ImageError: If there is no such image.
    """
    part, _, rest = key.partition("/")
    kind, _, number = rest.partition("/")
    if part in packed and number.isascii() and number.isdigit():
        index, labels = int(number), packed[part].labels
        label = labels[index] if index < len(labels) else len(classes)
        if label < len(classes) and packed_key(part, classes[label], index) == key:
            return packed[part].image(index)
    raise ImageError(key, f"no such image of class {kind!r}; the files have changed, start again")


def _idx(path: Path, dimensions: int) -> U8:
    values = _unzip(path) if path.suffix == ".gz" else _map(path)
    head = 4 + 4 * dimensions
    if len(values) < head:
        raise PackedError(path, f"has {len(values)} bytes and no header of IDX; {_AGAIN}")
    magic, *shape = struct.unpack(f">{1 + dimensions}i", values[:head].tobytes())
    if magic != _IDX_UBYTE + dimensions:
        what = "images" if dimensions == 3 else "labels"
        raise PackedError(path, f"is not an IDX file of {what} (it begins with {magic}); {_AGAIN}")
    expected = head + int(np.prod(shape, dtype=np.int64))
    if min(shape) < 1 or len(values) != expected:
        raise PackedError(path, f"{len(values)} bytes where {expected} are announced; {_AGAIN}")
    return values[head:].reshape(shape)


def _map(path: Path) -> U8:
    try:
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return np.zeros(0, dtype=np.uint8)
        return np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise PackedError(path, f"cannot be read ({error.strerror or error}); {_AGAIN}") from error


def _unzip(path: Path) -> U8:
    try:
        with gzip.open(path) as file:
            return np.frombuffer(read_at_most(file, _MOST_BYTES), dtype=np.uint8)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        detail = getattr(error, "strerror", None) or str(error)
        raise PackedError(path, f"cannot be unpacked ({detail}); {_AGAIN}") from error


def _stamp(path: Path) -> _Stamp:
    try:
        info = path.stat()
    except OSError as error:
        raise PackedError(path, f"cannot be read ({error.strerror or error}); {_AGAIN}") from error
    return info.st_size, info.st_mtime_ns, info.st_ino
