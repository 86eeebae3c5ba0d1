"""Runs a sweep on Ray Tune. Optuna decides, in the pool; Ray Tune only executes.

Two thin adapters stand between them: a Searcher that hands out trials and confirm runs, and a
Scheduler that answers each result with the pool's verdict. Both forget their work when Tune
snapshots them: the records are the truth, and every start is a fresh Tuner for what remains.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from anomtune.search.config import ResourcesConfig, SweepConfig, SweepError
from anomtune.search.records import AnyRecord, ConfirmRecord, ConfirmResult, TrialRecord
from anomtune.search.trial import TrialResult, TrialSpec
from anomtune.search.work import Work
from anomtune.search.worker import TrialActor

#: How Tune is set up where it has no argument for it.
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our records and curves replace Tune's
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports no metric
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # its snapshot is not the truth, and costs time
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "10",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_WORKER_DIED = (
    "the worker process died, and again when the trial was retried "
    "(killed, out of memory, or a crash of native code)"
)


class _Adapters:
    """What the searcher and the scheduler share: the work, and Tune's names for its runs."""

    def __init__(self, work: Work, make_spec: Callable[[AnyRecord], TrialSpec]) -> None:
        self.work = work
        self.make_spec = make_spec
        self.records: dict[str, AnyRecord] = {}
        self.pruned: set[str] = set()
        #: Why Ray gave up on a trial.
        self.reasons: dict[str, str] = {}
        #: The first failure of the work itself (storage), which ends the run.
        self.failure: Exception | None = None

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keeps a failure for after the run: Tune would bury it in its own."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again by run_work
            self.failure = self.failure or error


class PoolSearcher(Searcher):  # type: ignore[misc]
    """Gives Ray Tune the trials and confirm runs that are to be started."""

    def __init__(self, adapters: _Adapters) -> None:
        super().__init__(metric=None, mode=None)
        self._adapters = adapters

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the records are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: the records are the state."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Returns the next trial, ``None`` for not now, ``FINISHED`` for no more."""
        shared = self._adapters
        if shared.failure is not None or shared.work.remaining == 0:
            return str(Searcher.FINISHED)
        suggestion = None
        with shared.guard():
            record = shared.work.ask()
            if record is not None:
                shared.records[trial_id] = record
                suggestion = {
                    "spec": shared.make_spec(record).model_dump(),
                    "confirm": isinstance(record, ConfirmRecord),
                }
            elif shared.work.remaining == 0:
                return str(Searcher.FINISHED)
        return suggestion

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ends a trial. The last result, which carried ``done``, is seen here alone."""
        shared = self._adapters
        if trial_id not in shared.records or shared.failure is not None:
            return
        record = shared.records.pop(trial_id)
        with shared.guard():
            if error:
                self._fail(record, shared.reasons.pop(trial_id, "Ray gave no reason"))
            elif result is not None and "abort" in result:
                # The record says RUNNING: when the surroundings are mended, the trial is run.
                raise SweepError(result["abort"])
            elif result is None or ("error" not in result and "result" not in result):
                self._fail(record, "the trial ended without a result")
            elif "error" in result:
                self._fail(record, result["error"], result["traceback"])
            elif isinstance(record, ConfirmRecord):
                last = ConfirmResult.model_validate_json(result["result"])
                shared.work.confirmation.finish(record, last)
            else:
                self._complete(record, result["result"], pruned=trial_id in shared.pruned)

    def _complete(self, record: TrialRecord, result: str, *, pruned: bool) -> None:
        pool = self._adapters.work.pool
        last = TrialResult.model_validate_json(result)
        if last.facts is not None:
            pool.report(record.key, record.number, last.rung)
            pool.finish(record.key, record.number, "COMPLETE", facts=last.facts, cost=last.cost)
        elif pruned:
            pool.finish(record.key, record.number, "PRUNED", cost=last.cost)
        # Else it was interrupted: its record says RUNNING, and the next start runs it.

    def _fail(self, record: AnyRecord, error: str, traceback: str | None = None) -> None:
        work = self._adapters.work
        if isinstance(record, ConfirmRecord):
            work.confirmation.finish(record, None, error=error, traceback=traceback)
        else:
            work.pool.finish(record.key, record.number, "FAIL", error=error, traceback=traceback)


class PoolScheduler(FIFOScheduler):  # type: ignore[misc]
    """Answers each rung with what the study's pruner says."""

    def __init__(self, adapters: _Adapters) -> None:
        super().__init__()
        self._adapters = adapters

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Notes why a trial could not run."""
        path = trial.error_file
        text = Path(path).read_text() if path and Path(path).exists() else ""
        lines = text.strip().splitlines() or ["Ray gave no reason"]
        self._adapters.reasons[trial.trial_id] = (
            _WORKER_DIED if "actor died" in text else f"the trial could not run: {lines[-1]}"
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns whether the trial goes on."""
        shared = self._adapters
        record = shared.records.get(trial.trial_id)
        # A confirm run has one result, its last, which is not asked about.
        if shared.failure is not None or not isinstance(record, TrialRecord):
            return str(TrialScheduler.STOP)
        goes_on = False
        with shared.guard():
            rung = TrialResult.model_validate_json(result["result"]).rung
            goes_on = shared.work.pool.report(record.key, record.number, rung)
            if not goes_on:
                shared.pruned.add(trial.trial_id)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Connects to a Ray cluster, or starts one on this machine for the time of the context.

    Args:
        address: ``None`` for this machine, ``auto`` or an address for a running cluster.

    Raises:
        SweepError: If there is no cluster at the address.
    """
    for name, value in _TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if address is None:
            raise SweepError(f"Ray does not start on this machine: {reason}") from error
        raise SweepError(
            f"--address {address}: no Ray cluster to use there ({reason}); start one with "
            f"`ray start --head`, or leave --address out"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def trial_resources(config: ResourcesConfig) -> dict[str, float]:
    """Returns what a trial occupies, as Ray counts it; a whole GPU where there are any."""
    gpus = ray.cluster_resources().get("GPU", 0)
    gpu = (1.0 if gpus else 0.0) if config.gpu == "auto" else config.gpu
    return {"cpu": config.cpu, "gpu": gpu} if gpu else {"cpu": config.cpu}


def concurrency(config: SweepConfig) -> int:
    """Returns how many trials run at once.

    Raises:
        SweepError: If the cluster has not the resources for a single one.
    """
    wanted = trial_resources(config.resources)
    have = ray.cluster_resources()
    slots = min(int(have.get(name.upper(), 0) / amount) for name, amount in wanted.items())
    if slots < 1:
        raise SweepError(
            f"resources: a trial wants {wanted}, the cluster has "
            f"{ {name: have.get(name.upper(), 0) for name in wanted} }; ask for less"
        )
    return slots if config.concurrency == "auto" else min(config.concurrency, slots)


def run_work(
    work: Work,
    make_spec: Callable[[AnyRecord], TrialSpec],
    resources: dict[str, float],
    max_concurrent: int,
) -> None:
    """Runs what remains of a sweep; returns early, with work left, if it is interrupted.

    Args:
        work: The searches and confirm runs.
        make_spec: Says what a worker is told of a run.
        resources: What a trial occupies.
        max_concurrent: How many trials run at once.

    Raises:
        SweepError: If the sweep directory refuses a record, or data or storage fail on a worker.
    """
    if work.remaining == 0:
        return
    # What Tune says of trials, the records say better.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    adapters = _Adapters(work, make_spec)
    scratch = tempfile.mkdtemp(prefix="anomtune-")
    try:
        with terminate_as_interrupt():
            tune.Tuner(
                tune.with_resources(TrialActor, resources),
                tune_config=tune.TuneConfig(
                    search_alg=PoolSearcher(adapters),
                    scheduler=PoolScheduler(adapters),
                    num_samples=work.remaining,
                    max_concurrent_trials=max_concurrent,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: str(trial.trial_id),
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=scratch,
                    verbose=0,
                    # A trial whose worker dies is run once more, from its beginning.
                    failure_config=tune.FailureConfig(max_failures=1),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if adapters.failure is not None:
        raise adapters.failure


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Lets SIGTERM (a preempted job) end a run as Ctrl-C does: orderly, resumable."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python takes signals in the main thread alone
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
