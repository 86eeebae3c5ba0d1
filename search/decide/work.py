"""All that a sweep has to run: the trials of its searches, and then their confirm runs."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf

from anomtune.search.config import Sweep
from anomtune.search.decide.budget import Hours
from anomtune.search.decide.pace import seconds_of
from anomtune.search.decide.pool import Pool
from anomtune.search.decide.progress import most_confirm_runs, owed_confirm_runs
from anomtune.search.decide.study import Study
from anomtune.search.store.records import (
    AnyRecord,
    ConfirmRecord,
    ConfirmResult,
    Cost,
    Rung,
    StudyKey,
    TrialRecord,
    best_record,
    now,
)

#: How much longer than a whole trial a confirm run takes, before there is one: it scores the
#: held-out images as well, and measures pixels.
_LONGER = 1.5


class Confirmation:
    """Hands out the confirm runs of studies whose search has ended, and takes their results.

    Args:
        config: The sweep.
        pool: Its searches.
        records: Confirm runs of earlier starts.
        save: Called with a record at every change, before anything follows from it.
        settled: Called with a study when nothing of it is left to confirm.
    """

    def __init__(
        self,
        config: Sweep,
        pool: Pool,
        records: Mapping[StudyKey, Sequence[ConfirmRecord]],
        save: Callable[[ConfirmRecord], None],
        settled: Callable[[StudyKey], None] = lambda key: None,
    ) -> None:
        self._config = config
        self._pool = pool
        self._save = save
        self._settled = settled
        self._earlier = records
        self._most = most_confirm_runs(config)
        self._durations: dict[str, tuple[float, int]] = {}
        for record in self.ended_before():
            self._learn(record)
        #: Runs that have not been handed out, of studies whose search has ended.
        self._waiting: deque[ConfirmRecord] = deque()
        #: How many of these each such study has.
        self._owed: dict[StudyKey, int] = {}
        self._running: Counter[StudyKey] = Counter()
        #: Paths of the runs that have begun and not ended, now or in an earlier start.
        self.unfinished = {
            run.path for runs in records.values() for run in runs if run.state == "RUNNING"
        }
        self.take_in()

    @property
    def running(self) -> int:
        """Number of runs that have been handed out."""
        return self._running.total()

    @property
    def remaining(self) -> int:
        """Number of runs that have not finished; of studies that still search, at most."""
        searching = len(self._pool.studies) - len(self._owed)
        return self._running.total() + len(self._waiting) + searching * self._most

    def take_in(self) -> list[tuple[StudyKey, int]]:
        """Takes in the runs of all studies whose search has ended meanwhile, the best first.

        Of each category the best config of the best method comes first, then the second of that
        method, that method's paper config and the best of the next method, and so on: what is cut
        off for want of time is what matters least.

        Returns:
            The studies, and how many runs each is to have.
        """
        ended = self._pool.ended(self._owed)
        if not ended:
            return []
        ranks = _ranks(ended)
        runs: list[tuple[int, ConfirmRecord]] = []
        for study in ended:
            found = list(self._new_runs(study))
            self._owed[study.key] = len(found)
            order = {number: at for at, number in enumerate(dict.fromkeys(r.number for r in found))}
            runs += [(ranks[study.key] + order[run.number], run) for run in found]
        self._waiting.extend(run for _, run in sorted(runs, key=lambda item: item[0]))
        for study in ended:
            self._settle(study.key)
        return [(study.key, self._owed[study.key]) for study in ended]

    def ask(self, seconds: float = inf) -> ConfirmRecord | None:
        """Starts the next run, or returns ``None`` if none can start now.

        Args:
            seconds: In which it must end.
        """
        for record in self._waiting:
            if self.seconds(record.method) <= seconds:
                break
        else:
            return None
        self._waiting.remove(record)
        self._owed[record.key] -= 1
        record.cost.started_at = now()
        self._save(record)
        self._running[record.key] += 1
        self.unfinished.add(record.path)
        return record

    def give_up(self) -> None:
        """Forgets the runs that have not been handed out: there is no time for them."""
        self._waiting.clear()
        for key in self._owed:
            if self._owed[key]:
                self._owed[key] = 0
                self._settle(key)

    def seconds(self, method: str) -> float:
        """Returns how long a run of a method is expected to take; 0 if that is not known."""
        total, count = self._durations.get(method, (0.0, 0))
        return total / count if count else _LONGER * self._pool.pace.run_seconds(method)

    def ended_before(self) -> Iterator[ConfirmRecord]:
        """Returns the runs that an earlier start completed."""
        records = (record for runs in self._earlier.values() for record in runs)
        return (record for record in records if record.state == "COMPLETE")

    def finish(
        self,
        record: ConfirmRecord,
        result: ConfirmResult | None,
        *,
        error: str | None = None,
        traceback: str | None = None,
    ) -> None:
        """Ends a run with its result, or with the reason why there is none."""
        started = record.cost.started_at
        cost = result.cost if result else Cost()
        record.cost = cost.model_copy(update={"started_at": started, "finished_at": now()})
        record.error, record.traceback = error, traceback
        if result is not None:
            record.val_auroc, record.facts = result.val_auroc, result.facts
            record.test, record.shifted = result.test, result.shifted
            record.paper = result.paper
            record.examples = result.examples
        record.state = "FAIL" if result is None else "COMPLETE"
        self._save(record)
        self._learn(record)
        self._running[record.key] -= 1
        self.unfinished.discard(record.path)
        self._settle(record.key)

    def _learn(self, record: ConfirmRecord) -> None:
        if record.state == "COMPLETE":
            total, count = self._durations.get(record.method, (0.0, 0))
            self._durations[record.method] = total + seconds_of(record), count + 1

    def _settle(self, key: StudyKey) -> None:
        """Tells of a study if nothing of it is left to confirm."""
        if self._most and self._owed[key] == 0 and self._running[key] == 0:
            self._settled(key)

    def _new_runs(self, study: Study) -> Iterator[ConfirmRecord]:
        runs = self._earlier.get(study.key, ())
        for number, seed in owed_confirm_runs(self._config, study.read, runs):
            yield ConfirmRecord(
                dataset=self._config.dataset.name,
                category=study.key.category,
                method=study.key.method,
                number=number,
                seed=seed,
                state="RUNNING",
                params=study.read_one(study.records[number]).params,
                split_hash=study.split_hash,
            )


def _ranks(studies: Sequence[Study]) -> dict[StudyKey, int]:
    """Returns the rank of each study within its category, by its best trial; 0 is the first."""

    def quality(study: Study) -> float:
        best = best_record(study.read)
        return 0.0 if best is None or best.value is None else study.handicap - best.value

    seen: Counter[str] = Counter()
    ranks = {}
    for study in sorted(studies, key=quality):
        ranks[study.key] = seen[study.key.category]
        seen[study.key.category] += 1
    return ranks


class Work:
    """The searches and the confirm runs of a sweep, as one queue.

    Args:
        config: The sweep.
        pool: The searches.
        confirmation: The confirm runs; those of a study can start when its search has ended.
        hours: The time that the sweep has.
        closed: Called when there is no more time to search, before anything follows from it.
        over: Called when there is no more time to confirm.
        search_ended: Called with a study whose search has ended, and how many confirm runs it is
            to have.
    """

    def __init__(
        self,
        config: Sweep,
        pool: Pool,
        confirmation: Confirmation,
        hours: Hours | None = None,
        *,
        closed: Callable[[], object] = lambda: None,
        over: Callable[[], object] = lambda: None,
        search_ended: Callable[[StudyKey, int], object] = lambda key, owed: None,
    ) -> None:
        self._config = config
        self.pool = pool
        self.confirmation = confirmation
        self.hours = hours or Hours(config)
        self._closed = closed
        self._over = over
        self._search_ended = search_ended

    @property
    def remaining(self) -> int:
        """Number of runs that have not finished; confirm runs of open searches at most."""
        return self.pool.remaining + self.confirmation.remaining

    @property
    def unfinished(self) -> set[str]:
        """Paths of the records of all runs that have begun and not ended."""
        return {record.path for record in self.pool.unfinished} | self.confirmation.unfinished

    def ended_before(self) -> list[AnyRecord]:
        """Returns what earlier starts trained and scored, in the order in which it ended.

        To be asked before anything is started.
        """
        trials = (
            record
            for study in self.pool.studies.values()
            for record in study.records.values()
            if record.state in ("COMPLETE", "PRUNED")
        )
        runs: list[AnyRecord] = [*trials, *self.confirmation.ended_before()]
        return sorted(runs, key=lambda record: record.cost.finished_at or "")

    def ask(self) -> AnyRecord | None:
        """Starts the next run, or returns ``None`` if none can start now.

        Confirm runs go first: they complete a study, and others can still search. In a number of
        hours they come when the search is over, so that the best ones come first.
        """
        self.take_in()
        if not self.hours.limited:
            return self.confirmation.ask() or self.pool.ask()
        if self.pool.remaining:
            seconds = self._for_search()
            if self.pool.has_time(seconds):
                return self.pool.ask(seconds)
            if not self.pool.closed:
                self._closed()
                self.pool.close()
                self.take_in()
        run = self.confirmation.ask(self.hours.left)
        if run is None and self.pool.remaining == 0 and self.confirmation.running == 0:
            self._over()
            self.confirmation.give_up()
        return run

    def report(self, record: TrialRecord, rung: Rung, cost: Cost) -> bool:
        """Takes a trial's rung and returns whether the trial should go on.

        One that takes longer than was expected is stopped when confirm runs need its time.

        Args:
            record: The trial.
            rung: What it reports.
            cost: What it took up to there.
        """
        goes_on = self.pool.report(record.key, record.number, rung, cost)
        if not self.hours.limited:
            return goes_on
        seconds = cost.train_seconds + cost.evaluate_seconds
        left = seconds / rung.step * (self._config.rungs - rung.step)
        return goes_on and left <= self._for_search()

    def take_in(self) -> None:
        """Tells of the studies whose search has ended, and takes in their confirm runs.

        To be called when a trial has ended.
        """
        if self.hours.limited and self.pool.remaining:
            return
        for key, owed in self.confirmation.take_in():
            self._search_ended(key, owed)

    def _for_search(self) -> float:
        """Returns the seconds in which trials must end, for confirm runs to have the rest."""
        if not self.hours.limited:
            return inf
        first = confirm = longest = 0.0
        seeds = len(set(self._config.confirm.seeds)) if self._config.confirm.top else 0
        of_method = {
            method: seeds * self.confirmation.seconds(method) for method in self._config.methods
        }
        for leading in self.pool.leading.values():
            seconds = [of_method[method] for method in leading[:2]]
            first += seconds[0]
            longest = max(longest, seconds[0] / max(seeds, 1))
            confirm += (self._config.confirm.top + 1) * seconds[0] + sum(seconds[1:])
        # So many runs may not divide by the slots.
        first += longest * (self.hours.slots - 1)
        return self.hours.for_search(confirm, first)
