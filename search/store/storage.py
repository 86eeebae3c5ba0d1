"""A sweep directory on any filesystem: its files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from anomtune.datasets.io.uri import has_secrets, is_uri, mask_uri
from anomtune.errors import StorageError
from anomtune.files import TEMPORARY, check_writable, temporary_name, write_new, write_whole
from anomtune.names import leaves, plain_name, utf8
from anomtune.search.store.objects import (
    ArrowObjects,
    ChangedError,
    Objects,
    Stamp,
    TaggedObjects,
    UnreachableError,
    Version,
    tagged_objects,
)

#: Files that are read at the same time from an object store, where each waits for the network.
_STREAMS = 32


class Storage:
    """Reads and atomically replaces small files below a root.

    Paths below it are text, in every locale the same.

    Args:
        location: A local path or a pyarrow filesystem URI (``s3://bucket/sweep``; for servers
            other than Amazon's with ``?endpoint_override=host:port&scheme=http``). Credentials
            come from the environment.
        known: Whether others use it already. An object store of which nothing is known must answer
            within ten seconds, one that has answered is waited for for a minute.

    Raises:
        StorageError: If the location cannot be understood, or carries credentials.
    """

    def __init__(self, location: str | os.PathLike[str], *, known: bool = False) -> None:
        self.location = os.fspath(location)
        if is_uri(self.location) and has_secrets(self.location):
            # It is shown in messages and told to every worker.
            raise StorageError(
                f"{mask_uri(self.location)} carries credentials; take them out and set them in "
                "the environment"
            )
        #: The root as a local path, ``None`` on an object store. pyarrow takes no name that is
        #: not UTF-8, and every file system has some.
        self.local_root: Path | None = None
        self._objects: Objects
        #: Why files of an object store have no tags, if they have none.
        self.without_tags: str | None = None
        if is_uri(self.location):
            opened = _opened(self.location, known=known)
            if isinstance(opened, Path):
                self.local_root = opened
            else:
                self._objects, self.without_tags = opened
            return
        try:
            self.local_root = Path(_as_given(self.location)).resolve()
        except (ValueError, OSError) as error:
            raise _not_usable(self.location, error) from None

    def read(self, path: str) -> bytes | None:
        """Returns a file's content, ``None`` if there is no such file."""
        found = self.read_version(path)
        return None if found is None else found.content

    def read_version(self, path: str) -> Version | None:
        """Returns the same with the tag of the version that was read, if the storage has tags."""
        try:
            if (local := self._local(path)) is not None:
                return Version(local.read_bytes(), None)
            return self._objects.read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable("read", path, error) from error

    def read_many(self, paths: Iterable[str]) -> Iterator[bytes | None]:
        """Yields the content of many files in their order, as `read` returns it."""
        for found in self.read_versions(paths):
            yield None if found is None else found.content

    def read_versions(self, paths: Iterable[str]) -> Iterator[Version | None]:
        """Yields the same with tags, as `read_version` returns them."""
        if self.local_root is not None:
            yield from map(self.read_version, paths)
            return
        with ThreadPoolExecutor(_STREAMS) as pool:
            yield from pool.map(self.read_version, paths)

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
            if (local := self._local(path)) is not None:
                write_whole(local, content, durable=durable)
                return
            self._objects.write(path, content)
        except OSError as error:
            raise self._unusable("write", path, error) from error

    def replace(self, path: str, content: bytes, tag: str | None) -> str:
        """Replaces one version of a file and no other; of a storage that has tags.

        Args:
            path: Where, relative to the root.
            content: The whole new content.
            tag: Of the version; ``None`` if there is to be no such file yet.

        Returns:
            The tag of what was written.

        Raises:
            ChangedError: If it is in another version; see `TaggedObjects.replace`.
            StorageError: If the storage refuses.
        """
        self._checked(path)
        assert isinstance(self._objects, TaggedObjects)
        try:
            return self._objects.replace(path, content, tag)
        except OSError as error:
            raise self._unusable("write", path, error) from error

    def replace_seen(self, path: str, content: bytes, seen: bytes | None) -> None:
        """Writes a file in the place of what was seen there, and of nothing else; on a disk.

        Of several who have seen the same one succeeds. In between there is no such file for a
        moment.

        Args:
            path: Where, relative to the root.
            content: The whole new content.
            seen: What it held; ``None`` if there was no such file.

        Raises:
            ChangedError: If it holds something else by now; that stays.
            StorageError: If the storage refuses.
        """
        local = self._local(path)
        assert local is not None
        try:
            if seen is not None:
                _take_away(local, seen)
            write_new(local, content)
        except (FileExistsError, FileNotFoundError):
            raise ChangedError(path) from None
        except OSError as error:
            raise self._unusable("write", path, error) from error

    def heeds_conditions(self) -> bool:
        """Whether the store does what `replace` asks of it, or knows no conditions.

        Raises:
            StorageError: If the storage refuses.
        """
        assert isinstance(self._objects, TaggedObjects)
        try:
            return self._objects.heeds_conditions()
        except OSError as error:
            raise self._unusable("write", "", error) from error

    @property
    def has_tags(self) -> bool:
        """Whether versions of files have tags, so that one of them can be replaced."""
        return self.local_root is None and isinstance(self._objects, TaggedObjects)

    def check_writable(self) -> None:
        """Makes sure that files can be written, before the work that they are to hold.

        Raises:
            StorageError: If the storage refuses.
        """
        probe = temporary_name(f"probe-{secrets.token_hex(8)}")
        if (local := self._local(probe)) is None:
            self.write(probe, b"0")
            self.delete(probe)
            return
        try:
            check_writable(local)
        except OSError as error:
            raise StorageError(
                f"{self.location}: cannot write there: {error.strerror}; choose another directory "
                "with --dir"
            ) from error

    def append(self, path: str, content: bytes, part: int) -> None:
        """Adds the next part to a log: a reader may see half of what is being added.

        Nothing can be added to an object: on an object store each part is a file of its own, whose
        name ends with its number, so that their order is that of their names.

        Args:
            path: The log.
            content: What is added.
            part: How many parts it has already.
        """
        local = self._local(path)
        if local is None:
            self.write(f"{path}.{part:05d}", content)
            return
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            with local.open("ab") as stream:
                stream.write(content)
        except OSError as error:
            raise self._unusable("write", path, error) from error

    def list(self, path: str, suffix: str) -> list[str]:
        """Returns the files below a folder whose names end with a suffix, sorted, from the root."""
        try:
            if (local := self._local(path)) is not None:
                return sorted(name for name, _ in _walk(local, path, suffix))
            return sorted(name for name, _ in self._below(path, suffix))
        except OSError as error:
            raise self._unusable("list", path, error) from error

    def stamps(self, path: str, suffix: str) -> dict[str, Stamp]:
        """Returns what `list` does, each file with a stamp that another content would not have.

        No file is opened.

        Raises:
            StorageError: If the storage refuses.
        """
        try:
            if (local := self._local(path)) is not None:
                found = ((name, _stamp(entry)) for name, entry in _walk(local, path, suffix))
                return {name: stamp for name, stamp in found if stamp is not None}
            return dict(self._below(path, suffix))
        except OSError as error:
            raise self._unusable("list", path, error) from error

    def _below(self, path: str, suffix: str) -> Iterator[tuple[str, Stamp]]:
        """Yields the files below a folder of an object store, from the root."""
        for name, stamp in self._objects.files(path):
            if _is(name.rpartition("/")[2], suffix):
                yield name, stamp

    def folder_stamp(self, path: str) -> Stamp | None:
        """Returns what changes when a file of a folder appears, goes or is replaced.

        Changes within one tick of the clock have one stamp. ``None`` on an object store, which has
        no folders, and where there is none.

        Raises:
            StorageError: If the storage refuses.
        """
        plain = self._checked(path)
        if self.local_root is None:
            return None
        try:
            # No `Path` is made: the folders of a sweep are looked at every few seconds.
            return _stamp(f"{self.local_root}{os.sep}{plain}")
        except OSError as error:
            raise self._unusable("look at", path, error) from error

    def move_folder(self, source: str, target: str) -> None:
        """Puts a folder in the place of another, if it is there.

        On an object store, which cannot move, its files are copied one by one, in order of name,
        over those that are there: a driver that has lost the directory, and comes when they have
        been moved, finds none, and has deleted nothing.
        """
        files = self.list(source, "")
        if not files:
            return
        old, new = self._local(source), self._local(target)
        if old is not None and new is not None:
            self.delete_folder(target)
        try:
            if old is not None and new is not None:
                new.parent.mkdir(parents=True, exist_ok=True)
                old.rename(new)
                return
            moved = {path: target + path[len(source) :] for path in files}
            for path, to in moved.items():
                self._objects.copy(path, to)
        except OSError as error:
            raise self._unusable("move", source, error) from error
        for path in self.list(target, ""):
            if path not in moved.values():
                self.delete(path)
        self.delete_folder(source)

    def delete(self, path: str) -> None:
        """Removes a file, if it is there."""
        try:
            if (local := self._local(path)) is not None:
                local.unlink()
            else:
                self._objects.delete(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable("delete", path, error) from error

    def delete_folder(self, path: str) -> None:
        """Removes a folder and what is in it, if it is there."""
        try:
            if (local := self._local(path)) is not None:
                shutil.rmtree(local)
            else:
                self._objects.delete_folder(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable("delete", path, error) from error

    def delete_left_overs(self) -> None:
        """Removes what killed processes were writing; on an object store it never appears.

        What cannot be removed stays for the next time.
        """
        if self.local_root is not None:
            for folder, _, names in os.walk(self.local_root):
                for name in names:
                    if name.startswith(".") and name.endswith(TEMPORARY):
                        with suppress(OSError):
                            Path(folder, name).unlink()

    def _local(self, path: str) -> Path | None:
        """Returns a path below the root as the operating system takes it, if the root is local."""
        plain = self._checked(path)
        return None if self.local_root is None else self.local_root / plain

    def _checked(self, path: str) -> str:
        """Returns a path below the root as the operating system takes it."""
        if leaves(path):
            raise StorageError(f"{path}: leaves the sweep directory {self.location}")
        try:
            return plain_name(path)
        except UnicodeEncodeError:
            raise StorageError(
                f"{self.location}: {path!a} is no name that a file can have; its text is damaged"
            ) from None

    def _unusable(self, verb: str, path: str, error: OSError) -> StorageError:
        if isinstance(error, UnreachableError):
            return StorageError(
                f"{self.location}: nothing answers there: {error}; check the address and the "
                "network, or choose another directory with --dir"
            )
        reason = (os.strerror(error.errno) if error.errno else str(error)).splitlines()[0]
        remedy = "free some space" if error.errno == errno.ENOSPC else "check its permissions"
        return StorageError(
            f"{self.location}/{path}: cannot {verb}: {reason}; {remedy} and start again "
            f"(finished trials are kept), or choose another directory with --dir"
        )


def _opened(uri: str, *, known: bool) -> Path | tuple[Objects, str | None]:
    """Returns the local path that a URI names, or its files, and why they have no tags."""
    from pyarrow import ArrowException, fs  # noqa: PLC0415 - a local model is used without pyarrow

    try:
        found, path = fs.FileSystem.from_uri(_with_options(uri))
    except (ArrowException, ValueError, OSError) as error:
        raise _not_usable(uri, error) from None
    if isinstance(found, fs.LocalFileSystem):
        return Path(plain_name(path))
    tagged = tagged_objects(uri, getattr(found, "region", None), known=known)
    if isinstance(tagged, TaggedObjects):
        return tagged, None
    return ArrowObjects(found, path, known=known), tagged


def _take_away(file: Path, seen: bytes) -> None:
    """Removes a file that holds what was seen; else raises ChangedError, and it stays."""
    if file.read_bytes() != seen:
        raise ChangedError(file.name)
    # It may be another by now. Who has moved it has it: nobody else can.
    aside = file.with_name(temporary_name(f"{file.name}-{secrets.token_hex(8)}"))
    file.rename(aside)
    try:
        found = aside.read_bytes()
        if found != seen:
            write_new(file, found)  # unless one has been made meanwhile: that one counts
            raise ChangedError(file.name)
    finally:
        with suppress(OSError):
            aside.unlink()


def _not_usable(location: str, error: Exception) -> StorageError:
    return StorageError(f"{location}: not a usable directory: {error}")


def _walk(folder: Path, path: str, suffix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yields the files below a folder, which need not be there, as text below ``path``."""
    try:
        found = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in found:
        name = utf8(entry.name)
        below = f"{path}/{name}" if path else name
        if entry.is_dir():
            yield from _walk(Path(entry.path), below, suffix)
        elif _is(name, suffix) and entry.is_file():
            yield below, entry


def _stamp(place: str | os.DirEntry[str]) -> Stamp | None:
    """Returns the stamp of a file or a folder, ``None`` if it is not there."""
    try:
        # An entry of Windows knows what it was when the folder was listed: it is asked anew.
        found = os.stat(place)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _is(name: str, suffix: str) -> bool:
    return name.endswith(suffix) and name[0] != "."


def _as_given(location: str) -> str:
    """Returns a path that the operating system gave as it is, and one of ours as a name."""
    try:
        os.fsencode(location)
    except UnicodeEncodeError:
        return plain_name(location)
    return location


def _with_options(uri: str) -> str:
    """Returns a URI that lets S3 write a small file in one request, not in three."""
    if not uri.startswith("s3://") or "allow_delayed_open=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"
