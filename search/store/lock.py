"""One driver owns a sweep directory.

On a disk the kernel keeps the lock. An object store has none, nor have some network file systems:
there the owner leaves a mark, ``owner.json``, and renews it every few seconds. Who finds the mark
of another watches it for a while; if it does not change, its owner is gone. Nobody's clock is
compared with another's.

Where versions of files have tags (`Storage.has_tags`), and the store heeds them, the store decides:
a mark is made if there is none, and renewed or taken if it is the one that was seen. Of two
newcomers one is refused. On a file system without locks a mark is made that is not there yet, which
one process alone can do; that of an owner who is gone is taken away first, looked at, and put back
if it is not the one that was seen. There, and where a mark can only be overwritten, a newcomer then
waits a second and believes that it owns the directory if its mark is still there. What is left: an
owner that is stopped amid a renewal, for longer than others wait, overwrites the mark of who has
followed it, and that one ends when it renews its own.

An owner that was stopped for long, or cut off, may have been followed without knowing it. It looks
at its mark before each write, and can be stopped between the look and the write. So the records
are written with `DirectoryLock.replace`: what is replaced must be what this owner has read or
written last. Whatever a follower has written stays. What is left is a record that the follower
has not written yet: a change of its former owner may still come through. That owner looks at its
mark once more, tells nobody of the change and ends, and the follower replaces it. For what follows
from records (curves, tables, models) the mark is looked at and no more: it can be made again, and
the next start of the sweep does, of curves those of the few hundred runs that ended last.
"""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

with suppress(ImportError):
    import fcntl

from anomtune.bounded import parse_json
from anomtune.errors import StorageError
from anomtune.search.store.objects import ChangedError, Version
from anomtune.search.store.part import Time
from anomtune.search.store.storage import Storage

_MARK = "owner.json"
_TIME = TypeAdapter(Time)

#: How a file system says that it has no locks.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}

#: Seconds between two renewals of a mark.
_BEAT = 3.0
#: Seconds after which an owner that could not renew its mark writes nothing before it has.
_LEASE = 3 * _BEAT
#: Seconds that a newcomer watches another's mark: longer than its owner would still write.
_PATIENCE = 5 * _BEAT
#: Seconds between leaving a mark and believing it, for another newcomer to overwrite it.
_SETTLE = 1.0

#: How often a record is written anew that is not what its owner knows.
_TRIES = 10


def _clock() -> float:
    """Returns seconds that also pass while the machine sleeps.

    On Linux they are of a clock that nobody sets; the time of day may be set back by hours, and an
    owner that was stopped meanwhile would believe its mark to be fresh.
    """
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time() if boot is None else time.clock_gettime(boot)


class DirectoryLock:
    """Makes one process the owner of a sweep directory, as a context manager.

    A killed driver leaves nothing to clean up.

    Args:
        storage: The directory.
        note: Told why it takes a while.

    Raises:
        StorageError: If another live process owns the directory; the message says which.
    """

    def __init__(self, storage: Storage, note: Callable[[str], object] = lambda text: None) -> None:
        self._storage = storage
        self._note = note
        self._lock: _Lease | _FileLock
        if storage.local_root is None:
            self._lock = _Lease(storage, note)
        else:
            self._lock = _FileLock(storage)

    def __enter__(self) -> DirectoryLock:
        try:
            self._lock.acquire()
        except _NoKernelLocksError:
            self._lock = _Lease(self._storage, self._note)
            self._lock.acquire()
        self._storage.delete_left_overs()
        return self

    def check(self) -> None:
        """Makes sure that the directory is still ours; to be called before a record is written.

        Raises:
            StorageError: If another driver has taken it, or it cannot be known.
        """
        self._lock.check()

    def replace(self, path: str, content: bytes, tag: str | None, *, durable: bool) -> str | None:
        """Writes a file that nobody but the owner writes, if it is still ours.

        Args:
            path: Where, relative to the root.
            content: The whole new content.
            tag: Of the version that the owner knows, ``None`` if of none.
            durable: As in `Storage.write`.

        Returns:
            The tag of what was written, ``None`` if there are none.

        Raises:
            StorageError: If another driver has taken the directory, or the storage refuses.
        """
        self._lock.check()
        written = self._replace(path, content, tag, durable=durable)
        # Nobody is told of what a follower may not have read: if it is ours now, it was then.
        self._lock.check()
        return written

    def _replace(self, path: str, content: bytes, tag: str | None, *, durable: bool) -> str | None:
        if not self._lock.decided:
            self._storage.write(path, content, durable=durable)
            return None
        for _ in range(_TRIES):
            try:
                return self._storage.replace(path, content, tag)
            except ChangedError:
                found = self._storage.read_version(path)
                if found is not None and found.content == content:
                    return found.tag  # by us: the store's answer was lost
                # Another's, who has been followed, or has followed us: the mark says which.
                self._lock.renew()
                tag = None if found is None else found.tag
        raise StorageError(
            f"{self._storage.location}/{path}: others write it; only one sweep may use a directory"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(StorageError):  # a follower's: what looks left over is what it writes
            self._lock.check()
            self._storage.delete_left_overs()
        self._lock.release()


class _NoKernelLocksError(Exception):
    """The file system of the directory has no locks."""


class _FileLock:
    """The kernel's lock on a file, which goes with its process."""

    #: Whether the store decides on versions.
    decided = False

    def __init__(self, storage: Storage) -> None:
        assert storage.local_root is not None
        self._storage = storage
        self._root = storage.local_root
        self._lock = FileLock(self._root / ".lock")

    def acquire(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            if not _has_kernel_locks(self._root):
                raise _NoKernelLocksError
            self._lock.acquire(timeout=0)
        except Timeout:
            raise _owned(self._storage, _read_mark(self._storage)) from None
        except OSError as error:
            raise StorageError(
                f"{self._storage.location}: cannot write there: {error.strerror}; "
                f"choose another directory with --dir"
            ) from None
        self._storage.write(_MARK, json.dumps(_who()).encode())

    def check(self) -> None:
        """Does nothing: nobody can take the lock from a live process."""

    renew = check

    def release(self) -> None:
        # Where nothing can be removed, or the folder is somebody's, that is no reason to fail.
        with suppress(OSError):
            if not (self._root / "sweep.yaml").exists():  # no sweep began: leave nothing behind
                for name in (_MARK, ".lock"):
                    (self._root / name).unlink(missing_ok=True)
                self._root.rmdir()
        self._lock.release()


def _has_kernel_locks(folder: Path) -> bool:
    """Whether the file system can lock a file (Lustre without ``flock`` and gcsfuse cannot)."""
    if "fcntl" not in globals():
        return True  # Windows, whose file systems can
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_LOCKS
    return True


class _Lease:
    """A mark that its owner renews.

    Attributes:
        decided: Whether the store decides whose it is.
    """

    def __init__(self, storage: Storage, note: Callable[[str], object]) -> None:
        self._storage = storage
        self._note = note
        self._mark: dict[str, Any] = {**_who(), "token": uuid.uuid4().hex, "beat": 0}
        #: The mark as it was seen last, and its tag.
        self._seen: Version | None = None
        self._tag: str | None = None
        #: Says whose the directory is, once it is another's.
        self._lost: StorageError | None = None
        self._renewed = -math.inf
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self.decided = False

    def acquire(self) -> None:
        undecided = _why_undecided(self._storage)
        self.decided = undecided is None
        if undecided and self._storage.local_root is None:
            self._note(f"{undecided}: the directory is locked by waiting")
        while True:
            self._wait_for_owner()
            try:
                self._take()
                break
            except ChangedError:  # another was faster, or its owner lives: it is watched now
                pass
        if not self.decided:
            time.sleep(_SETTLE)
            self.renew()
        self._heart.start()

    def _wait_for_owner(self) -> None:
        """Returns when the directory has no live owner."""
        found = self._look()
        # The same machine: whether that process lives need not be guessed.
        if "token" not in found or _is_dead(found):
            return
        self._note(
            f"{_MARK} names process {found.get('pid')} on {found.get('host')}: "
            f"waiting {_PATIENCE:.0f} s to see whether it lives"
        )
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            time.sleep(_BEAT / 3)
            now = self._look()
            if "token" not in now:
                return
            if now != found:
                raise _owned(self._storage, now)

    def check(self) -> None:
        if _clock() - self._renewed > _LEASE:
            self.renew()

    def renew(self) -> None:
        """Renews the mark.

        Raises:
            StorageError: If it is another's by now, or the storage refuses.
        """
        with self._renewing:
            if self._lost is not None:
                raise self._lost
            # Where the store decides, the mark need not be looked at: it is what we wrote, or the
            # store refuses.
            if not self.decided:
                self._see_ours()
            while True:
                self._mark["beat"] += 1
                try:
                    self._write()
                    return
                except ChangedError:  # another's, or ours, of which the answer was lost
                    self._see_ours()

    def _see_ours(self) -> None:
        found = self._look()
        if self._seen is None and not self.decided:
            time.sleep(_SETTLE)  # for a newcomer that has taken it away to put it back
            found = self._look()
        if found.get("token") != self._mark["token"]:
            self._renewed = -math.inf  # nothing more is written
            self._lost = _owned(self._storage, found)
            raise self._lost

    def _look(self) -> dict[str, Any]:
        """Returns the mark as it is now, which is what `_write` replaces."""
        self._seen = found = self._storage.read_version(_MARK)
        self._tag = None if found is None else found.tag
        return _understood(found)

    def _take(self) -> None:
        """Puts our mark in the place of the one that was seen, or of none.

        Raises:
            ChangedError: If there is another by now, as far as that can be known.
        """
        if self.decided or self._storage.local_root is None:
            self._write()
            return
        begin = _clock()
        seen = None if self._seen is None else self._seen.content
        self._storage.replace_seen(_MARK, json.dumps(self._mark).encode(), seen)
        self._renewed = begin

    def _write(self) -> None:
        begin = _clock()
        content = json.dumps(self._mark).encode()
        if self.decided:
            self._tag = self._storage.replace(_MARK, content, self._tag)
        else:
            self._storage.write(_MARK, content)
        self._renewed = begin

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT):
            with suppress(StorageError):  # `check` tells of it when the next record is written
                self.renew()

    def release(self) -> None:
        self._ended.set()
        self._heart.join()
        with suppress(StorageError):  # else it is another's, or is found to be dead
            self.renew()
            if self._storage.read("sweep.yaml") is None:  # no sweep began: leave nothing behind
                self._storage.delete(_MARK)
                return
            self._mark = _who()
            with suppress(ChangedError):
                self._write()


def _why_undecided(storage: Storage) -> str | None:
    """Returns why the store does not decide whose a mark is, ``None`` if it does."""
    if not storage.has_tags:
        return storage.without_tags or "the file system has no locks"
    if storage.heeds_conditions():
        return None
    return "the store heeds no conditions of a write (If-Match, If-None-Match)"


@dataclass(frozen=True)
class Owner:
    """Who runs a sweep directory, as far as a reader can tell.

    Attributes:
        alive: Whether its owner lives; ``None`` if that cannot be told from here.
        since: When it became the owner, UTC, ISO 8601; ``None`` if not known.
    """

    alive: bool | None
    since: str | None = None


class OwnerWatch:
    """Tells whether a sweep directory has a live owner. It writes nothing and takes no lock.

    Args:
        storage: The directory.
        clock: Seconds.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._clock = clock
        self._seen: dict[str, Any] = {}
        self._changed = clock()
        self._beats = False

    def look(self) -> Owner:
        """Returns what the mark of the owner says now, and how it has changed since last time.

        Raises:
            StorageError: If it cannot be read.
        """
        mark, before = _read_mark(self._storage), self._seen
        return Owner(self._is_alive(mark, before), _time_of(mark.get("since")))

    def _is_alive(self, mark: dict[str, Any], before: dict[str, Any]) -> bool | None:
        self._seen = mark
        if not mark or _is_dead(mark):
            return False
        if "token" not in mark:  # its owner holds the kernel's lock, or has let go of a mark
            if self._storage.local_root is None:
                return False
            known = mark.get("machine")
            return True if known is not None and known == _machine() else None
        if mark != before:
            self._changed, self._beats = self._clock(), bool(before)
            return True if self._beats else None
        if self._clock() - self._changed > _PATIENCE:
            return False
        return True if self._beats else None


def _who() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": _machine(),
        "since": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def _machine() -> str | None:
    """Returns what tells apart the places where a process id has a meaning; Linux alone has it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _time_of(since: Any) -> str | None:
    """Returns a time that a mark names, ``None`` if it is none."""
    try:
        return _TIME.validate_python(since)
    except ValidationError:
        return None


def _is_dead(mark: dict[str, Any]) -> bool:
    """Whether a mark's process ran on this machine and does not any more."""
    if mark.get("machine") is None or mark["machine"] != _machine():
        return False
    return not Path(f"/proc/{mark.get('pid')}").exists()


def _read_mark(storage: Storage) -> dict[str, Any]:
    """Returns the owner's mark, empty if there is none or it cannot be understood."""
    return _understood(storage.read_version(_MARK))


def _understood(found: Version | None) -> dict[str, Any]:
    try:
        mark = parse_json(found.content if found else b"{}")
    except ValueError:
        return {}
    return mark if isinstance(mark, dict) else {}


def _owned(storage: Storage, mark: dict[str, Any]) -> StorageError:
    return StorageError(
        f"{storage.location}: another sweep owns this directory (process "
        f"{mark.get('pid', '?')} on {mark.get('host', '?')}); wait for it, stop it, "
        f"or choose another directory with --dir"
    )
