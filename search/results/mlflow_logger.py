"""MLflow as a logger: a run for each study, and below it one for each trial and confirm run.

A sweep that was killed, or whose server was away, goes on in the same runs: they are found by their
tags, and how far each is, MLflow is asked. A run whose training has begun anew is deleted there and
another takes its place.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from anomtune.errors import SweepError
from anomtune.models.scoring import score_rule
from anomtune.search.config import Sweep
from anomtune.search.results.logger import Logger
from anomtune.search.store.records import AnyRecord, ConfirmRecord, Rung, StudyKey, TrialRecord

if TYPE_CHECKING:
    from mlflow.entities import Run

# Looked for here, imported where it is used: its import changes the environment.
if importlib.util.find_spec("mlflow") is None:
    raise SweepError(
        "mlflow is not installed, which the logger mlflow needs: pip install 'anomtune[mlflow]'"
    )

#: Tags by which runs are found again.
_SWEEP, _PATH = "anomtune.sweep", "anomtune.path"
#: MLflow's own, which puts a run below another.
_PARENT = "mlflow.parentRunId"

#: How a run ends in MLflow. A pruned trial was stopped, and has not failed.
_ENDED = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}

#: The last metric of a rung to be written: where it is, the others are too.
_AUROC = "val_auroc"

#: Longer values are cut: the oldest servers take no more.
_LONGEST = 500
_NO_NAME = re.compile(r"[^\w. /-]")


class MLflowLogger(Logger):
    """Logs to a tracking server or into a database.

    What no option says, MLflow's own environment variables do: ``MLFLOW_TRACKING_URI``,
    ``MLFLOW_EXPERIMENT_NAME``, and ``MLFLOW_TRACKING_TOKEN`` or ``_USERNAME`` and ``_PASSWORD``.

    Args:
        sweep: The sweep.
        sweep_id: Names its directory.
        tracking_uri: A server (``http://host:5000``) or a database (``sqlite:///runs.db``).
        experiment: Its name; default: that of the sweep.
    """

    def __init__(
        self,
        sweep: Sweep,
        sweep_id: str,
        tracking_uri: str | None = None,
        experiment: str | None = None,
    ) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415

        self._client = MlflowClient(tracking_uri=tracking_uri)
        self._name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or sweep.name
        self._sweep, self._sweep_id = sweep, sweep_id
        #: The experiment; ``None``: MLflow has not been asked yet, or anew.
        self._experiment: str | None = None
        #: All runs of this sweep, as MLflow had them when they were last asked for.
        self._runs: dict[str, Run] = {}
        #: How many rungs MLflow has of runs that this process writes.
        self._rungs: dict[str, int] = {}
        self._studies: set[StudyKey] = set()

    def update(self, record: AnyRecord) -> None:
        """Adds what a run lacks: itself, rungs, its end."""
        try:
            if self._experiment is None:
                self._find_runs()
            self._update(record)
        except BaseException:
            self._experiment = None  # how much of it has arrived, only MLflow knows
            raise

    def close(self) -> None:
        """Ends the runs of studies of which no run goes on."""
        busy = {path.rpartition("/")[0].partition("/")[2] for path in self._rungs}
        for study in map(_study_path, self._studies):
            if study.partition("/")[2] not in busy:
                self._client.set_terminated(self._runs[study].info.run_id)

    def _find_runs(self) -> None:
        found = self._client.get_experiment_by_name(self._name)
        if found is None:
            experiment = self._client.create_experiment(self._name)
        else:
            experiment = found.experiment_id
        self._runs, self._rungs, self._studies = {}, {}, set()
        own, token = f"tags.`{_SWEEP}` = '{self._sweep_id}'", None
        while token != "":
            page = self._client.search_runs([experiment], own, page_token=token)
            self._runs |= {run.data.tags[_PATH]: run for run in page}
            token = page.token or ""
        self._experiment = experiment

    def _update(self, record: AnyRecord) -> None:
        from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415

        path, curve = record.path, _curve(record)
        first = path not in self._rungs
        if first and not self._goes_on(record):
            return
        if self._rungs.get(path, 0) > len(curve):  # begun anew
            self._delete(path)
        if path not in self._runs:
            first = True
            self._begin_run(record)
        run = self._runs[path].info.run_id
        if first:
            params = [Param(name, value) for name, value in _params(record).items()]
            self._client.log_batch(run, params=params)
        now = _milliseconds(record.cost.finished_at)
        for rung in curve[self._rungs[path] :]:
            figures = _rung_metrics(rung).items()
            self._client.log_batch(run, [Metric(*figure, now, rung.step) for figure in figures])
            self._rungs[path] = rung.step
        if record.state != "RUNNING":
            figures = _ended_metrics(record).items()
            self._client.log_batch(
                run,
                metrics=[Metric(*figure, now, len(curve)) for figure in figures],
                tags=[RunTag(name, value) for name, value in _ended_tags(record).items()],
            )
            self._client.set_terminated(run, _ENDED[record.state], now)
            del self._rungs[path]
            self._runs[path] = self._client.get_run(run)

    def _goes_on(self, record: AnyRecord) -> bool:
        """Looks at what MLflow has of a run; returns whether anything is left to be written."""
        run = self._runs.get(record.path)
        if run is None:
            return True
        ended = run.info.status != "RUNNING"
        if ended and run.info.end_time == _milliseconds(record.cost.finished_at):
            return False
        params = _params(record)
        another = any(params.get(name) != value for name, value in run.data.params.items())
        if ended or another:
            self._delete(record.path)
            return True
        history = self._client.get_metric_history(run.info.run_id, _AUROC)
        self._rungs[record.path] = max((metric.step for metric in history), default=0)
        return True

    def _begin_run(self, record: AnyRecord) -> None:
        stage = "confirm" if isinstance(record, ConfirmRecord) else "search"
        tags = {_PARENT: self._study(record), "stage": stage, **_tags(record)}
        name = record.path.removeprefix("trials/")
        self._runs[record.path] = self._create(record, record.path, name, tags)
        self._rungs[record.path] = 0

    def _study(self, record: AnyRecord) -> str:
        """Returns the run of a study, begun or going on."""
        path = _study_path(record.key)
        if record.key not in self._studies:
            if path not in self._runs:
                self._runs[path] = self._create(record, path, str(record.key), {"stage": "study"})
            elif self._runs[path].info.status != "RUNNING":
                self._client.update_run(self._runs[path].info.run_id, status="RUNNING")
            self._studies.add(record.key)
        return str(self._runs[path].info.run_id)

    def _create(self, record: AnyRecord, path: str, name: str, tags: Mapping[str, str]) -> Run:
        own = {_SWEEP: self._sweep_id, _PATH: path, "sweep": self._sweep.name}
        named = {
            "dataset": record.dataset,
            "category": record.category,
            "method": record.method,
        }
        return self._client.create_run(
            str(self._experiment),
            start_time=_milliseconds(record.cost.started_at),
            tags={**own, **named, **tags},
            run_name=name,
        )

    def _delete(self, path: str) -> None:
        self._client.delete_run(self._runs.pop(path).info.run_id)
        self._rungs.pop(path, None)


def _study_path(key: StudyKey) -> str:
    return f"studies/{key}"


def _curve(record: AnyRecord) -> list[Rung]:
    return record.curve if isinstance(record, TrialRecord) else []


def _params(record: AnyRecord) -> dict[str, str]:
    """Returns what MLflow lets nobody change: the scoring, which is chosen later, is no part."""
    values = {name: value for name, value in record.params.items() if name != "scoring"}
    return {name: _cut(_plain(value)) for name, value in (values | {"seed": record.seed}).items()}


def _tags(record: AnyRecord) -> dict[str, str]:
    tags = {"trial": str(record.number), "split_hash": record.split_hash}
    return tags | ({"origin": _cut(record.origin)} if isinstance(record, TrialRecord) else {})


def _ended_tags(record: AnyRecord) -> dict[str, str]:
    scoring = record.params.get("scoring", {})
    tags = {"state": record.state, "score_rule": score_rule(scoring), "scoring": _plain(scoring)}
    if record.error is not None:
        tags["error"] = record.error
    return {name: _cut(value) for name, value in tags.items()}


def _rung_metrics(rung: Rung) -> dict[str, float]:
    metrics = {_valid(name): value for name, value in rung.figures.items()}
    if rung.loss is not None:
        metrics["train_loss"] = rung.loss
    paper = rung.auroc if rung.paper_auroc is None else rung.paper_auroc
    return {**metrics, "paper_scoring_auroc": paper, _AUROC: rung.auroc}


def _ended_metrics(record: AnyRecord) -> dict[str, float]:
    cost = record.cost
    metrics: dict[str, float | None] = {
        "train_seconds": cost.train_seconds,
        "evaluate_seconds": cost.evaluate_seconds,
        "image_ms": cost.image_ms,
        "peak_memory_bytes": cost.peak_memory_bytes,
        "parameters": None if record.facts is None else record.facts.parameters,
    }
    if isinstance(record, ConfirmRecord):
        metrics |= dict(_confirmed(record))
    elif record.curve:
        last = record.curve[-1]
        metrics |= {"val_auroc_low": last.auroc_low, "val_auroc_high": last.auroc_high}
    return {name: float(value) for name, value in metrics.items() if value is not None}


def _confirmed(record: ConfirmRecord) -> Iterator[tuple[str, float | None]]:
    """Yields the figures of a confirm run, under the leaderboard's names."""
    yield "confirmed_auroc", record.val_auroc
    if record.test is not None:
        yield "test_auroc_low", record.test.auroc_low
        yield "test_auroc_high", record.test.auroc_high
        for name, value in record.test.figures.items():
            yield f"test_{_valid(name)}", value
    for domain, figures in record.shifted.items():
        for name, value in figures.figures.items():
            yield f"shifted_{_valid(name)}/{_valid(domain)}", value
    if record.paper is not None:
        yield "paper_scoring_confirmed_auroc", record.paper.val_auroc
        if record.paper.test is not None:
            yield "paper_scoring_test_auroc", record.paper.test.auroc


def _valid(name: str) -> str:
    """Returns the name of a metric as MLflow takes it."""
    return _NO_NAME.sub("_", name)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _milliseconds(text: str | None) -> int:
    """Returns a time of a record as MLflow has it; now, if it has none yet."""
    return int(1000 * (time.time() if text is None else datetime.fromisoformat(text).timestamp()))
