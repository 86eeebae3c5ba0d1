"""Datasets by name, ours and other people's, from the entry points ``anomtune.datasets``."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from anomtune.datasets.base import DataError, Dataset
from anomtune.datasets.remote import local_root
from anomtune.datasets.shift import CorruptedDataset, Shift

GROUP = "anomtune.datasets"


def available() -> tuple[str, ...]:
    """Returns the names of all installed datasets, sorted."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def dataset_type(name: str) -> type[Dataset]:
    """Returns the class of a dataset family.

    Raises:
        DataError: If there is no such dataset, if two packages claim the name, or if the package
            that declares it cannot be imported or gives something else.
    """
    entry = _entry_point(name)
    try:
        kind = entry.load()
    except Exception as error:  # a plug-in may raise anything while it is imported
        raise _unusable(entry, f"{type(error).__name__}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Dataset)):
        raise _unusable(entry, "it is not a subclass of anomtune.datasets.base.Dataset")
    return kind


def open_dataset(name: str, root: Path | str | None, shift: Shift | None = None) -> Dataset:
    """Opens a dataset.

    Args:
        name: One of `available`.
        root: Its folder, a URI (``s3://bucket/folder``) that is fetched into this node's cache, or
            ``None`` for datasets that need none.
        shift: Corrupted copies of the test images to add.

    Raises:
        DataError: As `dataset_type` and `local_root`, and if the dataset refuses the root.
    """
    kind = dataset_type(name)
    folder = None if root is None else local_root(root)
    try:
        dataset = kind(folder)
        return dataset if shift is None else CorruptedDataset(dataset, shift)
    except DataError:
        raise
    except Exception as error:
        raise _unusable(_entry_point(name), f"{type(error).__name__}: {error}") from error


def _unusable(entry: EntryPoint, reason: str) -> DataError:
    package = f" of the package {entry.dist.name}" if entry.dist else ""
    return DataError(
        f"dataset {entry.name!r} ({entry.value}{package}) cannot be used: "
        f"{' '.join(reason.split())}; repair or uninstall that package"
    )


def _entry_point(name: str) -> EntryPoint:
    # An editable install can list the same entry point twice: equal ones are no conflict.
    found = {entry.value: entry for entry in entry_points(group=GROUP, name=name)}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise DataError(
            f"dataset {name!r} is declared more than once: {', '.join(found)}; "
            "uninstall all but one of these packages"
        )
    known = available()
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"no dataset {name!r}: there are {', '.join(known) or 'none'}{hint}")
