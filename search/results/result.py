"""Sweep directories as objects, local or remote, also while the sweep runs.

Example:
    >>> result = open_sweep("no/such/sweep")
    Traceback (most recent call last):
    anomtune.errors.SweepError: no/such/sweep: no sweep.yaml there; give the directory of a sweep
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from anomtune.errors import SweepError, suggest
from anomtune.search.config import Sweep
from anomtune.search.decide.progress import StudyProgress
from anomtune.search.decide.scoring import read_studies, read_study
from anomtune.search.detector.spec import Found, TrainingSpec
from anomtune.search.results.leaderboard import compile_trials, rank_studies, tabulate
from anomtune.search.results.status import sweep_status
from anomtune.search.results.winners import model_folder
from anomtune.search.store.directory import read_sweeps
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import ConfirmRecord, StudyKey, TrialRecord, best_record

if TYPE_CHECKING:
    from anomtune.search.detector.predict import Model


@dataclass(frozen=True)
class StudyResult:
    """One (category, method) of a sweep, as its records were when it was asked for.

    Attributes:
        category: Its category.
        method: Its method.
        trials: The trials, in order of number; 0 is the paper's own config.
        confirm_runs: The confirm runs, in order of trial and seed.
    """

    category: str
    method: str
    trials: tuple[TrialRecord, ...]
    confirm_runs: tuple[ConfirmRecord, ...]

    @property
    def best(self) -> TrialRecord | None:
        """The completed trial with the highest validation AUROC, the earliest of equals."""
        return best_record(self.trials)


@dataclass(frozen=True)
class Best:
    """The config that a category is answered with, and its detector.

    Attributes:
        spec: The config, as `anomtune.train` and ``anomtune train`` take it.
        row: Its row of the leaderboard; the columns are those of ``docs/leaderboard.md``.
        folder: Where its detector is: a local path or a URI.
    """

    spec: TrainingSpec
    row: dict[str, Any]
    folder: str

    @property
    def category(self) -> str:
        """The category."""
        return self.spec.category

    @property
    def method(self) -> str:
        """The method."""
        return self.spec.method

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """All hyperparameters."""
        return self.spec.hyperparameters

    def load(self, device: str | None = None) -> Model:
        """Returns the confirmed detector.

        Args:
            device: ``cpu`` or ``cuda``; default: a GPU if there is one.

        Raises:
            SweepError: If the sweep has left none, because it does not confirm (``confirm: 0``)
                or has not ended; `anomtune.train` makes one of `spec`.
        """
        from anomtune.search.detector.predict import load_model  # noqa: PLC0415 - imports torch
        from anomtune.search.detector.saved import CONFIG  # noqa: PLC0415
        from anomtune.search.store.storage import Storage  # noqa: PLC0415

        if Storage(self.folder).read(CONFIG) is None:
            raise SweepError(
                f"{self.folder}: no detector of {self.category}/{self.method} there: the sweep has "
                "not confirmed it (yet); `anomtune best` and `anomtune train` make one"
            )
        return load_model(self.folder, device)


class SweepResult:
    """The result of a sweep, read from its directory, or from several, at each question.

    Attributes:
        config: What was asked for; of several directories, with the categories of all.
        directories: Where it lies.

    Args:
        directories: Local paths or pyarrow filesystem URIs.

    Raises:
        SweepError: If one is not the directory of a sweep of this version, or several are not
            those of one sweep, each with categories of its own.
        StorageError: If one cannot be read.
    """

    def __init__(self, *directories: str | os.PathLike[str]) -> None:
        self.config: Sweep
        self.config, self._parts = read_sweeps(directories)
        # Absolute: the caller may change its folder.
        self.directories = tuple(
            str(store.storage.local_root or directory)
            for directory, (_, store) in zip(directories, self._parts, strict=True)
        )

    @property
    def leaderboard(self) -> pa.Table:
        """One row per study, ranked within each category; columns as in ``docs/leaderboard.md``."""
        rankings = [
            rank_studies(config, store, read_studies(store), store.read_confirmed())
            for config, store in self._parts
        ]
        return tabulate(self.config, rankings)

    @property
    def trials(self) -> pa.Table:
        """One row per trial, in order of study and number."""
        studies = [records for _, store in self._parts for records in read_studies(store).values()]
        return compile_trials(self.config, [record for records in studies for record in records])

    @property
    def progress(self) -> tuple[StudyProgress, ...]:
        """How far each study is."""
        now = datetime.now(UTC)
        return tuple(
            study
            for config, store in self._parts
            for study in sweep_status(config, store, now).studies
        )

    @property
    def finished(self) -> bool:
        """Whether nothing is left to run."""
        return all(study.owed == 0 for study in self.progress)

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories, in the order of the sweep."""
        return self.config.dataset.categories or ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the order of the sweep."""
        return tuple(self.config.methods)

    def __iter__(self) -> Iterator[StudyResult]:
        """Yields every study."""
        for config, store in self._parts:
            trials, runs = read_studies(store), store.read_confirmed()
            for category in config.dataset.categories or ():
                for method in self.methods:
                    key = StudyKey(category, method)
                    found = tuple(trials.get(key, ())), tuple(runs.get(key, ()))
                    yield StudyResult(category, method, *found)

    def __getitem__(self, study: tuple[str, str]) -> StudyResult:
        """Returns the study of a category and a method.

        Raises:
            SweepError: If the sweep has no such study.
        """
        category, method = study
        self._check("category", category, self.categories)
        self._check("method", method, self.methods)
        key, (_, store) = StudyKey(category, method), self._place_of(category)
        trials = read_study(store.read_trials(key), store.read_scorings(key))
        return StudyResult(category, method, tuple(trials), tuple(store.read_runs(key)))

    def best(self, category: str, method: str | None = None) -> Best:
        """Returns the config that a category is answered with.

        Args:
            category: One of the sweep's.
            method: Only of this method; default: of the method of rank 1.

        Raises:
            SweepError: If there is no such study, or none of it has a completed trial yet.
        """
        self._check("category", category, self.categories)
        if method is not None:
            self._check("method", method, self.methods)
        rows = [
            row
            for row in self.leaderboard.to_pylist()
            if row["category"] == category and method in (None, row["method"])
        ]
        row = rows[0]
        if row["params"] is None:
            raise SweepError(self._why_none(self[category, row["method"]]))
        spec = TrainingSpec(
            dataset=self.config.dataset.model_copy(update={"categories": None}),
            category=category,
            method=row["method"],
            image_size=self.config.image_size,
            seed=self.config.seed,
            hyperparameters=json.loads(row["params"]),
            validation=self.config.validation,
            split_hash=row["split_hash"],
            found=Found(
                trial=row["trial_number"],
                auroc=row["val_auroc"],
                interval=(row["val_auroc_low"], row["val_auroc_high"]),
                default_auroc=row["default_val_auroc"],
                confirmed_auroc=row["confirmed_auroc_mean"],
                confirmed_interval=_pair(row["confirmed_auroc_low"], row["confirmed_auroc_high"]),
            ),
        )
        directory, _ = self._place_of(category)
        folder = _below(directory, model_folder(StudyKey(category, row["method"])))
        return Best(spec, row, folder)

    def __len__(self) -> int:
        """Returns the number of studies."""
        return len(self.categories) * len(self.methods)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.directories))})"

    def _place_of(self, category: str) -> tuple[str, RecordStore]:
        """Returns the directory of a category, and its records."""
        return next(
            (directory, store)
            for directory, (config, store) in zip(self.directories, self._parts, strict=True)
            if category in (config.dataset.categories or ())
        )

    @staticmethod
    def _why_none(study: StudyResult) -> str:
        where = f"{study.category}/{study.method}"
        failed = [trial for trial in study.trials if trial.state == "FAIL"]
        if not failed:
            return f"{where}: no completed trial yet, so there is no best config"
        return (
            f"{where}: none of {len(study.trials)} trials has completed, so there is no best "
            f"config; the last to fail says: {failed[-1].error}"
        )

    def _check(self, what: str, name: str, known: tuple[str, ...]) -> None:
        if name not in known:
            raise SweepError(f"{what} {name!r}: not in this sweep{suggest(name, known)}")


def open_sweep(directory: str | os.PathLike[str], *others: str | os.PathLike[str]) -> SweepResult:
    """Opens the directory of a sweep, which may still run elsewhere.

    A sweep that was divided by category among several drivers has several: read as one, they are
    the sweep of all these categories.

    Args:
        directory: Local path or pyarrow filesystem URI.
        others: Further ones.

    Raises:
        SweepError: If one is not the directory of a sweep of this version, or several are not
            those of one sweep, each with categories of its own.
        StorageError: If one cannot be read.
    """
    return SweepResult(directory, *others)


def _pair(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _below(directory: str, path: str) -> str:
    """Returns the place of something in a directory, which may be a URI with parameters."""
    place, question, parameters = directory.partition("?" if "://" in directory else "\0")
    return f"{place.rstrip('/')}/{path}{question}{parameters}"
