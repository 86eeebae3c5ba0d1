"""What a report is made of, read once: leaderboard, records, confirm runs and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from anomtune.search.config import Sweep
from anomtune.search.decide.confirm import Confirmed, choose, summarise
from anomtune.search.decide.progress import StudyProgress, study_progress
from anomtune.search.decide.study import SearchPlan, plan_studies
from anomtune.search.metrics.image import paired_delong_p
from anomtune.search.report.verdict import Verdict, judge
from anomtune.search.results.column import Row
from anomtune.search.results.leaderboard import compile_leaderboard
from anomtune.search.store.records import ConfirmRecord, RecordStore, StudyKey, TrialRecord


@dataclass(frozen=True)
class StudyEvidence:
    """One study of the sweep.

    Attributes:
        row: Its row of the leaderboard.
        plan: What is searched.
        records: Its trials, in order of number.
        confirmed: Its configs that are confirmed, by number of their trial.
        winner: What was confirmed of the chosen config, if that is a confirmed one.
        progress: How far it is.
    """

    row: Row
    plan: SearchPlan
    records: Sequence[TrialRecord]
    confirmed: Mapping[int, Confirmed]
    winner: Confirmed | None
    progress: StudyProgress


@dataclass(frozen=True)
class CategoryEvidence:
    """One category: its studies in order of rank, and the verdict on them."""

    name: str
    studies: Sequence[StudyEvidence]
    verdict: Verdict


@dataclass(frozen=True)
class Evidence:
    """A sweep.

    Attributes:
        config: What was asked for.
        store: Its directory.
        board: Its leaderboard, whose metadata say what it was compiled with.
        categories: What is known of each.
    """

    config: Sweep
    store: RecordStore
    board: pa.Table
    categories: Sequence[CategoryEvidence]

    @property
    def studies(self) -> list[StudyEvidence]:
        """The studies of all categories."""
        return [study for category in self.categories for study in category.studies]

    @property
    def methods(self) -> list[str]:
        """The methods, as the sweep file orders them."""
        return list(self.config.methods)


def gather(config: Sweep, store: RecordStore) -> Evidence:
    """Reads the records of a sweep and judges each category.

    Raises:
        SweepError: If a record cannot be understood or a method is not there.
    """
    plans = plan_studies(config)
    trials, runs = store.read_all(), store.read_confirmed()
    board = compile_leaderboard(config, store, trials)
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in board.to_pylist():
        rows.setdefault(row["category"], []).append(row)
    categories = []
    for name, entries in rows.items():
        studies = []
        for row in entries:
            key = StudyKey(name, row["method"])
            plan = plans[key]
            studies.append(_study(config, row, plan, trials.get(key, ()), runs.get(key, ())))
        progress = [study.progress for study in studies]
        verdict = judge(entries, progress, _told_apart(store, studies[0]))
        categories.append(CategoryEvidence(name, studies, verdict))
    return Evidence(config, store, board, categories)


def _study(
    config: Sweep,
    row: Row,
    plan: SearchPlan,
    records: Sequence[TrialRecord],
    runs: Sequence[ConfirmRecord],
) -> StudyEvidence:
    key = StudyKey(row["category"], row["method"])
    return StudyEvidence(
        row=row,
        plan=plan,
        records=records,
        confirmed=summarise(records, runs, config.confirm),
        winner=choose(records, runs, config.confirm)[1],
        progress=study_progress(config, key, records, runs, searched=bool(plan.space)),
    )


def _told_apart(store: RecordStore, study: StudyEvidence) -> list[bool]:
    """Returns for each seed whether held-out images tell the chosen config from the paper's own."""
    default = study.confirmed.get(0)
    if study.winner is None or default is None or study.winner.number == 0:
        return []
    papers = {run.seed: run for run in default.runs}
    told = []
    for run in study.winner.runs:
        chosen, own = store.read_held_out(run), store.read_held_out(papers[run.seed])
        if chosen is None or own is None or not np.array_equal(chosen.labels, own.labels):
            return []
        try:
            told.append(paired_delong_p(chosen.labels, chosen.scores, own.scores) <= 0.05)
        except ValueError:  # a class is missing, or a score is not finite
            return []
    return told
