"""How far a study is and what it still owes: one rule, told by its records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from anomtune.search.config import Sweep
from anomtune.search.decide.budget import trial_targets
from anomtune.search.decide.confirm import belongs, to_confirm
from anomtune.search.store.records import ConfirmRecord, State, StudyKey, TrialRecord, best_record
from anomtune.search.store.spent import Spent


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is.

    Attributes:
        key: Category and method.
        target: How many trials it is to have.
        complete: Trials that ended with a value.
        pruned: Trials that were stopped early.
        failed: Trials that failed.
        running: Trials that were started and have not ended; after a kill, those of then.
        best: Highest validation AUROC of a completed trial, in [0, 1].
        default: That of the paper's own config with its own scoring.
        confirmed: Confirm runs that have ended.
        confirm_target: How many there are to be; while the search goes on, at most.
        confirming: Confirm runs that were started and have not ended.
        confirm_failed: Those of ``confirmed`` that failed: their configs are not confirmed.
        confirm_error: Why the last of them failed, in one line.
    """

    key: StudyKey
    target: int
    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    best: float | None = None
    default: float | None = None
    confirmed: int = 0
    confirm_target: int = 0
    confirming: int = 0
    confirm_failed: int = 0
    confirm_error: str | None = None

    @property
    def failed_runs(self) -> str | None:
        """Says of a study how many confirm runs failed, and why; ``None`` if none did."""
        if self.confirm_failed == 0:
            return None
        return (
            f"{self.confirm_failed} of {self.confirm_target} confirm runs failed: "
            f"{self.confirm_error}"
        )

    @property
    def ended(self) -> int:
        """Number of trials that have ended."""
        return self.complete + self.pruned + self.failed

    @property
    def owed(self) -> int:
        """Number of trials and confirm runs that have not ended."""
        # Confirm runs of earlier starts may be more than are wanted now: they make up for nothing.
        return self.target - self.ended + max(0, self.confirm_target - self.confirmed)


def study_progress(
    config: Sweep,
    key: StudyKey,
    trials: Collection[TrialRecord],
    runs: Collection[ConfirmRecord],
    *,
    target: int,
    over: bool = False,
    states: Mapping[State, int] | None = None,
) -> StudyProgress:
    """Returns how far a study is.

    Args:
        config: The sweep.
        key: One of its studies.
        trials: The study's trials. With ``states`` not all: the first, the best ones, and those
            that have confirm runs.
        runs: Its confirm runs.
        target: How many trials it is to have; see `anomtune.search.decide.budget.trial_targets`.
        over: Whether there is no more time to confirm.
        states: How many trials are in each state, if they have been counted already.
    """
    counts = Counter(record.state for record in trials) if states is None else Counter(states)
    best = best_record(trials)
    searching = counts.total() - counts["RUNNING"] < target
    wanted = [] if searching else list(confirm_runs(config, trials))
    by_number = {record.number: record for record in trials}
    current = [
        run
        for run in runs
        if run.number in by_number
        and belongs(run, by_number[run.number])
        and (run.seed in config.confirm.seeds if searching else (run.number, run.seed) in wanted)
    ]
    confirming = sum(run.state == "RUNNING" for run in current)
    failures = [run for run in current if run.state == "FAIL"]
    confirmed = len(current) - confirming
    confirm_target = most_confirm_runs(config) if searching else len(wanted)
    return StudyProgress(
        key=key,
        target=target,
        complete=counts["COMPLETE"],
        pruned=counts["PRUNED"],
        failed=counts["FAIL"],
        running=counts["RUNNING"],
        best=best.value if best else None,
        default=by_number[0].paper_value if 0 in by_number else None,
        confirmed=confirmed,
        confirm_target=confirmed if over else confirm_target,
        confirming=confirming,
        confirm_failed=len(failures),
        confirm_error=failures[-1].error if failures else None,
    )


def sweep_progress(
    config: Sweep,
    trials: Mapping[StudyKey, Collection[TrialRecord]],
    runs: Mapping[StudyKey, Collection[ConfirmRecord]],
    searched: Callable[[StudyKey], bool],
    spent: Spent,
) -> dict[StudyKey, StudyProgress]:
    """Returns how far each study of a sweep is.

    Args:
        config: The sweep.
        trials: By study, as the scoring of each reads them.
        runs: Confirm runs by study.
        searched: Whether a study has hyperparameters to search.
        spent: What the sweep has spent of its hours.
    """
    keys = [
        StudyKey(category, method)
        for category in config.dataset.categories or ()
        for method in config.methods
    ]
    known = {key: len(trials.get(key, ())) for key in keys}
    targets = trial_targets(config, known, searched, closed=spent.search_is_over(config))
    over = spent.confirm_is_over(config)
    return {
        key: study_progress(
            config, key, trials.get(key, ()), runs.get(key, ()), target=targets[key], over=over
        )
        for key in keys
    }


def confirm_runs(config: Sweep, trials: Collection[TrialRecord]) -> Iterator[tuple[int, int]]:
    """Yields the confirm runs of a study whose search has ended: number of the trial, and seed."""
    if config.confirm.top == 0:
        return
    for number in to_confirm(trials, config.confirm):
        for seed in dict.fromkeys(config.confirm.seeds):
            yield number, seed


def owed_confirm_runs(
    config: Sweep, trials: Collection[TrialRecord], runs: Collection[ConfirmRecord]
) -> Iterator[tuple[int, int]]:
    """Yields those of `confirm_runs` that no record says have ended."""
    by_number = {record.number: record for record in trials}
    ended = {
        (run.number, run.seed)
        for run in runs
        if run.state != "RUNNING"
        and run.number in by_number
        and belongs(run, by_number[run.number])
    }
    return (wanted for wanted in confirm_runs(config, trials) if wanted not in ended)


def most_confirm_runs(config: Sweep) -> int:
    """Returns how many confirm runs a study can come to have: of its best, and the paper's own."""
    top = config.confirm.top
    return (top + 1) * len(set(config.confirm.seeds)) if top else 0
