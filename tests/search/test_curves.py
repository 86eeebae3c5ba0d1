"""What a TensorBoard server shows of a sweep, asked over HTTP, finished and while it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from anomtune.search.config import MethodConfig
from anomtune.search.curves import CurveWriter
from anomtune.search.records import Cost, HistogramRecord, Rung, TrialRecord
from anomtune.search.storage import Storage
from anomtune.search.study import plan_search


def record(number: int, state: str, steps: int) -> TrialRecord:
    return TrialRecord(
        dataset="folder",
        category="plate",
        method="toy",
        number=number,
        state=state,
        params={"quality": 0.1 * number, "colour": "green"},
        seed=0,
        split_hash="x",
        curve=[
            Rung(
                step=k,
                auroc=0.5 + 0.1 * k,
                auroc_low=0.4,
                auroc_high=1,
                loss=1 / k,
                figures={"diversity": 0.1 * k},
                histograms={"weight": HistogramRecord(edges=(0, 0.5, 1), counts=(k, 4 - k))},
            )
            for k in range(1, steps + 1)
        ],
        cost=Cost(),
    )


@pytest.fixture
def written(tmp_path):
    """The curves of one completed, one pruned and one running trial, written as they came."""
    writer = CurveWriter(Storage(tmp_path), {"toy": plan_search("toy", MethodConfig())})
    for number, last, steps in ((0, "COMPLETE", 4), (1, "PRUNED", 2), (2, "RUNNING", 1)):
        for step in range(steps + 1):
            writer.update(record(number, "RUNNING", step))
        writer.update(record(number, last, steps))
    return tmp_path


@pytest.fixture
def server(written):
    """Asks a running TensorBoard for a route; returns its answer as data."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(written / "tensorboard")]
    process = subprocess.Popen(
        [*command, "--port", "0", "--reload_interval", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    address = ""
    for line in process.stderr:
        if "http://" in line:
            address = "http://" + line.split("http://")[1].split("/")[0]
            break

    def ask(route: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{address}/data/{route}", data, {"Content-Type": "application/json"}
        )
        for attempt in range(50):  # it loads its data in the background
            try:
                with urllib.request.urlopen(request) as answer:
                    if found := json.loads(answer.read()):
                        return found
            except urllib.error.HTTPError:
                if attempt == 49:
                    raise
            time.sleep(0.2)
        raise AssertionError(f"no answer to {route}")

    yield ask
    process.kill()
    process.communicate()


def test_scalars_and_hparams_are_served(server):
    runs = server("runs")
    assert {"plate/toy/00000", "plate/toy/00001", "plate/toy/00002"} <= set(runs)
    query = urllib.parse.urlencode({"run": "plate/toy/00000", "tag": "validation/auroc"})
    scalars = server(f"plugin/scalars/scalars?{query}")
    assert [(step, round(value, 3)) for _, step, value in scalars] == [
        (1, 0.6),
        (2, 0.7),
        (3, 0.8),
        (4, 0.9),
    ]
    experiment = server("plugin/hparams/experiment", {"experimentName": "plate/toy"})
    assert {item["name"] for item in experiment["hparamInfos"]} == {
        "category",
        "method",
        "quality",
        "colour",
    }
    groups = server(
        "plugin/hparams/session_groups",
        {
            "experimentName": "plate/toy",
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"],
            "colParams": [{"metric": {"tag": "validation/auroc", "group": ""}}],
            "startIndex": 0,
            "sliceSize": 10,
        },
    )
    sessions = {group["sessions"][0]["name"]: group for group in groups["sessionGroups"]}
    assert sorted(name.split("/")[-1] for name in sessions) == ["00000", "00001", "00002"]
    ended = [group["sessions"][0] for name, group in sessions.items() if name[-1] in "01"]
    running = next(group for name, group in sessions.items() if name.endswith("00002"))
    assert running["hparams"]["quality"] == pytest.approx(0.2)
    assert running["hparams"]["colour"] == "green"
    # TensorBoard's word for a session that has begun and not ended.
    assert running["sessions"][0]["status"] == "STATUS_UNKNOWN"
    assert {session["status"] for session in ended} == {"STATUS_SUCCESS"}
    metrics = {m["name"]["tag"]: m["value"] for m in running["sessions"][0]["metricValues"]}
    assert metrics["validation/auroc"] == pytest.approx(0.6)


def test_what_a_method_reports_is_served(server):
    query = urllib.parse.urlencode({"run": "plate/toy/00000", "tag": "train/diversity"})
    scalars = server(f"plugin/scalars/scalars?{query}")
    assert [round(value, 3) for _, _, value in scalars] == [0.1, 0.2, 0.3, 0.4]
    query = urllib.parse.urlencode({"run": "plate/toy/00000", "tag": "train/weight"})
    histograms = server(f"plugin/histograms/histograms?{query}")
    assert [(step, bins) for _, step, bins in histograms] == [
        (k, [[0, 0.5, k], [0.5, 1, 4 - k]]) for k in range(1, 5)
    ]


def test_a_trial_that_begins_again_leaves_no_double_curve(written):
    folder = written / "tensorboard/plate/toy/00002"
    size = sum(path.stat().st_size for path in folder.iterdir())
    writer = CurveWriter(Storage(written), {"toy": plan_search("toy", MethodConfig())})
    writer.update(record(2, "RUNNING", 0))
    writer.update(record(2, "RUNNING", 1))
    assert sum(path.stat().st_size for path in folder.iterdir()) == size
    assert len(list(folder.iterdir())) == 1
