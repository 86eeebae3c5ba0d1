"""One driver owns a sweep directory.

On a disk the kernel keeps the lock. An object store has none, nor have some network file systems:
there the owner leaves a mark, ``owner.json``, and renews it every few seconds. Who finds the mark
of another watches it for a while; if it does not change, its owner is gone. Nobody's clock is
compared with another's.
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

with suppress(ImportError):
    import fcntl

from anomtune.errors import StorageError
from anomtune.search.store.storage import Storage

_MARK = "owner.json"

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._storage.delete_left_overs()
        self._lock.release()


class _NoKernelLocksError(Exception):
    """The file system of the directory has no locks."""


class _FileLock:
    """The kernel's lock on a file, which goes with its process."""

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
    """A mark that its owner renews."""

    def __init__(self, storage: Storage, note: Callable[[str], object]) -> None:
        self._storage = storage
        self._note = note
        self._mark: dict[str, Any] = {**_who(), "token": uuid.uuid4().hex, "beat": 0}
        self._renewed = -math.inf
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def acquire(self) -> None:
        self._wait_for_owner()
        self._write()
        time.sleep(_SETTLE)
        self.renew()
        self._heart.start()

    def _wait_for_owner(self) -> None:
        """Returns when the directory has no live owner."""
        found = _read_mark(self._storage)
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
            now = _read_mark(self._storage)
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
            found = _read_mark(self._storage)
            if found.get("token") != self._mark["token"]:
                self._renewed = -math.inf  # nothing more is written
                raise _owned(self._storage, found)
            self._mark["beat"] += 1
            self._write()

    def _write(self) -> None:
        begin = _clock()
        self._storage.write(_MARK, json.dumps(self._mark).encode())
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
            else:
                self._storage.write(_MARK, json.dumps(_who()).encode())


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
        since = mark.get("since")
        return Owner(self._is_alive(mark, before), since if isinstance(since, str) else None)

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


def _is_dead(mark: dict[str, Any]) -> bool:
    """Whether a mark's process ran on this machine and does not any more."""
    if mark.get("machine") is None or mark["machine"] != _machine():
        return False
    return not Path(f"/proc/{mark.get('pid')}").exists()


def _read_mark(storage: Storage) -> dict[str, Any]:
    """Returns the owner's mark, empty if there is none or it cannot be understood."""
    try:
        mark = json.loads(storage.read(_MARK) or b"{}")
    except ValueError:
        return {}
    return mark if isinstance(mark, dict) else {}


def _owned(storage: Storage, mark: dict[str, Any]) -> StorageError:
    return StorageError(
        f"{storage.location}: another sweep owns this directory (process "
        f"{mark.get('pid', '?')} on {mark.get('host', '?')}); wait for it, stop it, "
        f"or choose another directory with --dir"
    )
