"""A real sweep that is killed and goes on, as MLflow and optuna-dashboard see it meanwhile."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter

import optuna
import pytest
import yaml

from anomtune.search.decide.scoring import read_studies
from anomtune.search.results.optuna_export import rebuild_studies
from anomtune.search.results.optuna_follow import follow_studies
from anomtune.search.store.directory import read_sweep
from tests.driver import Driver
from tests.search.conftest import sweep_dict
from tests.search.results.test_optuna_export import contents

mlflow = pytest.importorskip("mlflow", reason="needs anomtune[mlflow]")
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

TRIALS = 5


def test_killed_and_resumed(tmp_path, toy_data, ray_address):
    directory, database = tmp_path / "sweep", f"sqlite:///{tmp_path}/runs.db"
    options = {"tracking_uri": database}
    settings = {
        "trials": TRIALS,
        "methods": {"toy": {"fixed": {"seconds": 0.1}}},
        "confirm": {"top": 1, "seeds": [1, 11]},
        "loggers": ["anomtune_toy:BrokenLogger", {"name": "mlflow", "options": options}],
    }
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_dict(toy_data, **settings)))

    def ended() -> int:
        records = [*directory.glob("trials/*/*/0*.json")]
        return sum(json.loads(path.read_text())["state"] != "RUNNING" for path in records)

    def start() -> Driver:
        return Driver("sweep", file, "--dir", directory, "--address", ray_address)

    # MLflow cannot go on with tables of which it was killed making half.
    mlflow.MlflowClient(tracking_uri=database).search_experiments()
    driver = start()
    until = time.monotonic() + 90
    while ended() < 3 and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert driver.poll() is None, driver.err
    studies = f"sqlite:///{tmp_path}/studies.db"
    looks: list[object] = []
    follower = threading.Thread(
        target=follow_studies,
        args=(directory, studies),
        kwargs={"every": 0.2, "tell": looks.append},
    )
    follower.start()
    driver.kill()
    driver = start()
    assert driver.wait() == 0, driver.err
    follower.join(60)
    assert not follower.is_alive()
    assert looks[0].trials < looks[-1].trials == 2 * TRIALS

    config, store = read_sweep(directory)
    trials, confirmed = read_studies(store), store.read_confirmed()
    for key, study in rebuild_studies(config, trials).items():
        there = optuna.load_study(study_name=f"folder/{key}", storage=studies)
        assert contents(there.trials) == contents(study.trials)

    client = mlflow.MlflowClient(tracking_uri=database)
    experiment = client.get_experiment_by_name("toys")
    runs = client.search_runs([experiment.experiment_id])
    found = {run.data.tags["anomtune.path"]: run for run in runs}
    assert set(Counter(run.data.tags["anomtune.path"] for run in runs).values()) == {1}
    records = [r for group in (trials, confirmed) for study in group.values() for r in study]
    assert set(found) == {r.path for r in records} | {f"studies/{key}" for key in trials}
    statuses = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
    for record in records:
        run = found[record.path]
        assert run.info.status == statuses[record.state]
        if record.path.startswith("trials/"):
            history = client.get_metric_history(run.info.run_id, "val_auroc")
            assert sorted(m.step for m in history) == [rung.step for rung in record.curve]
        else:
            assert run.data.metrics["test_auroc"] == record.test.auroc
    assert driver.err.count("logger anomtune_toy:BrokenLogger: RuntimeError: on a Sunday") == 1
    assert f"BrokenLogger: {len(records)} runs not logged" in driver.err
    assert "logger mlflow" not in driver.err
