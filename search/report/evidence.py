"""What a report is made of, read once: leaderboard, records, confirm runs and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from anomtune.search.config import Sweep
from anomtune.search.decide.confirm import Confirmed, choose, summarise
from anomtune.search.decide.plan import SearchPlan, plan_studies
from anomtune.search.decide.progress import StudyProgress, sweep_progress
from anomtune.search.decide.scoring import read_studies
from anomtune.search.metrics.image import Auroc, Labels, Scores, are_tied, auroc
from anomtune.search.report.kept import Kept, read_kept
from anomtune.search.report.verdict import Verdict, is_papers, judge
from anomtune.search.results.column import Row
from anomtune.search.results.leaderboard import rank_studies, tabulate
from anomtune.search.store.directory import SweepDirectory
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import ConfirmRecord, StudyKey, TrialRecord
from anomtune.search.store.spent import read_spent


@dataclass(frozen=True)
class StudyEvidence:
    """One study of the sweep.

    Attributes:
        row: Its row of the leaderboard.
        plan: What is searched.
        records: Its trials, in order of number.
        confirmed: Its configs that are confirmed, by number of their trial.
        winner: What was confirmed of the chosen config, if that is a confirmed one.
        measured: Labels ``(K,)`` and scores ``(S, K)`` of its runs on the held-out images.
        progress: How far it is.
    """

    row: Row
    plan: SearchPlan
    records: Sequence[TrialRecord]
    confirmed: Mapping[int, Confirmed]
    winner: Confirmed | None
    measured: tuple[Labels, Scores] | None
    progress: StudyProgress

    @property
    def held_out(self) -> Auroc | None:
        """The mean AUROC of these scores, with its interval."""
        return None if self.measured is None else auroc(*self.measured)


@dataclass(frozen=True)
class CategoryEvidence:
    """One category.

    Attributes:
        name: Its name.
        studies: In order of rank.
        verdict: What is to be said of them.
        tied_with_paper: Whether held-out images cannot tell rank 1 from the paper's config.
        kept: The detector of rank 1 on the held-out images.
        store: The directory that it lies in.
    """

    name: str
    studies: Sequence[StudyEvidence]
    verdict: Verdict
    tied_with_paper: bool | None
    kept: Kept | None
    store: RecordStore


@dataclass(frozen=True)
class Evidence:
    """A sweep.

    Attributes:
        config: What was asked for.
        board: Its leaderboard, whose metadata say what it was compiled with.
        categories: What is known of each.
    """

    config: Sweep
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


def gather(config: Sweep, directories: Sequence[SweepDirectory]) -> Evidence:
    """Reads the records of a sweep and judges each category.

    Args:
        config: The whole sweep.
        directories: The directory that it lies in, or those that its categories are divided among.

    Raises:
        SweepError: If a record cannot be understood or a method is not there.
    """
    plans = plan_studies(config)
    found = [
        (directory, read_studies(directory.store), directory.store.read_confirmed())
        for directory in directories
    ]
    board = tabulate(config, [rank_studies(*place, trials, runs) for place, trials, runs in found])
    rows: dict[str, list[Row]] = {}
    for row in board.to_pylist():
        rows.setdefault(row["category"], []).append(row)
    categories = [
        category
        for directory, trials, runs in found
        for category in _categories(directory, rows, plans, trials, runs)
    ]
    return Evidence(config, board, categories)


def _categories(
    directory: SweepDirectory,
    rows: Mapping[str, Sequence[Row]],
    plans: Mapping[StudyKey, SearchPlan],
    trials: Mapping[StudyKey, Sequence[TrialRecord]],
    runs: Mapping[StudyKey, Sequence[ConfirmRecord]],
) -> list[CategoryEvidence]:
    """Judges the categories of a directory.

    Args:
        directory: Where they lie.
        rows: Of the leaderboard, by category and in order of rank.
        plans: What each study searches.
        trials: Of the directory, as the scoring of each study reads them.
        runs: Its confirm runs.
    """
    config, store = directory
    progress = sweep_progress(
        config, trials, runs, lambda key: bool(plans[key].space), read_spent(store.storage)
    )
    categories = []
    for name in config.dataset.categories or ():
        entries, studies = rows[name], []
        for row in entries:
            key = StudyKey(name, row["method"])
            studies.append(
                _study(
                    config,
                    store,
                    row,
                    plan=plans[key],
                    progress=progress[key],
                    records=trials.get(key, ()),
                    runs=runs.get(key, ()),
                )
            )
        own_progress = [study.progress for study in studies]
        tied, winner = _tied_with_paper(store, studies[0]), studies[0].winner
        categories.append(
            CategoryEvidence(
                name=name,
                studies=studies,
                verdict=judge(entries, own_progress, tied),
                tied_with_paper=tied,
                kept=None if winner is None else read_kept(store, winner, config.confirm),
                store=store,
            )
        )
    return categories


def _study(
    config: Sweep,
    store: RecordStore,
    row: Row,
    *,
    plan: SearchPlan,
    progress: StudyProgress,
    records: Sequence[TrialRecord],
    runs: Sequence[ConfirmRecord],
) -> StudyEvidence:
    winner = choose(records, runs, config.confirm)[1]
    return StudyEvidence(
        row=row,
        plan=plan,
        records=records,
        confirmed=summarise(records, runs, config.confirm),
        winner=winner,
        measured=None if winner is None else _held_out(store, winner),
        progress=progress,
    )


def _tied_with_paper(store: RecordStore, study: StudyEvidence) -> bool | None:
    """Returns whether held-out images and seeds cannot tell the chosen config from the paper's.

    ``None`` where that is not known.
    """
    default = study.confirmed.get(0)
    if study.winner is None or default is None or is_papers(study.row):
        return None
    chosen, own = _held_out(store, study.winner), _held_out(store, default, paper=True)
    if chosen is None or own is None or not np.array_equal(chosen[0], own[0]):
        return None
    return are_tied(chosen[0], chosen[1], own[1])


def _held_out(
    store: RecordStore, confirmed: Confirmed, *, paper: bool = False
) -> tuple[Labels, Scores] | None:
    """Returns held-out labels ``(K,)`` and scores ``(S, K)`` of the runs of a config.

    ``None`` if some are missing, or they do not give the AUROC of their records.

    Args:
        store: The sweep directory.
        confirmed: The config.
        paper: Whether with the paper's scoring; of the paper's config.
    """
    expected = confirmed.paper_test_auroc if paper else confirmed.test_auroc
    found = [store.read_held_out(run, paper=paper) for run in confirmed.runs]
    known = [held_out for held_out in found if held_out is not None]
    if len(known) < len(found) or not known:
        return None
    labels = known[0].labels
    if len(np.unique(labels)) < 2 or any(not np.array_equal(labels, k.labels) for k in known):
        return None
    scores = np.stack([held_out.scores for held_out in known])
    if expected is None or not np.isfinite(scores).all():
        return None
    # Of other scores than the figure's nothing is to be said.
    same = abs(auroc(labels, scores).value - expected) < 1e-9
    return (labels, scores) if same else None
