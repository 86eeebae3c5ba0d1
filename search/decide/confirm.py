"""Which configs are confirmed, and which of them wins: decided by validation alone.

The best configs of a study and the paper's own are trained with the seeds of the sweep file. Each
of these runs opens the held-out images once. The config with the highest mean validation AUROC
over the seeds wins, whatever the held-out images say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from anomtune.search.config import ConfirmConfig
from anomtune.search.store.records import ConfirmRecord, TrialRecord, best_record, canonical


@dataclass(frozen=True)
class Confirmed:
    """What the confirm runs of one config say together.

    Attributes:
        number: Of the trial whose config it is.
        runs: Its completed runs, one per seed.
    """

    number: int
    runs: tuple[ConfirmRecord, ...]

    @property
    def val_auroc(self) -> float:
        """Mean validation AUROC over the seeds."""
        return mean(run.val_auroc for run in self.runs if run.val_auroc is not None)

    @property
    def val_std(self) -> float | None:
        """Its standard deviation; ``None`` with a single seed."""
        return _spread(run.val_auroc for run in self.runs)

    @property
    def test_auroc(self) -> float | None:
        """Mean AUROC on held-out images of the training images' domain, if there are any."""
        return self.test_mean("auroc")

    @property
    def paper_test_auroc(self) -> float | None:
        """`test_auroc` with the paper's scoring; of the paper's own config alone."""
        tests = (run.test if run.paper is None else run.paper.test for run in self.runs)
        return _mean(None if test is None else test.auroc for test in tests)

    def test_mean(self, metric: str) -> float | None:
        """Mean of a metric on those images; ``None`` if it was not measured."""
        return _mean(run.test.figures.get(metric) for run in self.runs if run.test is not None)

    @property
    def test_std(self) -> float | None:
        """Its standard deviation; ``None`` with a single seed."""
        return _spread(run.test.auroc if run.test else None for run in self.runs)

    @property
    def shifted_auroc(self) -> dict[str, float | None]:
        """Mean AUROC on each shifted domain."""
        domains = dict.fromkeys(domain for run in self.runs for domain in run.shifted)
        return {
            domain: _mean(run.shifted[domain].auroc for run in self.runs if domain in run.shifted)
            for domain in domains
        }


def kept_seed(config: ConfirmConfig) -> int:
    """Returns the seed whose detectors are kept: the first, whatever its figures."""
    return config.seeds[0]


def to_confirm(records: Iterable[TrialRecord], config: ConfirmConfig) -> list[int]:
    """Returns the trials whose configs are confirmed: the best different ones, and the paper's.

    Args:
        records: The trials of a study.
        config: How many.
    """
    completed = [record for record in records if record.value is not None]
    completed.sort(key=lambda record: (-(record.value or 0), record.number))
    chosen: dict[str, int] = {}
    for record in completed:
        chosen.setdefault(canonical(record.params), record.number)
    numbers = list(chosen.values())[: config.top]
    if numbers and any(record.number == 0 for record in completed) and 0 not in numbers:
        numbers.append(0)
    return numbers


def summarise(
    records: Iterable[TrialRecord], runs: Iterable[ConfirmRecord], config: ConfirmConfig
) -> dict[int, Confirmed]:
    """Returns the configs of a study that are confirmed with every seed, by number of their trial.

    A run counts if its config and images are those of the trial of that number.

    Args:
        records: The trials of the study.
        runs: Its confirm runs.
        config: Which seeds there must be.
    """
    by_number = {record.number: record for record in records}
    found: dict[int, dict[int, ConfirmRecord]] = defaultdict(dict)
    for run in runs:
        trial = by_number.get(run.number)
        wanted = run.state == "COMPLETE" and run.seed in config.seeds
        if wanted and trial is not None and belongs(run, trial):
            found[run.number][run.seed] = run
    return {
        number: Confirmed(number, tuple(seeds.values()))
        for number, seeds in found.items()
        if len(seeds) == len(set(config.seeds))
    }


def belongs(run: ConfirmRecord, trial: TrialRecord) -> bool:
    """Whether a confirm run is of the very config and images of a trial."""
    return run.params == trial.params and run.split_hash == trial.split_hash


def choose(
    records: Sequence[TrialRecord], runs: Iterable[ConfirmRecord], config: ConfirmConfig
) -> tuple[TrialRecord | None, Confirmed | None]:
    """Returns the trial whose config a study answers with, and what was confirmed of it.

    The highest mean validation AUROC among the confirmed configs. Before any of the search's best
    is confirmed, and if none of them can be, the search's best trial.

    Args:
        records: The trials of the study.
        runs: Its confirm runs.
        config: How many configs are to be confirmed.
    """
    wanted = to_confirm(records, config)
    summary = summarise(records, runs, config)
    confirmed = [summary[number] for number in wanted if number in summary]
    if not set(wanted[: config.top]) & summary.keys():
        return best_record(records), None
    winner = max(confirmed, key=lambda c: (c.val_auroc, -c.number))
    return next(r for r in records if r.number == winner.number), winner


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _spread(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) > 1 else None
