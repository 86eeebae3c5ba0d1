"""How long a sweep has run, over all its starts: a clock that a killed driver does not set back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pydantic import ValidationError

from anomtune.errors import StorageError
from anomtune.search.config import Sweep
from anomtune.search.store.part import Part
from anomtune.search.store.storage import Storage

_NAME = "spent.json"
#: The clock is written so often in the time that the sweep has, and within these limits in seconds.
_BEATS, _SHORTEST, _LONGEST = 400, 0.5, 30.0


class Spent(Part):
    """What a sweep with a number of hours has spent of them.

    Attributes:
        seconds: That it has run, over all starts.
        searched_for: The hours within which its search has ended; ``None`` while it goes on.
        confirmed_for: The same of its confirm runs.
    """

    seconds: float = 0.0
    searched_for: float | None = None
    confirmed_for: float | None = None

    def search_is_over(self, config: Sweep) -> bool:
        """Whether a sweep has no more time to search."""
        return _is_over(config, self.searched_for)

    def confirm_is_over(self, config: Sweep) -> bool:
        """Whether a sweep has no more time to confirm."""
        return _is_over(config, self.confirmed_for)


def _is_over(config: Sweep, ended_for: float | None) -> bool:
    hours = None if config.budget is None else config.budget.hours
    return hours is not None and ended_for is not None and ended_for >= hours


def read_spent(storage: Storage) -> Spent:
    """Returns what a sweep has spent; nothing if it has no number of hours."""
    try:
        return Spent.model_validate_json(storage.read(_NAME) or b"{}")
    except ValidationError:  # damaged: the time is lost, the records are not
        return Spent()


class SpentClock:
    """Counts the seconds of a sweep with a number of hours, and keeps them in its directory.

    Args:
        storage: The sweep directory.
        config: The sweep.
        begun: When this start began, of ``clock``.
        clock: Seconds.
        check: Raises StorageError if the directory is another's by now, whose clock goes on.
    """

    def __init__(
        self,
        storage: Storage,
        config: Sweep,
        begun: float,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._storage = storage
        self._check = check
        self._hours = None if config.budget is None else config.budget.hours
        self._begun = begun
        self._clock = clock
        self._before = read_spent(storage)
        self._kept = self._before
        self._writing = threading.Lock()

    def seconds(self) -> float:
        """Returns how long the sweep has run, over all starts."""
        return self._before.seconds + self._clock() - self._begun

    def end_search(self) -> None:
        """Notes that there is no more time to search."""
        self._write(searched_for=self._hours)

    def end_confirm(self) -> None:
        """Notes that there is no more time to confirm."""
        self._write(confirmed_for=self._hours)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keeps the time as it passes."""
        if self._hours is None:
            yield
            return
        ended = threading.Event()
        every = min(max(self._hours * 3600 / _BEATS, _SHORTEST), _LONGEST)

        def beat() -> None:
            while not ended.wait(every):
                with suppress(StorageError):  # the next record tells of it
                    self._write()

        self._write()
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._write()

    def _write(self, **changes: float | None) -> None:
        with self._writing:
            self._check()
            self._kept = self._kept.model_copy(update={"seconds": self.seconds(), **changes})
            self._storage.write(_NAME, self._kept.model_dump_json().encode())
