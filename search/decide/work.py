"""All that a sweep has to run: the trials of its searches, and then their confirm runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from anomtune.search.config import Sweep
from anomtune.search.decide.pool import Pool, Study
from anomtune.search.decide.progress import most_confirm_runs, owed_confirm_runs
from anomtune.search.store.records import (
    AnyRecord,
    ConfirmRecord,
    ConfirmResult,
    Cost,
    StudyKey,
    now,
)


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
        #: Of every study whose search has ended: the runs that have not been handed out.
        self._waiting: dict[StudyKey, deque[ConfirmRecord]] = {}
        self._running: dict[str, StudyKey] = {}
        for study in pool.studies.values():
            self._settle(study)

    @property
    def remaining(self) -> int:
        """Number of runs that have not finished; of studies that still search, at most."""
        return len(self._running) + sum(
            len(self._runs(study)) if self._pool.searched(study) else self._most
            for study in self._pool.studies.values()
        )

    def ask(self) -> ConfirmRecord | None:
        """Starts the next run, or returns ``None`` if none can start now."""
        for study in self._pool.studies.values():
            if self._pool.searched(study) and (runs := self._runs(study)):
                record = runs.popleft()
                record.cost.started_at = now()
                self._save(record)
                self._running[record.path] = record.key
                return record
        return None

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
        del self._running[record.path]
        self._settle(self._pool.studies[record.key])

    def _settle(self, study: Study) -> None:
        """Tells of a study if nothing of it is left to confirm."""
        if self._most == 0 or not self._pool.searched(study):
            return
        if not self._runs(study) and study.key not in self._running.values():
            self._settled(study.key)

    def _runs(self, study: Study) -> deque[ConfirmRecord]:
        """Returns the runs that wait, of a study whose search has ended."""
        if study.key not in self._waiting:
            self._waiting[study.key] = deque(self._new_runs(study))
        return self._waiting[study.key]

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


class Work:
    """The searches and the confirm runs of a sweep, as one queue.

    Args:
        pool: The searches.
        confirmation: The confirm runs; those of a study can start when its search has ended.
    """

    def __init__(self, pool: Pool, confirmation: Confirmation) -> None:
        self.pool = pool
        self.confirmation = confirmation

    @property
    def remaining(self) -> int:
        """Number of runs that have not finished; confirm runs of open searches at most."""
        return self.pool.remaining + self.confirmation.remaining

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

        Confirm runs go first: they complete a study, and others can still search.
        """
        return self.confirmation.ask() or self.pool.ask()
