"""The pool: every study of a sweep, which trial comes next, and what becomes of it.

Pure logic: it knows Optuna and the records, not Ray or images. The records are the
only state that outlives it: a new pool built from them goes on exactly where they end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf

from pydantic import ValidationError

from anomtune.registry import SAMPLERS
from anomtune.search.config import Sweep
from anomtune.search.decide.budget import trial_targets
from anomtune.search.decide.factories import blamed
from anomtune.search.decide.optuna_internals import (
    fast_truncated_normal,
    quiet,
)
from anomtune.search.decide.pace import Candidate, Pace
from anomtune.search.decide.plan import SearchPlan
from anomtune.search.decide.pruners import make_pruner
from anomtune.search.decide.race import Race
from anomtune.search.decide.samplers import make_sampler, startup_trials
from anomtune.search.decide.study import Study
from anomtune.search.decide.transfer import Transfer, Winners
from anomtune.search.explain import explain
from anomtune.search.store.records import (
    PAPER,
    SAMPLER,
    AnyRecord,
    Cost,
    Facts,
    Rung,
    State,
    StudyKey,
    TrialRecord,
    now,
)


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
            key: Study(config, key, plan, split_hashes[key.category], records.get(key, ()))
            for key, plan in plans.items()
        }
        for study in self.studies.values():
            for record in study.records.values():
                if record.state != "RUNNING":
                    self.pace.learn(record)
            self._learn_winner(study)
        #: Studies by category: what shares a budget.
        self.categories: dict[str, list[Study]] = defaultdict(list)
        for study in self.studies.values():
            self.categories[study.key.category].append(study)
        #: Of every study; few change at a time, and all are looked at for each trial.
        self._candidates = {
            key: self._candidate(study, self._new(self.categories[key.category]))
            for key, study in self.studies.items()
        }
        #: What each decision asks for, and a large sweep has thousands of studies: how many trials
        #: of each category have not finished, and which studies have ended all of theirs.
        self._unfinished: dict[str, int] = {}
        self._searched: set[StudyKey] = set()
        #: The methods of each category, the one whose best trial is best first.
        self.leading: dict[str, list[str]] = {}
        for category in self.categories:
            self._look_at(category)

    @property
    def remaining(self) -> int:
        """Number of trials that have not finished; with a number of hours, at most."""
        return sum(self._unfinished.values())

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

    def show(self, record: AnyRecord) -> AnyRecord:
        """Returns a run as people see it: a trial by `read`, a confirm run as it is."""
        return self.read(record) if isinstance(record, TrialRecord) else record

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
        in_time = {
            method: self.pace.run_seconds(method) <= seconds for method in self._config.methods
        }
        return [
            one if in_time[one.key.method] else one._replace(may_start=False)
            for one in self._candidates.values()
        ]

    def close(self) -> None:
        """Ends the search for want of time: no trial is started any more.

        What an earlier start began and did not end is stopped where it was.
        """
        self.closed = True
        for study in self.studies.values():
            for record in study.close():
                self._save(record)
        for category in self.categories:
            self._look_at(category)

    def report(self, key: StudyKey, number: int, rung: Rung, cost: Cost | None = None) -> bool:
        """Takes a trial's rung.

        Args:
            key: The study.
            number: The trial.
            rung: What it reports.
            cost: What it took up to there.

        Returns:
            Whether the trial should go on. Trial 0 always does: it is what others are measured by.
        """
        study = self.studies[key]
        prune = study.report(number, rung)
        record = study.records[number]
        if cost is not None:  # how long it will take can be told from it
            record.cost = cost.model_copy(update={"started_at": record.cost.started_at})
        self._save(record)
        return number == 0 or not prune

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
        record = study.records[number]
        started = record.cost.started_at
        record.facts = facts
        record.cost = (cost or Cost()).model_copy(
            update={"started_at": started, "finished_at": now()}
        )
        record.error, record.traceback = error, traceback
        record.state = state
        trial = study.end(record)
        if state == "COMPLETE":
            self._learn_winner(study)
        self._renew(study)
        self.pace.learn(record)
        self._save(record)
        study.tell(record, trial)
        if study.read_anew():
            self._learn_winner(study)
            self._renew(study)

    def ended(self, known: Collection[StudyKey]) -> list[Study]:
        """Returns the studies that have ended all of their trials, but for those that are known."""
        new = self._searched.difference(known)
        return [study for key, study in self.studies.items() if key in new] if new else []

    def searched(self, study: Study) -> bool:
        """Whether a study has ended all of its trials."""
        return study.key in self._searched

    def _look_at(self, category: str) -> None:
        """Notes what is left of a category, and what leads it."""
        studies = self.categories[category]
        running = sum(len(study.running) for study in studies)
        self._unfinished[category] = running + self._left(studies)
        self._searched.update(study.key for study in studies if self._has_ended(study))
        in_order = sorted(studies, key=lambda s: s.handicap - max(s.figures.values(), default=0.0))
        self.leading[category] = [study.key.method for study in in_order]

    def _has_ended(self, study: Study) -> bool:
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
        category = self.categories[study.key.category]
        new = self._new(category)
        for other in category if self._trials is not None else (study,):
            self._candidates[other.key] = self._candidate(other, new)
        self._look_at(study.key.category)

    def _candidate(self, study: Study, new: int) -> Candidate:
        """Returns a study as it may be given a slot.

        Args:
            study: The study.
            new: How many trials its category may begin that were never begun.
        """
        target, started, running = self._share(study), study.started, len(study.running)
        modelled = study.finished["COMPLETE"] + study.finished["PRUNED"]
        random_left = startup_trials(self._config) - modelled
        free = random_left <= 0 or running < random_left
        open_ = started < target and (study.begun > 0 or new > 0)
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
        study.begin(record, trial)
        self._renew(study)
        if state == "FAIL":
            self.finish(study.key, number, "FAIL", error=error)
        return record

    def _learn_winner(self, study: Study) -> None:
        """Lets other categories know what is best here by now."""
        if (winner := study.winner) is not None:
            record, gain = winner
            self._transfer.learn(study.key, record.params, gain)


def check_deciders(config: Sweep, plans: Mapping[StudyKey, SearchPlan]) -> None:
    """Makes sure that the sweep's sampler and pruner can be made, before anything is written.

    Raises:
        SweepError: If one of them cannot.
    """
    with quiet():
        make_pruner(config)
        for plan in plans.values():
            make_sampler(config, plan.method, 0, plan.distributions)
