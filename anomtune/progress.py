"""Long steps tell how far they are. Who wants to know listens; nobody has to.

What decodes, trains or predicts says so here and knows no terminal. The listener is one of the
thread that called (a context variable): processes and threads that run elsewhere tell nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

#: Called with what is done, how much of it is done, and how much there is (``None``: not known).
Listener = Callable[[str, int, int | None], object]

_listener: ContextVar[Listener | None] = ContextVar("anomtune_progress", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tells a listener of the long steps of the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(what: str, done: int, total: int | None = None) -> None:
    """Tells the listener how far a step is.

    Args:
        what: What is done (``reading bottle``); the same words at every call of one step.
        done: How much of it.
        total: Of how much. Where ``done`` reaches it, the step is over.
    """
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


def steps(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yields the items and tells of each that is done with.

    Args:
        items: What is gone through.
        what: What is done with them.
        total: How many there are.
    """
    done = 0
    tell(what, done, total)
    try:
        for item in items:
            yield item
            done += 1
            tell(what, done, total)
    finally:
        if done != total:  # some were left out, or it was given up
            tell(what, total, total)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Tells the listener of a step of which only its begin and its end are known."""
    tell(what, 0)
    try:
        yield
    finally:
        tell(what, 1, 1)
