"""Reads damaged files in a process of its own, and says what happened.

Of every input one thing must happen: it is accepted, or refused by an `AnomtuneError` whose message
is one line that names the file or its folder. All else is a fault: another exception, more memory
or time than the reader is given, a process that ends, a file that appears outside, code that runs.

An input is made of the seed, the reader and its number alone, so that each can be read again.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from anomtune.errors import AnomtuneError
from tests.fuzz.damage import Damager
from tests.fuzz.readers import Reader

#: Seconds without an answer after which the process of an input is ended.
_PATIENCE = 60.0
#: Characters that a message may have: more is no line that anybody reads.
_LONGEST = 2000


@dataclass
class Tally:
    """What became of the inputs of a reader.

    Attributes:
        accepted: How many were read.
        refused: How many were refused as they should be.
        faults: Of each kind of fault, the inputs that show it.
    """

    accepted: int = 0
    refused: int = 0
    faults: dict[str, list[int]] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """How many there were."""
        return self.accepted + self.refused + sum(map(len, self.faults.values()))

    def add(self, outcome: str, number: int) -> None:
        """Takes in what `Trial.read` has said of an input."""
        if outcome == "accepted":
            self.accepted += 1
        elif outcome == "refused":
            self.refused += 1
        else:
            self.faults.setdefault(outcome, []).append(number)


class _TooSlow(BaseException):
    """An input has taken its time."""


class Trial:
    """A reader with its valid files, ready to have them damaged.

    Args:
        reader: The reader.
        place: An empty folder.
        seed: Decides, with the number of an input, what is damaged.
    """

    def __init__(self, reader: Reader, place: Path, seed: int) -> None:
        self._reader, self._seed = reader, seed
        self.folder, self._outside = place / "inside", place / "outside"
        for folder in (self.folder, self._outside):
            folder.mkdir(parents=True)
        (self._outside / "file").write_bytes(b"not to be touched")
        self._damager = Damager(self._outside)
        reader.write(self.folder)
        # By name, not by the order in which a file system has them: a number is one input anywhere.
        self._targets = sorted(p for p in self.folder.glob(reader.damaged) if p.is_file())
        assert self._targets, f"{reader.name}: writes no {reader.damaged}"
        self._valid = {path: path.read_bytes() for path in self._targets}
        self._all = set(self.folder.rglob("*"))
        reader.read(self.folder)  # what is valid is accepted
        self._before = self._surroundings()

    @contextmanager
    def damaged(self, number: int) -> Iterator[Path]:
        """Puts a damaged file in the place of a valid one."""
        random = Random(f"{self._seed}/{self._reader.name}/{number}")
        target = random.choice(self._targets)
        content = self._valid[target]
        try:
            match random.randrange(60):
                case 0:
                    target.unlink()
                case 1:
                    target.unlink()
                    target.symlink_to(self._outside / "file")
                case 2:
                    target.unlink()
                    target.mkdir()
                case 3:
                    target.write_bytes(self._valid[random.choice(self._targets)])
                case _:
                    target.write_bytes(self._damager.damage(target.name, content, random))
            yield target
        finally:
            if target.is_symlink() or not target.is_dir():
                target.unlink(missing_ok=True)
            else:
                shutil.rmtree(target)
            target.write_bytes(content)

    def read(self, number: int) -> str:
        """Reads an input; returns ``accepted``, ``refused``, or what is wrong."""
        with self.damaged(number) as target:
            outcome = self._outcome(target)
        return self._trespass() or outcome

    def _outcome(self, target: Path) -> str:
        try:
            with _limited_time(self._reader.seconds):
                self._reader.read(self.folder)
        except AnomtuneError as error:
            cause = "" if self._reader.asks else _cause(error)
            return self._complaint(str(error), target) or cause or "refused"
        except _TooSlow as error:
            return f"takes more than {self._reader.seconds:.0f} s {_where(error)}"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            return f"{type(error).__name__} {_where(error)}: {str(error)[:80]!r}"
        return "accepted"

    def _complaint(self, message: str, target: Path) -> str:
        if "\n" in message or not message.isprintable():
            return "a message of several lines"
        if len(message) > _LONGEST + len(str(self.folder)):
            return f"a message of very many characters: {message[:60]!r}"
        if not any(name in message for name in (str(self.folder), target.name, target.stem)):
            return f"a message that does not name the file: {message[:80]!r}"
        return ""

    def _trespass(self) -> str:
        if (now := self._surroundings()) == self._before:
            return ""
        self._before = now
        return "writes or runs something outside"

    def _surroundings(self) -> list[tuple[str, int]]:
        return [(e.name, e.stat().st_mtime_ns) for e in sorted(os.scandir(self._outside), key=str)]


def _cause(error: BaseException) -> str:
    """Says whether behind a refusal there is that memory ran out."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MemoryError):
            return f"MemoryError {_where(found)}"
        found = found.__cause__ or found.__context__
    return ""


def _where(error: BaseException) -> str:
    """Returns the innermost place of anomtune in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/tests/" not in f.filename and "site-packages" not in f.filename]
    ours = [f for f in own if "/lib/python" not in f.filename]
    if not ours:
        return "in the test"
    return f"in {Path(ours[-1].filename).name}:{ours[-1].name}"


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run(
    reader: Reader, place: Path, seed: int, numbers: range, until: float = float("inf")
) -> Tally:
    """Reads inputs of one reader, in processes that may end at any of them.

    Args:
        reader: The reader.
        place: A folder for it.
        seed: Decides what is damaged.
        numbers: Of the inputs.
        until: When to end all the same, of `time.monotonic`.
    """
    context = multiprocessing.get_context("fork")  # whose processes have imported everything
    tally, first = Tally(), numbers.start
    while first < numbers.stop and time.monotonic() < until:
        at = context.Value("q", -1)
        receive, send = context.Pipe(duplex=False)
        left = range(first, numbers.stop)
        shutil.rmtree(place, ignore_errors=True)
        worker: Any = context.Process(
            target=_work, args=(reader, place, seed, left, until, at, send)
        )
        worker.start()
        send.close()
        first = _follow(worker, receive, at, tally, left)
    shutil.rmtree(place, ignore_errors=True)
    return tally


def _work(
    reader: Reader, place: Path, seed: int, numbers: range, until: float, at: Any, send: Any
) -> None:
    warnings.simplefilter("ignore")
    os.environ["ANOMTUNE_CACHE"] = str(place / "cache")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # C libraries complain there
    trial = Trial(reader, place, seed)
    status = Path("/proc/self/statm").read_text(encoding="ascii")
    used = int(status.split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + reader.memory, resource.RLIM_INFINITY))
    for number in numbers:
        if time.monotonic() > until:
            break
        at.value = number
        send.send((number, trial.read(number)))


def _follow(worker: Any, receive: Any, at: Any, tally: Tally, numbers: range) -> int:
    """Takes in what a process says, until it ends; returns the number of the next input."""
    following = numbers.start
    try:
        while receive.poll(_PATIENCE):
            number, outcome = receive.recv()
            tally.add(outcome, number)
            following = number + 1
        worker.kill()
    except EOFError:
        pass
    worker.join()
    if worker.exitcode == 0:
        return numbers.stop
    if at.value < following:
        raise RuntimeError(f"the process ended ({worker.exitcode}) before an input was read")
    tally.add(f"its process ended ({worker.exitcode})", at.value)
    return int(at.value) + 1


def shares(readers: tuple[Reader, ...], inputs: int) -> Callable[[Reader], int]:
    """Returns how many of all inputs a reader gets, at least one."""
    whole = sum(reader.weight for reader in readers)
    return lambda reader: max(1, round(inputs * reader.weight / whole))
