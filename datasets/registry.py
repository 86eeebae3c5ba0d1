"""Datasets by name, ours and other people's, from the entry points ``anomtune.datasets``."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from anomtune.datasets.base import DataError, Dataset

GROUP = "anomtune.datasets"


def available() -> tuple[str, ...]:
    """Returns the names of all installed datasets, sorted."""
    return tuple(sorted(_found()))


def dataset_type(name: str) -> type[Dataset]:
    """Returns the class of a dataset family.

    Raises:
        DataError: If there is no such dataset, or its package is broken.
    """
    found = _found()
    if name not in found:
        near = get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"no dataset {name!r}; {hint}there are {', '.join(sorted(found))}")
    try:
        kind = found[name].load()
    except Exception as error:
        raise _unusable(found[name], f"{type(error).__name__}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Dataset)):
        raise _unusable(found[name], "it is not a subclass of anomtune.datasets.base.Dataset")
    return kind


def open_dataset(name: str, root: Path | None) -> Dataset:
    """Opens a dataset.

    Args:
        name: One of `available`.
        root: Its folder, or ``None`` for datasets that need none.

    Raises:
        DataError: If there is no such dataset, its package is broken, or it refuses the root.
    """
    kind = dataset_type(name)
    try:
        return kind(root)
    except DataError:
        raise
    except Exception as error:
        raise _unusable(_found()[name], f"{type(error).__name__}: {error}") from error


def _unusable(entry: EntryPoint, reason: str) -> DataError:
    package = f" of the package {entry.dist.name}" if entry.dist else ""
    return DataError(
        f"dataset {entry.name!r} ({entry.value}{package}) cannot be used: "
        f"{' '.join(reason.split())}; mend or uninstall it"
    )


def _found() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
