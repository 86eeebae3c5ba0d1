"""The files of an object store, by one of two libraries.

pyarrow opens any of them. obstore, an extra for S3, does the same with fewer requests (a file is
read by one, where pyarrow asks three times), says which version of a file it has seen, and
replaces that version and no other: what a lease that the store itself decides is made of.

What a store refuses for a while (429, 5xx such as ``503 SlowDown``), and what the network loses, is
tried again for a minute, after random times with a growing limit. obstore does so by itself.
pyarrow does what Amazon's SDK does: it gives up after six seconds and about thirty requests, and a
URI cannot change that; so the whole is done again here.

A minute is for a store that has been there. One of which nothing is known yet, whose address may be
wrong, has ten seconds to answer anything at all.
"""

from __future__ import annotations

import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import S3CredentialProvider, S3Store
    from pyarrow import fs

#: Tells a file, or a folder, from what it was before.
Stamp = tuple[int | str, ...]

#: How long is waited before a request is made again: a random time, whose limit grows from the
#: first to the second number of seconds. A request fails after the third.
_FIRST, _LONGEST, _LAST = 0.1, 5.0, 60.0
#: More than there is time for; and how many are enough to ask what a store knows.
_TRIES, _FEW = 100, 5
#: Seconds in which a store must have answered for the first time.
_ANSWER = 10.0

#: What Amazon's SDK says when it has given up what may go better later.
_LATER = re.compile(
    "SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|NETWORK_CONNECTION"
    r"|HTTP status (429|5\d\d)"
)
#: What it says then of a server that it has not reached.
_NOT_REACHED = "NETWORK_CONNECTION"

#: What obstore says of a request that no server has answered.
_NO_ANSWER = "HTTP error"
#: A file that is never there.
_NOTHING = ".nothing"

#: Parameters of a URI that both libraries understand; with another, pyarrow opens it.
_PARAMETERS = {"endpoint_override", "scheme", "region", "allow_delayed_open"}

#: Where Amazon's tools keep credentials, beside the environment and the roles of machines.
_KEPT = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}


T = TypeVar("T")


class ChangedError(Exception):
    """A file is not in the version that was to be replaced."""


class UnreachableError(OSError):
    """No server has answered, ever."""


class Version(NamedTuple):
    """A file as it was read.

    Attributes:
        content: All of it.
        tag: Names this version of it; ``None`` where the library does not tell.
    """

    content: bytes
    tag: str | None


class ArrowObjects:
    """The files below a folder of a pyarrow filesystem that is not the local one.

    Its methods raise OSError, and FileNotFoundError where there is no such file.

    Args:
        filesystem: Of which library.
        root: The folder.
        known: Whether its server has answered others.
    """

    def __init__(self, filesystem: fs.FileSystem, root: str, *, known: bool = False) -> None:
        self._fs = filesystem
        self._root = root
        self._known = known

    def read(self, path: str) -> Version:
        """Returns a file."""
        return Version(self._patiently(lambda: self._read(path)), None)

    def _read(self, path: str) -> bytes:
        while True:
            with self._fs.open_input_stream(self._full(path)) as stream:
                content = bytes(stream.readall())
                # An object's length is asked for first: of one that is replaced by a longer one
                # at that moment, only the beginning would be read.
                if stream.metadata() == self._metadata(path):
                    return content

    def _metadata(self, path: str) -> dict[bytes, bytes]:
        """Returns what an object store says of an object; its tag tells versions apart."""
        with self._fs.open_input_stream(self._full(path)) as stream:
            return dict(stream.metadata())

    def write(self, path: str, content: bytes) -> None:
        """Replaces a file, whatever version it is in."""

        def upload() -> None:
            with self._fs.open_output_stream(self._full(path)) as stream:
                stream.write(content)  # an object appears when its upload is complete

        self._patiently(upload)

    def files(self, folder: str) -> Iterator[tuple[str, Stamp]]:
        """Yields the files below a folder, from the root."""
        from pyarrow import fs  # noqa: PLC0415 - a local model is used without pyarrow

        selector = fs.FileSelector(self._full(folder), allow_not_found=True, recursive=True)
        prefix = len(self._root) + 1
        for info in self._patiently(lambda: self._fs.get_file_info(selector)):
            if info.is_file:
                yield info.path[prefix:], (info.mtime_ns or 0, info.size)

    def copy(self, source: str, target: str) -> None:
        """Puts a file, as it is, in the place of another."""
        self._patiently(lambda: self._fs.copy_file(self._full(source), self._full(target)))

    def delete(self, path: str) -> None:
        """Removes a file."""
        self._patiently(lambda: self._fs.delete_file(self._full(path)))

    def delete_folder(self, path: str) -> None:
        """Removes the files below a folder."""
        self._patiently(lambda: self._fs.delete_dir(self._full(path)))

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _patiently(self, request: Callable[[], T]) -> T:
        """Makes a request, again and again while it may go better later."""
        for remains in _waits(_LAST):
            try:
                found = request()
            except OSError as error:
                said = str(error)
                if not self._known and _NOT_REACHED in said:
                    raise UnreachableError(said.rpartition("Details: ")[2]) from None
                self._known = True
                if not remains or not _LATER.search(said):
                    raise
            else:
                self._known = True
                return found
        raise AssertionError


class TaggedObjects:
    """The files below a folder of an S3 bucket, each version of which has a tag.

    Its methods raise OSError, and FileNotFoundError where there is no such file.

    Args:
        open_store: Returns the bucket. Its requests are made again so many times at most, and each
            takes so many seconds at most.
        known: Whether its server has answered others.
    """

    def __init__(self, open_store: Callable[[int, float], S3Store], *, known: bool = False) -> None:
        self._open = open_store
        self._patient = open_store(_TRIES, _LAST)
        self._known = known

    @property
    def _store(self) -> S3Store:
        """The bucket, on a server that has answered."""
        if not self._known:
            self._meet()
            self._known = True
        return self._patient

    def _meet(self) -> None:
        """Waits for any answer at all; raises UnreachableError."""
        import obstore  # noqa: PLC0415 - an extra
        from obstore.exceptions import BaseError  # noqa: PLC0415

        hasty = self._open(0, _ANSWER)
        for remains in _waits(_ANSWER):
            try:
                obstore.head(hasty, _NOTHING)
                return
            except FileNotFoundError:
                return
            except BaseError as error:
                said = str(error)
                if _NO_ANSWER not in said:
                    return
                if not remains:
                    raise UnreachableError(_cause(said)) from None

    def read(self, path: str) -> Version:
        """Returns a file."""
        import obstore  # noqa: PLC0415 - an extra

        with _as_os_errors():
            found = obstore.get(self._store, path)
            return Version(bytes(found.bytes()), found.meta["e_tag"])

    def write(self, path: str, content: bytes) -> None:
        """Replaces a file, whatever version it is in."""
        import obstore  # noqa: PLC0415 - an extra

        with _as_os_errors():
            try:
                obstore.put(self._store, path, content)
            except FileNotFoundError as error:  # no such bucket: nothing else can be missing
                raise OSError(_reason(error)) from None

    def replace(self, path: str, content: bytes, tag: str | None) -> str:
        """Writes a file if it is in a version; ``None`` if there is to be none. Returns its tag.

        Raises:
            ChangedError: If it is in another. It may be this very content: a store has then done
                what it was asked for, and its answer was lost.
            OSError: If the store refuses.
        """
        return self._replace(self._store, path, content, tag)

    def heeds_conditions(self) -> bool:
        """Whether the store does what `replace` asks of it, or knows no conditions."""
        probe = f".probe-{uuid.uuid4().hex}"  # no file that is there must be put at risk
        for store in (self._open(_FEW, _LAST), self._store):
            try:
                return self._is_refused(store, probe)
            except OSError as error:
                # 501 says that the store knows none. obstore asks again even then.
                if "mplemented" in str(error):
                    return False
                if store is self._store:
                    raise
            finally:
                with suppress(OSError):
                    self.delete(probe)
        raise AssertionError

    def _is_refused(self, store: S3Store, probe: str) -> bool:
        """Whether a file is not written in the version of another, nor made twice."""
        with suppress(ChangedError):
            self._replace(store, probe, b"0", f'"{"0" * 32}"')
            return False
        # This may be refused too: when it was done, and the answer was lost.
        with suppress(ChangedError):
            self._replace(store, probe, b"0", None)
        with suppress(ChangedError):
            self._replace(store, probe, b"0", None)
            return False
        return True

    @staticmethod
    def _replace(store: S3Store, path: str, content: bytes, tag: str | None) -> str:
        import obstore  # noqa: PLC0415 - an extra
        from obstore.exceptions import (  # noqa: PLC0415
            AlreadyExistsError,
            PreconditionError,
        )

        # The type asks for the version too, which S3 does not tell and obstore not take.
        known = cast("UpdateVersion", {"e_tag": tag})
        with _as_os_errors():
            try:
                found = obstore.put(store, path, content, mode="create" if tag is None else known)
                return str(found["e_tag"])
            except (AlreadyExistsError, PreconditionError):
                raise ChangedError(path) from None
            except FileNotFoundError as error:
                if tag is None:  # no such bucket
                    raise OSError(_reason(error)) from None
                raise ChangedError(path) from None

    def files(self, folder: str) -> Iterator[tuple[str, Stamp]]:
        """Yields the files below a folder, from the root."""
        import obstore  # noqa: PLC0415 - an extra

        with _as_os_errors():
            for found in obstore.list(self._store, prefix=folder or None, chunk_size=1000):
                for one in found:
                    # An empty object that has a folder's name is what pyarrow keeps folders with.
                    if one["size"] or "." in one["path"].rpartition("/")[2]:
                        yield one["path"], (str(one["e_tag"]),)

    def copy(self, source: str, target: str) -> None:
        """Puts a file, as it is, in the place of another."""
        import obstore  # noqa: PLC0415 - an extra

        with _as_os_errors():
            obstore.copy(self._store, source, target)

    def delete(self, path: str) -> None:
        """Removes a file."""
        import obstore  # noqa: PLC0415 - an extra

        with _as_os_errors():
            obstore.delete(self._store, path)

    def delete_folder(self, path: str) -> None:
        """Removes the files below a folder."""
        import obstore  # noqa: PLC0415 - an extra

        found = [name for name, _ in self.files(path)]
        with _as_os_errors():
            if found:
                obstore.delete(self._store, found)


Objects = ArrowObjects | TaggedObjects


def tagged_objects(uri: str, region: str | None, *, known: bool = False) -> TaggedObjects | str:
    """Returns the files below an S3 URI as obstore has them, or why it does not.

    Credentials are looked for where pyarrow looks for them.

    Args:
        uri: As pyarrow takes it.
        region: Of the bucket, as pyarrow has found it.
        known: Whether its server has answered others.
    """
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query))
    if parts.scheme != "s3":
        return f"{parts.scheme}:// knows no lock that anomtune uses"
    if unknown := sorted(options.keys() - _PARAMETERS):
        return f"the parameter {unknown[0]} is for pyarrow alone"
    try:
        from obstore.store import S3Store  # noqa: PLC0415 - an extra
    except ImportError:
        return "obstore is not installed (pip install 'anomtune[s3]')"
    provider: S3CredentialProvider | None = None
    endpoint = options.get("endpoint_override")
    if "AWS_ACCESS_KEY_ID" not in os.environ and _keeps_credentials():
        try:
            from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415
        except ImportError:
            return "boto3, which reads the credentials, is not installed (anomtune[s3] has it)"
        try:
            provider = Boto3CredentialProvider()
        except ValueError:
            """There is a file, but no credentials are in it: the machine may have a role."""
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    return TaggedObjects(
        lambda tries, seconds: S3Store(
            parts.netloc,
            # Else a URI that ends with a slash would name other files than pyarrow does.
            prefix=unquote(parts.path).strip("/") or None,
            region=region or None,
            endpoint=endpoint,
            credential_provider=provider,
            client_options={"allow_http": True, "timeout": timedelta(seconds=seconds)},
            retry_config={
                "max_retries": tries,
                "retry_timeout": timedelta(seconds=_LAST),
                "backoff": {
                    "init_backoff": timedelta(seconds=_FIRST),
                    "max_backoff": timedelta(seconds=_LONGEST),
                    "base": 2,
                },
            },
        ),
        known=known,
    )


def _keeps_credentials() -> bool:
    return any(
        Path(os.environ.get(name, usual)).expanduser().exists() for name, usual in _KEPT.items()
    )


def _waits(seconds: float) -> Iterator[bool]:
    """Yields until so many seconds are over, after random times with a growing limit.

    Whether there is time for another try.
    """
    end, limit = time.monotonic() + seconds, _FIRST
    while time.monotonic() < end:
        yield True
        time.sleep(random.uniform(0, limit))  # noqa: S311 - no secret
        limit = min(2 * limit, _LONGEST)
    yield False


@contextmanager
def _as_os_errors() -> Iterator[None]:
    from obstore.exceptions import BaseError  # noqa: PLC0415 - an extra

    try:
        yield
    except (BaseError, ValueError) as error:  # ValueError: a name that obstore does not take
        raise OSError(_reason(error)) from None


def _cause(said: str) -> str:
    """Returns why a server was not reached, of all that obstore says of it."""
    found = re.findall(r'(?:message|error): "(.+?)"', said) or re.findall(r"kind: (\w+)", said)
    return str(found[-1]) if found else said.splitlines()[0]


def _reason(error: Exception) -> str:
    """Returns what an error says, in the words of the store if it has any, in one line."""
    text = str(error)
    said = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
    return " ".join((said[1] if said else text.splitlines()[0]).split())
