"""Where every change of a run goes: its record at once, its curve soon after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

from anomtune.search.decide.plan import SearchPlan
from anomtune.search.results.tensorboard import CurveWriter
from anomtune.search.run.checkpoint import delete_checkpoint
from anomtune.search.store.behind import Behind
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.records import AnyRecord, RecordStore, StudyKey, TrialRecord
from anomtune.search.store.storage import Storage

#: How many changes of records their curves may be behind.
_BEHIND = 32


class Journal:
    """Writes records and curves, as a context manager: at its end all is written.

    A verdict waits for its own record and for nothing else. What a killed driver has left behind
    of the curves, the next start writes anew.

    Args:
        storage: The sweep directory.
        lock: Is asked whether the directory is still ours before anything is written.
        plans: How each study is searched.
    """

    def __init__(
        self, storage: Storage, lock: DirectoryLock, plans: Mapping[StudyKey, SearchPlan]
    ) -> None:
        self._storage = storage
        self._lock = lock
        self._records = RecordStore(storage)
        self._curves = CurveWriter(storage, plans)
        self._behind = Behind(_BEHIND)

    def write(self, record: AnyRecord, shown: AnyRecord) -> None:
        """Writes a change.

        Args:
            record: What has changed.
            shown: The same, as the scoring of its study reads it.

        Raises:
            StorageError: If it cannot be written, or something before it could not.
        """
        self._lock.check()
        self._records.write(record)
        # As it is now: it will have changed by then.
        added_to = {"curve": list(shown.curve)} if isinstance(shown, TrialRecord) else {}
        self._behind.put(partial(self._follow, shown.model_copy(update=added_to)))

    def catch_up(self, records: Iterable[AnyRecord]) -> None:
        """Writes the curves anew that an earlier start has not come to.

        Args:
            records: All there are, as they are shown.
        """
        ended = [record for record in records if record.state != "RUNNING"]
        ended.sort(key=lambda record: record.cost.finished_at or "")
        for record in ended[-_BEHIND - 1 :]:
            self._behind.put(partial(self._make_whole, record))

    def _make_whole(self, record: Any) -> None:
        if not self._curves.is_whole(record):
            self._follow(record)

    def _follow(self, record: Any) -> None:
        self._lock.check()
        self._curves.update(record)
        if record.state != "RUNNING":
            delete_checkpoint(self._storage, record.path)

    def __enter__(self) -> Journal:
        self._behind.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._behind.__exit__(kind, error, trace)
