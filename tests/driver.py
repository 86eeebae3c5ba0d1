"""`anomtune` in a process of its own, to be killed: forked off one that has imported everything.

A start costs what the command itself does, not the seconds that torch and Ray take to import. Have
the session's Ray first: Ray keeps the token that it found when it was imported.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["anomtune.cli.main", "anomtune.search.sweep", "frozen"])


class Driver:
    """The command in a process of its own session, as `subprocess.Popen` would start it.

    Args:
        arguments: Of the command.
        prepare: Is called there before it; a function of a module.
    """

    def __init__(self, *arguments: object, prepare: Callable[[], None] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._folder.name) / name for name in ("out", "err"))
        words = tuple(map(str, arguments))
        self._process = _PROCESSES.Process(
            target=_run, args=(words, str(self._out), str(self._err), dict(os.environ), prepare)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return _text(self._out)

    @property
    def err(self) -> str:
        return _text(self._err)

    def poll(self) -> int | None:
        """Returns the exit code, if it has ended; minus the signal's number if it was killed."""
        return self._process.exitcode

    def wait(self, seconds: float = 120.0) -> int:
        """Waits for its end, and ends it if it takes longer."""
        self._process.join(seconds)
        if self.poll() is None:
            self.kill()
            raise TimeoutError(f"anomtune did not end within {seconds:.0f} s\n{self.err}")
        return self._process.exitcode or 0

    def kill(self) -> None:
        """Kills it with -9, and waits until it is gone."""
        self._process.kill()
        self._process.join()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _run(
    words: tuple[str, ...],
    out: str,
    err: str,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    from anomtune.cli.main import main

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with open(path, "w") as file:
            os.dup2(file.fileno(), stream.fileno())
    if prepare is not None:
        prepare()
    sys.argv = ["anomtune", *words]
    main()
