"""The result of a sweep: one row per study, ranked within each category, and all trials.

Both tables are compiled from the records and can be compiled again at any time.
"""

from __future__ import annotations

import io
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import islice
from statistics import mean

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anomtune.search.config import Sweep
from anomtune.search.decide.confirm import choose, summarise
from anomtune.search.decide.scoring import read_studies
from anomtune.search.metrics.image import Labels, Scores, are_tied, auroc
from anomtune.search.results.column import row_of, schema_of
from anomtune.search.results.columns import Standing, leaderboard_columns
from anomtune.search.results.trial_columns import TRIAL_COLUMNS
from anomtune.search.store.record_store import RecordStore
from anomtune.search.store.records import ConfirmRecord, StudyKey, TrialRecord

SCHEMA_VERSION = 3


def compile_leaderboard(
    config: Sweep,
    store: RecordStore,
    studies: Mapping[StudyKey, Sequence[TrialRecord]] | None = None,
) -> pa.Table:
    """Returns the leaderboard of a sweep as its records are now.

    A study without a completed trial has a row too, with nulls and the last ranks.

    Args:
        config: The sweep.
        store: Its directory.
        studies: Its records, if they have been read already.
    """
    studies = read_studies(store) if studies is None else studies
    return tabulate(config, [rank_studies(config, store, studies, store.read_confirmed())])


@dataclass(frozen=True)
class Ranking:
    """The studies of a sweep directory, ranked.

    Attributes:
        standings: By category, in the order of the sweep, and within each in order of rank.
        metrics: Names of all metrics that its confirm runs have measured.
    """

    standings: Sequence[Standing]
    metrics: frozenset[str]


def rank_studies(
    config: Sweep,
    store: RecordStore,
    studies: Mapping[StudyKey, Sequence[TrialRecord]],
    confirmed: Mapping[StudyKey, Sequence[ConfirmRecord]],
) -> Ranking:
    """Ranks the studies of a sweep directory.

    Args:
        config: The sweep.
        store: Its directory.
        studies: Its trials, as the scoring of each study reads them.
        confirmed: Its confirm runs.
    """
    counts = store.read_test_counts()
    standings: dict[str, list[Standing]] = {}
    for category in config.dataset.categories or ():
        for method in config.methods:
            key = StudyKey(category, method)
            records, runs = studies.get(key, []), confirmed.get(key, [])
            held_out = counts.get(category, (None, None))
            standing = _standing(config, key, records, runs, held_out)
            standings.setdefault(category, []).append(standing)
    ranked = [
        standing
        for category, listed in _with_scores(store, standings).items()
        for standing in _ranked(listed, store.read_labels(category))
    ]
    return Ranking(ranked, _recorded_metrics(confirmed))


def tabulate(config: Sweep, rankings: Sequence[Ranking]) -> pa.Table:
    """Returns the leaderboard of a sweep that lies in one directory or several.

    Args:
        config: The whole sweep.
        rankings: Of each directory.
    """
    columns = leaderboard_columns({name for ranking in rankings for name in ranking.metrics})
    rows = [row_of(columns, standing) for ranking in rankings for standing in ranking.standings]
    return pa.Table.from_pylist(rows, schema=schema_of(columns)).replace_schema_metadata(
        _metadata(config)
    )


def rank_category(
    config: Sweep,
    store: RecordStore,
    category: str,
    studies: Mapping[StudyKey, Sequence[TrialRecord]],
    confirmed: Mapping[StudyKey, Sequence[ConfirmRecord]],
    *,
    completed: Mapping[StudyKey, int],
) -> list[Standing]:
    """Returns the studies of a category in order of rank, as the leaderboard has them.

    Args:
        config: The sweep.
        store: Its directory, for the scores that tell whether studies are tied.
        category: The category.
        studies: Its trials, as the scoring of each study reads them: at least the first, the best
            ones, and those that have confirm runs.
        confirmed: Its confirm runs.
        completed: How many trials of each study have been completed.
    """
    listed = []
    for key in (StudyKey(category, method) for method in config.methods):
        known = _standing(config, key, studies[key], confirmed[key], (None, None))
        listed.append(replace(known, completed=completed[key]))
    return _ranked(_with_scores(store, {category: listed})[category], store.read_labels(category))


def _standing(
    config: Sweep,
    key: StudyKey,
    records: Sequence[TrialRecord],
    runs: Sequence[ConfirmRecord],
    held_out: tuple[int | None, int | None],
) -> Standing:
    best, winner = choose(records, runs, config.confirm)
    default = summarise(records, runs, config.confirm).get(0) if winner else None
    return Standing(config, key, records, best, winner, default, held_out)


def compile_trials(config: Sweep, records: Iterable[TrialRecord]) -> pa.Table:
    """Returns one row per trial, in order of study and number."""
    rows = [row_of(TRIAL_COLUMNS, record) for record in records]
    return pa.Table.from_pylist(rows, schema=schema_of(TRIAL_COLUMNS)).replace_schema_metadata(
        _metadata(config)
    )


def write_tables(config: Sweep, store: RecordStore) -> pa.Table:
    """Compiles both tables, writes them into the sweep directory and returns the leaderboard."""
    studies = read_studies(store)
    board = compile_leaderboard(config, store, studies)
    records = [record for study in studies.values() for record in study]
    for name, table in (("leaderboard", board), ("trials", compile_trials(config, records))):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        # The same records give the same bytes: a finished sweep is left as it is.
        if store.storage.read(f"{name}.parquet") != buffer.getvalue():
            store.storage.write(f"{name}.parquet", buffer.getvalue(), durable=True)
    return board


def _recorded_metrics(runs: Mapping[StudyKey, Sequence[ConfirmRecord]]) -> frozenset[str]:
    """Returns the names of all metrics that confirm runs have measured."""
    return frozenset(
        name
        for records in runs.values()
        for record in records
        if record.test is not None
        for name in record.test.figures
    )


def _with_scores(
    store: RecordStore, standings: Mapping[str, Sequence[Standing]]
) -> dict[str, list[tuple[Standing, list[Scores | None]]]]:
    """Returns with each study the validation scores of its trainings, all read at once."""
    trainings = [t for listed in standings.values() for s in listed for t in s.trainings]
    arrays = iter(store.read_scores(trainings))
    return {
        category: [(standing, list(islice(arrays, len(standing.trainings)))) for standing in listed]
        for category, listed in standings.items()
    }


def _ranked(
    listed: Sequence[tuple[Standing, list[Scores | None]]], labels: Labels | None
) -> list[Standing]:
    """Returns the studies of a category in order of rank, with ranks, ties and intervals.

    Args:
        listed: The studies, with the scores of their trainings.
        labels: Of the validation images.
    """
    listed = sorted(listed, key=lambda item: item[0].order)
    scores = [_of_record(standing, arrays, labels) for standing, arrays in listed]
    ranked = []
    for rank, ((standing, _), own, tied) in enumerate(
        zip(listed, scores, _ties([s for s, _ in listed], scores, labels), strict=True), start=1
    ):
        interval = None
        if labels is not None and own is not None and standing.winner is not None:
            interval = auroc(labels, own)
        ranked.append(replace(standing, rank=rank, tied=tied, confirmed_interval=interval))
    return ranked


def _of_record(
    standing: Standing, arrays: Sequence[Scores | None], labels: Labels | None
) -> Scores | None:
    """Returns the scores ``(S, N)`` that the AUROC of a row is made of, ``None`` if one is missing.

    Scores which do not give the AUROC of their record are not its scores: a test of them could
    favour the row that is ranked below.
    """
    found = []
    for training, array in zip(standing.trainings, arrays, strict=True):
        if labels is None or array is None or array.shape != labels.shape:
            return None
        try:
            value = auroc(labels, array).value
        except ValueError:  # a class is missing, or a score is not finite
            return None
        if training.value is None or abs(value - training.value) > 1e-9:
            return None
        found.append(array)
    return np.stack(found) if found else None


def _mean(standing: Standing) -> float:
    """Returns the mean AUROC of the trainings that rank a study."""
    return mean(training.value or 0.0 for training in standing.trainings)


def _ties(
    standings: Sequence[Standing], scores: Sequence[Scores | None], labels: Labels | None
) -> list[bool | None]:
    """Returns of each study whether it cannot be told from the first.

    ``None`` where that is not known: without scores, where one is confirmed and the other is not,
    and where a single training is all there is and its images tell them apart. The first itself is
    tied if any other is, and not tied if none is.

    Args:
        standings: In order of rank.
        scores: Validation scores ``(S, N)`` of each.
        labels: ``(N,)``
    """
    ties: list[bool | None] = [None] * len(standings)
    for index, (standing, own) in enumerate(zip(standings, scores, strict=True)):
        same = standing.ranked_by == standings[0].ranked_by
        if index and same and labels is not None and own is not None and scores[0] is not None:
            ties[index] = are_tied(labels, scores[0], own)
            if _mean(standing) > _mean(standings[0]):
                ties[index] = True  # below by its scoring_error alone: it is not worse
    others = [tied for s, tied in zip(standings, ties, strict=True) if s.ranked_by is not None][1:]
    if others and (True in others or None not in others):
        ties[0] = True in others
    return ties


def _metadata(config: Sweep) -> dict[str, str]:
    return {
        "anomtune.schema_version": str(SCHEMA_VERSION),
        "anomtune.sweep_name": config.name,
        "anomtune.sweep_sha256": config.digest(),
        **_environment(),
    }


@cache
def _environment() -> dict[str, str]:
    libraries = ("ray", "optuna", "torch", "torchvision", "numpy", "pyarrow")
    hardware = {
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    return {
        "anomtune.code_version": version("anomtune"),
        "anomtune.library_versions": json.dumps({name: version(name) for name in libraries}),
        "anomtune.hardware": json.dumps(hardware),
    }
