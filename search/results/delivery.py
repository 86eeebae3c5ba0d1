"""Brings records to loggers: each has a thread of its own, which nobody waits for."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from anomtune.search.config import Sweep
from anomtune.search.results.logger import Logger, LoggerMaker, logger_makers
from anomtune.search.store.records import AnyRecord
from anomtune.search.store.sent import SentRecords
from anomtune.search.store.storage import Storage

#: Seconds until a logger that has failed is tried again: twice as many each time, up to the last.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0

#: Seconds that the end of a sweep waits for its loggers, and an interrupted one.
_PATIENCE, _INTERRUPTED_PATIENCE = 60.0, 10.0
#: After so many of them it says that it waits.
_UNNOTICED = 2.0


class _Delivery:
    """Brings records to one logger, the newest state of each run.

    A logger that raises goes on: mostly it is a server that will be back, and what waits here is
    at most the records of a sweep, which are in memory anyway.
    """

    def __init__(
        self, maker: LoggerMaker, sent: SentRecords, note: Callable[[str], object], pause: float
    ) -> None:
        self._maker = maker
        self._sent = sent
        self._note = note
        self._key = maker.config.model_dump_json()
        self._first_pause = pause
        self._logger: Logger | None = None
        # What follows is shared with the driver's thread.
        self._changed = threading.Condition()
        self._waiting: dict[str, AnyRecord] = {}
        self._busy = False
        self._failures = 0
        self._told = False
        self._closing = False
        self._lost = False
        self._thread = threading.Thread(target=self._run, name="logger", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def has(self, record: AnyRecord) -> bool:
        """Whether a run that has ended has arrived."""
        return self._sent.has(self._key, record)

    def put(self, record: AnyRecord) -> None:
        with self._changed:
            self._waiting[record.path] = record
            self._changed.notify()

    def close(self) -> None:
        """Lets what waits be tried once more, and the logger be closed."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def end(self, until: float) -> None:
        """Waits for that, and says what has not arrived."""
        self._thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            self._lost = True  # what it still does is not kept: the directory may be another's now
            left = len(self._waiting) + self._busy
        if left:
            runs = "1 run" if left == 1 else f"{left} runs"
            self._note(
                f"logger {self._maker.config.name}: {runs} not logged; the same command, run "
                "again, sends what is left"
            )

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while (record := self._next()) is not None:
            try:
                if self._logger is None:
                    self._logger = self._maker.make()
                self._logger.update(record)
            except BaseException as error:  # noqa: BLE001 - anybody's code, in a thread of its own
                if self._take_back(record, error):
                    break
            else:
                self._mark(record)
        if self._logger is not None:
            try:
                self._logger.close()
            except BaseException as error:  # noqa: BLE001
                self._tell(error)
        if not self._lost:
            self._sent.save()

    def _next(self) -> AnyRecord | None:
        """Waits for something to bring; ``None``: nothing will come any more."""
        with self._changed:
            pause = 0.0
            if self._failures:
                pause = min(self._first_pause * 2 ** (self._failures - 1), _LONGEST_PAUSE)
            self._changed.wait_for(lambda: self._closing, timeout=pause)
            self._changed.wait_for(lambda: self._closing or self._waiting)
            if not self._waiting or self._lost:
                return None
            self._busy = True
            return self._waiting.pop(next(iter(self._waiting)))

    def _take_back(self, record: AnyRecord, error: BaseException) -> bool:
        """Puts last what has not arrived; returns whether there is no more time to try again."""
        with self._changed:
            self._waiting.setdefault(record.path, record)  # a newer state may be there
            self._busy = False
            self._failures += 1
            closing = self._closing
        self._tell(error)
        return closing

    def _tell(self, error: BaseException) -> None:
        if not self._told:  # once: an outage of a night is no reason for a thousand lines
            self._told = True
            self._note(
                f"logger {self._maker.config.name}: {self._maker.shown(error)}; the sweep goes on, "
                "and tries again"
            )

    def _mark(self, record: AnyRecord) -> None:
        with self._changed:
            self._busy = False
            self._failures = 0
            lost = self._lost
        if record.state != "RUNNING" and not lost:  # outside: it may write, and a sweep would wait
            self._sent.add(self._key, record)


def open_loggers(config: Sweep, storage: Storage, note: Callable[[str], object]) -> Loggers:
    """Returns the loggers of a sweep, to be entered; at its end they have had their time.

    Args:
        config: The sweep.
        storage: Its directory, which is ours.
        note: Is told what a person should know.

    Raises:
        SweepError: If there is no such logger, or it cannot be called with its options.
        StorageError: If the directory cannot be read.
    """
    sent = SentRecords(storage)
    return Loggers(logger_makers(config, storage.location, sent.sweep_id), sent, note)


class Loggers:
    """The loggers of a sweep, as a context manager.

    Args:
        makers: Make them.
        sent: What has arrived in earlier starts.
        note: Is told what a person should know, by the thread that uses this.
        pause: Seconds until a logger that has failed is tried again for the first time.
    """

    def __init__(
        self,
        makers: Sequence[LoggerMaker],
        sent: SentRecords,
        note: Callable[[str], object],
        pause: float = _FIRST_PAUSE,
    ) -> None:
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._note = note
        self._sent = sent
        self._deliveries = [_Delivery(maker, sent, self._notes.put, pause) for maker in makers]

    def put(self, record: AnyRecord) -> None:
        """Lets a run be logged as it is now; returns at once.

        Args:
            record: Is not changed any more.
        """
        for delivery in self._deliveries:
            delivery.put(record)
        self._pass_notes_on()

    def catch_up(
        self, records: Iterable[AnyRecord], show: Callable[[AnyRecord], AnyRecord]
    ) -> None:
        """Lets runs be logged that an earlier start has ended and not brought to a logger.

        Args:
            records: All there are.
            show: Returns a record as the scoring of its study reads it.
        """
        if not self._deliveries:
            return
        ended = [record for record in records if record.state != "RUNNING"]
        for record in sorted(ended, key=lambda record: record.cost.finished_at or ""):
            without = [delivery for delivery in self._deliveries if not delivery.has(record)]
            shown = show(record) if without else record
            for delivery in without:
                delivery.put(shown)

    def __enter__(self) -> Loggers:
        if self._deliveries:
            self._sent.begin()
        for delivery in self._deliveries:
            delivery.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        patience = _PATIENCE if error is None else _INTERRUPTED_PATIENCE
        began = time.monotonic()
        for delivery in self._deliveries:
            delivery.close()
        while any(d.alive for d in self._deliveries) and time.monotonic() < began + _UNNOTICED:
            time.sleep(0.01)
        if any(delivery.alive for delivery in self._deliveries):
            self._note(f"waiting for loggers, {patience:.0f} s at most")
        for delivery in self._deliveries:
            delivery.end(began + patience)
        self._pass_notes_on()

    def _pass_notes_on(self) -> None:
        while not self._notes.empty():
            self._note(self._notes.get())
