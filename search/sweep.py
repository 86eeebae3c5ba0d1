"""A sweep from its file to its leaderboard: what `anomtune sweep` does, step by step."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from anomtune.datasets.base import Dataset
from anomtune.datasets.registry import open_dataset
from anomtune.datasets.splits import SearchSplit, Validation, load_search_split
from anomtune.models.hyperparameters import Choice
from anomtune.models.registry import get_method
from anomtune.search.config import (
    SweepConfig,
    SweepError,
    check_extends,
    parse_sweep,
    read_yaml,
    suggest,
)
from anomtune.search.curves import CurveWriter
from anomtune.search.engine import concurrency, ray_cluster, run_pool, trial_resources
from anomtune.search.leaderboard import write_tables
from anomtune.search.monitor import Monitor
from anomtune.search.pool import Pool
from anomtune.search.records import RecordStore, TrialRecord
from anomtune.search.storage import DirectoryLock, Storage
from anomtune.search.study import SearchPlan, plan_search
from anomtune.search.trial import TrialSpec

#: How many notes on one category are shown.
_SHOWN = 5


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended.

    Attributes:
        leaderboard: The table, also in the sweep directory.
        interrupted: Whether trials are left to run.
        unusable: Studies without a completed trial.
    """

    leaderboard: pa.Table
    interrupted: bool
    unusable: tuple[str, ...]


def run_sweep(
    config: SweepConfig,
    directory: str | os.PathLike[str],
    *,
    address: str | None = None,
    monitor: Monitor | None = None,
) -> Outcome:
    """Runs a sweep, or what an earlier run of it has left.

    Args:
        config: The sweep.
        directory: Local path or pyarrow filesystem URI of the sweep directory.
        address: Ray cluster; ``None`` for this machine alone.
        monitor: Shows the progress; default: nobody is told.

    Raises:
        SweepError: If the input is bad, and then nothing has been written; or if storage or data
            fail while trials run, and then the next start goes on.
        DataError, MethodError: If images or weights are not as they must be; nothing written.
    """
    monitor = monitor or Monitor(Console(quiet=True))
    storage = Storage(directory)
    config = resolve(config)
    plans = {name: plan_search(name, method) for name, method in config.methods.items()}
    _check_directory(storage, config)
    for plan in plans.values():
        _prepare_method(plan)
    splits = _open_splits(config, monitor)
    _check_rungs(config, plans, splits)
    # Nothing has been written so far, and nothing will be if the directory has another owner.
    with DirectoryLock(storage):
        _check_directory(storage, config)
        store = RecordStore(storage)
        curves = CurveWriter(storage, plans)

        def save(record: TrialRecord) -> None:
            # The curve first: should we be killed in between, the trial is run again and its
            # curve is written anew.
            curves.update(record)
            store.write(record)

        hashes = {category: split.split_hash for category, split in splits.items()}
        pool = Pool(config, plans, hashes, store.read_all(), save)
        if pool.remaining == 0:
            _write_preamble(config, store, splits)
        else:
            monitor.note("starting Ray")
            with ray_cluster(address):
                slots = concurrency(config)
                resources = trial_resources(config.resources)
                _write_preamble(config, store, splits)
                monitor.running(pool, slots)
                try:
                    run_pool(pool, _spec_maker(config, storage, resources), resources, slots)
                finally:
                    monitor.stopped()
        return Outcome(
            leaderboard=write_tables(config, store),
            interrupted=pool.remaining > 0,
            unusable=tuple(str(key) for key, study in pool.studies.items() if study.best is None),
        )


def resolve(config: SweepConfig) -> SweepConfig:
    """Returns the config with an absolute root and its categories spelled out and checked.

    Raises:
        SweepError, DataError: If there is no such dataset, folder or category.
    """
    known = _dataset(config).categories()
    for category in config.dataset.categories or ():
        if category not in known:
            raise SweepError(
                f"dataset.categories: no category {category!r}{suggest(category, known)}"
            )
    root = config.dataset.root
    section = config.dataset.model_copy(
        update={
            # Not resolved: a link's name is the category's, and where it leads may change.
            "root": root and str(Path(root).expanduser().absolute()),
            "categories": config.dataset.categories or known,
        }
    )
    return config.model_copy(update={"dataset": section})


def _prepare_method(plan: SearchPlan) -> None:
    """Makes sure that the weights of every config of the space can be had, before any trial."""
    detector = get_method(plan.method)
    detector.prepare(plan.defaults)
    for name, item in plan.space.items():
        if isinstance(item, Choice):
            for value in item.choices:
                detector.prepare(plan.defaults.model_copy(update={name: value}))


def _check_directory(storage: Storage, config: SweepConfig) -> None:
    earlier = storage.read("sweep.yaml")
    if earlier is not None:
        location = f"{storage.location}/sweep.yaml"
        old = parse_sweep(read_yaml(earlier.decode(), location), location)
        check_extends(old, config, storage.location)


def _open_splits(config: SweepConfig, monitor: Monitor) -> dict[str, SearchSplit]:
    """Decodes the images that are not in this machine's cache yet."""
    dataset = _dataset(config)
    validation = Validation(**config.validation.model_dump())
    splits = {}
    _note_all(config, monitor, [str(problem) for problem in dataset.warnings()])
    for category in config.dataset.categories or ():
        monitor.note(f"reading {config.dataset.name}/{category}")
        split = load_search_split(dataset, category, config.image_size, validation)
        _note_all(config, monitor, [*split.warnings, *split.dropped])
        splits[category] = split
    return splits


def _note_all(config: SweepConfig, monitor: Monitor, messages: Sequence[str]) -> None:
    """Shows the first few of what is odd about a dataset, and where to see the rest."""
    for message in messages[:_SHOWN]:
        monitor.note(f"note: {message}")
    if len(messages) > _SHOWN:
        where = filter(None, (config.dataset.name, config.dataset.root))
        command = shlex.join(["anomtune", "audit", *where])
        monitor.note(f"note: {len(messages) - _SHOWN} more; all of them: {command}")


def _check_rungs(
    config: SweepConfig, plans: Mapping[str, SearchPlan], splits: Mapping[str, SearchSplit]
) -> None:
    for name, plan in plans.items():
        for category, split in splits.items():
            iterations = plan.defaults.training_iterations(len(split.train))
            if iterations < config.rungs:
                raise SweepError(
                    f"rungs: {config.rungs} are more than the {iterations} training iterations of "
                    f"{name} on {category}; ask for fewer rungs or train longer"
                )


def _write_preamble(
    config: SweepConfig, store: RecordStore, splits: Mapping[str, SearchSplit]
) -> None:
    """Writes what a reader of the directory needs beside the records."""
    store.storage.write("sweep.yaml", config.to_yaml().encode(), durable=True)
    counts = {name: (split.n_test_normal, split.n_test_anomalous) for name, split in splits.items()}
    store.write_test_counts(counts)
    for category, split in splits.items():
        store.write_labels(category, split.validation_labels)


def _dataset(config: SweepConfig) -> Dataset:
    root = config.dataset.root
    return open_dataset(config.dataset.name, None if root is None else Path(root).expanduser())


def _spec_maker(
    config: SweepConfig, storage: Storage, resources: Mapping[str, float]
) -> Callable[[TrialRecord], TrialSpec]:
    local = storage.local_root

    def make(record: TrialRecord) -> TrialSpec:
        return TrialSpec(
            directory=storage.location if local is None else str(local),
            record_path=record.path,
            dataset=config.dataset.name,
            root=config.dataset.root,
            category=record.category,
            validation=config.validation,
            split_hash=record.split_hash,
            image_size=config.image_size,
            method=record.method,
            params=record.params,
            rungs=config.rungs,
            seed=record.seed,
            threads=config.resources.cpu,
            gpu=resources.get("gpu", 0),
        )

    return make
