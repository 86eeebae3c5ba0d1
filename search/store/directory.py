"""The config in a sweep directory, and which version of anomtune made the directory.

``sweep.yaml`` is the resolved sweep file with a key on top that says who wrote it. A directory of a
format that is not read is refused as a whole: its records mean something else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from anomtune.errors import SweepError
from anomtune.search.config import MADE_BY, Sweep, join_sweeps, parse_sweep
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.storage import Storage
from anomtune.search.yaml_text import dump_yaml, read_yaml

#: The format that is written. Raise it when an anomtune that reads this one would refuse or misread
#: what is written now (records and sweep files refuse keys that they do not know), and say here
#: what came with it: 6 `loggers`, images of one's own, and the type of a run's GPU.
FORMAT = 6
#: The oldest format that is read, and gone on with, as it is: that of 0.5. It stays, and so does
#: each after it:
#: ``tests/search/store/format_6`` is a directory that later versions must be able to read.
OLDEST = 5

#: The file with the config.
SWEEP_FILE = "sweep.yaml"


class SweepDirectory(NamedTuple):
    """What is read of a sweep directory: its config, categories spelled out, and its records."""

    config: Sweep
    store: RecordStore


def write_config(storage: Storage, config: Sweep) -> None:
    """Writes the config into a sweep directory.

    Raises:
        StorageError: If the storage refuses.
    """
    made_by = {MADE_BY: {"anomtune": version("anomtune"), "format": FORMAT}}
    storage.write(SWEEP_FILE, (dump_yaml(made_by) + config.to_yaml()).encode(), durable=True)


def read_config(storage: Storage) -> Sweep | None:
    """Returns the config of a sweep directory, ``None`` if no sweep began there.

    Raises:
        SweepError: If another version made it, or it cannot be understood.
        StorageError: If it cannot be read.
    """
    content = storage.read(SWEEP_FILE)
    if content is None:
        return None
    location = f"{storage.location}/{SWEEP_FILE}"
    try:
        data = read_yaml(content.decode(), location)
    except UnicodeDecodeError:
        raise SweepError(f"{location}: not a text file; restore it") from None
    if not isinstance(data, dict) or not {"name", "dataset", "methods"} <= data.keys():
        raise SweepError(f"{location}: not a sweep file; restore it")
    made_by = data.pop(MADE_BY, None)
    found = made_by.get("format") if isinstance(made_by, dict) else None
    if not isinstance(found, int) or not OLDEST <= found <= FORMAT:
        later = isinstance(found, int) and found > FORMAT
        raise SweepError(
            f"{storage.location}: made by anomtune {_maker(made_by)}, and this is "
            f"{version('anomtune')}, which reads "
            + (f"no format after {FORMAT} (it has {found})" if later else "another format")
            + ("; install that version or a later one" if later else "; use that version")
            + ", or another directory with --dir"
        )
    return parse_sweep(data, location)


def read_sweep(directory: str | os.PathLike[str]) -> SweepDirectory:
    """Returns the config and the records of a sweep directory.

    Raises:
        SweepError: If it is not one, or of another version.
        StorageError: If it cannot be read.
    """
    storage = Storage(directory)
    config = read_config(storage)
    if config is None:
        raise SweepError(f"{directory}: no {SWEEP_FILE} there; give the directory of a sweep")
    return SweepDirectory(config, RecordStore(storage))


def read_sweeps(
    directories: Sequence[str | os.PathLike[str]],
) -> tuple[Sweep, tuple[SweepDirectory, ...]]:
    """Returns what is in one or several directories as one sweep: its config, and where it lies.

    Several are those of a sweep whose categories were divided among several drivers. Nothing is
    decided across categories, so each is read where it lies.

    Raises:
        SweepError: If one is not a sweep directory, or of another version, or they are not one
            sweep, or two have the same category.
        StorageError: If one cannot be read.
    """
    read = tuple(read_sweep(directory) for directory in directories)
    names = [os.fspath(directory) for directory in directories]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise SweepError(f"{name}: given twice; give each directory once")
    return join_sweeps({n: one.config for n, one in zip(names, read, strict=True)}), read


def _maker(made_by: Any) -> str:
    """Returns the version that a sweep directory names, as far as it does."""
    if made_by is None:
        return "0.1"
    return str(made_by.get("anomtune", "?")) if isinstance(made_by, dict) else "?"
