"""One (category, method): its trials, what they say, and the Optuna study that learns from them.

Trials are kept as they ran, with the figures of every scoring; a study reads all of them with the
one that is best for it by now (`search/decide/scoring.py`). Optuna knows them as read. When another
scoring becomes the best, a new Optuna study lives through all of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from functools import cached_property

import optuna
from optuna.trial import TrialState

from anomtune.errors import SweepError
from anomtune.registry import PRUNERS
from anomtune.search.config import Sweep
from anomtune.search.decide.factories import blamed
from anomtune.search.decide.optuna_internals import contains, quiet, running_trial
from anomtune.search.decide.plan import SearchPlan
from anomtune.search.decide.pruners import make_pruner
from anomtune.search.decide.scoring import Judgements, auroc_with, read_with
from anomtune.search.store.records import Rung, State, StudyKey, TrialRecord, now

_OPTUNA_STATE = {
    "COMPLETE": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "FAIL": TrialState.FAIL,
}
#: So many of the scorings that are best so far have their scores kept with every trial.
_LEADING = 32


class Study:
    """One (category, method): its Optuna study and its trials.

    Args:
        config: The sweep.
        key: Category and method.
        plan: What is searched.
        split_hash: The images that its trials train and validate on.
        records: Its trials of earlier starts, as they are kept.

    Attributes:
        search: The Optuna study; its trial numbers are those of the records.
        scoring: Number of the scoring that its trials are read with.
        records: Trials by number, as they are kept.
        figures: AUROCs of those that ended with one or were stopped early, by number, as the
            scoring reads them.
        finished: How many trials ended in each state.
        running: Trials that have been handed out, by number.
        again: Numbers that an earlier start began and did not finish, in order.

    Raises:
        SweepError: If records belong to other images, or to another version of the method, than
            the sweep has now.
    """

    def __init__(
        self,
        config: Sweep,
        key: StudyKey,
        plan: SearchPlan,
        split_hash: str,
        records: Sequence[TrialRecord] = (),
    ) -> None:
        self._config = config
        self.key = key
        self.plan = plan
        self.split_hash = split_hash
        self.records = {record.number: record for record in records}
        self.figures: dict[int, float] = {}
        self.finished: Counter[State] = Counter()
        self.running: dict[int, optuna.Trial] = {}
        for record in self.records.values():
            _check_record(self, record)
            if record.state != "RUNNING":
                self.finished[record.state] += 1
        self.scoring = self.judgements.best
        last = max(self.records, default=0)
        # Waiting trials (the defaults, interrupted ones, those whose file was deleted).
        self.again = deque(
            number
            for number in range(last + 1)
            if number not in self.records or self.records[number].state == "RUNNING"
        )
        self._read_all(last + 1)

    @property
    def read(self) -> list[TrialRecord]:
        """The trials as the study's scoring reads them."""
        return [self.read_one(record) for record in self.records.values()]

    def read_one(self, record: TrialRecord) -> TrialRecord:
        """Returns one of its trials as its scoring reads it."""
        return read_with(record, self.scoring, self.plan.scorings)

    @cached_property
    def judgements(self) -> Judgements:
        """What its completed trials say of the scorings."""
        found = Judgements(self.plan.neighbours)
        for record in self.records.values():
            found.add(record)
        return found

    @property
    def leading(self) -> tuple[int, ...]:
        """The scorings that may come to be chosen, the best first."""
        return self.judgements.leading(_LEADING)

    @property
    def started(self) -> int:
        """Number of trials that have been handed out or have finished."""
        return self.finished.total() + len(self.running)

    @property
    def begun(self) -> int:
        """Number of trials that an earlier start began and that have not been begun again."""
        return sum(number in self.records for number in self.again)

    @property
    def handicap(self) -> float:
        """What is taken off its figures where methods are compared: chance may have added it."""
        return self.judgements.doubt(self.scoring)

    @property
    def winner(self) -> tuple[TrialRecord, float] | None:
        """Its best complete trial, and what that has over the paper's config, if both are known."""
        figures = {
            number: value
            for number, value in self.figures.items()
            if self.records[number].state == "COMPLETE"
        }
        if len(figures) < 2 or 0 not in figures:
            return None
        best = max(figures, key=lambda number: (figures[number], -number))
        return self.records[best], figures[best] - figures[0]

    def begin(self, record: TrialRecord, trial: optuna.Trial) -> None:
        """Takes in a trial that is handed out."""
        self.records[record.number] = record
        self.running[record.number] = trial

    def report(self, number: int, rung: Rung) -> bool:
        """Takes a running trial's rung and returns whether its pruner would stop it."""
        record, trial = self.records[number], self.running[number]
        record.curve = [*(past for past in record.curve if past.step < rung.step), rung]
        # A retried trial starts over; what Optuna has seen of it already, it has decided.
        if rung.step in self.search.get_trials(deepcopy=False)[number].intermediate_values:
            return False
        trial.report(auroc_with(rung, self.scoring), rung.step)
        with blamed(PRUNERS, self._config.pruner):
            return bool(trial.should_prune())

    def end(self, record: TrialRecord) -> optuna.Trial:
        """Takes in that a running trial has ended, as its record says; `tell` is to follow."""
        trial = self.running.pop(record.number)
        self.finished[record.state] += 1
        self.judgements.add(record)
        self._note_figure(record)
        return trial

    def tell(self, record: TrialRecord, trial: optuna.Trial) -> None:
        """Tells Optuna how a trial has ended."""
        state = _OPTUNA_STATE[record.state]
        if record.number == 0 and not self.plan.anchor()[1]:
            state = TrialState.FAIL  # outside the space: no lesson for the sampler
        value = self.figures[record.number] if state is TrialState.COMPLETE else None
        self.search.tell(trial, values=value, state=state)

    def read_anew(self) -> bool:
        """Reads all trials with the scoring that is best by now; whether that is another one."""
        if self.judgements.best == self.scoring:
            return False
        self.scoring = self.judgements.best
        self._read_all(self.started + len(self.again))
        return True

    def close(self) -> list[TrialRecord]:
        """Stops where they were the trials that an earlier start did not end, and returns them."""
        stopped = [self.records[number] for number in self.again if number in self.records]
        for record in stopped:
            record.state, record.error = "PRUNED", "the time of the sweep was over"
            record.cost.finished_at = now()
            self.finished["PRUNED"] += 1
        self.again.clear()
        return stopped

    def _note_figure(self, record: TrialRecord) -> None:
        """Keeps the last AUROC of a trial that has ended."""
        if record.state in ("COMPLETE", "PRUNED") and record.curve:
            self.figures[record.number] = auroc_with(record.curve[-1], self.scoring)

    def _read_all(self, count: int) -> None:
        """Lets a new Optuna study live through the trials so far, as they are read now.

        Its numbers are those of the records. Trials of an earlier start that did not end wait to
        be asked again.

        Args:
            count: Of the trials that have a number.
        """
        for record in self.records.values():
            self._note_figure(record)
        with quiet():
            self.search = optuna.create_study(
                study_name=f"{self._config.dataset.name}/{self.key}",
                direction="maximize",
                pruner=make_pruner(self._config),
                sampler=optuna.samplers.RandomSampler(),  # each trial brings its own
            )
        waiting, space = set(self.again), self.plan.distributions
        for number in range(count):
            if number in waiting:
                self.search.enqueue_trial(self._point(number))
                continue
            trial = running_trial(self.search, number, self._point(number), space)
            record = self.records[number]
            for rung in record.curve:
                trial.report(auroc_with(rung, self.scoring), rung.step)
                with blamed(PRUNERS, self._config.pruner):
                    trial.should_prune()  # notes what it compares later trials with
            if record.state == "RUNNING":
                self.running[number] = trial
            else:
                self.tell(record, trial)

    def _point(self, number: int) -> dict[str, object]:
        """Returns where in the space a trial is; nothing for one that is to be suggested anew."""
        record = self.records.get(number)
        if number == 0:
            return self.plan.anchor()[0]
        return {} if record is None else {name: record.params[name] for name in self.plan.space}


def _check_record(study: Study, record: TrialRecord) -> None:
    """Checks that a record of an earlier start belongs to the study as it is now.

    Raises:
        SweepError: If its images or its hyperparameters do not.
    """
    remedy = "start another directory with --dir"
    if record.split_hash != study.split_hash:
        raise SweepError(
            f"{record.category}: its images are not those that the trials of this directory used "
            f"(split {study.split_hash[:12]}, was {record.split_hash[:12]}); "
            f"restore them, or {remedy}"
        )
    fixed = study.plan.defaults.model_dump(mode="json")
    searched = study.plan.distributions if record.number > 0 else {}
    for name in {**record.params, **fixed}:
        value = record.params.get(name)
        if name in record.params and name in searched:
            fits = contains(searched[name], value)
        else:
            fits = name in record.params and name in fixed and value == fixed[name]
        if not fits:
            raise SweepError(
                f"{record.path}.json: was run with {name} = {value!r}, which this version of "
                f"{record.method} does not; install the version that it was run with, or {remedy}"
            )
