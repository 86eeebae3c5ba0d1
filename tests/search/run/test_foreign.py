"""A sweep over models of anomalib, killed with -9 and started again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from tests.driver import Driver
from tests.search.conftest import sweep_dict

pytest.importorskip("anomalib")
# The session's Ray comes first: what drivers are forked off keeps the token that it began with.
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

METHODS = {
    "anomalib.dfkde": {
        "fixed": {"weights": "random", "n_pca_components": 3, "resolution": 32},
    },
    "anomalib.stfpm": {
        "fixed": {"weights": "random", "iterations": 8, "batch_size": 2, "resolution": 32}
    },
}


def finished(directory: Path) -> dict[Path, dict]:
    records = {p: json.loads(p.read_text()) for p in directory.glob("trials/*/*/0*.json")}
    return {path: record for path, record in records.items() if record["state"] != "RUNNING"}


def test_a_killed_sweep_over_foreign_models_goes_on(
    tmp_path: Path, toy_data: Path, ray_address: str
) -> None:
    dataset = {"name": "folder", "root": str(toy_data), "categories": ["ring"]}
    config = sweep_dict(trials=3, rungs=2, methods=METHODS, dataset=dataset)
    sweep_file, directory = tmp_path / "sweep.yaml", tmp_path / "sweep"
    sweep_file.write_text(yaml.safe_dump(config))
    first = Driver("sweep", sweep_file, "--dir", directory, "--address", ray_address)
    end = time.monotonic() + 120
    while not finished(directory) and first.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    first.kill()
    before = finished(directory)
    assert before, first.err
    second = Driver("sweep", sweep_file, "--dir", directory, "--address", ray_address)
    assert second.wait() == 0, second.err
    after = finished(directory)
    assert {path: after[path] for path in before} == before
    assert len(after) == 6
    for record in after.values():
        assert record["state"] in {"COMPLETE", "PRUNED"}, record["error"]
