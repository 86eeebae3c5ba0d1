"""A sweep directory on any filesystem: its files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyarrow import ArrowException, fs

from anomtune.datasets.io.remote import has_secrets, is_uri, mask_uri
from anomtune.errors import StorageError
from anomtune.files import TEMPORARY, write_whole

#: Files that are read at the same time from an object store, where each waits for the network.
_STREAMS = 32


class Storage:
    """Reads and atomically replaces small files below a root.

    Args:
        location: A local path or a pyarrow filesystem URI (``s3://bucket/sweep``; for servers
            other than Amazon's with ``?endpoint_override=host:port&scheme=http``). Credentials
            come from the environment.

    Raises:
        StorageError: If the location cannot be understood, or carries credentials.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = str(location)
        if is_uri(self.location) and has_secrets(self.location):
            # It is shown in messages and told to every worker.
            raise StorageError(
                f"{mask_uri(self.location)} carries credentials; take them out and set them in "
                "the environment"
            )
        try:
            if is_uri(self.location):
                self._fs, self._root = fs.FileSystem.from_uri(_with_options(self.location))
            else:
                self._fs, self._root = fs.LocalFileSystem(), str(Path(location).resolve())
        except (ArrowException, ValueError, OSError) as error:
            raise StorageError(f"{self.location}: not a usable directory: {error}") from None

    @property
    def local_root(self) -> Path | None:
        """The root as a local path, ``None`` on an object store."""
        return Path(self._root) if isinstance(self._fs, fs.LocalFileSystem) else None

    def read(self, path: str) -> bytes | None:
        """Returns a file's content, ``None`` if there is no such file."""
        try:
            while True:
                with self._fs.open_input_stream(self._full(path)) as stream:
                    content = bytes(stream.readall())
                    # An object's length is asked for first: of one that is replaced by a longer
                    # one at that moment, only the beginning would be read.
                    if self.local_root is not None or stream.metadata() == self._metadata(path):
                        return content
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable("read", path, error) from error

    def _metadata(self, path: str) -> dict[bytes, bytes]:
        """Returns what an object store says of an object; its tag tells versions apart."""
        with self._fs.open_input_stream(self._full(path)) as stream:
            return dict(stream.metadata())

    def read_many(self, paths: Iterable[str]) -> Iterator[bytes | None]:
        """Yields the content of many files in their order, as `read` returns it."""
        if self.local_root is not None:
            yield from map(self.read, paths)
            return
        with ThreadPoolExecutor(_STREAMS) as pool:
            yield from pool.map(self.read, paths)

    def write(self, path: str, content: bytes, *, durable: bool = False) -> None:
        """Replaces a file: a reader sees the old content or the new, whatever is killed when.

        Args:
            path: Where, relative to the root.
            content: The whole new content.
            durable: Whether it must survive a loss of power (costs a disk flush).

        Raises:
            StorageError: If the storage refuses (full, read-only).
        """
        try:
            if self.local_root is None:
                with self._fs.open_output_stream(self._full(path)) as stream:
                    stream.write(content)  # an object appears when its upload is complete
            else:
                write_whole(self._full(path), content, durable=durable)
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

    def move_folder(self, source: str, target: str) -> None:
        """Puts a folder in the place of another, if it is there.

        On an object store, which cannot move, its files are copied one by one, in order of name.
        """
        files = self.list(source, "")
        if not files:
            return
        self.delete_folder(target)
        try:
            if self.local_root is not None:
                Path(self._full(target)).parent.mkdir(parents=True, exist_ok=True)
                self._fs.move(self._full(source), self._full(target))
                return
            for path in files:
                self._fs.copy_file(self._full(path), self._full(target + path[len(source) :]))
        except OSError as error:
            raise self._unusable("move", source, error) from error
        self.delete_folder(source)

    def delete(self, path: str) -> None:
        """Removes a file, if it is there."""
        try:
            self._fs.delete_file(self._full(path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable("delete", path, error) from error

    def delete_folder(self, path: str) -> None:
        """Removes a folder and what is in it, if it is there."""
        try:
            self._fs.delete_dir(self._full(path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable("delete", path, error) from error

    def delete_left_overs(self) -> None:
        """Removes what killed processes were writing; on an object store it never appears."""
        if self.local_root is not None:
            for folder, _, names in os.walk(self.local_root):
                for name in names:
                    if name.startswith(".") and name.endswith(TEMPORARY):
                        Path(folder, name).unlink(missing_ok=True)

    def _full(self, path: str) -> str:
        if ".." in path.split("/") or path.startswith("/"):
            raise StorageError(f"{path}: leaves the sweep directory {self.location}")
        return f"{self._root}/{path}" if path else self._root

    def _unusable(self, verb: str, path: str, error: OSError) -> StorageError:
        reason = (os.strerror(error.errno) if error.errno else str(error)).splitlines()[0]
        remedy = "free some space" if error.errno == errno.ENOSPC else "check its permissions"
        return StorageError(
            f"{self.location}/{path}: cannot {verb}: {reason}; {remedy} and start again "
            f"(finished trials are kept), or choose another directory with --dir"
        )


def _with_options(uri: str) -> str:
    """Returns a URI that lets S3 write a small file in one request, not in three."""
    if not uri.startswith("s3://") or "allow_delayed_open=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"
