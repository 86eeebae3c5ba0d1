"""What the node's cache takes, and which of it goes when that is too much.

Beside each directory of the cache lies a file ``.used``. Its time says when the directory was
opened last, and a process that has opened it holds a shared lock on it: what somebody holds stays.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

with suppress(ImportError):
    import fcntl

#: Windows has no such locks: there nothing is removed.
_LOCKS = "fcntl" in globals()

_USED = ".used"
#: Files fetched from remote roots, which the trees of these share by links.
_OBJECTS = "objects"
#: Younger ones may be on their way into a tree, in seconds.
_ON_THEIR_WAY = 3600
#: So many directories are held at a time by a process; those opened before may go.
_MOST_HELD = 128

_held: OrderedDict[Path, int] = OrderedDict()


@dataclass(frozen=True)
class Entry:
    """A directory of the cache, or a fetched file.

    Attributes:
        place: Where it lies.
        kind: Folder of the cache that it belongs to.
        size: Bytes that it takes on the disk, those shared with an earlier one left out.
        used: When it was opened last, in seconds since 1970.
    """

    place: Path
    kind: str
    size: int
    used: float


def hold(place: Path) -> None:
    """Notes that a directory is used now, and keeps it from going as long as this process runs.

    Waits if it is going. Where there is no folder yet or nothing can be written, nothing is held.
    """
    marker = place.with_name(place.name + _USED)
    try:
        if place not in _held:
            _held[place] = _locked(marker)
            if len(_held) > _MOST_HELD:
                os.close(_held.popitem(last=False)[1])
        _held.move_to_end(place)
        os.utime(marker)
    except OSError:
        return


def entries(root: Path) -> list[Entry]:
    """Returns what lies in the cache, the least recently used first."""
    seen: set[tuple[int, int]] = set()
    found = []
    for place, kind in _places(root):
        marker = place.with_name(place.name + _USED)
        with suppress(OSError):  # it may be going
            own = place.stat()
            used = marker.stat().st_mtime if marker.exists() else own.st_mtime
            found.append(Entry(place, kind, _size(place, seen), used))
    return sorted(found, key=lambda entry: entry.used)


def evict(root: Path, most: int) -> None:
    """Removes what was used least recently until the cache takes no more than so many bytes.

    What a process holds stays, and so do fetched files that a tree shares.
    """
    known = entries(root)
    total = sum(entry.size for entry in known)
    for entry in known:
        if total <= most:
            return
        if _remove(entry.place):
            total -= entry.size


def _places(root: Path) -> Iterator[tuple[Path, str]]:
    """Yields the directories of the cache, and fetched files that no tree shares any more."""
    if not root.is_dir():
        return
    for family in sorted(path for path in root.iterdir() if path.is_dir()):
        if family.name == _OBJECTS:
            for path in sorted(family.glob("*/*")):
                with suppress(OSError):
                    stat = path.stat()
                    if stat.st_nlink == 1 and time.time() - stat.st_mtime > _ON_THEIR_WAY:
                        yield path, family.name
            continue
        for path in sorted(family.iterdir()):
            if path.is_dir() and "." not in path.name:  # others are drafts
                yield path, family.name


def _size(place: Path, seen: set[tuple[int, int]]) -> int:
    total = 0
    for path in (place, *place.rglob("*")) if place.is_dir() else (place,):
        with suppress(OSError):
            stat = path.lstat()
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                # Not everywhere is it known how many blocks there are.
                total += getattr(stat, "st_blocks", -(-stat.st_size // 512)) * 512
    return total


def _remove(place: Path) -> bool:
    """Removes a directory that nobody holds; whether it is gone."""
    if not _LOCKS or place in _held:
        return False
    if place.is_file():
        with suppress(OSError):
            place.unlink()
        return not place.exists()
    with _alone(place.with_name(place.name + _USED)) as alone:
        if alone:
            shutil.rmtree(place, ignore_errors=True)
    return not place.exists()


def _locked(marker: Path) -> int:
    file = os.open(marker, os.O_RDWR | os.O_CREAT, 0o666)
    if _LOCKS:
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError:
            os.close(file)
            raise
    return file


@contextmanager
def _alone(marker: Path) -> Iterator[bool]:
    """Locks a directory for removal; whether nobody has it."""
    try:
        file = os.open(marker, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except OSError:
        yield False
    finally:
        os.close(file)  # the lock goes with it
