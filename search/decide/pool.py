"""The pool: every study of a sweep, which trial comes next, and what becomes of it.

Pure logic: it knows Optuna and the records, not Ray or images. The records are the
only state that outlives it: a new pool built from them goes on exactly where they end.

Longer than 400 lines: handing out, taking back and rebuilding share one state.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any

import optuna
from optuna.trial import TrialState
from pydantic import ValidationError

from anomtune.errors import SweepError
from anomtune.registry import PRUNERS, SAMPLERS
from anomtune.search.config import Sweep, explain
from anomtune.search.decide.budget import trial_targets
from anomtune.search.decide.factories import blamed
from anomtune.search.decide.optuna_internals import (
    contains,
    fast_truncated_normal,
    quiet,
    running_trial,
)
from anomtune.search.decide.pace import Candidate, Pace
from anomtune.search.decide.pruners import make_pruner
from anomtune.search.decide.race import Race
from anomtune.search.decide.samplers import make_sampler, startup_trials
from anomtune.search.decide.scoring import Judgements, read_with
from anomtune.search.decide.study import SearchPlan
from anomtune.search.decide.transfer import Transfer, Winners
from anomtune.search.store.records import (
    PAPER,
    SAMPLER,
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


#: So many of the scorings that are best so far have their scores kept with every trial.
_LEADING = 32


@dataclass
class Study:
    """One (category, method): its Optuna study and its trials.

    Attributes:
        key: Category and method.
        plan: What is searched.
        split_hash: The images that its trials train and validate on.
        search: The Optuna study; its trial numbers are those of the records.
        scoring: Number of the scoring that its trials are read with.
        records: Trials by number, as they are kept.
        figures: AUROCs of those that ended with one or were stopped early, by number, as the
            scoring reads them.
        finished: How many trials ended in each state.
        running: Trials that have been handed out, by number.
        again: Numbers that an earlier run began and did not finish, in order.
    """

    key: StudyKey
    plan: SearchPlan
    split_hash: str
    search: optuna.Study
    scoring: int = 0
    records: dict[int, TrialRecord] = field(default_factory=dict)
    figures: dict[int, float] = field(default_factory=dict)
    finished: Counter[State] = field(default_factory=Counter)
    running: dict[int, optuna.Trial] = field(default_factory=dict)
    again: deque[int] = field(default_factory=deque)

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
        return self.judgements.error(self.scoring)

    def note_figure(self, record: TrialRecord) -> None:
        """Keeps the last AUROC of a trial that has ended."""
        if record.state in ("COMPLETE", "PRUNED") and record.curve:
            self.figures[record.number] = self.read_one(record).curve[-1].auroc


class Pool:
    """Hands out trials of many studies, takes their reports and decides who goes on.

    Args:
        config: The sweep.
        plans: How each study is searched.
        split_hashes: The split of every category.
        records: What earlier runs of the sweep left.
        save: Called with a record at every change, before the pool acts on it.
        winners: Configs that won in other sweeps.

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
        *,
        winners: Winners | None = None,
    ) -> None:
        self._config = config
        self._save = save
        self.pace = Pace()
        self.closed = False
        self._transfer = Transfer(winners or {})
        self._turns: Pace | Race = self.pace
        #: How many trials each category has; ``None``: there is no such number.
        self._trials = None if config.budget is None else config.budget.trials
        if config.budget is not None and config.allocation == "race":
            self._turns = Race(self.pace, self._trials)
        self.studies = {
            key: self._load_study(key, plan, split_hashes[key.category], records)
            for key, plan in plans.items()
        }
        #: Studies by category: what shares a budget.
        self.categories: dict[str, list[Study]] = defaultdict(list)
        for study in self.studies.values():
            self.categories[study.key.category].append(study)
        #: Of every study; few change at a time, and all are looked at for each trial.
        self._candidates = {key: self._candidate(study) for key, study in self.studies.items()}

    @property
    def remaining(self) -> int:
        """Number of trials that have not finished; with a number of hours, at most."""
        return self.running + sum(map(self._left, self.categories.values()))

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

    def read(self, record: TrialRecord) -> TrialRecord:
        """Returns a trial as the scoring of its study reads it."""
        return self.studies[record.key].read_one(record)

    def has_time(self, seconds: float) -> bool:
        """Whether a trial of a study that is to have more could end in so many seconds."""
        if self.closed or seconds <= 0:
            return False
        return any(
            self.pace.run_seconds(study.key.method) <= seconds
            for study in self.studies.values()
            if study.started < self._share(study)
        )

    def ask(self, seconds: float = inf) -> TrialRecord | None:
        """Starts the next trial of the study whose turn it is (`Pace`, `Race`).

        A study whose sampler still draws at random has no more trials in flight than it has
        random ones left: on a large cluster the others fill the slots meanwhile.

        Args:
            seconds: In which the trial is to end.

        Returns:
            The trial's record, or ``None`` if no study can start one now.
        """
        while not self.closed:
            key = self._turns.choose(self._with_time(seconds))
            if key is None:
                return None
            record = self._start(self.studies[key])
            if record.state == "RUNNING":
                return record
        return None

    def _with_time(self, seconds: float) -> list[Candidate]:
        """Returns the candidates; those whose trials would not end in time may not start."""
        if seconds == inf:
            return list(self._candidates.values())
        return [
            one._replace(
                may_start=one.may_start and self.pace.run_seconds(one.key.method) <= seconds
            )
            for one in self._candidates.values()
        ]

    def close(self) -> None:
        """Ends the search for want of time: no trial is started any more.

        What an earlier start began and did not end is stopped where it was.
        """
        self.closed = True
        for study in self.studies.values():
            for number in study.again:
                record = study.records.get(number)
                if record is not None:
                    record.state, record.error = "PRUNED", "the time of the sweep was over"
                    record.cost.finished_at = now()
                    study.finished["PRUNED"] += 1
                    self._save(record)
            study.again.clear()

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
            latest = record.model_copy(update={"curve": [rung]})
            trial.report(study.read_one(latest).curve[0].auroc, rung.step)
            with blamed(PRUNERS, self._config.pruner):
                prune = trial.should_prune() and number > 0
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
        study.judgements.add(record)
        study.note_figure(record)
        if state == "COMPLETE":
            self._learn_winner(study)
        self._renew(study)
        self.pace.learn(record)
        self._save(record)
        self._tell(study, record, trial)
        if study.judgements.best != study.scoring:
            self._read_anew(study)

    def searched(self, study: Study) -> bool:
        """Whether a study has ended all of its trials."""
        if study.running:
            return False
        if self.closed:
            return True
        if study.begun:
            return False
        left = self._left(self.categories[study.key.category])
        return left == 0 or study.started >= self._share(study)

    def _most(self, study: Study) -> int:
        """Returns how many trials a study may have, whatever others have."""
        if self.closed:
            return study.started
        return max(self._config.trials if study.plan.space else 1, len(study.records))

    def _left(self, studies: Sequence[Study]) -> int:
        """Returns how many trials the studies of a category may still start together."""
        return self._new(studies) + sum(study.begun for study in studies)

    def _new(self, studies: Sequence[Study]) -> int:
        """Returns how many of these have never been begun."""
        started = [study.started + study.begun for study in studies]
        most = [self._most(study) for study in studies]
        new = sum(max(0, may - has) for may, has in zip(most, started, strict=True))
        return new if self._trials is None else min(new, max(0, self._trials - sum(started)))

    def _share(self, study: Study) -> int:
        """Returns how many trials a study may have, given what its category shares."""
        if self.closed or self._trials is None or self._config.allocation == "race":
            return self._most(study)
        studies = self.categories[study.key.category]
        known = {other.key: len(other.records) for other in studies}
        searched = {other.key: bool(other.plan.space) for other in studies}
        return trial_targets(self._config, known, searched.__getitem__)[study.key]

    def _renew(self, study: Study) -> None:
        """Looks anew at what may start, after a change of a study."""
        shared = self._trials is not None
        for other in self.categories[study.key.category] if shared else (study,):
            self._candidates[other.key] = self._candidate(other)

    def _candidate(self, study: Study) -> Candidate:
        target, started, running = self._share(study), study.started, len(study.running)
        modelled = study.finished["COMPLETE"] + study.finished["PRUNED"]
        random_left = startup_trials(self._config) - modelled
        free = random_left <= 0 or running < random_left
        open_ = started < target and (
            study.begun > 0 or self._new(self.categories[study.key.category]) > 0
        )
        return Candidate(
            key=study.key,
            target=target,
            started=started,
            running=running,
            may_start=open_ and free,
            figures=study.figures.values(),
            handicap=study.handicap,
        )

    def _start(self, study: Study) -> TrialRecord:
        # Waiting trials (the defaults, interrupted ones) are asked first, in order of number.
        number = study.again.popleft() if study.again else study.started
        space = study.plan.distributions
        known = study.records.get(number)
        origin = SAMPLER if known is None else known.origin
        if number == 0:
            origin = PAPER
        elif known is None:
            moved = self._transfer.next(study.key, space, study.records.values())
            if moved is not None:
                point, origin = moved
                study.search.enqueue_trial(point)
        with quiet(), fast_truncated_normal():
            study.search.sampler = make_sampler(self._config, str(study.key), number, space)
            with blamed(SAMPLERS, self._config.sampler):
                trial = study.search.ask(fixed_distributions=space)
        assert trial.number == number, (trial.number, number)
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
            origin=origin,
            cost=Cost(started_at=now()),
        )
        self._save(record)
        study.records[number] = record
        study.running[number] = trial
        self._renew(study)
        if state == "FAIL":
            self.finish(study.key, number, "FAIL", error=error)
        return record

    def _learn_winner(self, study: Study) -> None:
        """Lets other categories know what is best here by now."""
        figures = {
            number: value
            for number, value in study.figures.items()
            if study.records[number].state == "COMPLETE"
        }
        if len(figures) > 1 and 0 in figures:
            best = max(figures, key=lambda number: (figures[number], -number))
            self._transfer.learn(study.key, study.records[best].params, figures[best] - figures[0])

    @staticmethod
    def _tell(study: Study, record: TrialRecord, trial: optuna.Trial) -> None:
        """Tells Optuna how a trial has ended."""
        state = _OPTUNA_STATE[record.state]
        if record.number == 0 and not study.plan.anchor()[1]:
            state = TrialState.FAIL  # outside the space: no lesson for the sampler
        complete = state is TrialState.COMPLETE
        value = study.read_one(record).value if complete else None
        study.search.tell(trial, values=value, state=state)

    def _load_study(
        self,
        key: StudyKey,
        plan: SearchPlan,
        split_hash: str,
        records: Mapping[StudyKey, Sequence[TrialRecord]],
    ) -> Study:
        study = Study(key, plan, split_hash, self._new_search(key))
        study.records = {record.number: record for record in records.get(key, ())}
        for record in study.records.values():
            _check_record(study, record)
            if record.state != "RUNNING":
                study.finished[record.state] += 1
                self.pace.learn(record)
        study.scoring = study.judgements.best
        for record in study.records.values():
            study.note_figure(record)
        self._learn_winner(study)
        last = max(study.records, default=0)
        # Waiting trials (the defaults, interrupted ones, those whose file was deleted).
        study.again = deque(
            number
            for number in range(last + 1)
            if number not in study.records or study.records[number].state == "RUNNING"
        )
        self._replay(study, last + 1)
        return study

    def _new_search(self, key: StudyKey) -> optuna.Study:
        with quiet():
            return optuna.create_study(
                study_name=f"{self._config.dataset.name}/{key}",
                direction="maximize",
                pruner=make_pruner(self._config),
                sampler=optuna.samplers.RandomSampler(),  # each trial brings its own
            )

    def _read_anew(self, study: Study) -> None:
        """Shows Optuna all trials of a study with the scoring that is best for it by now."""
        study.scoring = study.judgements.best
        for record in study.records.values():
            study.note_figure(record)
        self._learn_winner(study)
        self._renew(study)
        study.search = self._new_search(study.key)
        self._replay(study, study.started + len(study.again))

    def _replay(self, study: Study, count: int) -> None:
        """Lets Optuna live through the trials so far, so that its numbers are those of the records.

        Those of an earlier start that did not end wait to be asked again.
        """
        waiting = set(study.again)
        space = study.plan.distributions
        for number in range(count):
            point = self._point(study, number)
            if number in waiting:
                study.search.enqueue_trial(point)
                continue
            trial = running_trial(study.search, number, point, space)
            record = study.records[number]
            for rung in study.read_one(record).curve:
                trial.report(rung.auroc, rung.step)
                with blamed(PRUNERS, self._config.pruner):
                    trial.should_prune()  # notes what it compares later trials with
            if record.state == "RUNNING":
                study.running[number] = trial
            else:
                self._tell(study, record, trial)

    @staticmethod
    def _point(study: Study, number: int) -> dict[str, Any]:
        """Returns where in the space a trial is; nothing for one that is to be suggested anew."""
        record = study.records.get(number)
        if number == 0:
            return study.plan.anchor()[0]
        return {} if record is None else {name: record.params[name] for name in study.plan.space}


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
