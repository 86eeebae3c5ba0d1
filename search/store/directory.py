"""The config in a sweep directory, and which version of anomtune made the directory.

``sweep.yaml`` is the resolved sweep file with a key on top that says who wrote it. A directory of
another format is refused as a whole: its records mean something else.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

from anomtune.errors import SweepError
from anomtune.search.config import MADE_BY, Sweep, parse_sweep
from anomtune.search.store.records import RecordStore
from anomtune.search.store.storage import Storage
from anomtune.search.yaml_text import dump_yaml, read_yaml

#: Raise it when a directory is read otherwise, or trials of the same config are other trials.
#: Version 0.1 wrote none.
FORMAT = 5

#: The file with the config.
SWEEP_FILE = "sweep.yaml"


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
    if not isinstance(made_by, dict) or made_by.get("format") != FORMAT:
        raise SweepError(
            f"{storage.location}: made by anomtune {_maker(made_by)}, and this is "
            f"{version('anomtune')}, which reads another format; use that version, or another "
            "directory with --dir"
        )
    return parse_sweep(data, location)


def read_sweep(directory: str | os.PathLike[str]) -> tuple[Sweep, RecordStore]:
    """Returns the config and the records of a sweep directory.

    Raises:
        SweepError: If it is not one, or of another version.
        StorageError: If it cannot be read.
    """
    storage = Storage(directory)
    config = read_config(storage)
    if config is None:
        raise SweepError(f"{directory}: no {SWEEP_FILE} there; give the directory of a sweep")
    return config, RecordStore(storage)


def _maker(made_by: Any) -> str:
    """Returns the version that a sweep directory names, as far as it does."""
    if made_by is None:
        return "0.1"
    return str(made_by.get("anomtune", "?")) if isinstance(made_by, dict) else "?"
