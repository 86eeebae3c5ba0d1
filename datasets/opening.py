"""A dataset by the name of its family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomtune.datasets.base import Dataset
from anomtune.datasets.io.remote import local_root
from anomtune.datasets.splits.shift import CorruptedDataset, Shift
from anomtune.errors import AnomtuneError, DataError
from anomtune.registry import DATASETS


def open_dataset(
    name: str,
    root: Path | str | None,
    shift: Shift | None = None,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Opens a dataset.

    Args:
        name: A registered name, or an import path.
        root: Its folder, a URI (``s3://bucket/folder``) that is fetched into this node's cache, or
            ``None`` for datasets that need none.
        shift: Corrupted copies of the test images to add.
        options: What else it is to be told (`Dataset.options`).

    Raises:
        DataError: If there is no such dataset, its root cannot be fetched, or it refuses it or what
            it is told.
        StorageError: If a fetched root cannot be written to the cache.
    """
    kind = DATASETS.get(name)
    for key in options or {}:
        if key not in kind.options:
            known = ", ".join(sorted({"root", *kind.options}))
            raise DataError(f"dataset.{key}: not for the dataset {name!r}, which takes {known}")
    folder = None if root is None else local_root(root)
    try:
        dataset: Dataset = kind(folder, **(options or {}))
        dataset.name = name
        return dataset if shift is None else CorruptedDataset(dataset, shift)
    except AnomtuneError:
        raise
    except Exception as error:
        raise DATASETS.unusable(name, f"{type(error).__name__}: {error}") from error
