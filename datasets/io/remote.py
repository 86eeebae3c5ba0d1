"""Datasets in an object store: fetched once per node into the cache, then used as a local folder.

``s3://bucket/folder``, ``gs://bucket/folder`` and whatever else ``pyarrow.fs`` understands. The
listing of the folder, with sizes and times, names the copy: a changed object makes another copy,
which takes all that did not change from the former one.

Credentials belong in the environment (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``,
``GOOGLE_APPLICATION_CREDENTIALS``). A URI that carries them works too; they are never shown, and
never written to the cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from pyarrow import ArrowException, fs

from anomtune.datasets.io import store
from anomtune.datasets.io.uri import PLAIN, folder_of, is_uri, mask_uri
from anomtune.errors import DataError

_FORMAT = 1
_STREAMS = 8  # Files fetched at once.
_CHUNK = 8 << 20  # Bytes of each that are in memory: most images in one request.
_BATCH = 1024  # Files that are queued at once.
# Google's client tries for a quarter of an hour by default.
_PATIENCE = {"gs": "30", "gcs": "30"}

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
}
_NOTHING = "no such bucket or folder; correct dataset.root"
# What the services' own words mean, the first that fits.
_REMEDIES = (
    (r"NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist|NOT_FOUND", _NOTHING),
    (
        r"OAuth2|default credentials|No credentials|AuthenticationException",
        "no credentials were found; set {credentials}",
    ),
    (
        r"ACCESS_DENIED|AccessDenied|INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE|HTTP response "
        r"code: 40[13]|HTTP status code 40[13]|PERMISSION_DENIED|UNAUTHENTICATED|INVALID_CLIENT",
        "access was refused; set credentials that may list and read there: {credentials}",
    ),
    (
        r"NETWORK_CONNECTION|[Rr]esolv|[Cc]ould not connect|[Tt]imed? ?out|UNAVAILABLE|curlCode",
        "the store cannot be reached; check the network and, if the URI has one, its "
        "endpoint_override",
    ),
)


@dataclass(frozen=True, slots=True)
class _Object:
    """A file of the tree: where it is below the root, how many bytes it has, and its digest."""

    path: str
    size: int
    key: str


def local_root(root: Path | str) -> Path:
    """Returns the local folder of a dataset, fetching a remote one if this node has not got it.

    The listing is asked for at every call, the files only once; a changed object is known by its
    size or time, which S3 gives in whole seconds. A process that is killed leaves
    the files that it has fetched whole, and the next one goes on from there.

    Args:
        root: A local path, a ``file://`` URI (both are used in place) or any URI of
            ``pyarrow.fs``. Of a table the folder that it lies in is fetched.

    Returns:
        The folder, or the table; its name is the last one of the URI's path.

    Raises:
        DataError: If there is nothing at that place, it cannot be reached or read, it holds names
            that cannot be files here, or it changes while it is read.
        StorageError: If the cache cannot be written.
    """
    if not is_uri(root):
        return Path(root).expanduser()
    above, name = folder_of(str(root))
    if name:
        return local_root(above) / name
    source = _Source(str(root))
    if isinstance(source.filesystem, fs.LocalFileSystem):
        return Path(source.base)
    objects = source.list()
    name = source.base.rpartition("/")[2]

    def build(draft: Path) -> None:
        folder, parts = draft / name, draft / f"{name}.parts"
        parts.mkdir()
        for path in sorted({(folder / item.path).parent for item in objects}):
            path.mkdir(parents=True, exist_ok=True)

        _fetch_all(source, objects, folder, parts)
        parts.rmdir()
        if source.list() != objects:
            raise source.error("it changed while it was fetched; try again")

    def load(place: Path) -> Path:
        folder = place / name
        for item in objects:
            if (folder / item.path).stat().st_size != item.size:
                raise ValueError(f"{item.path} is damaged")
        return folder

    return store.obtain(
        "remote", store.digest(_FORMAT, name, [i.key for i in objects]), build, load
    )


def local_files(uris: Sequence[str]) -> dict[str, Path]:
    """Returns the local copies of files, fetching those that this node has not got.

    Raises:
        DataError: If one does not exist, or cannot be reached or read.
        StorageError: If the cache cannot be written.
    """
    found: dict[str, Path] = {}
    stores: dict[str, dict[str, str]] = {}
    for uri in uris:
        parts = urlsplit(uri)
        top = urlunsplit(parts._replace(path="/", fragment=""))
        stores.setdefault(top, {})[unquote(parts.path).strip("/")] = uri
    for top, paths in stores.items():
        source = _Source(top)
        objects = source.look(list(paths))

        def build(
            draft: Path, source: _Source = source, objects: Sequence[_Object] = objects
        ) -> None:
            parts = draft / ".parts"
            parts.mkdir()
            for item in objects:
                (draft / item.path).parent.mkdir(parents=True, exist_ok=True)
            _fetch_all(source, objects, draft, parts)
            parts.rmdir()

        def load(place: Path, objects: Sequence[_Object] = objects) -> dict[str, Path]:
            copies = {item.path: place / item.path for item in objects}
            for item in objects:
                if copies[item.path].stat().st_size != item.size:
                    raise ValueError(f"{item.path} is damaged")
            return copies

        key = store.digest(_FORMAT, "files", [item.key for item in objects])
        copies = store.obtain("remote", key, build, load)
        found |= {uri: copies[path] for path, uri in paths.items()}
    return found


def _fetch_all(source: _Source, objects: Sequence[_Object], folder: Path, parts: Path) -> None:
    """Puts files at their places in a tree whose folders are there."""

    def fetch(item: _Object) -> None:
        _fetch(source, item, folder / item.path, parts / item.key)

    with ThreadPoolExecutor(_STREAMS) as pool:
        try:
            for start in range(0, len(objects), _BATCH):
                for _ in pool.map(fetch, objects[start : start + _BATCH]):
                    pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch(source: _Source, item: _Object, target: Path, part: Path) -> None:
    """Puts a file at its place in a tree, from an earlier tree or from the store."""
    whole = store.cache_root() / "objects" / item.key[:2] / item.key
    try:
        known = whole.stat().st_size == item.size
    except OSError:
        known = False
    if not known:
        with part.open("wb") as file:
            for chunk in source.read(item):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        whole.parent.mkdir(parents=True, exist_ok=True)
        part.replace(whole)
    try:
        target.hardlink_to(whole)
    except OSError:  # A file system without links: the tree alone keeps the file.
        whole.replace(target)


class _Source:
    """A folder of a file system that pyarrow knows."""

    def __init__(self, uri: str) -> None:
        self._secrets, self._identity = _secrets(uri), ""
        self._shown = mask_uri(uri)
        try:
            parts = urlsplit(uri)
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            if parts.scheme in _PATIENCE and "retry_limit_seconds" not in query:
                query["retry_limit_seconds"] = _PATIENCE[parts.scheme]
                uri = urlunsplit(parts._replace(query=urlencode(query)))
            self.filesystem, base = fs.FileSystem.from_uri(uri)
        except FileNotFoundError as error:
            raise self._failed(error) from None
        except (ArrowException, ValueError, NotImplementedError, ImportError, OSError) as error:
            raise self._unusable(error) from None
        self.base: str = base.rstrip("/")
        # Whoever is allowed to read it, it is the same place.
        where = sorted((k, v) for k, v in query.items() if k in PLAIN)
        self._identity = store.digest(parts.scheme, parts.netloc.rpartition("@")[2], where)

    def list(self) -> list[_Object]:
        """Lists every file below the folder, by path.

        Raises:
            DataError: If it cannot be listed, is empty or holds names that cannot be files here.
        """
        if self.base.rpartition("/")[2] in {"", ".", ".."}:
            raise self.error("names no folder; set dataset.root to s3://bucket/folder")
        try:
            infos = self.filesystem.get_file_info(fs.FileSelector(self.base, recursive=True))
        except (ArrowException, OSError) as error:
            raise self._failed(error) from None
        prefix = f"{self.base}/"
        found: dict[str, _Object] = {}
        for info in infos:
            if not info.is_file:
                continue
            path = info.path.removeprefix(prefix)
            parts = path.split("/")
            longest = max(len(os.fsencode(part)) for part in parts)
            unsafe = {"", ".", ".."} & set(parts) or "\0" in path or longest > 255
            if path == info.path or unsafe:
                raise self.error(f"object {path!r} cannot be a file here; rename or remove it")
            if path in found:
                raise self.error(f"two objects are called {path!r}; rename or remove one")
            found[path] = self._object(path, info)
        if not found:
            raise self.error("holds no file; set dataset.root to the folder of the images")
        for path in found:
            for end in (i for i, letter in enumerate(path) if letter == "/"):
                if path[:end] in found:
                    raise self.error(
                        f"{path[:end]!r} is both a file and a folder; rename or remove one"
                    )
        return [found[path] for path in sorted(found)]

    def look(self, paths: Sequence[str]) -> Sequence[_Object]:
        """Returns files by their paths below the place, each with its size.

        Raises:
            DataError: If one is not there, or its name cannot be one of a file here.
        """
        for path in paths:
            parts = path.split("/")
            if {"", ".", ".."} & set(parts) or "\0" in path:
                raise self.error(f"{path!r} is not the path of a file; correct it")
        try:
            infos = self.filesystem.get_file_info([f"{self.base}/{path}" for path in paths])
        except (ArrowException, OSError) as error:
            raise self._failed(error) from None
        for path, info in zip(paths, infos, strict=True):
            if not info.is_file:
                raise self.error(f"no file {path!r}; correct the path")
        return [self._object(path, info) for path, info in zip(paths, infos, strict=True)]

    def read(self, item: _Object) -> Iterator[bytes]:
        """Yields the content of a file.

        Raises:
            DataError: If it cannot be read whole.
        """
        left = item.size
        try:
            with self.filesystem.open_input_stream(f"{self.base}/{item.path}") as stream:
                while left > 0 and (chunk := stream.read(min(left, _CHUNK))):
                    left -= len(chunk)
                    yield chunk
        except (ArrowException, OSError) as error:
            raise self._failed(error, item.path) from None
        if left:
            raise self.error(f"{item.path} changed while it was fetched; try again")

    def _object(self, path: str, info: fs.FileInfo) -> _Object:
        key = store.digest(_FORMAT, self._identity, info.path, info.size, info.mtime_ns)
        return _Object(path, info.size, key)

    def error(self, reason: str) -> DataError:
        """Returns an error about the place, without anything secret."""
        return DataError(f"{self._shown}: {reason}")

    def _failed(self, error: Exception, path: str = "") -> DataError:
        where = f"{path}: " if path else ""
        # Google's answer becomes a plain OSError.
        if isinstance(error, FileNotFoundError) or str(error).startswith("No such file"):
            what = "was removed while it was fetched; try again" if path else _NOTHING
            return self.error(f"{where}{what}")
        said = self._said(error)
        for pattern, remedy in _REMEDIES:
            if re.search(pattern, said):
                scheme = self._shown.partition("://")[0]
                named = _CREDENTIALS.get(scheme, "those of your storage in the environment")
                return self.error(f"{where}{remedy.format(credentials=named)} ({said})")
        return self.error(f"{where}cannot be read ({said}); check dataset.root and credentials")

    def _unusable(self, error: Exception) -> DataError:
        said = str(error)
        if "Unrecognized filesystem" in said:
            return self.error(
                "no such kind of storage; use s3://, gs://, abfs://, hdfs:// or a local path"
            )
        if "parse URI" in said:
            return self.error(
                "not a URI; write special characters as %XX (a slash in a key is %2F), or give "
                "the key in the environment (AWS_SECRET_ACCESS_KEY)"
            )
        return self._failed(error)

    def _said(self, error: Exception) -> str:
        """Returns the first words of an error, without anything secret."""
        said = " ".join(str(error).split())
        for secret in self._secrets:
            said = said.replace(secret, "***")
        said = said.partition(" (Request ID")[0]
        return said if len(said) <= 200 else f"{said[:200]} ..."


def _secrets(uri: str) -> list[str]:
    """Returns what of a URI must not be shown, as it is written and as it is meant."""
    head, _, query = uri.partition("?")
    found: list[Any] = [uri]
    if "@" in head:
        user = head.partition("://")[2].rpartition("@")[0]
        found += [user, *user.split(":", 1)]
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name not in PLAIN:
            found.append(value)
    texts = {text for secret in found for text in (secret, unquote(secret)) if len(text) > 3}
    return sorted(texts, key=len, reverse=True)
