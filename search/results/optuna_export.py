"""The studies of a sweep as Optuna keeps them: for optuna-dashboard and Optuna's own plots.

They are made from the records, which remain the truth: a study in a database can be deleted and
exported again. Nothing of a sweep is ever read back from there.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from anomtune.datasets.io.uri import mask_uri
from anomtune.errors import StorageError, SweepError
from anomtune.models.scoring import score_rule
from anomtune.search.config import Sweep
from anomtune.search.decide.optuna_internals import quiet
from anomtune.search.decide.plan import SearchPlan, plan_studies
from anomtune.search.decide.scoring import read_studies
from anomtune.search.store.directory import read_sweep
from anomtune.search.store.records import StudyKey, TrialRecord

#: The user attribute by which an exported study is known, with the name of its sweep.
_MARK = "anomtune_sweep"

_METRIC = ["validation AUROC"]


def rebuild_studies(
    config: Sweep, studies: Mapping[StudyKey, Sequence[TrialRecord]]
) -> dict[StudyKey, optuna.Study]:
    """Returns an in-memory Optuna study for each study of a sweep, with all its trials.

    Trials have the numbers, states, times and rungs of their records. One whose record was deleted
    is waiting, as the sweep would run it again. What else is known of a trial is among its user
    attributes, where Optuna's tools show it.

    Args:
        config: The sweep.
        studies: Its records.

    Raises:
        SweepError: If a method is not there, or a record is of another version of it.
    """
    plans = plan_studies(config)
    rebuilt = {}
    for key, records in studies.items():
        if key not in plans:  # its record is from elsewhere: no study of this sweep
            continue
        name = f"{config.dataset.name}/{key}"
        with quiet():
            study = optuna.create_study(study_name=name, direction="maximize")
            study.set_metric_names(_METRIC)
        study.set_user_attr(_MARK, config.name)
        study.add_trials(_trials(plans[key], records))
        rebuilt[key] = study
    return rebuilt


def export_studies(directory: str | os.PathLike[str], url: str) -> int:
    """Writes the studies of a sweep where optuna-dashboard finds them.

    What is there already and has not changed stays as it is, so that a sweep that runs can be
    exported again and again. A study of which a finished trial has changed, because it was run
    again or the study reads its trials with another scoring now, is replaced whole: Optuna lets no
    finished trial be changed.

    Args:
        directory: The sweep directory.
        url: An SQLAlchemy database URL (``sqlite:///studies.db``), or the path of an Optuna journal
            file, which ends in ``.log``.

    Returns:
        How many studies the sweep has there now.

    Raises:
        SweepError: If there is no such sweep.
        StorageError: If the URL cannot be used, or holds a study of the same name that is of
            another sweep; then nothing of it is touched.
    """
    config, store = read_sweep(directory)
    rebuilt = rebuild_studies(config, read_studies(store))
    StudyWriter(url).write(list(rebuilt.values()))
    return len(rebuilt)


class StudyWriter:
    """Writes studies to one place, again and again.

    Args:
        url: As `export_studies` takes it.

    Raises:
        StorageError: If it cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        with quiet(), _one_line_errors(url):
            self._storage = _open_storage(url)

    def write(self, studies: Sequence[optuna.Study], *, live: bool = False) -> None:
        """Brings studies up to date.

        Args:
            studies: In memory, as `rebuild_studies` makes them.
            live: Whether running trials may be ended where they are, which says that they end at
                this moment: Optuna lets nobody set that time. Else their studies are replaced.

        Raises:
            StorageError: As `export_studies` does.
        """
        with quiet(), _one_line_errors(self._url):
            known = set(optuna.get_all_study_names(self._storage))
            for study in studies:
                if study.study_name in known:
                    _check_owner(study, self._storage, self._url)
            for study in studies:
                if study.study_name not in known or not _update(study, self._storage, live=live):
                    _replace(study, self._storage, known=study.study_name in known)


def _trials(plan: SearchPlan, records: Sequence[TrialRecord]) -> Iterator[FrozenTrial]:
    by_number = {record.number: record for record in records}
    try:
        # Where the record of trial 0 was deleted, nothing lies outside the space.
        wider = _widened(plan, by_number[0].params) if 0 in by_number else plan.distributions
        for number in range(max(by_number) + 1):
            record = by_number.get(number)
            if record is None:
                yield optuna.trial.create_trial(state=TrialState.WAITING)
            else:
                yield _trial(plan, record, wider)
    except (KeyError, ValueError) as error:
        raise SweepError(
            f"{records[0].key}: its trials do not fit this version of {plan.method} ({error}); "
            "install the version that they were run with"
        ) from None


def _trial(
    plan: SearchPlan, record: TrialRecord, distributions: Mapping[str, BaseDistribution]
) -> FrozenTrial:
    point = {name: record.params[name] for name in plan.space}
    state = TrialState[record.state]
    valued = state in (TrialState.COMPLETE, TrialState.PRUNED) and record.curve
    trial = optuna.trial.create_trial(
        state=state,
        params=point,
        distributions=dict(distributions),
        intermediate_values={rung.step: rung.auroc for rung in record.curve},
        value=record.curve[-1].auroc if valued else None,
    )
    trial.datetime_start = _local_time(record.cost.started_at) or trial.datetime_start
    if record.state != "RUNNING":
        ended = _local_time(record.cost.finished_at)
        trial.datetime_complete = ended or trial.datetime_complete
    known = {
        "seed": record.seed,
        "error": record.error,
        "parameters": record.facts and record.facts.parameters,
        "score_rule": score_rule(record.params.get("scoring", {})),
        "image_ms": record.cost.image_ms,
        "train_seconds": record.cost.train_seconds,
        "peak_memory_bytes": record.cost.peak_memory_bytes,
    }
    for name, value in known.items():
        if value is not None:
            trial.set_user_attr(name, value)
    return trial


def _widened(plan: SearchPlan, defaults: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Returns the space, as much wider as it takes to hold the paper's own config.

    A user's range may leave the paper's value out. Trial 0 ran it all the same, and whoever looks
    at the study is to see what came of it.
    """
    wider: dict[str, BaseDistribution] = {}
    for name, space in plan.distributions.items():
        value = defaults[name]
        match space:
            case FloatDistribution():
                low, high = min(space.low, value), max(space.high, value)
                wider[name] = FloatDistribution(low, high, log=space.log and low > 0)
            case IntDistribution():
                low, high = min(space.low, value), max(space.high, value)
                step = math.gcd(space.step, abs(value - space.low))
                wider[name] = IntDistribution(low, high, log=space.log and low > 0, step=step)
            case CategoricalDistribution():
                wider[name] = CategoricalDistribution(
                    space.choices if value in space.choices else (*space.choices, value)
                )
    return wider


def _local_time(text: str | None) -> datetime | None:
    """Returns a time of a record as Optuna keeps it: local, without a time zone."""
    return None if text is None else datetime.fromisoformat(text).astimezone().replace(tzinfo=None)


def _open_storage(url: str) -> BaseStorage:
    if "://" not in url and url.endswith(".log"):
        path = Path(url)
        # Optuna takes a log of anything else for a journal with a broken last line, and appends.
        first = path.read_bytes().partition(b"\n")[0] if path.exists() else b""
        if first and "op_code" not in json.loads(first):
            raise ValueError("it is not an Optuna journal")
        return JournalStorage(JournalFileBackend(url))
    return RDBStorage(url)


def _check_owner(study: optuna.Study, storage: BaseStorage, url: str) -> None:
    there = optuna.load_study(study_name=study.study_name, storage=storage)
    # An empty one is what a killed export leaves; nothing is lost by taking it over.
    if there.user_attrs.get(_MARK) != study.user_attrs[_MARK] and there.get_trials(deepcopy=False):
        owner = there.user_attrs.get(_MARK)
        whose = "not an export of anomtune" if owner is None else f"of the sweep {owner!r}"
        raise StorageError(
            f"{shown_url(url)}: holds a study {study.study_name} that is {whose}; give another "
            "URL, or delete the study there"
        )


def _update(study: optuna.Study, storage: BaseStorage, *, live: bool) -> bool:
    """Adds what a study lacks; returns whether it could be done, else nothing has changed."""
    trials = study.get_trials(deepcopy=False)
    there = optuna.load_study(study_name=study.study_name, storage=storage)
    kept = there.get_trials(deepcopy=False)
    if not kept or len(kept) > len(trials):  # none: a killed export may have left no mark
        return False
    changed = []
    for old, new in zip(kept, trials, strict=False):
        if content(old) == content(new) and (live or _same_times(old, new)):
            continue
        if not _leads_to(old, new) or (new.state.is_finished() and not live):
            return False
        changed.append((old, new))
    study_id = storage.get_study_id_from_name(study.study_name)
    for old, new in changed:
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, new.number)
        for step, value in new.intermediate_values.items():
            if old.intermediate_values.get(step) != value:
                storage.set_trial_intermediate_value(trial_id, step, value)
        for name, value in new.user_attrs.items():
            if old.user_attrs.get(name) != value:
                storage.set_trial_user_attr(trial_id, name, value)
        if new.state.is_finished():
            storage.set_trial_state_values(trial_id, new.state, new.values)
    there.add_trials(trials[len(kept) :])
    return True


def _leads_to(old: FrozenTrial, new: FrozenTrial) -> bool:
    """Whether a running trial can become another by what happens to a running trial."""
    return (
        old.state == TrialState.RUNNING
        and new.state != TrialState.WAITING
        and (old.params, old.distributions) == (new.params, new.distributions)
        and old.intermediate_values.keys() <= new.intermediate_values.keys()
        and old.user_attrs.keys() <= new.user_attrs.keys()
    )


def _same_times(old: FrozenTrial, new: FrozenTrial) -> bool:
    """Whether a trial ended when its record says; some databases keep whole seconds."""
    before, after = old.datetime_complete, new.datetime_complete
    if before is None or after is None:
        return before == after
    return abs(before - after) < timedelta(seconds=2)


def _replace(study: optuna.Study, storage: BaseStorage, *, known: bool) -> None:
    if known:
        optuna.delete_study(study_name=study.study_name, storage=storage)
    new = optuna.create_study(
        study_name=study.study_name, storage=storage, directions=study.directions
    )
    for name, value in study.user_attrs.items():
        new.set_user_attr(name, value)
    new.set_metric_names(_METRIC)
    new.add_trials(study.get_trials(deepcopy=False))


def content(trial: FrozenTrial) -> tuple[Any, ...]:
    """Returns all of a trial but its times."""
    return (
        trial.state,
        trial.values,
        trial.params,
        trial.distributions,
        trial.intermediate_values,
        trial.user_attrs,
    )


@contextmanager
def _one_line_errors(url: str) -> Iterator[None]:
    """Turns what Optuna, SQLAlchemy and the file system say of a bad URL into one line.

    Raises:
        StorageError: For each of their errors.
    """
    try:
        yield
    except ImportError as error:
        raise StorageError(
            f"{shown_url(url)}: {error.__cause__ or error}; install the driver of that database"
        ) from None
    # RuntimeError: tables of another Optuna. ValueError, KeyError, TypeError: no journal.
    except (
        OptunaError,
        SQLAlchemyError,
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        cause = error.__cause__ or error  # Optuna's own words for a full disk are a paragraph
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        raise StorageError(
            f"{shown_url(url)}: cannot be used: {reason}; give a database URL such as "
            "sqlite:///studies.db, or the path of an Optuna journal that ends in .log"
        ) from None


def shown_url(url: str) -> str:
    """Returns a database URL without its password."""
    return mask_uri(url) if "://" in url else url
