"""A dataset by the name of its family."""

from __future__ import annotations

from pathlib import Path

from anomtune.datasets.base import Dataset
from anomtune.datasets.io.remote import local_root
from anomtune.datasets.splits.shift import CorruptedDataset, Shift
from anomtune.errors import AnomtuneError
from anomtune.registry import DATASETS


def open_dataset(name: str, root: Path | str | None, shift: Shift | None = None) -> Dataset:
    """Opens a dataset.

    Args:
        name: A registered name, or an import path.
        root: Its folder, a URI (``s3://bucket/folder``) that is fetched into this node's cache, or
            ``None`` for datasets that need none.
        shift: Corrupted copies of the test images to add.

    Raises:
        DataError: If there is no such dataset, its root cannot be fetched, or it refuses it.
        StorageError: If a fetched root cannot be written to the cache.
    """
    kind = DATASETS.get(name)
    folder = None if root is None else local_root(root)
    try:
        dataset: Dataset = kind(folder)
        dataset.name = name
        return dataset if shift is None else CorruptedDataset(dataset, shift)
    except AnomtuneError:
        raise
    except Exception as error:
        raise DATASETS.unusable(name, f"{type(error).__name__}: {error}") from error
