"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

#: Ends the name of a file that is being written; one that is left over is of a killed process.
TEMPORARY = ".tmp"

#: How a file system says that it has no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
#: How many names a draft has that has been given its own.
_LINKED = 2


def temporary_name(name: str) -> str:
    """Returns a name that says of a file what it is: left over, if its writer is gone."""
    return f".{name}{TEMPORARY}"


@contextmanager
def replaced(
    target: str | os.PathLike[str], *, text: bool = False, durable: bool = False, **options: Any
) -> Iterator[IO[Any]]:
    """Opens a new file that takes the place of another when the block ends without an error.

    A reader sees the old content or the new, whatever is killed when. Folders above are made.

    Args:
        target: The file; its mode becomes 0644.
        text: Whether what is written is text (UTF-8 unless ``options`` say otherwise).
        durable: Whether it must survive a loss of power (costs a disk flush).
        options: Of `open`: ``encoding``, ``errors``, ``newline``.

    Raises:
        OSError: If it cannot be written; the old file is then as it was.
    """
    place = Path(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    # Not made of the whole name: that may be as long as the file system allows already.
    handle, name = tempfile.mkstemp(TEMPORARY, f".{place.name[:48]}.", place.parent)
    draft = Path(name)
    if text:
        options.setdefault("encoding", "utf-8")
    try:
        with os.fdopen(handle, "w" if text else "wb", **options) as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        draft.chmod(0o644)
        draft.replace(place)
        if durable:
            _flush_folder(place.parent)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


@contextmanager
def appearing_in(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder, whose files take their places in another when the block ends.

    For writers that take a path, and may write several files. The longest names go first: what
    belongs to a file has its name and more, and the file should not be there without it.

    Args:
        folder: Where they appear; it is made. Files of the same names are replaced.

    Raises:
        OSError: If they cannot be written.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(TEMPORARY, ".", place) as draft:
        yield Path(draft)
        for file in sorted(Path(draft).iterdir(), key=lambda file: -len(file.name)):
            file.chmod(0o644)
            file.replace(place / file.name)


def write_whole(target: str | os.PathLike[str], content: bytes, *, durable: bool = False) -> None:
    """Replaces a file by new content; see `replaced`."""
    with replaced(target, durable=durable) as stream:
        stream.write(content)


def write_new(target: str | os.PathLike[str], content: bytes) -> None:
    """Makes a file that is not there yet; of several who do it at once, one succeeds.

    A reader sees all of it or no file; where the file system has no hard links, perhaps an empty
    one for a moment.

    Args:
        target: The file; its mode becomes 0644. Folders above are made.
        content: All of it.

    Raises:
        FileExistsError: If it is there.
        OSError: If it cannot be written.
    """
    place = Path(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(TEMPORARY, f".{place.name[:48]}.", place.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        draft.chmod(0o644)
        try:
            os.link(draft, place)
        except FileExistsError:
            # The answer of a file server was lost, and its second try has met the first.
            if draft.stat().st_nlink != _LINKED:
                raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with place.open("xb") as stream:
                stream.write(content)
    finally:
        with suppress(OSError):
            draft.unlink()


def check_writable(target: str | os.PathLike[str]) -> None:
    """Makes sure that a file can be replaced, or made; leaves everything as it was.

    To be called before work whose result is to go there.

    Args:
        target: The file.

    Raises:
        OSError: If it cannot.
    """
    place = Path(target)
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
    folder = place.parent
    made: list[Path] = []
    try:
        for above in reversed([folder, *folder.parents]):
            if not above.exists():
                above.mkdir()
                made.append(above)
        with tempfile.TemporaryFile(dir=folder) as draft:
            draft.write(b"0" * 4096)
    finally:
        for above in reversed(made):
            with suppress(OSError):  # by now it is in use
                above.rmdir()


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # which opens no folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
