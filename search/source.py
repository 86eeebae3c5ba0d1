"""Where images come from: the ``dataset`` section of every file."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from anomtune.datasets.base import Dataset
from anomtune.datasets.io.remote import local_root
from anomtune.datasets.io.uri import is_uri
from anomtune.datasets.opening import open_dataset
from anomtune.datasets.splits.division import Division
from anomtune.datasets.splits.shift import CorruptedDataset, Shift
from anomtune.names import readable, to_name, to_text
from anomtune.registry import DATASETS
from anomtune.settings import Settings


def _path_text(given: Any) -> Any:
    if isinstance(given, os.PathLike):
        return to_text(given)
    return readable(given) if isinstance(given, str) else given


#: A path; as Python has it, or as text.
Place = Annotated[str, BeforeValidator(_path_text)]


class DatasetConfig(Settings):
    """Which images: a registered dataset family, its place, and what it has to be told.

    Attributes:
        name: Of the dataset family.
        root: Its folder or file.
        categories: Those to search; default: all.
        shift: Corrupted copies of test images to add.
        normal: Folder of normal images, or one for ``train`` and one for ``test`` (`folder`).
        anomalous: Folder of anomalous images, or one for each defect type (`folder`).
        masks: Folder of their masks (`folder`).
        columns: Which column of a table is which: ``{label: verdict}`` (`table`).
        images: Folder that the paths of a table are relative to (`table`).
        group: What images of the same part have in common: a regular expression, or a column.
        division: How images are divided that are not.
    """

    name: str
    root: Place | None = None
    categories: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    shift: Shift | None = None
    normal: Place | dict[str, Place] | None = None
    anomalous: Place | dict[str, Place] | None = None
    masks: Place | None = None
    columns: dict[str, str] | None = None
    images: Place | None = None
    group: str | None = None
    division: Division | None = None

    @model_validator(mode="before")
    @classmethod
    def _dataset_names_itself(cls, given: Any) -> Any:
        if not isinstance(given, Dataset):
            return given
        original, shift = given, None
        if isinstance(given, CorruptedDataset):
            original, shift = given.original, given.shift
        root = None if given.root is None else to_text(given.root)
        known = {"name": DATASETS.name_of(type(original)), "root": root, "shift": shift}
        return known | original.settings()

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written = write(self)
        return {k: v for k, v in written.items() if v is not None or k not in _OPTIONS}

    @property
    def options(self) -> dict[str, Any]:
        """What the dataset is told beside its root."""
        told = {key: getattr(self, key) for key in _OPTIONS}
        return {key: value for key, value in told.items() if value is not None}

    def with_paths(self, change: Callable[[str, str], str]) -> DatasetConfig:
        """Returns a copy in which the named folders (not the root) are changed.

        Args:
            change: Given a key and a path, returns the path to have instead.
        """
        update: dict[str, Any] = {}
        for key in ("normal", "anomalous", "masks"):
            value = getattr(self, key)
            if isinstance(value, dict):
                update[key] = {name: change(f"{key}.{name}", at) for name, at in value.items()}
            elif value is not None:
                update[key] = change(key, value)
        return self.model_copy(update=update)

    def open(self) -> Dataset:
        """Opens the dataset.

        Raises:
            DataError: If there is no such dataset, it refuses its root, or a remote root cannot be
                fetched.
        """
        root = None if self.root is None else _local(self.root)
        return open_dataset(self.name, root, self.shift, self.options)


_OPTIONS = ("normal", "anomalous", "masks", "columns", "images", "group", "division")


@lru_cache(maxsize=8)
def _local(root: str) -> Path:
    """Returns the local copy of a root; a process lists a remote one once."""
    return local_root(root if is_uri(root) else to_name(root))
