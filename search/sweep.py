"""A sweep from its file to its leaderboard: what `anomtune sweep` does, step by step."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from anomtune.cli.monitor import Monitor
from anomtune.datasets.io.foreign import list_images
from anomtune.datasets.io.remote import has_secrets, is_uri, mask_uri
from anomtune.datasets.splits.audit import find_missing
from anomtune.datasets.splits.damage import check_without
from anomtune.datasets.splits.split import SearchSplit, Validation, load_search_split
from anomtune.errors import SweepError, suggest
from anomtune.registry import METHODS
from anomtune.search.config import SweepConfig, check_extends, parse_sweep, read_yaml
from anomtune.search.data import open_data
from anomtune.search.decide.pool import Pool
from anomtune.search.decide.study import SearchPlan, plan_search
from anomtune.search.decide.work import Confirmation, Work
from anomtune.search.results.leaderboard import write_tables
from anomtune.search.results.tensorboard import CurveWriter
from anomtune.search.results.winners import kept_seed, publish_winner
from anomtune.search.run.capacity import Capacity
from anomtune.search.run.checkpoint import delete_checkpoint, delete_other_checkpoints
from anomtune.search.run.engine import SpecMaker, living_nodes, ray_cluster, run_work
from anomtune.search.run.probe import require_shared
from anomtune.search.run.trial import TrialSpec
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.records import (
    AnyRecord,
    ConfirmRecord,
    RecordStore,
    StudyKey,
)
from anomtune.search.store.storage import Storage

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
    settings = open_data(config.dataset).settings
    plans = {name: plan_search(name, method, settings) for name, method in config.methods.items()}
    config = leave_out_damage(config, plans, monitor)
    _check_directory(storage, config)
    for plan in plans.values():
        prepare_method(plan, config.dataset.root)
    splits = _open_splits(config, monitor)
    # Nothing has been written so far, and nothing will be if the directory has another owner.
    with DirectoryLock(storage, monitor.note) as lock:
        _check_directory(storage, config)
        store = RecordStore(storage)
        curves = CurveWriter(storage, plans)

        def save(record: AnyRecord) -> None:
            lock.check()
            # The curve first: should we be killed in between, the trial is run again and its
            # curve is written anew.
            curves.update(record)
            store.write(record)
            if record.state != "RUNNING":
                delete_checkpoint(storage, record.path)

        hashes = {category: split.split_hash for category, split in splits.items()}
        pool = Pool(config, plans, hashes, store.read_all(), save)
        delete_other_checkpoints(storage, {record.path for record in pool.unfinished})

        def publish(key: StudyKey) -> None:
            records = list(pool.studies[key].records.values())
            publish_winner(storage, key, records, store.read_runs(key), config.confirm)

        work = Work(pool, Confirmation(config, pool, store.read_confirmed(), save, publish))
        if work.remaining == 0:
            _write_preamble(config, store, splits)
        else:
            monitor.note("starting Ray")
            with ray_cluster(address):
                require_shared(storage)
                capacity = Capacity(config, living_nodes)
                _write_preamble(config, store, splits)
                monitor.running(work, capacity.slots)
                try:
                    run_work(config, work, _spec_maker(config, storage), capacity)
                finally:
                    monitor.stopped()
            delete_other_checkpoints(storage, {record.path for record in pool.unfinished})
        return Outcome(
            leaderboard=write_tables(config, store),
            interrupted=work.remaining > 0,
            unusable=tuple(str(key) for key, study in pool.studies.items() if study.best is None),
        )


def resolve(config: SweepConfig) -> SweepConfig:
    """Returns the config with an absolute root and its categories spelled out and checked.

    Raises:
        SweepError, DataError: If there is no such dataset, folder or category.
    """
    root = config.dataset.root
    if root is not None and is_uri(root) and has_secrets(root):
        # The resolved config is written into the sweep directory, for everybody to read.
        raise SweepError(
            f"dataset.root: {mask_uri(root)} carries credentials; take them out and set them in "
            "the environment"
        )
    known = open_data(config.dataset).categories()
    for category in config.dataset.categories or ():
        if category not in known:
            raise SweepError(
                f"dataset.categories: no category {category!r}{suggest(category, known)}"
            )
    section = config.dataset.model_copy(
        update={
            # Not resolved: a link's name is the category's, and where it leads may change.
            "root": root if root is None or is_uri(root) else _absolute(root),
            "categories": tuple(dict.fromkeys(config.dataset.categories or known)),
        }
    )
    return config.model_copy(update={"dataset": section})


def leave_out_damage(
    config: SweepConfig, plans: Mapping[str, SearchPlan], monitor: Monitor
) -> SweepConfig:
    """Returns the config with what its methods train on left out of synthetic validation.

    Of all methods, not of each: they are to be judged by the same images.

    Raises:
        SweepError: If too few kinds of damage are left.
    """
    if config.validation.protocol != "synthetic":
        return config
    without = set(config.validation.without_damage)
    reasons = []
    for name, plan in plans.items():
        damage = frozenset().union(*(variant.training_damage() for variant in plan.variants()))
        if damage:
            reasons.append(f"{name} may train on {', '.join(sorted(damage))}")
            without |= damage
    for reason in reasons:
        monitor.note(f"{reason}: left out of the validation")
    try:
        check_without(without)
    except ValueError as error:
        message = "; ".join([f"validation.without_damage: {error}", *reasons])
        raise SweepError(message) from None
    section = config.validation.model_copy(update={"without_damage": tuple(sorted(without))})
    return config.model_copy(update={"validation": section})


def _absolute(root: str) -> str:
    return str(Path(root).expanduser().absolute())


def _check_foreign(folder: Path, root: str | None) -> None:
    """Makes sure that a folder of foreign images is one, everywhere, and holds no test image."""
    if not folder.is_absolute():
        raise SweepError(f"{folder}: give the folder by its absolute path, for every worker")
    if root is not None and not is_uri(root):
        images = Path(root).resolve()
        if folder.resolve().is_relative_to(images) or images.is_relative_to(folder.resolve()):
            raise SweepError(
                f"{folder}: overlaps the dataset in {root}, whose test images nothing may learn "
                "from; give another folder"
            )
    list_images(folder)


def prepare_method(plan: SearchPlan, root: str | None) -> None:
    """Makes sure that weights and foreign images of every config can be had, before any trial."""
    detector = METHODS.get(plan.method)
    for config in plan.variants():
        detector.prepare(config)
        source = config.foreign_images()
        if source is not None and source != "categories":
            _check_foreign(Path(source).expanduser(), root)


def _check_directory(storage: Storage, config: SweepConfig) -> None:
    earlier = storage.read("sweep.yaml")
    if earlier is not None:
        location = f"{storage.location}/sweep.yaml"
        old = parse_sweep(read_yaml(earlier.decode(), location), location)
        check_extends(old, config, storage.location)


def _open_splits(config: SweepConfig, monitor: Monitor) -> dict[str, SearchSplit]:
    """Decodes the images that are not in this machine's cache yet."""
    dataset = open_data(config.dataset)
    validation = Validation(**config.validation.model_dump())
    splits = {}
    _note_all(config, monitor, [str(problem) for problem in dataset.warnings()])
    for category in config.dataset.categories or ():
        monitor.note(f"reading {config.dataset.name}/{category}")
        split = load_search_split(dataset, category, config.image_size, validation)
        missing = find_missing(dataset, category, dataset.scan(category)[0])
        _note_all(config, monitor, [*map(str, missing), *split.warnings, *split.dropped])
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


def _write_preamble(
    config: SweepConfig, store: RecordStore, splits: Mapping[str, SearchSplit]
) -> None:
    """Writes what a reader of the directory needs beside the records."""
    store.storage.write("sweep.yaml", config.to_yaml().encode(), durable=True)
    counts = {name: (split.n_test_normal, split.n_test_anomalous) for name, split in splits.items()}
    store.write_test_counts(counts)
    for category, split in splits.items():
        store.write_labels(category, split.validation_labels)


def _spec_maker(config: SweepConfig, storage: Storage) -> SpecMaker:
    local = storage.local_root

    def make(record: AnyRecord, gpu: float) -> TrialSpec:
        return TrialSpec(
            directory=storage.location if local is None else str(local),
            record_path=record.path,
            dataset=config.dataset,
            category=record.category,
            validation=config.validation,
            split_hash=record.split_hash,
            image_size=config.image_size,
            method=record.method,
            params=record.params,
            rungs=config.rungs,
            seed=record.seed,
            keep=isinstance(record, ConfirmRecord) and record.seed == kept_seed(config.confirm),
            threads=config.resources.cpu,
            gpu=gpu,
        )

    return make
