"""Work that nobody waits for: done in order, by a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType

_END = object()


class Behind:
    """Does what is put into it, one after the other, as a context manager.

    At its end all of it is done. Of a process that is killed the latest `most` and one more may
    not be: what they write must be possible to write again from something else.

    Args:
        most: How much may wait; whoever puts more does.

    Attributes:
        most: The same.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._waiting: queue.Queue[Callable[[], object] | object] = queue.Queue(most)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="behind", daemon=True)

    def put(self, work: Callable[[], object]) -> None:
        """Lets something be done next.

        Raises:
            Exception: What something earlier has failed with; nothing is done after that.
        """
        if self._failure is not None:
            raise self._failure
        self._waiting.put(work)

    def _run(self) -> None:
        while (work := self._waiting.get()) is not _END:
            if self._failure is None:
                try:
                    work()  # type: ignore[operator]
                except Exception as error:  # noqa: BLE001 - raised where it is waited for
                    self._failure = error

    def __enter__(self) -> Behind:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._waiting.put(_END)
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure
