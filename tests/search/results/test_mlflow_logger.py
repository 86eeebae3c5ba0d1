"""A sweep in MLflow: what is there, and that nothing is there twice. A database, no server."""

from __future__ import annotations

import json

import pytest

from anomtune.errors import SweepError
from anomtune.search.decide.scoring import read_studies
from anomtune.search.results.logger import logger_makers
from anomtune.search.store.directory import read_sweep
from anomtune.search.store.records import AnyRecord, TrialRecord
from tests.search.sample_sweep import write_sample_sweep

mlflow = pytest.importorskip("mlflow", reason="needs anomtune[mlflow]")
pytestmark = pytest.mark.slow

FAILED = 3


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    """One for all tests: making its tables takes a second. Each test has its own experiment."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs.db"


@pytest.fixture
def sweep(tmp_path, database):
    reason = lambda record: "out of memory" if record.number == FAILED else None  # noqa: E731
    options = {"tracking_uri": database, "experiment": tmp_path.name}
    return write_sample_sweep(
        tmp_path / "sweep",
        categories=["bottle"],
        methods=["rd4ad"],
        trials=6,
        confirm=1,
        seeds=(1, 11),
        domains=("dark",),
        fails=reason,
        loggers=[{"name": "mlflow", "options": options}],
    )


@pytest.fixture
def records(tmp_path, sweep) -> list[AnyRecord]:
    _, store = read_sweep(tmp_path / "sweep")
    found = [*read_studies(store).values(), *store.read_confirmed().values()]
    return [record for study in found for record in study]


def make(sweep, sweep_id="line-3"):
    (maker,) = logger_makers(sweep, "/sweeps/sample", sweep_id)
    return maker.make()


def begun(record: TrialRecord, rungs: int) -> TrialRecord:
    """Returns a trial as it was after some rungs."""
    cost = record.cost.model_copy(update={"finished_at": None})
    changes = {"state": "RUNNING", "curve": record.curve[:rungs], "facts": None, "cost": cost}
    return record.model_copy(update=changes)


def runs(sweep) -> dict[str, list]:
    """Returns the runs of the experiment by name, deleted ones left out."""
    options = sweep.loggers[0].options
    client = mlflow.MlflowClient(tracking_uri=options["tracking_uri"])
    experiment = client.get_experiment_by_name(options["experiment"])
    found: dict[str, list] = {}
    for run in client.search_runs([experiment.experiment_id]):
        found.setdefault(run.info.run_name, []).append(run)
    return found


def curve(sweep, run) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(tracking_uri=sweep.loggers[0].options["tracking_uri"])
    history = client.get_metric_history(run.info.run_id, "val_auroc")
    return sorted((metric.step, metric.value) for metric in history)


def test_runs_are_what_the_records_say(sweep, records):
    logger = make(sweep)
    for record in records:
        if isinstance(record, TrialRecord):
            logger.update(begun(record, 0))
        logger.update(record)
    logger.close()
    found = runs(sweep)
    assert {len(named) for named in found.values()} == {1}
    assert len(found) == 1 + len(records)
    study = found["bottle/rd4ad"][0]
    assert study.info.status == "FINISHED"
    statuses = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
    assert {record.state for record in records} == set(statuses)
    for record in records:
        run = found[record.path.removeprefix("trials/")][0]
        assert run.info.status == statuses[record.state]
        assert run.data.tags["state"] == record.state
        assert run.data.tags["mlflow.parentRunId"] == study.info.run_id
        assert run.data.params["seed"] == str(record.seed)
        assert run.data.params["lr"] == json.dumps(record.params["lr"])
        assert "scoring" not in run.data.params
        assert json.loads(run.data.tags["scoring"]) == record.params["scoring"]
        if isinstance(record, TrialRecord):
            assert curve(sweep, run) == [(rung.step, rung.auroc) for rung in record.curve]
            assert run.data.metrics["memory/seconds"] == 0.5 * len(record.curve)
            assert run.data.metrics["train_loss"] == record.curve[-1].loss
        else:
            figures = run.data.metrics
            assert figures["confirmed_auroc"] == record.val_auroc
            assert figures["test_auroc"] == record.test.auroc
            assert figures["test_aupro"] == record.test.figures["aupro"]
            assert figures["shifted_auroc/dark"] == record.shifted["dark"].auroc
    assert found[f"bottle/rd4ad/{FAILED:05d}"][0].data.tags["error"] == "out of memory"


def test_another_start_goes_on_in_the_same_runs(sweep, records):
    """Of a run that has arrived in part, the rest alone is added."""
    trial = records[0]
    first = make(sweep)
    first.update(begun(trial, 0))
    first.update(begun(trial, 2))
    before = runs(sweep)["bottle/rd4ad/00000"][0]
    assert before.info.status == "RUNNING"
    second = make(sweep)
    for record in records:
        second.update(record)
        second.update(record)
    second.close()
    for record in records:
        make(sweep).update(record)
    found = runs(sweep)
    assert {len(named) for named in found.values()} == {1}
    after = found["bottle/rd4ad/00000"][0]
    assert after.info.run_id == before.info.run_id
    assert curve(sweep, after) == [(rung.step, rung.auroc) for rung in trial.curve]
    assert after.info.status == "FINISHED"


def test_a_run_that_begins_anew_takes_the_place_of_the_old_one(sweep, records):
    trial, logger = records[0], make(sweep)
    logger.update(begun(trial, 3))
    other = trial.model_copy(update={"params": {**trial.params, "lr": 0.25}})
    for again in (begun(trial, 1), begun(other, 1), other, begun(trial, 0), begun(trial, 2)):
        make(sweep).update(again)
        (run,) = runs(sweep)["bottle/rd4ad/00000"]
        assert len(curve(sweep, run)) == len(again.curve)
        assert run.data.params["lr"] == json.dumps(again.params["lr"])
    logger = make(sweep)
    logger.update(begun(trial, 2))
    logger.update(begun(trial, 1))
    (run,) = runs(sweep)["bottle/rd4ad/00000"]
    assert len(curve(sweep, run)) == 1


def test_what_fails_halfway_is_completed_the_next_time(sweep, records, monkeypatch):
    logger, trial = make(sweep), records[0]
    running = begun(trial, len(trial.curve))
    log_batch, calls = mlflow.MlflowClient.log_batch, []

    def arrives_and_fails(self, *arguments, **named):
        log_batch(self, *arguments, **named)
        calls.append(1)
        if len(calls) % 2 == 0:  # the params, and then one thing more each time
            raise OSError("the server went away")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", arrives_and_fails)
    for _ in range(len(trial.curve)):
        with pytest.raises(OSError, match="went away"):
            logger.update(running)
    monkeypatch.undo()
    logger.update(trial)
    (run,) = runs(sweep)["bottle/rd4ad/00000"]
    assert curve(sweep, run) == [(rung.step, rung.auroc) for rung in trial.curve]
    assert run.info.status == "FINISHED"


def test_two_sweeps_of_one_name_do_not_mix(sweep, records):
    for sweep_id in ("one", "two"):
        make(sweep, sweep_id).update(records[0])
    assert len(runs(sweep)["bottle/rd4ad/00000"]) == 2


def test_without_mlflow_the_extra_is_named(sweep, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "anomtune.search.results.mlflow_logger")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    message = r"^loggers\.0: mlflow is not installed, .*: pip install 'anomtune\[mlflow\]'$"
    with pytest.raises(SweepError, match=message):
        make(sweep)


def test_an_option_that_it_has_not(sweep):
    options = {"name": "mlflow", "options": {"uri": "sqlite:///runs.db"}}
    changed = type(sweep).model_validate(sweep.model_dump() | {"loggers": [options]})
    message = "logger 'mlflow': has no option 'uri'; there is tracking_uri, experiment$"
    with pytest.raises(SweepError, match=message):
        make(changed)
