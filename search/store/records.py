"""The records of a sweep: one small JSON file per trial. They are the only truth about it.

Longer than 400 lines: what a record holds, and how it is written and read, change together.
"""

# ruff: noqa: RUF012 - pydantic gives every record its own copy of a default.
from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, TypeAdapter, ValidationError

from anomtune.bounded import parse_json, read_array, read_arrays
from anomtune.errors import SweepError
from anomtune.models.training.report import Histogram
from anomtune.search.store.held_out import DomainFigures, Example, HeldOutScores
from anomtune.search.store.judged import Judged
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.part import Count, MessageText, Part, Time, Whole
from anomtune.search.store.segments import SegmentWriter, read_segments
from anomtune.search.store.storage import Storage

#: Where configs come from that won nowhere else: trial 0, and what the sampler suggests.
PAPER, SAMPLER = "paper", "sampler"

#: What the arrays of a run may take in memory: more than the scores of a million images.
_MOST_BYTES = 1 << 28

_COUNTS = TypeAdapter(dict[str, tuple[Count, Count]])


def _has_a_scoring(params: dict[str, Any]) -> dict[str, Any]:
    # What tables say of a scoring they say of every method, also where that is not installed.
    scoring = params.get("scoring", {})
    if not isinstance(scoring, dict):
        raise ValueError("params.scoring: no mapping")
    reduce, share = scoring.get("reduce", "max"), scoring.get("share", 0.01)
    if not isinstance(reduce, str) or not isinstance(share, int | float):
        raise ValueError("params.scoring: no rule of a score")
    return params


#: Hyperparameters as a record keeps them.
Params = Annotated[dict[str, Any], AfterValidator(_has_a_scoring)]

State = Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL"]


class StudyKey(NamedTuple):
    """Names a study of a sweep."""

    category: str
    method: str

    def __str__(self) -> str:
        return f"{self.category}/{self.method}"


class Rung(Part):
    """What a trial reports at one of its evaluation points.

    Attributes:
        step: 1-based index of the rung.
        auroc: Image AUROC on the validation images, in [0, 1], with the paper's scoring; in a
            trial that `anomtune.search.decide.scoring` has read, with that of the study.
        auroc_low: Lower end of its 95 % DeLong interval; of other scorings at the last rung alone.
        auroc_high: Upper end.
        judged: The AUROCs of all scorings; ``None`` if there is only the paper's.
        paper_auroc: With the paper's scoring, where ``auroc`` is with another.
        scoring_error: Standard error of the difference of the two; at the last rung alone.
        loss: Mean training loss since the rung before; ``None`` for methods without one.
        figures: What else the method reports, by name.
        histograms: The same, for figures that are distributions.
    """

    step: Whole
    auroc: float
    auroc_low: float | None
    auroc_high: float | None
    judged: Judged | None = None
    paper_auroc: float | None = None
    scoring_error: float | None = None
    loss: float | None = None
    figures: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}


class Facts(Part):
    """What is known of a trained detector, apart from its scores."""

    n_val_normal: Count
    n_val_anomalous: Count
    parameters: Whole


class Cost(Part):
    """What a trial took. The only part of a record that differs when it is run again.

    Attributes:
        train_seconds: Time spent in ``fit``.
        evaluate_seconds: Time spent scoring validation images.
        image_ms: Milliseconds from a decoded image to its map and score: of a confirm run measured
            (`search.detector.timing`), of a trial estimated from its validation batches, with what
            the cache of features spared it.
        peak_memory_bytes: Peak of GPU memory, on a CPU of the worker's resident memory.
        iterations: How many iterations ``train_seconds`` were spent on.
        gpu: GPUs that the run was given, below 1 a share of one; ``None`` on a CPU.
        gpu_memory_bytes: Memory of the whole GPU.
        gpu_type: Ray's name for its type, if the run asked for one (`Capacity.gpu_types`).
        ran_out_with: The share with which the attempt before ran out of memory.
        started_at: UTC, ISO 8601.
        finished_at: UTC, ISO 8601.
    """

    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    image_ms: float | None = None
    peak_memory_bytes: Whole | None = None
    iterations: Whole | None = None
    gpu: float | None = None
    gpu_memory_bytes: Whole | None = None
    gpu_type: MessageText | None = None
    ran_out_with: float | None = None
    started_at: Time | None = None
    finished_at: Time | None = None


class TrialRecord(Part):
    """One trial: which config, how it went and what came out.

    Attributes:
        number: Index of the trial within its study; 0 is the paper's own config.
        params: The complete hyperparameters, searched and fixed.
        split_hash: Names the exact images of training and validation.
        origin: Where the config comes from: ``paper``, ``sampler``, or where it won before.
        scoring: Number of the scoring that it is read with; 0, the paper's, as it is kept.
        error: Why a FAIL failed, or the search ended before the trial did, in one line.
        traceback: Where, if it was not expected.
    """

    dataset: str
    category: str
    method: str
    number: Count
    state: State
    params: Params
    seed: Whole
    split_hash: str
    origin: MessageText = SAMPLER
    curve: list[Rung] = []
    facts: Facts | None = None
    scoring: Whole = 0
    error: MessageText | None = None
    traceback: MessageText | None = None
    cost: Cost = Cost()

    @property
    def key(self) -> StudyKey:
        """The study that the trial belongs to."""
        return StudyKey(self.category, self.method)

    @property
    def value(self) -> float | None:
        """The AUROC at the last rung of a completed trial."""
        return self.curve[-1].auroc if self.state == "COMPLETE" and self.curve else None

    @property
    def paper_value(self) -> float | None:
        """The same with the paper's scoring, whatever it is read with."""
        if self.value is None:
            return None
        last = self.curve[-1]
        return last.auroc if last.paper_auroc is None else last.paper_auroc

    @property
    def path(self) -> str:
        """Where the record lies below the sweep directory, without extension."""
        return f"trials/{self.category}/{self.method}/{self.number:05d}"


class PaperScored(Part):
    """What a confirm run of the paper's own config found with the paper's own scoring.

    Attributes:
        val_auroc: AUROC on the validation images.
        test: Figures on the held-out images of the training images' domain.
    """

    val_auroc: float
    test: DomainFigures | None


class ConfirmResult(Part):
    """What a confirm run found; see `ConfirmRecord`."""

    val_auroc: float
    test: DomainFigures | None
    shifted: dict[str, DomainFigures]
    paper: PaperScored | None = None
    examples: list[Example] = []
    facts: Facts
    cost: Cost


class ConfirmRecord(Part):
    """One confirm run: a config of the search, trained with a seed, on held-out images.

    Beside it lie its validation scores and the held-out ones (``.npz``).

    Attributes:
        number: Of the trial whose config it is.
        seed: What it was trained with.
        val_auroc: AUROC on the validation images, by which the winner is chosen.
        test: Figures on the held-out images of the training images' domain; ``None`` if there
            are none.
        shifted: The same for each shifted domain.
        paper: Of the paper's own config: the same with the paper's scoring, if that is another.
        examples: The held-out images on the sheet beside the record, from top to bottom.
    """

    dataset: str
    category: str
    method: str
    number: Count
    seed: Whole
    state: Literal["RUNNING", "COMPLETE", "FAIL"]
    params: Params
    split_hash: str
    val_auroc: float | None = None
    test: DomainFigures | None = None
    shifted: dict[str, DomainFigures] = {}
    paper: PaperScored | None = None
    examples: list[Example] = []
    facts: Facts | None = None
    error: MessageText | None = None
    traceback: MessageText | None = None
    cost: Cost = Cost()

    @property
    def value(self) -> float | None:
        """The AUROC on the validation images of a completed run."""
        return self.val_auroc if self.state == "COMPLETE" else None

    @property
    def key(self) -> StudyKey:
        """The study that the config belongs to."""
        return StudyKey(self.category, self.method)

    @property
    def path(self) -> str:
        """Where the record lies below the sweep directory, without extension."""
        return f"confirm/{self.category}/{self.method}/{self.number:05d}-{self.seed}"


AnyRecord = TrialRecord | ConfirmRecord
R = TypeVar("R", TrialRecord, ConfirmRecord)


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
        arrays = _arrays(self.storage.read(f"{record.path}.npz"))
        try:
            labels, scores = _of_kind(arrays["labels"], "iu"), _of_kind(arrays[name], "f")
            if labels.ndim != 1 or labels.shape != scores.shape:
                return None
            return HeldOutScores(labels, scores)
        except (KeyError, TypeError, ValueError):
            return None

    def read_defects(self, record: ConfirmRecord) -> npt.NDArray[np.str_] | None:
        """Returns the defect types of the images of `read_held_out`, in their order.

        ``None`` if they are not there: runs of anomtune 0.5.0 and before have not kept them.
        """
        arrays = _arrays(self.storage.read(f"{record.path}.npz"))
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
                _has_a_scoring({"scoring": scoring})
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
        return _integers(self.storage.read(f"trials/{category}/labels.npy"))


def _scores(content: bytes | None, scoring: int) -> npt.NDArray[np.float32] | None:
    """Returns the validation scores with a scoring, of all that a run has kept."""
    arrays = _arrays(content)
    try:
        scores = _of_kind(arrays["validation"], "f")
        kept = dict(zip(arrays["scorings"].tolist(), scores, strict=True))
    except (KeyError, TypeError, ValueError):
        return None
    return kept.get(scoring)


def _integers(content: bytes | None) -> npt.NDArray[Any] | None:
    """Returns an array of integers, ``None`` if there is none or it cannot be read."""
    try:
        return _of_kind(read_array(io.BytesIO(content or b""), _MOST_BYTES), "iu")
    except ValueError:
        return None


def _of_kind(array: npt.NDArray[Any], kinds: str) -> npt.NDArray[Any]:
    """Returns an array; raises ValueError if what it holds is of no such kind, of `numpy.dtype`."""
    if array.dtype.kind not in kinds:
        raise ValueError(f"an array of {array.dtype}")
    return array


def _arrays(content: bytes | None) -> Mapping[str, npt.NDArray[Any]]:
    """Returns arrays by name, none if there are none or they cannot be read."""
    try:
        return read_arrays(content or b"", _MOST_BYTES)
    except ValueError:
        return {}


def _run_order(record: ConfirmRecord) -> tuple[int, int]:
    return record.number, record.seed


def best_record(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """Returns the completed trial with the highest AUROC, the earliest of equals."""
    completed = [
        (record.value, -record.number, record) for record in records if record.value is not None
    ]
    return max(completed, key=lambda item: item[:2])[2] if completed else None


def npz_bytes(**arrays: npt.NDArray[Any]) -> bytes:
    """Returns arrays in NumPy's file format for several."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """Returns an array in NumPy's file format."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def now() -> str:
    """Returns the time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def canonical(params: dict[str, Any]) -> str:
    """Returns hyperparameters as JSON with sorted keys, as the leaderboard shows them."""
    return json.dumps(params, sort_keys=True)
