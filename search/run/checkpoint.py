"""Where a long trial or confirm run goes on when its worker or its driver was lost.

After each rung that ends more than five minutes of training the worker keeps the detector and the
results so far, in one safetensors file below ``checkpoints/``. Short runs write none: they are
run again from their beginning. A run that has ended needs its file no more.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import safetensors.torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

from anomtune.bounded import parse_json
from anomtune.search.store.storage import Storage

#: Sets another number of seconds between the checkpoints of a trial, in the workers' environment.
SECONDS_VARIABLE = "ANOMTUNE_CHECKPOINT_SECONDS"

_RESULTS = TypeAdapter(list[str])
_SECONDS = 300.0
_FOLDER, _SUFFIX = "checkpoints", ".safetensors"


class Checkpoint(NamedTuple):
    """A detector in the middle of its training.

    Attributes:
        state: From `Detector.state_dict`.
        results: What the run has yielded or taken up to then, as JSON.
    """

    state: dict[str, Tensor]
    results: list[str]


class Checkpoints:
    """Keeps the latest checkpoint of one trial or confirm run.

    Args:
        storage: The sweep directory.
        record_path: Of its record.
        identity: Names the training: config, seed, images. A checkpoint of another is not used.
    """

    def __init__(self, storage: Storage, record_path: str, identity: str) -> None:
        self._storage = storage
        self._path = _path(record_path)
        self._identity = identity
        self._every = float(os.environ.get(SECONDS_VARIABLE, _SECONDS))
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the trial has been at it long enough since the last one, or since its start."""
        return time.monotonic() - self._last >= self._every

    def write(self, state: Mapping[str, Tensor], results: Sequence[str]) -> None:
        """Replaces the trial's checkpoint.

        Raises:
            StorageError: If the storage refuses.
        """
        notes = {"identity": self._identity, "results": json.dumps(results)}
        content = safetensors.torch.save(dict(state), notes)
        self._storage.write(self._path, content, durable=True)
        self._last = time.monotonic()

    def read(self) -> Checkpoint | None:
        """Returns the trial's checkpoint, ``None`` if there is none that can be used."""
        content = self._storage.read(self._path)
        if content is None:
            return None
        try:
            state = safetensors.torch.load(content)
            # The header of the format: its length as 8 bytes, then JSON.
            length = int.from_bytes(content[:8], "little")
            notes = parse_json(content[8 : 8 + length])["__metadata__"]
            if notes["identity"] != self._identity:
                return None
            return Checkpoint(state, _RESULTS.validate_json(notes["results"]))
        except (SafetensorError, KeyError, TypeError, ValueError):
            return None


def delete_checkpoint(storage: Storage, record_path: str) -> None:
    """Removes the checkpoint of a run that has ended, if it has one."""
    storage.delete(_path(record_path))


def delete_other_checkpoints(storage: Storage, unfinished: set[str]) -> None:
    """Removes checkpoints of all but the runs that will go on, as a killed driver leaves them.

    Args:
        storage: The sweep directory.
        unfinished: Record paths of the runs that have begun and not ended.
    """
    if not unfinished:
        storage.delete_folder(_FOLDER)
        return
    wanted = {_path(record_path) for record_path in unfinished}
    for path in storage.list(_FOLDER, _SUFFIX):
        if path not in wanted:
            storage.delete(path)


def _path(record_path: str) -> str:
    return f"{_FOLDER}/{record_path}{_SUFFIX}"
