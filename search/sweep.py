"""A sweep from its file to its leaderboard: what `anomtune sweep` does, step by step."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from anomtune.datasets.splits.split import SearchSplit
from anomtune.errors import SweepError
from anomtune.names import to_text
from anomtune.search.config import Sweep
from anomtune.search.decide.budget import Hours
from anomtune.search.decide.confirm import kept_seed
from anomtune.search.decide.plan import SearchPlan
from anomtune.search.decide.pool import Pool
from anomtune.search.decide.progress import sweep_progress
from anomtune.search.decide.timeleft import RunTimes
from anomtune.search.decide.work import Confirmation, Work
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.events import (
    ConfirmEnded,
    ConfirmStarted,
    Note,
    Observer,
    RungReached,
    SearchEnded,
    SweepEnded,
    SweepStarted,
    TrialEnded,
    TrialStarted,
)
from anomtune.search.journal import Journal
from anomtune.search.preparation import check_directory, prepare
from anomtune.search.results.delivery import Loggers, open_loggers
from anomtune.search.results.leaderboard import write_tables
from anomtune.search.results.result import SweepResult
from anomtune.search.results.winners import model_folder, publish_winner
from anomtune.search.run.capacity import Capacity
from anomtune.search.run.checkpoint import delete_other_checkpoints
from anomtune.search.run.engine import run_work
from anomtune.search.run.handout import SpecMaker
from anomtune.search.run.probe import require_shared
from anomtune.search.run.ray_cluster import living_nodes, ray_cluster
from anomtune.search.run.trial import TrialSpec
from anomtune.search.store.directory import write_config
from anomtune.search.store.lock import DirectoryLock
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import AnyRecord, ConfirmRecord, StudyKey, TrialRecord
from anomtune.search.store.spent import Spent, SpentClock, read_spent
from anomtune.search.store.storage import Storage

#: Ray and its switches are a process's own: one sweep at a time.
_one = threading.Lock()


def run(
    sweep: Sweep,
    directory: str | os.PathLike[str],
    *,
    address: str | None = None,
    on_event: Observer = lambda event: None,
) -> SweepResult:
    """Runs a sweep, or what an earlier run of it has left.

    Ray is used as it is found: one that this process has started already is left running. Nothing
    else of the process is changed.

    >>> import anomtune as at
    >>> sweep = at.Sweep(
    ...     name="try",
    ...     dataset={"name": "synthetic", "categories": ["grain"]},
    ...     methods={"padim": {"fixed": {"backbone": "mobilenet_v2", "weights": "random"}}},
    ...     image_size=32,
    ...     trials=2,
    ...     confirm=0,
    ... )
    >>> result = at.run(sweep, "sweeps/try")
    >>> result.finished
    True
    >>> result.leaderboard.select(["category", "method", "completed"]).to_pylist()
    [{'category': 'grain', 'method': 'padim', 'completed': 2}]

    Args:
        sweep: What to search.
        directory: Local path or pyarrow filesystem URI of the sweep directory.
        address: Ray cluster; ``None`` for this machine alone.
        on_event: Is told what happens; default: nobody is.

    Returns:
        The result.

    Raises:
        KeyboardInterrupt: If it was interrupted, by Ctrl-C or SIGTERM: all that runs has been
            ended in order, and the same call goes on from there.
        SweepError, StorageError: If the input is bad, and then nothing has been written; or if
            storage fails while trials run, and then the next start goes on.
        DataError, MethodError: If images or weights are not as they must be; nothing written.
    """
    if not _one.acquire(blocking=False):
        raise SweepError(
            "a sweep runs in this process already; run them one after the other, or each in a "
            "process of its own"
        )
    try:
        return _run(sweep, Storage(directory), address, on_event)
    finally:
        _one.release()


def _run(sweep: Sweep, storage: Storage, address: str | None, on_event: Observer) -> SweepResult:
    begun = time.monotonic()
    prepared = prepare(sweep, storage, on_event)
    config, plans, splits = prepared.config, prepared.plans, prepared.splits

    # Nothing has been written so far, and nothing will be if the directory has another owner.
    with DirectoryLock(storage, partial(_note, on_event)) as lock, ExitStack() as stack:
        check_directory(storage, config)
        store = RecordStore(storage, lock)
        journal, loggers, times = stack.enter_context(_told(config, store, lock, plans, on_event))

        def save(record: AnyRecord) -> None:
            journal.write(record, pool.show(record))

        confirmed = store.read_confirmed()
        hashes = {category: split.split_hash for category, split in splits.items()}
        spent = read_spent(storage)
        pool = Pool(config, plans, hashes, store.read_all(), save, winners=prepared.winners)
        if spent.search_is_over(config):
            pool.close()
        journal.catch_up(_all_records(pool, confirmed), pool.show)
        loggers.catch_up(_all_records(pool, confirmed), pool.show)

        def publish(key: StudyKey) -> None:
            trials = pool.studies[key].read
            journal.follow(model_folder(key), partial(_place_winner, config, store, key, trials))

        confirmation = Confirmation(config, pool, confirmed, save, publish)
        clock = SpentClock(storage, config, begun, check=lock.check)
        work = _make_work(config, pool, confirmation, clock, partial(_tell_end, journal, on_event))
        delete_other_checkpoints(storage, work.unfinished)
        if spent.confirm_is_over(config):
            confirmation.give_up()
        if work.remaining == 0:
            _write_preamble(config, store, splits, plans)
        else:
            on_event(Note("starting Ray"))
            with ray_cluster(address):
                require_shared(storage)
                capacity = Capacity(config, living_nodes)
                work.hours.slots = capacity.slots
                _write_preamble(config, store, splits, plans)
                journal.records.drain()
                on_event(_started(config, work, confirmed, spent, times))
                try:
                    with clock.running():
                        specs = _spec_maker(config, storage, pool)
                        run_work(config, work, specs, capacity, journal.records)
                        journal.drain()
                finally:
                    on_event(SweepEnded())
            delete_other_checkpoints(storage, work.unfinished)
        journal.drain()
        write_tables(config, store)
        if work.remaining:
            raise KeyboardInterrupt(f"{storage.location}: interrupted; the same call goes on")
        return SweepResult(storage.location)


def _all_records(
    pool: Pool, confirmed: Mapping[StudyKey, Sequence[ConfirmRecord]]
) -> Iterator[AnyRecord]:
    for study in pool.studies.values():
        yield from study.records.values()
    for runs in confirmed.values():
        yield from runs


def _make_work(
    config: Sweep,
    pool: Pool,
    confirmation: Confirmation,
    clock: SpentClock,
    search_ended: Callable[[StudyKey, int], None],
) -> Work:
    return Work(
        config,
        pool,
        confirmation,
        Hours(config, clock.seconds),
        closed=clock.end_search,
        over=clock.end_confirm,
        search_ended=search_ended,
    )


def _place_winner(
    config: Sweep, store: RecordStore, key: StudyKey, trials: Sequence[TrialRecord]
) -> None:
    publish_winner(store.storage, key, trials, store.read_runs(key), config.confirm)


def _started(
    config: Sweep,
    work: Work,
    confirmed: Mapping[StudyKey, Sequence[ConfirmRecord]],
    spent: Spent,
    times: RunTimes,
) -> SweepStarted:
    studies = work.pool.studies
    trials = {key: study.read for key, study in studies.items()}
    searched = {key: bool(study.plan.space) for key, study in studies.items()}
    progress = sweep_progress(config, trials, confirmed, searched.__getitem__, spent)
    for record in _all_records(work.pool, confirmed):
        if record.state != "RUNNING":  # what ran when a driver was killed does not run now
            times.add(record)
    left = work.hours.left if work.hours.limited else None
    return SweepStarted(work.hours.slots, tuple(progress.values()), left, times)


def _tell_end(journal: Journal, on_event: Observer, key: StudyKey, owed: int) -> None:
    """Tells that a search has ended, when all that its trials did has been told."""
    journal.records.then(partial(on_event, SearchEnded(*key, owed)))


def _note(on_event: Observer, text: str) -> None:
    on_event(Note(text))


@contextmanager
def _told(
    config: Sweep,
    store: RecordStore,
    lock: DirectoryLock,
    plans: Mapping[StudyKey, SearchPlan],
    on_event: Observer,
) -> Iterator[tuple[Journal, Loggers, RunTimes]]:
    """Opens the journal, and what is told of its records beside the observer."""
    times = RunTimes(config.rungs)

    def tell(record: AnyRecord) -> None:
        loggers.put(record)
        times.add(record)
        _tell(record, on_event)

    with (
        open_loggers(config, store.storage, partial(_note, on_event)) as loggers,
        Journal(store, lock, plans, tell) as journal,
    ):
        yield journal, loggers, times


def _tell(record: AnyRecord, on_event: Observer) -> None:
    """Tells what a record that has just been written says."""
    where = record.category, record.method, record.number
    if isinstance(record, ConfirmRecord):
        if record.state == "RUNNING":
            on_event(ConfirmStarted(*where, record.seed))
        else:
            ended = record.state, record.val_auroc, record.error
            on_event(ConfirmEnded(*where, record.seed, *ended))
    elif record.state != "RUNNING":
        on_event(TrialEnded(*where, record.state, record.value, record.error))
    elif record.curve:
        on_event(RungReached(*where, record.curve[-1].step, record.curve[-1].auroc))
    else:
        on_event(TrialStarted(*where))


def _write_preamble(
    config: Sweep,
    store: RecordStore,
    splits: Mapping[str, SearchSplit],
    plans: Mapping[StudyKey, SearchPlan],
) -> None:
    """Writes what a reader of the directory needs beside the records."""
    for key, plan in plans.items():
        if len(plan.scorings) > 1:
            store.write_scorings(key, plan.scorings)
    store.write_searched({key: bool(plan.space) for key, plan in plans.items()})
    write_config(store.storage, config)
    counts = {name: (split.n_test_normal, split.n_test_anomalous) for name, split in splits.items()}
    store.write_test_counts(counts)
    for category, split in splits.items():
        store.write_labels(category, split.validation_labels)


def _spec_maker(config: Sweep, storage: Storage, pool: Pool) -> SpecMaker:
    local = storage.local_root

    def make(record: AnyRecord, gpu: float) -> TrialSpec:
        study = pool.studies[record.key]
        confirms = isinstance(record, ConfirmRecord)
        paper = study.plan.scorings[0]
        return TrialSpec(
            training=TrainingSpec(
                dataset=config.dataset,
                category=record.category,
                method=record.method,
                image_size=config.image_size,
                seed=record.seed,
                hyperparameters=record.params,
                validation=config.validation,
                split_hash=record.split_hash,
            ),
            directory=storage.location if local is None else to_text(local),
            record_path=record.path,
            rungs=config.rungs,
            keep=confirms and record.seed == kept_seed(config.confirm),
            pinned=study.plan.pinned,
            leading=() if confirms else study.leading,
            paper=paper if confirms and record.number == 0 and study.scoring else None,
            threads=config.resources.cpu,
            gpu=gpu,
        )

    return make
