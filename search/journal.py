"""Where every change of a run goes: its record at once, its curve and loggers soon after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from anomtune.search.config import Sweep
from anomtune.search.decide.plan import SearchPlan
from anomtune.search.results.delivery import Loggers
from anomtune.search.results.logger import logger_makers
from anomtune.search.results.tensorboard import CurveWriter
from anomtune.search.run.checkpoint import delete_checkpoint
from anomtune.search.store.behind import Behind
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.records import AnyRecord, RecordStore, StudyKey, TrialRecord
from anomtune.search.store.sent import SentRecords
from anomtune.search.store.storage import Storage

#: How many changes of records their curves may be behind.
_BEHIND = 32


class Journal:
    """Writes records at once and curves behind them, and lets loggers know.

    A verdict waits for its own record, not for curves, and never for a logger. What a killed driver
    has left behind of curves, the next start writes anew; what loggers lack, it sends.

    Args:
        storage: The sweep directory.
        lock: Is asked whether the directory is still ours before anything is written.
        behind: Does the curves.
        plans: How each study is searched.
        loggers: Are told the same as the curves.
    """

    def __init__(
        self,
        storage: Storage,
        lock: DirectoryLock,
        behind: Behind,
        plans: Mapping[StudyKey, SearchPlan],
        loggers: Loggers,
    ) -> None:
        self._storage = storage
        self._lock = lock
        self._records = RecordStore(storage)
        self._curves = CurveWriter(storage, plans)
        self._behind = behind
        self._loggers = loggers

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
        shown = shown.model_copy(update=added_to)
        self._loggers.put(shown)
        self._behind.put(partial(self._follow, shown))

    def catch_up(
        self, records: Iterable[AnyRecord], show: Callable[[AnyRecord], AnyRecord]
    ) -> None:
        """Writes the curves anew, and logs the runs, that an earlier start has not come to.

        Args:
            records: All there are.
            show: Returns a record as the scoring of its study reads it.
        """
        ended = [record for record in records if record.state != "RUNNING"]
        self._loggers.catch_up(ended, show)
        ended.sort(key=lambda record: record.cost.finished_at or "")
        for record in ended[-self._behind.most - 1 :]:
            self._behind.put(partial(self._make_whole, show(record)))

    def _make_whole(self, record: Any) -> None:
        if not self._curves.is_whole(record):
            self._follow(record)

    def _follow(self, record: Any) -> None:
        self._lock.check()
        self._curves.update(record)
        if record.state != "RUNNING":
            delete_checkpoint(self._storage, record.path)


@contextmanager
def open_journal(
    config: Sweep,
    storage: Storage,
    lock: DirectoryLock,
    plans: Mapping[StudyKey, SearchPlan],
    note: Callable[[str], object],
) -> Iterator[Journal]:
    """Opens the journal of a sweep; at its end curves are whole, and loggers have had their time.

    Args:
        config: The sweep, whose loggers are made.
        storage: Its directory.
        lock: Of the directory, which is ours.
        plans: How each study is searched.
        note: Is told what a person should know.

    Raises:
        SweepError: If there is no such logger, or it cannot be called with its options.
        StorageError: If something cannot be written.
    """
    sent = SentRecords(storage)
    makers = logger_makers(config, storage.location, sent.sweep_id)
    with Loggers(makers, sent, note) as loggers, Behind(_BEHIND) as behind:
        yield Journal(storage, lock, behind, plans, loggers)
