"""Arrays of a sweep as files: written by workers, read as data of others."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from anomtune.bounded import read_array, read_arrays

#: What the arrays of a run may take in memory: more than the scores of a million images.
_MOST_BYTES = 1 << 28


def parse_integers(content: bytes | None) -> npt.NDArray[Any] | None:
    """Returns an array of integers, ``None`` if there is none or it cannot be read."""
    try:
        return of_kind(read_array(io.BytesIO(content or b""), _MOST_BYTES), "iu")
    except ValueError:
        return None


def of_kind(array: npt.NDArray[Any], kinds: str) -> npt.NDArray[Any]:
    """Returns an array; raises ValueError if what it holds is of no such kind, of `numpy.dtype`."""
    if array.dtype.kind not in kinds:
        raise ValueError(f"an array of {array.dtype}")
    return array


def parse_arrays(content: bytes | None) -> Mapping[str, npt.NDArray[Any]]:
    """Returns arrays by name, none if there are none or they cannot be read."""
    try:
        return read_arrays(content or b"", _MOST_BYTES)
    except ValueError:
        return {}


def npz_bytes(**arrays: npt.NDArray[Any]) -> bytes:
    """Returns arrays in NumPy's file format for several."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """Returns an array in NumPy's file format."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
