"""Many records in one file, for who reads all records of a sweep in an object store.

There each file costs a request, and 100,000 records 100,000. So the driver also writes the records
that have ended into segments, 2,000 to a file, behind everything else. A line of one is

    ["trials/bottle/padim/00007.json", "the tag of that file"]<tab>{the record}

and the segment is a gzip file of such lines (``zcat`` shows them).

A segment is an additional copy and never the truth. Who reads lists the single files, with their
tags, which costs a request per 1,000 of them; what a segment holds is taken where path and tag are
those of a single file, and every other file is read by itself. So it does not matter when a driver
was killed, whether a segment is damaged, of another directory, or older than its records: nothing
is lost by it but time. A file that is deleted is gone, one that is copied here from elsewhere is
read. That is why the single files stay: to delete them would save the listing (a hundredth of the
requests) and make of each segment something that must not be lost.

On a disk a file costs less than what it takes to keep a second copy right: there are no segments.
"""

from __future__ import annotations

import gzip
import io
import json
import threading
import uuid
import zlib
from collections.abc import Iterator, Mapping

from anomtune.bounded import parse_json, read_at_most
from anomtune.search.store.objects import Stamp
from anomtune.search.store.storage import Storage

_FOLDER, _SUFFIX = "segments", ".jsonl.gz"

#: Records of a segment.
_FULL = 2000
#: Of fewer records no segment is made when a sweep begins or ends, and none is looked for.
_FEW = 64
#: Bytes of a segment at most, unpacked: a larger one is none of ours.
_LARGEST = 2**28


def read_segments(storage: Storage, kind: str, wanted: Mapping[str, Stamp]) -> dict[str, bytes]:
    """Returns what segments hold of files, by their paths; of none if there are few files.

    Args:
        storage: The sweep directory.
        kind: ``trials`` or ``confirm``.
        wanted: Of the files that are there, and their stamps.

    Raises:
        StorageError: If the storage refuses. Damage is none of its errors.
    """
    found: dict[str, bytes] = {}
    if not storage.has_tags or len(wanted) < _FEW:
        return found
    paths = storage.list(f"{_FOLDER}/{kind}", _SUFFIX)
    for content in storage.read_many(paths):
        for path, tag, record in _lines(content or b""):
            if wanted.get(path) == (tag,):
                found[path] = record
    return found


def _lines(content: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Yields path, tag and record of each line; none of a segment that is damaged anywhere.

    Damage can leave lines that read well and say something else, so gzip's checksum, which stands
    at the end, is compared before the first.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            lines = read_at_most(stream, _LARGEST).splitlines()
        for line in lines:
            head, _, record = line.partition(b"\t")
            path, tag = parse_json(head)
            if isinstance(path, str) and isinstance(tag, str):
                yield path, tag, record
    except (OSError, EOFError, zlib.error, ValueError, TypeError):
        return


class SegmentWriter:
    """Gathers records that have ended, and writes segments of them.

    Args:
        storage: The sweep directory, which has tags.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._waiting: dict[str, dict[str, bytes]] = {}

    def add(self, path: str, tag: str, record: bytes) -> None:
        """Takes in a record.

        Args:
            path: Of its file.
            tag: Of that file.
            record: As JSON in one line.
        """
        head = json.dumps([path, tag]).encode()
        with self._lock:
            kind = self._waiting.setdefault(path.partition("/")[0], {})
            kind[path] = head + b"\t" + record + b"\n"

    @property
    def full(self) -> bool:
        """Whether enough waits for a segment."""
        with self._lock:
            return any(len(lines) >= _FULL for lines in self._waiting.values())

    def write(self) -> None:
        """Writes what waits, if it is more than few.

        Raises:
            StorageError: If the storage refuses; what waited is not written any more.
        """
        with self._lock:
            kinds = [kind for kind, lines in self._waiting.items() if len(lines) >= _FEW]
            waiting = {kind: list(self._waiting.pop(kind).values()) for kind in kinds}
        for kind, lines in waiting.items():
            for begin in range(0, len(lines), _FULL):
                content = gzip.compress(b"".join(lines[begin : begin + _FULL]), 6, mtime=0)
                self._storage.write(f"{_FOLDER}/{kind}/{uuid.uuid4().hex}{_SUFFIX}", content)
