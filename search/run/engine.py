"""Runs a sweep on Ray Tune. Optuna decides, in the pool; Ray Tune only executes.

Two thin adapters stand between them: a Searcher that hands out trials and confirm runs, and a
Scheduler that answers each result with the pool's verdict. Both forget their work when Tune
snapshots them: the records are the truth, and every start is a fresh Tuner for what remains.

How many runs are handed out, and which share of a GPU each has, is decided here as well
(`Capacity`, `Packer`); where they run, Ray decides.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import AuthenticationError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from anomtune.errors import SweepError
from anomtune.search.config import SweepConfig
from anomtune.search.decide.work import Work
from anomtune.search.run.capacity import Capacity
from anomtune.search.run.collector import Collector
from anomtune.search.run.packing import Kind, Packer, kind_of, larger_share, share_name
from anomtune.search.run.trial import TrialResult, TrialSpec
from anomtune.search.run.worker import TrialActor
from anomtune.search.store.records import AnyRecord, ConfirmRecord, ConfirmResult, Cost, TrialRecord

#: How Tune is set up where it has no argument for it.
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our records and curves replace Tune's
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports no metric
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # its snapshot is not the truth, and costs time
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000000",  # the searcher says when there is no more room
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "10",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_WORKER_DIED = "the worker process died (killed, out of memory, or a crash of native code)"

#: How Ray says that an actor went with its node: once it knows, and before.
_NODE_LOST = ("its node has died", "is unavailable")

#: How often a run is begun again when its worker died, and when its node did. Nodes come and go,
#: but a run that takes the memory of its whole machine would end one after the other.
_AGAIN, _AGAIN_ELSEWHERE = 1, 5

#: Says what a worker is told of a run that has so many GPUs.
SpecMaker = Callable[[AnyRecord, float], TrialSpec]


@dataclass(frozen=True)
class _Run:
    """A trial or confirm run that Tune has been given.

    Attributes:
        record: What it is.
        gpu: GPUs that it has.
        kind: What it shares GPUs as; ``None`` if the sweep file says how many GPUs it has.
        ran_out_with: The share with which its latest attempt ran out of memory.
        deaths: How many attempts ended with the death of their worker.
        losses: How many ended with the loss of their node.
    """

    record: AnyRecord
    gpu: float
    kind: Kind | None = None
    ran_out_with: float | None = None
    deaths: int = 0
    losses: int = 0


class _Adapters:
    """What the searcher and the scheduler share: the work, and Tune's names for its runs."""

    def __init__(
        self, config: SweepConfig, work: Work, make_spec: SpecMaker, capacity: Capacity
    ) -> None:
        self.work = work
        self.make_spec = make_spec
        self.capacity = capacity
        self.packer = Packer()
        self._collector = Collector()
        for record in work.ended_before():
            if record.cost.gpu_memory_bytes is not None:
                self.packer.remember(kind_of(record, config.image_size), record.cost)
        self._image_size = config.image_size
        self._handed_out: Counter[float] = Counter()
        self._again: deque[_Run] = deque()
        self.runs: dict[str, _Run] = {}
        self.pruned: set[str] = set()
        #: Why Ray gave up on a trial, and whether it went with its node.
        self.reasons: dict[str, tuple[str, bool]] = {}
        #: The first failure of the work itself (storage), which ends the run.
        self.failure: Exception | None = None

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keeps a failure for after the run: Tune would bury it in its own."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again by run_work
            self.failure = self.failure or error

    def start(self, trial_id: str) -> _Run | None:
        """Returns what is to run now under Tune's name, ``None`` if nothing can."""
        run = self._next()
        if run is not None:
            self.runs[trial_id] = run
            self._handed_out[run.gpu] += 1
        return run

    def end(self, trial_id: str) -> _Run:
        """Returns what ran under Tune's name and has ended."""
        run = self.runs.pop(trial_id)
        self._handed_out[run.gpu] -= 1
        self._collector.ended()
        return run

    def retry(self, run: _Run) -> None:
        """Runs once more, before anything else, what has not really ended. Its record stays."""
        self._again.append(run)

    def _next(self) -> _Run | None:
        packs = self.capacity.packs
        least = self.packer.smallest if packs else self.capacity.gpu
        if not self.capacity.has_room(
            self._handed_out, self._again[0].gpu if self._again else least
        ):
            return None
        if self._again:
            return self._again.popleft()
        record = self.work.ask()
        if record is None:
            return None
        if not packs:
            return _Run(record, self.capacity.gpu)
        kind = kind_of(record, self._image_size)
        return _Run(record, self.packer.share(kind), kind)


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
            run = shared.start(trial_id)
            if run is not None:
                suggestion = {
                    "spec": shared.make_spec(run.record, run.gpu).model_dump(),
                    "confirm": isinstance(run.record, ConfirmRecord),
                    "shape": shared.capacity.shape(run.gpu),
                }
            elif shared.work.remaining == 0:
                return str(Searcher.FINISHED)
        return suggestion

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ends a trial. The last result, which carried ``done``, is seen here alone."""
        shared = self._adapters
        if trial_id not in shared.runs or shared.failure is not None:
            return
        run = shared.end(trial_id)
        with shared.guard():
            if error:
                self._begin_again(run, *shared.reasons.pop(trial_id, ("Ray gave no reason", False)))
            elif result is not None and "abort" in result:
                # The record says RUNNING: when the surroundings are mended, the trial is run.
                raise SweepError(result["abort"])
            elif result is not None and "out_of_memory" in result:
                self._run_out_of_memory(run)
            elif result is None or ("error" not in result and "result" not in result):
                self._fail(run, "the trial ended without a result")
            elif "error" in result:
                self._fail(run, result["error"], result["traceback"])
            else:
                self._succeed(run, result["result"], pruned=trial_id in shared.pruned)

    def _succeed(self, run: _Run, result: str, *, pruned: bool) -> None:
        work, record = self._adapters.work, run.record
        if isinstance(record, ConfirmRecord):
            confirmed = ConfirmResult.model_validate_json(result)
            confirmed.cost = self._learn(run, confirmed.cost)
            work.confirmation.finish(record, confirmed)
            return
        last = TrialResult.model_validate_json(result)
        if last.facts is not None:
            cost = self._learn(run, last.cost)
            work.pool.report(record.key, record.number, last.rung)
            work.pool.finish(record.key, record.number, "COMPLETE", facts=last.facts, cost=cost)
        elif pruned:
            cost = self._learn(run, last.cost)
            work.pool.finish(record.key, record.number, "PRUNED", cost=cost)
        # Else it was interrupted: its record says RUNNING, and the next start runs it.

    def _learn(self, run: _Run, cost: Cost) -> Cost:
        """Returns the cost of a run as its record keeps it, for the next start to learn from."""
        cost = cost.model_copy(update={"ran_out_with": run.ran_out_with})
        if run.kind is not None:
            self._adapters.packer.learn_memory(run.kind, cost)
            self._adapters.packer.learn_speed(run.kind, cost)
        return cost

    def _begin_again(self, run: _Run, reason: str, with_node: bool) -> None:
        """Retries a run whose process has ended, from its checkpoint; too many times is a FAIL."""
        run = replace(run, deaths=run.deaths + (not with_node), losses=run.losses + int(with_node))
        if run.deaths > _AGAIN or run.losses > _AGAIN_ELSEWHERE:
            self._fail(run, f"{reason}; this was attempt {run.deaths + run.losses}")
        else:
            self._adapters.retry(run)

    def _run_out_of_memory(self, run: _Run) -> None:
        """Retries a run in the next larger share, then on a whole GPU; what that cannot hold fails.

        Nothing is learned before a share has held it: a config that no GPU holds must not make
        the others take more than they need.
        """
        reason = f"out of GPU memory with {share_name(run.ran_out_with or run.gpu)}"
        if run.kind is not None and run.gpu < 1:
            gpu = larger_share(run.gpu) if run.ran_out_with is None else 1.0
            self._adapters.retry(replace(run, gpu=gpu, ran_out_with=run.gpu))
        elif run.ran_out_with is not None:
            self._fail(run, f"{reason}, and again with {share_name(run.gpu)}")
        else:
            remedy = "; resources.gpu can give it more" if run.gpu < 1 else ""
            self._fail(run, reason + remedy)

    def _fail(self, run: _Run, error: str, traceback: str | None = None) -> None:
        work, record = self._adapters.work, run.record
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
        text = Path(path).read_text().strip() if path and Path(path).exists() else ""
        if any(sign in text for sign in _NODE_LOST):
            reason = "its node went away", True
        elif "actor died" in text:
            reason = _WORKER_DIED, False
        else:
            lines = text.splitlines() or ["Ray gave no reason"]
            reason = f"the trial could not run: {lines[-1]}", False
        self._adapters.reasons[trial.trial_id] = reason

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns whether the trial goes on."""
        shared = self._adapters
        run = shared.runs.get(trial.trial_id)
        if shared.failure is not None or run is None:
            return str(TrialScheduler.STOP)
        record = run.record
        if not isinstance(record, TrialRecord):  # has one result, its last, which comes elsewhere
            return str(TrialScheduler.STOP)
        goes_on = False
        with shared.guard():
            reported = TrialResult.model_validate_json(result["result"])
            if run.kind is not None:
                shared.packer.learn_memory(run.kind, reported.cost)
            goes_on = shared.work.pool.report(record.key, record.number, reported.rung)
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
    except AuthenticationError as error:
        raise SweepError(
            f"{f'--address {address}' if address else 'Ray on this machine'}: it asks for a token "
            "and there is none, or another; put it into ~/.ray/auth_token or the file that "
            "RAY_AUTH_TOKEN_PATH names, and set RAY_AUTH_MODE=token"
        ) from error
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


def living_nodes() -> list[Mapping[str, float]]:
    """Returns what every node of the cluster has that is alive now."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _placement(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory([config["shape"]])


def run_work(config: SweepConfig, work: Work, make_spec: SpecMaker, capacity: Capacity) -> None:
    """Runs what remains of a sweep; returns early, with work left, if it is interrupted.

    Args:
        config: The sweep.
        work: The searches and confirm runs.
        make_spec: Says what a worker is told of a run.
        capacity: Says what a run occupies and how many there can be.

    Raises:
        SweepError: If the sweep directory refuses a record, or data or storage fail on a worker.
    """
    if work.remaining == 0:
        return
    # What Tune says of trials, the records say better.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    adapters = _Adapters(config, work, make_spec, capacity)
    scratch = tempfile.mkdtemp(prefix="anomtune-")
    try:
        with terminate_as_interrupt():
            tune.Tuner(
                tune.with_resources(TrialActor, _placement),
                tune_config=tune.TuneConfig(
                    search_alg=PoolSearcher(adapters),
                    scheduler=PoolScheduler(adapters),
                    num_samples=-1,  # the searcher says when nothing is left
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: str(trial.trial_id),
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=scratch,
                    verbose=0,
                    # Ours, not Tune's, to count: it takes a worker that died between two runs,
                    # unnoticed, for two failures of the second one.
                    failure_config=tune.FailureConfig(max_failures=0),
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
    # Ray starts the driver of a job with SIGINT blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
