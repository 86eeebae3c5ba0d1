"""Directories on this node's disk that are built once, whole or not at all.

The cache lies in ``$ANOMTUNE_CACHE``, else ``$XDG_CACHE_HOME/anomtune``, else
``~/.cache/anomtune``. A directory is found by the digest of what it was made of, built beside its
place under a lock and renamed into it. So several processes can ask for it at once and only one
builds, and a builder may be killed at any moment: what it leaves is never opened, and the next
builder removes it. Nothing in it is precious.

All of it takes at most ``$ANOMTUNE_CACHE_GB`` (10^9 bytes each). After a build, what was used least
recently goes, but nothing that a running process has opened (`anomtune.datasets.io.eviction`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from typing import TypeVar

from filelock import FileLock, Timeout

from anomtune.datasets.io import eviction
from anomtune.errors import StorageError
from anomtune.files import TEMPORARY, write_whole

T = TypeVar("T")

#: What the cache may take where nobody says.
_USUAL_GB = 50
# What a loader raises on a directory that is absent or that somebody has damaged.
_UNUSABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    EOFError,
    SyntaxError,  # NumPy's header of an array is parsed as Python
    TokenError,
)


def cache_root() -> Path:
    """Returns the folder of the cache on this node; it need not exist.

    Raises:
        StorageError: If it lies in a home directory that there is not.
    """
    try:
        if chosen := os.environ.get("ANOMTUNE_CACHE"):
            return Path(chosen).expanduser().absolute()
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base).expanduser().absolute() / "anomtune"
    except RuntimeError as error:  # a user without a home, as in some containers
        raise StorageError(
            f"no place for the image cache ({error}); set the environment variable "
            "ANOMTUNE_CACHE to a folder with room"
        ) from error


def bound() -> int:
    """Returns how many bytes the cache may take.

    Raises:
        StorageError: If ``ANOMTUNE_CACHE_GB`` is no number above 0.
    """
    given = os.environ.get("ANOMTUNE_CACHE_GB", "") or str(_USUAL_GB)
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = math.nan
    if not gigabytes > 0 or math.isinf(gigabytes):
        raise StorageError(
            f"ANOMTUNE_CACHE_GB={given}: must be a number above 0, the gigabytes that the cache "
            "of this node may take"
        )
    return round(gigabytes * 1e9)


def digest(*parts: object) -> str:
    """Returns a digest of JSON-like values, the same on every machine."""
    text = json.dumps(parts, separators=(",", ":"), sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def obtain(kind: str, key: str, build: Callable[[Path], None], load: Callable[[Path], T]) -> T:
    """Opens a directory of the cache, building it first if it is not there.

    Args:
        kind: Family of directories, a folder of the cache.
        key: Digest of everything that the directory is made of.
        build: Fills an empty directory. An ``OSError`` counts as one of writing, so those of its
            reading must leave it as another kind.
        load: Opens a finished directory; it raises one of ``_UNUSABLE`` on one that is
            absent or damaged (a damaged one is built again).

    Raises:
        StorageError: If the cache cannot be written.
        AnomtuneError: From ``build``.
    """
    family, most = cache_root() / kind, bound()
    place = family / key
    eviction.hold(place)
    try:
        return load(place)
    except _UNUSABLE:
        pass
    try:
        family.mkdir(parents=True, exist_ok=True)
        eviction.hold(place)
        with FileLock(family / f"{key}.lock"):
            try:
                return load(place)  # Somebody else built it while we waited.
            except _UNUSABLE:
                _build(family, key, build)
            found = load(place)
        eviction.evict(cache_root(), most)
        return found
    except OSError as error:
        raise _unwritable(error) from error


def remember(key: str, value: str) -> None:
    """Notes a value under a key, atomically.

    Raises:
        StorageError: If the cache cannot be written.
    """
    index = cache_root() / "index"
    try:
        index.mkdir(parents=True, exist_ok=True)
        with FileLock(index / ".lock"):
            # Only the holder of the lock writes: what is there is of killed writers.
            for leftover in index.glob(f"*{TEMPORARY}"):
                leftover.unlink(missing_ok=True)
            write_whole(index / key, value.encode("ascii"))
    except OSError as error:
        raise _unwritable(error) from error


def recall(key: str) -> str | None:
    """Returns the value noted under a key, or ``None``."""
    try:
        # A machine that lost power can leave an empty note.
        return (cache_root() / "index" / key).read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def _build(family: Path, key: str, build: Callable[[Path], None]) -> None:
    """Builds ``family/key``; the caller holds its lock."""
    _remove_leftovers(family, key)
    draft = family / f"{key}.{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY}"
    draft.mkdir()
    try:
        build(draft)
        for file in draft.rglob("*"):
            # Without this a power cut could leave whole names with holes in them.
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        place = family / key
        if place.exists():
            place.rename(draft.with_name(f"{draft.stem}-old{TEMPORARY}"))
        draft.rename(place)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    shutil.rmtree(draft.with_name(f"{draft.stem}-old{TEMPORARY}"), ignore_errors=True)


def _remove_leftovers(family: Path, held: str) -> None:
    """Removes what killed builders left: of ``held`` at once, of others if nobody is at work."""
    for leftover in family.glob(f"*{TEMPORARY}"):
        owner = leftover.name.split(".", 1)[0]
        if owner == held:
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        try:
            with FileLock(family / f"{owner}.lock", timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        except (Timeout, OSError):
            continue


def _unwritable(error: OSError) -> StorageError:
    reason = error.strerror or str(error)
    return StorageError(
        f"{cache_root()}: cannot write the image cache ({reason}); set the environment variable "
        "ANOMTUNE_CACHE to a folder with room"
    )
