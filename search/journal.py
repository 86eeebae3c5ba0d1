"""Where every change of a run goes: its record first, its curve soon after. Nobody waits for them.

What is decided of a trial is acted on when its own record is safe; `OrderedWriter.is_done` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from types import TracebackType

from anomtune.search.decide.plan import SearchPlan
from anomtune.search.results.tensorboard import CurveWriter
from anomtune.search.run.checkpoint import delete_checkpoint
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import AnyRecord, StudyKey, TrialRecord
from anomtune.search.store.writer import OrderedWriter

#: How many records, and curves, are written at once; pyarrow sends to an object store with eight
#: threads of its own.
_RECORDS, _CURVES = 8, 4
#: How many changes the records, and how many the curves may be behind.
_UNSAFE, _BEHIND = 128, 256


class Journal:
    """Writes records, and curves behind them, as a context manager.

    The record of a run that begins is not there before those of all that had ended by then: what
    the run is may follow from them. What a killed driver has left behind of curves, the next start
    writes anew.

    Args:
        store: The records of the sweep directory, with its owner.
        lock: Is asked whether the directory is still ours before anything is written.
        plans: How each study is searched.
        tell: Told of each change when it is safe, in order, by the thread that settles `records`.

    Attributes:
        records: Writes the records, each under its path.
    """

    def __init__(
        self,
        store: RecordStore,
        lock: DirectoryLock,
        plans: Mapping[StudyKey, SearchPlan],
        tell: Callable[[AnyRecord], object] = lambda record: None,
    ) -> None:
        self._store = store
        self._lock = lock
        self._tell = tell
        self._curves = CurveWriter(store.storage, plans)
        self.records = OrderedWriter(_RECORDS, _UNSAFE)
        self._behind = OrderedWriter(_CURVES, _BEHIND)
        self._open = ExitStack()
        #: Paths of records that have ended and may not be safe yet.
        self._ending: set[str] = set()

    def write(self, record: AnyRecord, shown: AnyRecord) -> None:
        """Takes in a change.

        Args:
            record: What has changed.
            shown: The same, as the scoring of its study reads it.

        Raises:
            StorageError: If something before it could not be written.
        """
        path, ended = record.path, record.state != "RUNNING"
        self._ending = {other for other in self._ending if not self.records.is_done(other)}
        begins = not ended and not (isinstance(record, TrialRecord) and record.curve)
        # As they are now: they will have changed by then.
        record, shown = _copy(record), _copy(shown)
        after = self._ending if begins else ()
        self.records.put(path, partial(self._write, record, shown), after)
        if ended:
            self._ending.add(path)
        self.records.then(partial(self._tell, shown), path)
        if ended and (segments := self._store.segments) is not None and segments.full:
            self._write_segments()

    def follow(self, name: str, work: Callable[[], object]) -> None:
        """Lets something be done behind the records, when all that was written before it is safe.

        Args:
            name: Of what it writes.
            work: Is called in another thread; must be possible again.
        """

        def checked() -> None:
            self._lock.check()
            work()

        self.records.then(partial(self._behind.put, name, checked))

    def catch_up(
        self, records: Iterable[AnyRecord], show: Callable[[AnyRecord], AnyRecord]
    ) -> None:
        """Writes the curves and the segments anew that an earlier start has not come to.

        Args:
            records: All there are.
            show: Returns a record as the scoring of its study reads it.
        """
        ended = [record for record in records if record.state != "RUNNING"]
        ended.sort(key=lambda record: record.cost.finished_at or "")
        # So many others may have ended, and be safe, while a record waited, and then its curve.
        late = ended[-self.records.most - self._behind.most - 1 :]
        late = [record for record in late if not self._store.is_in_segment(record)]
        for record in late:
            self._behind.put(record.path, partial(self._make_whole, record, show(record)))
        for record in ended[: -self.records.most - self._behind.most - 1]:
            if not self._store.is_in_segment(record):
                self._store.gather(record)
        self._write_segments([record.path for record in late])

    def drain(self) -> None:
        """Waits until all is written.

        Raises:
            StorageError: If it could not be, or another driver has taken the directory.
        """
        self.records.drain()
        self._behind.drain()
        self._write_segments()
        self._behind.drain()
        self._lock.check()

    def _write(self, record: AnyRecord, shown: AnyRecord) -> None:
        self._store.write(record)
        self._behind.put(record.path, partial(self._follow, record, shown))

    def _make_whole(self, record: AnyRecord, shown: AnyRecord) -> None:
        if not self._curves.is_whole(shown):
            self._follow(record, shown)
        else:
            self._store.gather(record)

    def _follow(self, record: AnyRecord, shown: AnyRecord) -> None:
        self._lock.check()
        self._curves.update(shown)
        if record.state != "RUNNING":
            delete_checkpoint(self._store.storage, record.path)
            # Last: of a record in a segment the next start knows that all this is done.
            self._store.gather(record)

    def _write_segments(self, after: Collection[str] = ()) -> None:
        """Lets what has been gathered be written."""
        if (segments := self._store.segments) is not None:

            def write() -> None:
                self._lock.check()
                segments.write()

            self._behind.put("segments", write, after)

    def __enter__(self) -> Journal:
        # The records end first: they put what follows them.
        self._open.enter_context(self._behind)
        self._open.enter_context(self.records)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)


def _copy(record: AnyRecord) -> AnyRecord:
    added_to = {"curve": list(record.curve)} if isinstance(record, TrialRecord) else {}
    return record.model_copy(update=added_to)
