"""A sweep directory on any filesystem: files appear whole or not at all, and one driver owns it."""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout
from pyarrow import ArrowException, fs

from anomtune.search.config import SweepError


class Storage:
    """Reads and atomically replaces small files below a root.

    Args:
        location: A local path or a pyarrow filesystem URI (``s3://bucket/sweep``).

    Raises:
        SweepError: If the location cannot be understood.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = str(location)
        try:
            if "://" in self.location:
                self._fs, self._root = fs.FileSystem.from_uri(self.location)
            else:
                self._fs, self._root = fs.LocalFileSystem(), str(Path(location).resolve())
        except (ArrowException, ValueError, OSError) as error:
            raise SweepError(f"{self.location}: not a usable directory: {error}") from None

    @property
    def local_root(self) -> Path | None:
        """The root as a local path, ``None`` on an object store."""
        return Path(self._root) if isinstance(self._fs, fs.LocalFileSystem) else None

    def read(self, path: str) -> bytes | None:
        """Returns a file's content, ``None`` if there is no such file."""
        try:
            with self._fs.open_input_stream(self._full(path)) as stream:
                return bytes(stream.readall())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable("read", path, error) from error

    def write(self, path: str, content: bytes, *, durable: bool = False) -> None:
        """Replaces a file: a reader sees the old content or the new, whatever is killed when.

        Args:
            path: Where, relative to the root.
            content: The whole new content.
            durable: Whether it must survive a loss of power (costs a disk flush).

        Raises:
            SweepError: If the storage refuses (full, read-only).
        """
        try:
            if self.local_root is None:
                with self._fs.open_output_stream(self._full(path)) as stream:
                    stream.write(content)  # an object appears when its upload is complete
            else:
                _replace_local(Path(self._full(path)), content, durable)
        except OSError as error:
            raise self._unusable("write", path, error) from error

    def append(self, path: str, content: bytes) -> None:
        """Adds to the end of a file, for logs: a reader may see half of what is being added."""
        try:
            if self.local_root is None:
                self.write(path, (self.read(path) or b"") + content)
            else:
                target = Path(self._full(path))
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("ab") as stream:
                    stream.write(content)
        except OSError as error:
            raise self._unusable("write", path, error) from error

    def list(self, path: str, suffix: str) -> list[str]:
        """Returns the files below a folder whose names end with a suffix, sorted, from the root."""
        selector = fs.FileSelector(self._full(path), allow_not_found=True, recursive=True)
        try:
            found = self._fs.get_file_info(selector)
        except OSError as error:
            raise self._unusable("list", path, error) from error
        prefix = len(self._root) + 1
        return sorted(
            info.path[prefix:]
            for info in found
            if info.is_file and info.base_name.endswith(suffix) and info.base_name[0] != "."
        )

    def delete_folder(self, path: str) -> None:
        """Removes a folder and what is in it, if it is there."""
        try:
            self._fs.delete_dir(self._full(path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable("delete", path, error) from error

    def _full(self, path: str) -> str:
        if ".." in path.split("/") or path.startswith("/"):
            raise SweepError(f"{path}: leaves the sweep directory {self.location}")
        return f"{self._root}/{path}" if path else self._root

    def _unusable(self, verb: str, path: str, error: OSError) -> SweepError:
        reason = (os.strerror(error.errno) if error.errno else str(error)).splitlines()[0]
        remedy = "free some space" if error.errno == errno.ENOSPC else "check its permissions"
        return SweepError(
            f"{self.location}/{path}: cannot {verb}: {reason}; {remedy} and start again "
            f"(finished trials are kept), or choose another directory with --dir"
        )


#: Ends the name of a file that is being written; one that is left over is of a killed driver.
_TEMPORARY = ".tmp"


def _replace_local(target: Path, content: bytes, durable: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(_TEMPORARY, f".{target.name}.", target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
        if durable:
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


class DirectoryLock:
    """Makes one process on this machine the owner of a sweep directory, as a context manager.

    The kernel drops the lock with its process, so a killed driver leaves nothing to clean up.
    An object store has no such lock; there the owner is not checked.

    Raises:
        SweepError: If another live process owns the directory; the message says which.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock: FileLock | None = None

    def __enter__(self) -> DirectoryLock:
        root = self._storage.local_root
        if root is None:
            return self
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(root / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            owner = json.loads(self._storage.read("owner.json") or b"{}")
            raise SweepError(
                f"{self._storage.location}: another sweep owns this directory (process "
                f"{owner.get('pid', '?')} on {owner.get('host', '?')}); wait for it, stop it, "
                f"or choose another directory with --dir"
            ) from None
        except OSError as error:
            raise SweepError(
                f"{self._storage.location}: cannot write there: {error.strerror}; "
                f"choose another directory with --dir"
            ) from None
        for left_over in root.rglob(f".*{_TEMPORARY}"):
            left_over.unlink(missing_ok=True)
        owner = {"host": socket.gethostname(), "pid": os.getpid()}
        self._storage.write("owner.json", json.dumps(owner).encode())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        root = self._storage.local_root
        if root is None or self._lock is None:
            return
        if not (root / "sweep.yaml").exists():  # no sweep began: leave nothing behind
            for name in ("owner.json", ".lock"):
                (root / name).unlink(missing_ok=True)
            with suppress(OSError):  # not empty: it is somebody's folder
                root.rmdir()
        self._lock.release()
