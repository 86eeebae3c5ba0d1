"""Writes that nobody waits for: in order under each name, under several names at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType

_Work = Callable[[], object]


@dataclass
class _Job:
    """What waits under a name.

    Attributes:
        serial: Which put it is; of several puts that became one, the first.
        work: The latest of them.
        after: Names of what must be done before.
    """

    serial: int
    work: _Work
    after: set[str]


class OrderedWriter:
    """Does what is put into it, by threads of its own, as a context manager.

    Under one name one thing is done at a time, and of what waits there the latest alone: each must
    write all that the ones before it would have. At its end all of it is done. Of a process that
    is killed some may not be, but all that was put `most` puts before another one was taken in.

    Args:
        threads: How much is done at once.
        most: How many puts may have followed one that is not done; whoever puts more waits.

    Attributes:
        most: The same.
    """

    def __init__(self, threads: int, most: int) -> None:
        self.most = most
        self._changed = threading.Condition()
        self._waiting: dict[str, _Job] = {}
        self._busy: dict[str, _Job] = {}
        self._failure: Exception | None = None
        self._ended = False
        self._put = self._done = self._seen = 0
        self._then: deque[tuple[str | None, _Work]] = deque()
        self._threads = [
            threading.Thread(target=self._run, name=f"writer-{number}", daemon=True)
            for number in range(threads)
        ]

    def put(self, name: str, work: _Work, after: Collection[str] = ()) -> None:
        """Lets something be done soon.

        Args:
            name: Of what it writes.
            work: Is called in another thread.
            after: Names of what has been put and must be done before.

        Raises:
            Exception: What something earlier has failed with; nothing is begun after that.
        """
        with self._changed:
            self._changed.wait_for(self._has_room)
            self._check()
            self._put += 1
            job = self._waiting.setdefault(name, _Job(self._put, work, set()))
            job.work = work
            job.after |= {other for other in after if other != name and not self._is_done(other)}
            self._changed.notify_all()

    def is_done(self, name: str) -> bool:
        """Whether all is done that was put under a name.

        Raises:
            Exception: What something has failed with.
        """
        with self._changed:
            self._check()
            return self._is_done(name)

    def then(self, action: _Work, name: str | None = None) -> None:
        """Lets the thread that calls `settle` do something, in order.

        Args:
            action: Is done when all of these actions before it are.
            name: And when all is done that was put under this name.
        """
        self._then.append((name, action))

    def settle(self) -> None:
        """Does what was to be done when something else is; to be called by one thread, often.

        Raises:
            Exception: What something has failed with.
        """
        with self._changed:
            self._check()
            self._seen = self._done
        while self._then and (self._then[0][0] is None or self.is_done(self._then[0][0])):
            self._then.popleft()[1]()

    @property
    def idle(self) -> bool:
        """Whether all is done, or nothing is done any more."""
        with self._changed:
            return self._failure is not None or not (self._waiting or self._busy)

    def wait(self, seconds: float) -> bool:
        """Waits until something is done that `settle` has not seen; whether there is."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._done != self._seen or self._failure is not None, seconds
            )

    def drain(self) -> None:
        """Waits until all is done.

        Raises:
            Exception: What something has failed with.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._busy and not self._waiting)
        self.settle()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _is_done(self, name: str) -> bool:
        return name not in self._waiting and name not in self._busy

    def _has_room(self) -> bool:
        waiting = next(iter(self._waiting.values()), None)
        jobs = [*self._busy.values(), *([waiting] if waiting else [])]
        oldest = min((job.serial for job in jobs), default=self._put)
        return self._failure is not None or self._put - oldest < self.most

    def _next(self) -> str | None:
        """Returns the name of what can be done now and has waited longest."""
        for name, job in self._waiting.items():
            if name not in self._busy and all(map(self._is_done, job.after)):
                return name
        return None

    def _run(self) -> None:
        while True:
            with self._changed:
                while (name := self._next()) is None:
                    if self._ended:
                        return
                    self._changed.wait()
                job = self._busy[name] = self._waiting.pop(name)
            failure = None
            try:
                job.work()
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                failure = error
            with self._changed:
                del self._busy[name]
                self._done += 1
                if failure is not None:
                    self._failure = self._failure or failure
                    self._waiting.clear()
                self._changed.notify_all()

    def __enter__(self) -> OrderedWriter:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._busy and not self._waiting)
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if error is None:
            self.settle()
