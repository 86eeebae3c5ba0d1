"""Leaves the caller's process as it was: what a sweep needs of it holds for the sweep alone."""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ATTRIBUTES = ("level", "handlers", "filters", "propagate", "disabled")


@contextmanager
def unchanged_process(defaults: Mapping[str, str]) -> Iterator[None]:
    """Undoes at its end what Ray changes of the process that starts it or runs Tune.

    Its variables in the environment, signal handlers, its loggers and the root's, warning filters,
    exception hooks and the fault handler.

    Args:
        defaults: Variables that hold meanwhile, unless the environment has others.
    """
    environment, loggers = dict(os.environ), _loggers()
    hooks = sys.excepthook, threading.excepthook
    faults = faulthandler.is_enabled()
    try:
        with warnings.catch_warnings(), _same_signals():
            os.environ.update({**defaults, **environment})
            yield
    finally:
        # What others have set meanwhile stays.
        for name in [name for name in os.environ if name in defaults or _is_rays(name)]:
            del os.environ[name]
        os.environ.update({n: v for n, v in environment.items() if n in defaults or _is_rays(n)})
        for logger, attributes in loggers.items():
            _restore(logger, attributes)
        sys.excepthook, threading.excepthook = hooks
        if not faults:
            faulthandler.disable()


def _is_rays(variable: str) -> bool:
    return variable.startswith(("RAY_", "TUNE_")) or variable == "PYTHONBREAKPOINT"


@contextmanager
def muted(level: int, *names: str) -> Iterator[None]:
    """Lets loggers tell for a while only what is at least so bad."""
    before = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger, known in before.items():
        logger.setLevel(max(known, level))
    try:
        yield
    finally:
        for logger, known in before.items():
            logger.setLevel(known)


@contextmanager
def rare_full_collections(
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[], None]]:
    """Keeps Python's garbage collector from looking through everything again and again.

    A driver holds every record of its sweep. None of that is garbage, yet each full collection
    looks through all of it: half a second at 20,000 trials, during which no slot is given its next
    one. What is young is collected as before.

    Yields:
        A function that is to be called now and then: it makes a full collection when the time
        since the last one is a thousand times what that one took.
    """
    took, last = 0.0, 0.0

    def collect() -> None:
        nonlocal took, last
        begun = clock()
        gc.collect()
        last = clock()
        took = last - begun

    def tidy() -> None:
        if clock() - last > 1000 * took:
            collect()

    thresholds = gc.get_threshold()
    gc.set_threshold(*thresholds[:2], 2**31 - 1)
    try:
        collect()
        yield tidy
    finally:
        gc.set_threshold(*thresholds)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Lets SIGTERM (a preempted job) end a run as Ctrl-C does: orderly, resumable."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python takes signals in the main thread alone
        return
    # Ray starts the driver of a job with SIGINT blocked.
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def no_interrupt_lost() -> Iterator[None]:
    """Raises KeyboardInterrupt at its end if one came meanwhile that was swallowed.

    Python swallows it in what is run around a fork, and who starts processes forks.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


@contextmanager
def _same_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            # ``None``: not Python's, which could not put it back.
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _loggers() -> dict[logging.Logger, dict[str, Any]]:
    loggers = logging.root.manager.loggerDict
    known = [logging.root, *(loggers[name] for name in loggers if f"{name}.".startswith("ray."))]
    return {
        logger: {name: _copy(getattr(logger, name)) for name in _ATTRIBUTES}
        for logger in known
        if isinstance(logger, logging.Logger)
    }


def _restore(logger: logging.Logger, attributes: Mapping[str, Any]) -> None:
    if logger.level != attributes["level"]:
        logger.setLevel(attributes["level"])  # also clears what loggers below have cached
    for name, value in attributes.items():
        if getattr(logger, name) != value:
            setattr(logger, name, value)


def _copy(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value
