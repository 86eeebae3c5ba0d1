"""The dataset that a sweep file names."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from anomtune.datasets.base import Dataset
from anomtune.datasets.io.remote import local_root
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.shift import Shift
from anomtune.search.config import DatasetConfig


def open_data(config: DatasetConfig) -> Dataset:
    """Opens the dataset of a sweep.

    Raises:
        DataError: If there is no such dataset, it refuses its root, or a remote root cannot be
            fetched.
    """
    shift = config.shift
    return open_dataset(
        config.name,
        None if config.root is None else _local_root(config.root),
        None if shift is None else Shift(shift.corruptions, shift.severity),
    )


@lru_cache(maxsize=8)
def _local_root(root: str) -> Path:
    """Returns the local copy of a root; a process lists a remote one once."""
    return local_root(root)
