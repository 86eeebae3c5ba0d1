"""Writes and reads the records of a sweep, a small JSON file each, and the arrays beside them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from anomtune.bounded import parse_json
from anomtune.errors import SweepError
from anomtune.search.store.arrays import npy_bytes, of_kind, parse_arrays, parse_integers
from anomtune.search.store.held_out import HeldOutScores
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.part import Count
from anomtune.search.store.records import (
    AnyRecord,
    ConfirmRecord,
    R,
    StudyKey,
    TrialRecord,
    has_a_scoring,
)
from anomtune.search.store.segments import SegmentWriter, read_segments
from anomtune.search.store.storage import Storage

_COUNTS = TypeAdapter(dict[str, tuple[Count, Count]])


class RecordStore:
    """Writes and reads the records of a sweep directory.

    Args:
        storage: The directory.
        owner: Of who writes records while others may try to: its lock.

    Attributes:
        storage: The same.
        segments: Gathers records that have ended for those who read them all; only of an owner,
            and where files have tags.
    """

    def __init__(self, storage: Storage, owner: DirectoryLock | None = None) -> None:
        self.storage = storage
        self._owner = owner
        writes = owner is not None and storage.has_tags
        self.segments = SegmentWriter(storage) if writes else None
        #: Of the files as this owner knows them.
        self._tags: dict[str, str] = {}
        #: Paths of records, without extension, that are in a segment.
        self._in_segments: set[str] = set()

    def write(self, record: AnyRecord) -> None:
        """Replaces a record; a finished one is flushed to the disk.

        Raises:
            StorageError: If the storage refuses, or another driver has taken the directory.
        """
        path, durable = f"{record.path}.json", record.state != "RUNNING"
        content = record.model_dump_json(indent=1).encode()
        if self._owner is None:
            self.storage.write(path, content, durable=durable)
            return
        tag = self._owner.replace(path, content, self._tags.get(path), durable=durable)
        if tag is not None:
            self._tags[path] = tag

    def gather(self, record: AnyRecord) -> None:
        """Lets a record that has ended, and that this owner has written or read, into a segment."""
        if self.segments is not None and (tag := self._tags.get(f"{record.path}.json")):
            self.segments.add(f"{record.path}.json", tag, record.model_dump_json().encode())

    def is_in_segment(self, record: AnyRecord) -> bool:
        """Whether a record was found in a segment, and all that follows from it is done."""
        return record.path in self._in_segments

    def read_all(self) -> dict[StudyKey, list[TrialRecord]]:
        """Returns the record of every trial, by study and in order of number.

        Raises:
            SweepError: If a record cannot be understood; the message names it.
        """
        return self._read("trials", TrialRecord)

    def read_confirmed(self) -> dict[StudyKey, list[ConfirmRecord]]:
        """Returns the record of every confirm run, by study, in order of number and seed.

        Raises:
            SweepError: If a record cannot be understood; the message names it.
        """
        found = self._read("confirm", ConfirmRecord)
        return {key: sorted(records, key=_run_order) for key, records in found.items()}

    def read_trials(self, key: StudyKey) -> list[TrialRecord]:
        """Returns the trials of one study, in the order of `read_all`.

        Raises:
            SweepError: If a record cannot be understood; the message names it.
        """
        return self._read(f"trials/{key}", TrialRecord).get(key, [])

    def read_runs(self, key: StudyKey) -> list[ConfirmRecord]:
        """Returns the confirm runs of one study, in the order of `read_confirmed`.

        Raises:
            SweepError: If a record cannot be understood; the message names it.
        """
        found = self._read(f"confirm/{key}", ConfirmRecord)
        return sorted(found.get(key, []), key=_run_order)

    def _read(self, folder: str, kind: type[R]) -> dict[StudyKey, list[R]]:
        studies: dict[StudyKey, list[R]] = defaultdict(list)
        for path, content, copied in self._contents(folder):
            if not content:  # the machine lost power while the trial ran: it is run again
                continue
            record = self.parse(path, content, kind, copied=copied)
            studies[record.key].append(record)
        return dict(studies)

    def _contents(self, folder: str) -> Iterator[tuple[str, bytes | None, bool]]:
        """Yields the files of records below a folder in order of their paths.

        With each its content, and whether that is the copy of a segment.
        """
        if not self.storage.has_tags:
            paths = self.storage.list(folder, ".json")
            for path, content in zip(paths, self.storage.read_many(paths), strict=True):
                yield path, content, False
            return
        stamps = self.storage.stamps(folder, ".json")
        # Of one study alone, segments hold too much else.
        known = {} if "/" in folder else read_segments(self.storage, folder, stamps)
        single = self.storage.read_versions(sorted(stamps.keys() - known.keys()))
        for path in sorted(stamps):
            if path in known:
                if self._owner is not None:
                    self._tags[path] = str(stamps[path][0])
                    self._in_segments.add(path.removesuffix(".json"))
                yield path, known.pop(path), True
            elif (version := next(single)) is not None:
                if self._owner is not None:
                    self._tags[path] = str(version.tag)
                yield path, version.content, False

    def parse(self, path: str, content: bytes, kind: type[R], *, copied: bool = False) -> R:
        """Returns the record that a file holds.

        Args:
            path: Of the file, from the root.
            content: Of the file.
            kind: What it should hold.
            copied: Whether the content is the copy of a segment: if that is not the record, the
                file itself is read.

        Raises:
            SweepError: If it holds no record, or another's.
        """
        if copied:
            try:
                return self.parse(path, content, kind)
            except SweepError:
                content = self.storage.read(path) or b""
        try:
            record = kind.model_validate_json(content)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise SweepError(
                f"{self.storage.location}/{path}: not a trial record ({reason}); "
                f"delete the file to run that trial again"
            ) from None
        if path != f"{record.path}.json":
            raise SweepError(
                f"{self.storage.location}/{path}: holds the record of {record.path}; "
                f"move it back, or delete the file to run that trial again"
            )
        return record

    def read_scores(self, records: Sequence[AnyRecord]) -> list[npt.NDArray[np.float32] | None]:
        """Returns the validation scores of completed runs, in the order of the split.

        Those of the scoring that a trial is read with, if it was among the leading ones. ``None``
        stands where there are none, or they cannot be read.
        """
        contents = self.storage.read_many(f"{record.path}.npz" for record in records)
        return [
            _scores(content, record.scoring if isinstance(record, TrialRecord) else 0)
            for record, content in zip(records, contents, strict=True)
        ]

    def read_held_out(self, record: ConfirmRecord, *, paper: bool = False) -> HeldOutScores | None:
        """Returns the held-out labels and scores of a confirm run, ``None`` if there are none.

        Args:
            record: The run.
            paper: Whether with the paper's scoring, of a run of the paper's config.
        """
        name = "held_out" if record.paper is None or not paper else "paper_held_out"
        arrays = parse_arrays(self.storage.read(f"{record.path}.npz"))
        try:
            labels, scores = of_kind(arrays["labels"], "iu"), of_kind(arrays[name], "f")
            if labels.ndim != 1 or labels.shape != scores.shape:
                return None
            return HeldOutScores(labels, scores)
        except (KeyError, TypeError, ValueError):
            return None

    def read_defects(self, record: ConfirmRecord) -> npt.NDArray[np.str_] | None:
        """Returns the defect types of the images of `read_held_out`, in their order.

        ``None`` if they are not there: runs of anomtune 0.5.0 and before have not kept them.
        """
        arrays = parse_arrays(self.storage.read(f"{record.path}.npz"))
        try:
            return np.asarray(arrays["defects"], dtype=np.str_)
        except (KeyError, TypeError, ValueError):
            return None

    def read_examples(self, record: ConfirmRecord) -> bytes | None:
        """Returns the sheet of a confirm run's `ConfirmRecord.examples` as PNG, if it has one.

        A row per example: the image, the image with its true defect outlined, and the heat map.
        """
        return self.storage.read(f"{record.path}.png") if record.examples else None

    def write_scorings(self, key: StudyKey, scorings: Sequence[Mapping[str, Any]]) -> None:
        """Keeps the scorings that every training of a study is judged with, the paper's first.

        Raises:
            SweepError: If its trials were judged with others.
        """
        path = f"scorings/{key}.json"
        content = json.dumps(list(scorings)).encode()
        found = self.storage.read(path)
        if found not in (None, content):
            raise SweepError(
                f"{self.storage.location}/{path}: trials were judged with other scorings than this "
                f"version of {key.method} has; install the version that they were run with, or "
                "start another directory with --dir"
            )
        if found is None:
            self.storage.write(path, content)

    def read_scorings(self, key: StudyKey) -> list[dict[str, Any]]:
        """Returns the scorings of a study, none if there is only the paper's."""
        return self.read_all_scorings([key])[key]

    def read_all_scorings(self, keys: Iterable[StudyKey]) -> dict[StudyKey, list[dict[str, Any]]]:
        """Returns the same of several studies."""
        wanted = list(keys)
        contents = self.storage.read_many(f"scorings/{key}.json" for key in wanted)
        return {
            key: self._scorings(key, content) for key, content in zip(wanted, contents, strict=True)
        }

    def _scorings(self, key: StudyKey, content: bytes | None) -> list[dict[str, Any]]:
        try:
            scorings = parse_json(content or b"[]")
            if not isinstance(scorings, list) or not all(isinstance(s, dict) for s in scorings):
                raise ValueError("no list of scorings")
            if any(scoring.keys() != scorings[0].keys() for scoring in scorings):
                raise ValueError("scorings of different fields")
            for scoring in scorings:
                has_a_scoring({"scoring": scoring})
        except ValueError:
            raise self._damaged(f"scorings/{key}.json") from None
        return scorings

    def _damaged(self, path: str) -> SweepError:
        return SweepError(
            f"{self.storage.location}/{path}: damaged; delete the file and run the sweep again, "
            "which writes it anew"
        )

    def write_searched(self, searched: Mapping[StudyKey, bool]) -> None:
        """Keeps of each study whether it has hyperparameters to search.

        Who reads the directory needs neither its methods nor what they import to know it.
        """
        content = {str(key): searches for key, searches in searched.items()}
        self.storage.write("searched.json", json.dumps(content, indent=1).encode())

    def read_searched(self) -> dict[str, bool]:
        """Returns what `write_searched` has kept, by the names of studies.

        Empty if it is damaged, or not there: anomtune 0.5.0 and before have not kept it.
        """
        try:
            content = parse_json(self.storage.read("searched.json") or b"{}")
        except ValueError:
            return {}
        found = content.items() if isinstance(content, dict) else ()
        return {name: searches for name, searches in found if isinstance(searches, bool)}

    def write_labels(self, category: str, labels: npt.NDArray[np.int8]) -> None:
        """Keeps the validation labels of a category, for paired tests."""
        self.storage.write(f"trials/{category}/labels.npy", npy_bytes(labels))

    def write_test_counts(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """Keeps how many held-out images each category has: numbers, not images."""
        self.storage.write("held_out.json", json.dumps(counts, indent=1).encode())

    def read_test_counts(self) -> dict[str, tuple[int, int]]:
        """Returns the numbers of normal and anomalous held-out images of each category.

        Raises:
            SweepError: If the file is damaged.
        """
        content = self.storage.read("held_out.json") or b"{}"
        try:
            return _COUNTS.validate_json(content)
        except ValidationError:
            raise self._damaged("held_out.json") from None

    def read_labels(self, category: str) -> npt.NDArray[np.int8] | None:
        """Returns the validation labels of a category, in the order of the split."""
        return parse_integers(self.storage.read(f"trials/{category}/labels.npy"))


def _scores(content: bytes | None, scoring: int) -> npt.NDArray[np.float32] | None:
    """Returns the validation scores with a scoring, of all that a run has kept."""
    arrays = parse_arrays(content)
    try:
        scores = of_kind(arrays["validation"], "f")
        kept = dict(zip(arrays["scorings"].tolist(), scores, strict=True))
    except (KeyError, TypeError, ValueError):
        return None
    return kept.get(scoring)


def _run_order(record: ConfirmRecord) -> tuple[int, int]:
    return record.number, record.seed
