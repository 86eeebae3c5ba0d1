"""The two thin adapters between the work and Ray Tune.

A Searcher that hands out trials and confirm runs, and a Scheduler that answers each result with
the pool's verdict. Both forget their work when Tune snapshots them: the records are the truth, and
every start is a fresh Tuner for what remains.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from anomtune.search.config import Sweep
from anomtune.search.decide.work import Work
from anomtune.search.run.capacity import Capacity, Slot
from anomtune.search.run.messages import (
    Aborted,
    Assignment,
    ConfirmReport,
    Failed,
    OutOfMemory,
    Placed,
    TrialReport,
    from_result,
)
from anomtune.search.run.packing import Kind, Packer, kind_of, larger_share, share_name
from anomtune.search.run.ray_internals import (
    ACTOR_DIED,
    NODE_LOST,
    Actors,
    EndedTrials,
    LoopWaker,
    error_text,
    go_on,
)
from anomtune.search.run.sharing import Sharing
from anomtune.search.run.trial import TrialResult, TrialSpec
from anomtune.search.store.records import AnyRecord, ConfirmRecord, ConfirmResult, Cost, TrialRecord
from anomtune.search.store.writer import OrderedWriter

_NO_REASON = "Ray gave no reason"
_WORKER_DIED = "the worker process died (killed, out of memory, or a crash of native code)"

#: How often a run is begun again when its worker died, and when its node did. Nodes come and go,
#: but a run that takes the memory of its whole machine would end one after the other.
_AGAIN, _AGAIN_ELSEWHERE = 1, 5

#: Seconds for which a worker may have nothing to do: then others, and the autoscaler, may have what
#: it holds.
IDLE_SECONDS = 10.0

#: Seconds in which what waits takes an actor of its own shape that has nothing to do.
_TURN = 0.5
#: Seconds between two looks at what the actors hold.
_GLANCE = 0.1

#: Says what a worker is told of a run that has so many GPUs.
SpecMaker = Callable[[AnyRecord, float], TrialSpec]


@dataclass(frozen=True)
class _Run:
    """A trial or confirm run that Tune has been given.

    Attributes:
        record: What it is.
        gpu: GPUs that it has.
        gpu_type: Their type, where there are several.
        kind: What it shares GPUs as; ``None`` if the sweep file says how many GPUs it has.
        ran_out_with: The share with which its latest attempt ran out of memory.
        deaths: How many attempts ended with the death of their worker.
        losses: How many ended with the loss of their node.
    """

    record: AnyRecord
    gpu: float
    gpu_type: str | None = None
    kind: Kind | None = None
    ran_out_with: float | None = None
    deaths: int = 0
    losses: int = 0

    @property
    def slot(self) -> Slot:
        """What it has of the GPUs."""
        return Slot(self.gpu, self.gpu_type)


class Handout:
    """What is handed out: the work that the adapters share, and Tune's names for its runs.

    What is decided of a run reaches its worker when its record is safe; the other runs go on.
    """

    def __init__(
        self,
        config: Sweep,
        work: Work,
        make_spec: SpecMaker,
        capacity: Capacity,
        records: OrderedWriter,
        *,
        sharing: Sharing | None = None,
    ) -> None:
        self.work = work
        self.sharing = sharing or Sharing()
        self.actors = Actors(self._stays)
        #: Shapes of runs that are not given to Tune: others want the room that they would take.
        self._held_back: list[dict[str, float]] = []
        #: Of each shape, runs that have been given to Tune and have not taken their actor yet.
        self._taking: Counter[Slot] = Counter()
        self._looked = 0.0
        #: Whether a run would be more than the sweep may occupy, idle actors included.
        self._too_much = False
        #: Tune's names of runs that are taken back: others want the room that they wait for.
        self.withdrawn: set[str] = set()
        self.records = records
        self.make_spec = make_spec
        self.capacity = capacity
        self.packer = Packer()
        for record in work.ended_before():
            if record.cost.gpu_memory_bytes is not None:
                self.packer.remember(kind_of(record, config.image_size), record.cost)
        self._image_size = config.image_size
        self._handed_out: Counter[Slot] = Counter()
        self._again: deque[_Run] = deque()
        #: What is to run now, and whose records may not be safe yet.
        self._starting: list[_Run] = []
        self.runs: dict[str, _Run] = {}
        #: Tune's trials that wait for a verdict, and what it will be.
        self.verdicts: dict[str, tuple[Any, str]] = {}
        self.pruned: set[str] = set()
        #: Why Ray gave up on a trial, and whether it went with its node.
        self.reasons: dict[str, tuple[str, bool]] = {}
        #: The first failure of the work itself (storage), which ends the run.
        self.failure: Exception | None = None
        #: Called when a run has ended.
        self.tidy: Callable[[], None] = lambda: None

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keeps a failure for after the run: Tune would bury it in its own."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again by run_work
            self.failure = self.failure or error

    def start(self, trial_id: str) -> _Run | None:
        """Returns what is to run now under Tune's name, ``None`` if nothing can."""
        while (run := self._next()) is not None:
            self._handed_out[run.slot] += 1
            self._starting.append(run)
            if not self._has_place(run):
                break  # nor has what would follow it
        while self._starting:
            self._held_back.clear()
            self._too_much = False
            for run in self._starting:
                if self.is_safe(run) and self._has_place(run):
                    self._starting.remove(run)
                    self._taking[run.slot] += 1
                    self.runs[trial_id] = run
                    return run
            if self.runs or all(map(self.is_safe, self._starting)):
                return None
            # There is nothing else to decide.
            self.records.settle()
            self.records.wait(1.0)
        return None

    def look(self) -> None:
        """Looks at what the actors hold and wait for; called in each round of Tune's loop."""
        self._taking.clear()
        if time.monotonic() - self._looked < _GLANCE:  # there may be thousands of actors
            return
        self._looked = time.monotonic()
        waiting = [*self.actors.waiting(), *self._held_back]
        self.sharing.look(self.actors.held(), waiting)

    def _has_place(self, run: _Run) -> bool:
        """Whether a run may begin: on an actor that has nothing to do, or on a new one."""
        shape = self.capacity.shape(*run.slot)
        if self.actors.idle(shape) > self._taking[run.slot]:
            return True
        if self.sharing.holds_back(shape, self._to_come()):
            self._held_back.append(shape)
            return False
        if not self.capacity.allows(self._all_held(), run.gpu):
            self._too_much = True
            return False
        return True

    def _to_come(self) -> Iterator[Mapping[str, float]]:
        """Yields the shapes of runs that Tune has been given and that hold nothing yet."""
        yield from self.actors.waiting()
        yield from (self.capacity.shape(*slot) for slot in self._taking.elements())

    def _all_held(self) -> Iterator[Mapping[str, float]]:
        """Yields what the actors hold, and will hold."""
        yield from self.actors.held().values()
        yield from self._to_come()

    def _stays(self, actor: Hashable, idle: float) -> bool:
        """Whether an actor stays that has had nothing to do for so many seconds."""
        if idle >= IDLE_SECONDS or self.sharing.gives_up(actor):
            return False
        # What waits could not be helped otherwise; one that has just ended its run may be for it.
        return idle < _TURN or not (self.sharing.uncovered or self._too_much)

    def is_safe(self, run: _Run) -> bool:
        """Whether the record of a run has been written as it is.

        Raises:
            StorageError: If it could not be.
        """
        return self.records.is_done(run.record.path)

    def end(self, trial_id: str) -> _Run:
        """Returns what ran under Tune's name and has ended."""
        run = self.runs.pop(trial_id)
        self._handed_out[run.slot] -= 1
        self.tidy()
        return run

    def retry(self, run: _Run) -> None:
        """Runs once more, before anything else, what has not really ended. Its record stays."""
        self._again.append(run)

    def _next(self) -> _Run | None:
        if self._held_back:
            return None  # they are the next
        types = self.capacity.gpu_types
        if self._again:
            run = self._again[0]
            if run.gpu_type not in types:  # the last node of its type has gone
                run = replace(run, gpu_type=types[0])
            if not self.capacity.has_room(self._handed_out, run.slot):
                return None
            self._again.popleft()
            return run
        packs = self.capacity.packs
        free = []
        for one in types:
            least = self.packer.smallest(one) if packs else self.capacity.gpu
            if self.capacity.has_room(self._handed_out, Slot(least, one)):
                free.append(one)
        record = self.work.ask() if free else None
        if record is None:
            return None
        if not packs:
            return _Run(record, self.capacity.gpu)
        kind = kind_of(record, self._image_size)
        best = self.packer.best(kind, free)
        return _Run(record, self.packer.share(kind, best), best, kind)


class PoolSearcher(Searcher):  # type: ignore[misc]
    """Gives Ray Tune the trials and confirm runs that are to be started."""

    def __init__(self, handout: Handout) -> None:
        super().__init__(metric=None, mode=None)
        self._handout = handout

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the records are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: the records are the state."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Returns the next trial, ``None`` for not now, ``FINISHED`` for no more."""
        handout = self._handout
        if handout.failure is not None or handout.work.remaining == 0:
            return str(Searcher.FINISHED)
        suggestion = None
        with handout.guard():
            run = handout.start(trial_id)
            if run is not None:
                suggestion = Assignment(
                    spec=handout.make_spec(run.record, run.gpu),
                    confirm=isinstance(run.record, ConfirmRecord),
                    shape=handout.capacity.shape(*run.slot),
                ).to_config()
            elif handout.work.remaining == 0:
                return str(Searcher.FINISHED)
        return suggestion

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ends a trial. The last result, which carried ``done``, is seen here alone."""
        handout = self._handout
        if trial_id not in handout.runs or handout.failure is not None:
            return
        run = handout.end(trial_id)
        with handout.guard():
            if trial_id in handout.withdrawn:
                handout.withdrawn.remove(trial_id)
                handout.retry(run)
                return
            if error:
                self._begin_again(run, *handout.reasons.pop(trial_id, (_NO_REASON, False)))
                handout.work.take_in()
                return
            match from_result(result):
                case Aborted() as aborted:
                    # The record says RUNNING: when the surroundings are mended, the trial is run.
                    raise aborted.exception()
                case OutOfMemory():
                    self._run_out_of_memory(run)
                case Failed() as failed:
                    self._fail(run, failed.error, failed.traceback)
                case TrialReport() as report:
                    self._end_trial(run, report.result, pruned=trial_id in handout.pruned)
                case ConfirmReport() as report:
                    self._end_confirm(run, report.result)
                case Placed():
                    pass  # interrupted: its record says RUNNING
                case None:
                    self._fail(run, "the trial ended without a result")
            handout.work.take_in()

    def _end_confirm(self, run: _Run, result: ConfirmResult) -> None:
        assert isinstance(run.record, ConfirmRecord)
        cost = self._learn(run, result.cost)
        confirmation = self._handout.work.confirmation
        confirmation.finish(run.record, result.model_copy(update={"cost": cost}))

    def _end_trial(self, run: _Run, last: TrialResult, *, pruned: bool) -> None:
        work, record = self._handout.work, run.record
        assert isinstance(record, TrialRecord)
        if last.facts is not None:
            cost = self._learn(run, last.cost)
            work.report(record, last.rung, cost)
            work.pool.finish(record.key, record.number, "COMPLETE", facts=last.facts, cost=cost)
        elif pruned:
            cost = self._learn(run, last.cost)
            work.pool.finish(record.key, record.number, "PRUNED", cost=cost)
        # Else it was interrupted: its record says RUNNING, and the next start runs it.

    def _learn(self, run: _Run, cost: Cost) -> Cost:
        """Returns the cost of a run as its record keeps it, for the next start to learn from."""
        cost = cost.model_copy(update={"ran_out_with": run.ran_out_with})
        if run.kind is not None:
            self._handout.packer.learn_memory(run.kind, cost, run.gpu_type)
            self._handout.packer.learn_speed(run.kind, cost, run.gpu_type)
        return cost

    def _begin_again(self, run: _Run, reason: str, with_node: bool) -> None:
        """Retries a run whose process has ended, from its checkpoint; too many times is a FAIL."""
        run = replace(run, deaths=run.deaths + (not with_node), losses=run.losses + int(with_node))
        if run.deaths > _AGAIN or run.losses > _AGAIN_ELSEWHERE:
            self._fail(run, f"{reason}; this was attempt {run.deaths + run.losses}")
        else:
            self._handout.retry(run)

    def _run_out_of_memory(self, run: _Run) -> None:
        """Retries a run in the next larger share, a whole GPU, then one with more memory.

        What that cannot hold fails.

        Nothing is learned before a share has held it: a config that no GPU holds must not make
        the others take more than they need.
        """
        reason = f"out of GPU memory with {share_name(run.ran_out_with or run.gpu)}"
        if run.kind is not None and run.gpu < 1:
            gpu = larger_share(run.gpu) if run.ran_out_with is None else 1.0
            self._handout.retry(replace(run, gpu=gpu, ran_out_with=run.gpu))
        elif run.kind is not None and (larger := self._larger(run)) is not None:
            self._handout.retry(replace(run, gpu_type=larger, ran_out_with=None))
        elif run.ran_out_with is not None:
            self._fail(run, f"{reason}, and again with {share_name(run.gpu)}")
        else:
            remedy = "; resources.gpu can give it more" if run.gpu < 1 else ""
            self._fail(run, reason + remedy)

    def _larger(self, run: _Run) -> str | None:
        handout = self._handout
        return handout.packer.larger(run.gpu_type, handout.capacity.gpu_types)

    def _fail(self, run: _Run, error: str, traceback: str | None = None) -> None:
        work, record = self._handout.work, run.record
        if isinstance(record, ConfirmRecord):
            work.confirmation.finish(record, None, error=error, traceback=traceback)
        else:
            work.pool.finish(record.key, record.number, "FAIL", error=error, traceback=traceback)


class PoolScheduler(FIFOScheduler):  # type: ignore[misc]
    """Answers each rung with what the study's pruner says, when the rung is safe."""

    def __init__(self, handout: Handout) -> None:
        super().__init__()
        self._handout = handout
        self._waker = LoopWaker(lambda: handout.records.idle, handout.records.wait)
        self._ended = EndedTrials()
        #: Tune's trials in the order in which they came; those in front may have started.
        self._waiting: deque[Any] = deque()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Gives the verdicts that need not wait any more; called in each round of Tune's loop."""
        self._waker.attach(tune_controller)
        self._ended.forget(tune_controller)
        handout = self._handout
        with handout.guard():
            self._share(tune_controller)
            handout.records.settle()
            for trial_id, (trial, verdict) in list(handout.verdicts.items()):
                run = handout.runs.get(trial_id)
                if run is not None and not handout.is_safe(run):
                    continue
                del handout.verdicts[trial_id]
                if run is None:  # its worker has died meanwhile
                    continue
                if verdict == TrialScheduler.CONTINUE:
                    go_on(tune_controller, trial)
                else:
                    tune_controller.stop_trial(trial)
        while handout.failure is not None and handout.verdicts:
            tune_controller.stop_trial(handout.verdicts.popitem()[1][0])
        # Tune's own way looks at every trial that there ever was, in each round of its loop.
        while self._waiting and self._waiting[0].status != Trial.PENDING:
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Takes in a trial, and decides which actors stay for those that follow."""
        self._waiting.append(trial)
        self._handout.actors.attach(tune_controller)

    def _share(self, tune_controller: Any) -> None:
        """Takes back the runs that wait for room which others are to have."""
        handout = self._handout
        handout.look()
        if not handout.sharing.contended:
            return
        staying: list[Mapping[str, float]] = []
        for trial, shape in handout.actors.without_room():
            if trial.trial_id in handout.runs and handout.sharing.holds_back(shape, staying):
                handout.withdrawn.add(trial.trial_id)
                tune_controller.stop_trial(trial)
            else:
                staying.append(shape)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Notes that a trial ends."""
        self._ended.note(trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Notes that a trial is taken back which has not started."""
        self._ended.note(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Notes why a trial could not run."""
        self._ended.note(trial)
        text = error_text(trial)
        if any(sign in text for sign in NODE_LOST):
            reason = "its node went away", True
        elif ACTOR_DIED in text:
            reason = _WORKER_DIED, False
        else:
            lines = text.splitlines() or [_NO_REASON]
            reason = f"the trial could not run: {lines[-1]}", False
        self._handout.reasons[trial.trial_id] = reason

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns whether the trial goes on."""
        handout = self._handout
        run = handout.runs.get(trial.trial_id)
        if handout.failure is not None or run is None:
            return str(TrialScheduler.STOP)
        report = from_result(result)
        if isinstance(report, Placed):
            handout.sharing.place(handout.actors.actor_of(trial), report.node, report.gpus)
            return str(TrialScheduler.CONTINUE)
        record = run.record
        if not isinstance(record, TrialRecord):  # has one result, its last, which comes elsewhere
            return str(TrialScheduler.STOP)
        verdict = TrialScheduler.STOP
        with handout.guard():
            assert isinstance(report, TrialReport), report
            reported = report.result
            if run.kind is not None:
                handout.packer.learn_memory(run.kind, reported.cost, run.gpu_type)
            if handout.work.report(record, reported.rung, reported.cost):
                verdict = TrialScheduler.CONTINUE
            else:
                handout.pruned.add(trial.trial_id)
            if not handout.is_safe(run):
                handout.verdicts[trial.trial_id] = trial, verdict
                verdict = TrialScheduler.NOOP
        return str(TrialScheduler.STOP if handout.failure is not None else verdict)
