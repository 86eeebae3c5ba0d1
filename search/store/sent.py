"""What loggers have been told already, so that the next start does not tell them again."""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import suppress

from pydantic import ValidationError

from anomtune.errors import StorageError
from anomtune.search.store.part import Part
from anomtune.search.store.records import AnyRecord
from anomtune.search.store.storage import Storage

_NAME = "loggers.json"
#: Seconds between two writings: a driver that is killed tells at most these seconds again.
_SECONDS = 5.0


class _Kept(Part):
    """The file.

    Attributes:
        sweep_id: Names the sweep directory, wherever it is moved.
        sent: By logger, as the sweep file has it: when each run that has arrived had ended.
    """

    sweep_id: str
    sent: dict[str, dict[str, str]] = {}  # noqa: RUF012 - pydantic gives each its own


class SentRecords:
    """Which runs that have ended have arrived at which logger.

    It is no truth about the sweep: without it everything is sent again.

    Args:
        storage: The sweep directory.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        try:
            self._kept = _Kept.model_validate_json(storage.read(_NAME) or b"{}")
        except ValidationError:  # not there yet, or damaged
            self._kept = _Kept(sweep_id=uuid.uuid4().hex)
        self._saved_at = float("-inf")
        self._lock = threading.Lock()

    @property
    def sweep_id(self) -> str:
        """Names the sweep directory: the same at every start, wherever it lies."""
        return self._kept.sweep_id

    def begin(self) -> None:
        """Makes sure that the name of the directory is kept, before anybody is told it.

        Raises:
            StorageError: If the storage refuses.
        """
        self._storage.write(_NAME, self._content(), durable=True)

    def has(self, logger: str, record: AnyRecord) -> bool:
        """Whether the end of a run has arrived; not that of an earlier one of the same name."""
        ended = self._kept.sent.get(logger, {}).get(record.path)
        return ended is not None and ended == (record.cost.finished_at or "")

    def add(self, logger: str, record: AnyRecord) -> None:
        """Notes that the end of a run has arrived."""
        with self._lock:
            arrived = self._kept.sent.setdefault(logger, {})
            arrived[record.path] = record.cost.finished_at or ""
            due = time.monotonic() >= self._saved_at + _SECONDS
        if due:
            self.save()

    def save(self) -> None:
        """Writes it down."""
        with self._lock, suppress(StorageError):  # records are told of that, and a loss is harmless
            self._storage.write(_NAME, self._content())
            self._saved_at = time.monotonic()

    def _content(self) -> bytes:
        return self._kept.model_dump_json(indent=1).encode()
