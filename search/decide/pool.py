"""The pool: every study of a sweep, which trial comes next, and what becomes of it.

Pure logic: it knows Optuna and the records, not Ray or images. The records are the
only state that outlives it: a new pool built from them goes on exactly where they end.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import TrialState
from pydantic import ValidationError

from anomtune.errors import SweepError
from anomtune.registry import PRUNERS, SAMPLERS
from anomtune.search.config import Sweep, explain
from anomtune.search.decide.factories import blamed
from anomtune.search.decide.optuna_internals import (
    contains,
    fast_truncated_normal,
    pruner_state,
    quiet,
)
from anomtune.search.decide.pace import Candidate, Pace
from anomtune.search.decide.progress import trial_target
from anomtune.search.decide.pruners import make_pruner
from anomtune.search.decide.samplers import make_sampler, startup_trials
from anomtune.search.decide.study import SearchPlan, optuna_trial
from anomtune.search.store.records import (
    Cost,
    Facts,
    Rung,
    State,
    StudyKey,
    TrialRecord,
    now,
)

_OPTUNA_STATE = {
    "COMPLETE": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "FAIL": TrialState.FAIL,
}


@dataclass
class Study:
    """One (category, method): its Optuna study and its trials.

    Attributes:
        key: Category and method.
        plan: What is searched.
        split_hash: The images that its trials train and validate on.
        search: The Optuna study; its trial numbers are those of the records.
        records: Trials by number.
        finished: How many trials ended in each state.
        running: Trials that have been handed out, by number.
        again: Numbers that an earlier run began and did not finish, in order.
    """

    key: StudyKey
    plan: SearchPlan
    split_hash: str
    search: optuna.Study
    records: dict[int, TrialRecord] = field(default_factory=dict)
    finished: Counter[State] = field(default_factory=Counter)
    running: dict[int, optuna.Trial] = field(default_factory=dict)
    again: deque[int] = field(default_factory=deque)

    @property
    def started(self) -> int:
        """Number of trials that have been handed out or have finished."""
        return self.finished.total() + len(self.running)


class Pool:
    """Hands out trials of many studies, takes their reports and decides who goes on.

    Args:
        config: The sweep.
        plans: How each study is searched.
        split_hashes: The split of every category.
        records: What earlier runs of the sweep left.
        save: Called with a record at every change, before the pool acts on it.

    Raises:
        SweepError: If records belong to other images, or to another version of a method, than the
            sweep has now.
    """

    def __init__(
        self,
        config: Sweep,
        plans: Mapping[StudyKey, SearchPlan],
        split_hashes: Mapping[str, str],
        records: Mapping[StudyKey, Sequence[TrialRecord]],
        save: Callable[[TrialRecord], None],
    ) -> None:
        self._config = config
        self._save = save
        self._pace = Pace()
        self.studies = {
            key: self._load_study(key, plan, split_hashes[key.category], records)
            for key, plan in plans.items()
        }
        #: Of every study; only one changes at a time, and all are looked at for each trial.
        self._candidates = {key: self._candidate(study) for key, study in self.studies.items()}

    @property
    def remaining(self) -> int:
        """Number of trials that have not finished."""
        return sum(self.target(study) - study.finished.total() for study in self.studies.values())

    @property
    def running(self) -> int:
        """Number of trials that have been handed out."""
        return sum(len(study.running) for study in self.studies.values())

    @property
    def unfinished(self) -> list[TrialRecord]:
        """The trials that have begun and not ended, now or in an earlier run."""
        return [
            record
            for study in self.studies.values()
            for record in study.records.values()
            if record.state == "RUNNING"
        ]

    def ask(self) -> TrialRecord | None:
        """Starts the next trial of the study whose turn it is (`Pace`).

        A study whose sampler still draws at random has no more trials in flight than it has
        random ones left: on a large cluster the others fill the slots meanwhile.

        Returns:
            The trial's record, or ``None`` if no study can start one now.
        """
        while True:
            key = self._pace.choose(list(self._candidates.values()))
            if key is None:
                return None
            record = self._start(self.studies[key])
            if record.state == "RUNNING":
                return record

    def report(self, key: StudyKey, number: int, rung: Rung) -> bool:
        """Takes a trial's rung.

        Returns:
            Whether the trial should go on. Trial 0 always does: it is what others are measured by.
        """
        study = self.studies[key]
        record, trial = study.records[number], study.running[number]
        record.curve = [*(past for past in record.curve if past.step < rung.step), rung]
        prune = False
        # A retried trial starts over; what Optuna has seen of it already, it has decided.
        if rung.step not in study.search.get_trials(deepcopy=False)[number].intermediate_values:
            trial.report(rung.auroc, rung.step)
            with blamed(PRUNERS, self._config.pruner):
                prune = trial.should_prune() and number > 0
        record.pruner_state = dict(pruner_state(study.search, number))
        self._save(record)
        return not prune

    def finish(
        self,
        key: StudyKey,
        number: int,
        state: State,
        *,
        facts: Facts | None = None,
        cost: Cost | None = None,
        error: str | None = None,
        traceback: str | None = None,
    ) -> None:
        """Ends a trial and tells Optuna what came of it."""
        study = self.studies[key]
        record, trial = study.records[number], study.running.pop(number)
        started = record.cost.started_at
        record.facts = facts
        record.cost = (cost or Cost()).model_copy(
            update={"started_at": started, "finished_at": now()}
        )
        record.error, record.traceback = error, traceback
        record.state = state
        study.finished[state] += 1
        self._candidates[key] = self._candidate(study)
        self._pace.learn(record)
        self._save(record)
        told = self._told_state(study, record)
        study.search.tell(
            trial,
            values=record.value if told is TrialState.COMPLETE else None,
            state=told,
        )

    def target(self, study: Study) -> int:
        """Returns how many trials a study is to have."""
        return trial_target(self._config, len(study.records), searched=bool(study.plan.space))

    def searched(self, study: Study) -> bool:
        """Whether a study has ended all of them."""
        return study.finished.total() == self.target(study)

    def _candidate(self, study: Study) -> Candidate:
        target, started, running = self.target(study), study.started, len(study.running)
        modelled = study.finished["COMPLETE"] + study.finished["PRUNED"]
        random_left = startup_trials(self._config.trials) - modelled
        free = random_left <= 0 or running < random_left
        return Candidate(study.key, target, started, running, started < target and free)

    def _start(self, study: Study) -> TrialRecord:
        # Waiting trials (the defaults, interrupted ones) are asked first, in order of number.
        number = study.again.popleft() if study.again else study.started
        space = study.plan.distributions
        with quiet(), fast_truncated_normal():
            study.search.sampler = make_sampler(self._config, str(study.key), number, space)
            with blamed(SAMPLERS, self._config.sampler):
                trial = study.search.ask(fixed_distributions=space)
        assert trial.number == number, (trial.number, number)
        known = study.records.get(number)
        try:
            if known is not None:
                params = known.params
            elif number == 0:
                params = study.plan.defaults.model_dump(mode="json")
            else:
                params = study.plan.hyperparameters(trial.params).model_dump(mode="json")
            state, error = "RUNNING", None
        except ValidationError as invalid:
            params, state = {**study.plan.defaults.model_dump(mode="json"), **trial.params}, "FAIL"
            error = (
                f"these values do not go together: {explain(invalid, type(study.plan.defaults))}"
            )
        record = TrialRecord(
            dataset=self._config.dataset.name,
            category=study.key.category,
            method=study.key.method,
            number=number,
            state="RUNNING",
            params=params,
            seed=self._config.seed,
            split_hash=study.split_hash,
            cost=Cost(started_at=now()),
        )
        self._save(record)
        study.records[number] = record
        study.running[number] = trial
        self._candidates[study.key] = self._candidate(study)
        if state == "FAIL":
            self.finish(study.key, number, "FAIL", error=error)
        return record

    @staticmethod
    def _told_state(study: Study, record: TrialRecord) -> TrialState:
        if record.number == 0 and not study.plan.anchor()[1]:
            return TrialState.FAIL  # outside the space: no lesson for the sampler
        return _OPTUNA_STATE[record.state]

    def _load_study(
        self,
        key: StudyKey,
        plan: SearchPlan,
        split_hash: str,
        records: Mapping[StudyKey, Sequence[TrialRecord]],
    ) -> Study:
        with quiet():
            search = optuna.create_study(
                study_name=f"{self._config.dataset.name}/{key}",
                direction="maximize",
                pruner=make_pruner(self._config),
            )
            study = Study(key, plan, split_hash, search)
            study.records = {record.number: record for record in records.get(key, ())}
            for record in study.records.values():
                _check_record(study, record)
            for number in range(max(study.records, default=0) + 1):
                self._replay(study, number)
        return study

    def _replay(self, study: Study, number: int) -> None:
        """Adds a trial of an earlier run, so that Optuna's numbers stay those of the records."""
        record = study.records.get(number)
        if number == 0:
            point = study.plan.anchor()[0]
        elif record is None:  # its file was deleted: run that number again
            point = {}
        else:
            point = {name: record.params[name] for name in study.plan.space}
        if record is None or record.state == "RUNNING":
            study.search.enqueue_trial(point)
            study.again.append(number)
            return
        study.finished[record.state] += 1
        self._pace.learn(record)
        told = self._told_state(study, record)
        study.search.add_trial(optuna_trial(record, told, point, study.plan.distributions))


def check_deciders(config: Sweep, plans: Mapping[StudyKey, SearchPlan]) -> None:
    """Makes sure that the sweep's sampler and pruner can be made, before anything is written.

    Raises:
        SweepError: If one of them cannot.
    """
    with quiet():
        make_pruner(config)
        for plan in plans.values():
            make_sampler(config, plan.method, 0, plan.distributions)


def _check_record(study: Study, record: TrialRecord) -> None:
    """Checks that a record of an earlier run belongs to the study as it is now.

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
