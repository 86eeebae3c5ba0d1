"""Reads data that others may have written: as data, and in bounded memory.

All here raise `ValueError` for whatever is wrong with it; who calls knows the file and what to do.
Nothing is unpickled. What unpacks to more than it is given room for is refused before it does.
"""

from __future__ import annotations

import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gzip import GzipFile

    import numpy.typing as npt

#: What `zipfile` raises on archives that are damaged, or that it cannot read.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    LookupError,
    RuntimeError,  # encrypted, or packed in a way that is not known
    OverflowError,
)
_PIECE = 1 << 20


def parse_json(content: bytes | str) -> Any:
    """Parses JSON.

    Raises:
        ValueError: If it is none, is no UTF-8, or is nested too deep.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def inflate(content: bytes, most: int) -> bytes:
    """Unpacks what zlib has packed.

    Args:
        content: Packed.
        most: Bytes that it may unpack to.

    Raises:
        ValueError: If it is damaged, or unpacks to more.
    """
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(content, most + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(found) > most:
        raise ValueError(f"it unpacks to more than {most} bytes")
    if not unpacker.eof:
        raise ValueError("its end is missing")
    return found


def read_at_most(stream: IO[bytes] | GzipFile, most: int) -> bytes:
    """Reads a stream to its end.

    Args:
        stream: Of bytes.
        most: How many there may be.

    Raises:
        ValueError: If there are more.
    """
    pieces, total = [], 0
    while piece := stream.read(_PIECE):
        total += len(piece)
        if total > most:
            raise ValueError(f"it unpacks to more than {most} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def read_array(stream: IO[bytes], most: int) -> npt.NDArray[Any]:
    """Reads an array in NumPy's file format.

    Args:
        stream: Where it begins.
        most: Bytes that it may take.

    Raises:
        ValueError: If it is damaged, holds Python objects, or takes more.
    """
    import numpy as np  # noqa: PLC0415 - what only parses JSON needs none
    from numpy.lib import format as layout  # noqa: PLC0415

    try:
        version = layout.read_magic(stream)
        read = layout.read_array_header_1_0 if version == (1, 0) else layout.read_array_header_2_0
        shape, by_column, dtype = read(stream)
        size = math.prod(shape) * dtype.itemsize
    except (SyntaxError, tokenize.TokenError, TypeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"a header that is none ({error})") from None
    except (AttributeError, RecursionError, MemoryError, struct.error) as error:
        raise ValueError(f"a header that is none ({error})") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if any(side < 0 for side in shape) or size > most:
        raise ValueError(f"an array of shape {shape}, of more than {most} bytes")
    content = stream.read(size)
    if len(content) < size:
        raise ValueError(f"{len(content)} bytes where {size} are announced")
    try:
        flat = np.frombuffer(bytearray(content), dtype, count=math.prod(shape))
        return flat.reshape(shape, order="F" if by_column else "C")
    except (TypeError, OverflowError) as error:
        raise ValueError(f"a shape that is none ({error})") from None


def read_arrays(
    content: bytes | IO[bytes], most: int, names: Collection[str] | None = None
) -> Mapping[str, npt.NDArray[Any]]:
    """Reads arrays in NumPy's file format for several.

    Args:
        content: The file.
        most: Bytes that they may take together.
        names: Those that are wanted, of which some may not be there; default: all.

    Raises:
        ValueError: As `read_array`, and if the archive is damaged.
    """
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    found: dict[str, npt.NDArray[Any]] = {}
    left = most
    try:
        with zipfile.ZipFile(stream) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if (names is None or name in names) and name not in found:
                    with archive.open(member) as opened:
                        found[name] = read_array(opened, left)
                        left -= found[name].nbytes
                        if opened.read(1):  # also compares the sum of what was read
                            raise ValueError(f"more behind {name} than it should have")
    except _ZIP_ERRORS as error:
        raise ValueError(f"a damaged archive ({error})") from None
    return found
