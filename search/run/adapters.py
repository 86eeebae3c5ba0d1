"""The two thin adapters between the work and Ray Tune.

A Searcher that hands out trials and confirm runs, and a Scheduler that answers each result with
the pool's verdict. Both forget their work when Tune snapshots them: the records are the truth, and
every start is a fresh Tuner for what remains.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from anomtune.search.run.handout import Handout, Run
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
from anomtune.search.run.packing import larger_share, share_name
from anomtune.search.run.ray_internals import (
    ACTOR_DIED,
    MEMORY_RAN_OUT,
    NODE_LOST,
    EndedTrials,
    LoopWaker,
    error_text,
    go_on,
)
from anomtune.search.run.trial import TrialResult
from anomtune.search.store.records import ConfirmRecord, ConfirmResult, Cost, TrialRecord

_NO_REASON = "Ray gave no reason"
_WITHOUT_MEMORY = "its node ran out of memory, and Ray killed the worker process"
_WORKER_DIED = "the worker process died (killed, out of memory, or a crash of native code)"

#: How often a run is begun again when its worker died, and when its node did. Nodes come and go,
#: but a run that takes the memory of its whole machine would end one after the other.
_AGAIN, _AGAIN_ELSEWHERE = 1, 5


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

    def _end_confirm(self, run: Run, result: ConfirmResult) -> None:
        assert isinstance(run.record, ConfirmRecord)
        cost = self._learn(run, result.cost)
        confirmation = self._handout.work.confirmation
        confirmation.finish(run.record, result.model_copy(update={"cost": cost}))

    def _end_trial(self, run: Run, last: TrialResult, *, pruned: bool) -> None:
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

    def _learn(self, run: Run, cost: Cost) -> Cost:
        """Returns the cost of a run as its record keeps it, for the next start to learn from."""
        cost = run.of_its_type(cost).model_copy(update={"ran_out_with": run.ran_out_with})
        if run.kind is not None:
            self._handout.packer.learn_memory(run.kind, cost)
            self._handout.packer.learn_speed(run.kind, cost)
        return cost

    def _begin_again(self, run: Run, reason: str, with_node: bool) -> None:
        """Retries a run whose process has ended, from its checkpoint; too many times is a FAIL."""
        run = replace(run, deaths=run.deaths + (not with_node), losses=run.losses + int(with_node))
        if run.deaths > _AGAIN or run.losses > _AGAIN_ELSEWHERE:
            self._fail(run, f"{reason}; this was attempt {run.deaths + run.losses}")
        else:
            self._handout.retry(run)

    def _run_out_of_memory(self, run: Run) -> None:
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

    def _larger(self, run: Run) -> str | None:
        handout = self._handout
        return handout.packer.larger(run.gpu_type, handout.capacity.gpu_types)

    def _fail(self, run: Run, error: str, traceback: str | None = None) -> None:
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
        elif MEMORY_RAN_OUT in text:
            reason = _WITHOUT_MEMORY, False
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
            cost = run.of_its_type(report.result.cost)
            if run.kind is not None:
                handout.packer.learn_memory(run.kind, cost)
            if handout.work.report(record, report.result.rung, cost):
                verdict = TrialScheduler.CONTINUE
            else:
                handout.pruned.add(trial.trial_id)
            if not handout.is_safe(run):
                handout.verdicts[trial.trial_id] = trial, verdict
                verdict = TrialScheduler.NOOP
        return str(TrialScheduler.STOP if handout.failure is not None else verdict)
