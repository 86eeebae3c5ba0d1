"""What is new among the records of a sweep: each is read when it has changed, and never else.

On a disk a folder that has not changed is not even listed: looking at a sweep of 1,000 trials that
rests costs a look at each of its folders. In an object store the first look reads segments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from anomtune.errors import SweepError
from anomtune.search.store.objects import Stamp
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import AnyRecord, ConfirmRecord, StudyKey, TrialRecord
from anomtune.search.store.segments import read_segments


@dataclass
class Changes:
    """What has changed of one kind of records of a study.

    Attributes:
        key: The study.
        records: Those that are new or have been replaced, as they are now, in order of their paths.
        gone: Paths, without extension, of those that are there no more.
        unreadable: Why files could not be understood, by path; they are read again when they have
            changed.
    """

    key: StudyKey
    records: list[AnyRecord] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.records or self.gone or self.unreadable)


@dataclass
class _Folder:
    """What is known of a folder of records.

    Attributes:
        kind: Of its records.
        key: Of its study.
        stamp: Of the folder when it was listed.
        settled: Whether it was listed again when that stamp was old: two changes within one tick of
            the clock leave one stamp.
        files: The stamp of each file that has been read.
    """

    kind: type[TrialRecord] | type[ConfirmRecord]
    key: StudyKey
    stamp: Stamp | None = None
    settled: bool = False
    files: dict[str, Stamp] = field(default_factory=dict)


class RecordChanges:
    """Reads the records of a sweep directory as they come. It writes nothing.

    Args:
        store: The sweep directory.
    """

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self._folders: dict[str, _Folder] = {}

    def poll(self, keys: Iterable[StudyKey]) -> Iterator[Changes]:
        """Yields what has changed since the last call: of trials, and of confirm runs, by study.

        Looks should be further apart than the clock of the file system ticks.

        Args:
            keys: The studies that are looked at.

        Raises:
            StorageError: If the storage refuses; the next call goes on.
        """
        kinds: dict[str, type[TrialRecord] | type[ConfirmRecord]]
        kinds = {"trials": TrialRecord, "confirm": ConfirmRecord}
        storage = self._store.storage
        # An object store is asked once for all studies, which costs a request per 1,000 files.
        listed = {} if storage.local_root else {name: self._by_folder(name) for name in kinds}
        keys = list(keys)
        known = self._in_segments(listed, keys)
        for key in keys:
            for name, kind in kinds.items():
                path = f"{name}/{key}"
                folder = self._folders.setdefault(path, _Folder(kind, key))
                found = listed[name].get(path, {}) if listed else self._list(path, folder)
                if found is not None and (changes := self._read(folder, found, known)):
                    yield changes

    def again(self, key: StudyKey) -> None:
        """Lets the next look read all of a study."""
        for name in ("trials", "confirm"):
            self._folders.pop(f"{name}/{key}", None)

    def _by_folder(self, name: str) -> dict[str, dict[str, Stamp]]:
        found: dict[str, dict[str, Stamp]] = defaultdict(dict)
        for path, stamp in self._store.storage.stamps(name, ".json").items():
            found[path.rpartition("/")[0]][path] = stamp
        return found

    def _in_segments(
        self, listed: dict[str, dict[str, dict[str, Stamp]]], keys: list[StudyKey]
    ) -> dict[str, bytes]:
        """Returns what segments hold of the files that have not been read as they are now."""
        known: dict[str, bytes] = {}
        for name, folders in listed.items():
            new: dict[str, Stamp] = {}
            for path in (f"{name}/{key}" for key in keys):
                read = self._folders[path].files if path in self._folders else {}
                found = folders.get(path, {})
                new |= {file: stamp for file, stamp in found.items() if read.get(file) != stamp}
            known |= read_segments(self._store.storage, name, new)
        return known

    def _list(self, path: str, folder: _Folder) -> dict[str, Stamp] | None:
        """Returns the files of a folder, ``None`` if they are as they were."""
        stamp = self._store.storage.folder_stamp(path)
        same = stamp == folder.stamp
        if same and (folder.settled or stamp is None):
            return None
        folder.stamp, folder.settled = stamp, same
        return self._store.storage.stamps(path, ".json")

    def _read(self, folder: _Folder, found: dict[str, Stamp], known: dict[str, bytes]) -> Changes:
        storage = self._store.storage
        changes = Changes(folder.key)
        changes.gone = [name.removesuffix(".json") for name in folder.files.keys() - found.keys()]
        new = sorted(name for name, one in found.items() if folder.files.get(name) != one)
        folder.settled, settled = False, folder.settled
        single = storage.read_many([name for name in new if name not in known])
        for name in new:
            copied = name in known
            content = known.pop(name) if copied else next(single)
            if content is None:  # it has gone since
                found.pop(name)
                continue
            if not content:  # the machine lost power: the run will be done again
                continue
            try:
                record: AnyRecord
                if folder.kind is TrialRecord:
                    record = self._store.parse(name, content, TrialRecord, copied=copied)
                else:
                    record = self._store.parse(name, content, ConfirmRecord, copied=copied)
                changes.records.append(record)
            except SweepError as error:
                changes.unreadable[name] = str(error)
        # Noted last: what an error has kept from being read is read by the next look.
        folder.files, folder.settled = found, settled
        return changes
