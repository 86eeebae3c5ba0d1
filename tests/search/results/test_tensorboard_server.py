"""What a TensorBoard server shows of sweeps that have ended and that run, asked over HTTP."""

from __future__ import annotations

import html
import io
import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
from PIL import Image

from anomtune.search.config import MethodConfig
from anomtune.search.decide.plan import plan_search
from anomtune.search.store.directory import read_sweep
from tests.search.results.test_tensorboard import ROC, sweep_writer, write_toys
from tests.search.sample_sweep import write_sample_sweep

pytestmark = pytest.mark.slow

METHODS = ("padim", "patchcore")
SEEDS = (1, 11)


class Server:
    """A TensorBoard server that has loaded what there is."""

    def __init__(self, address: str) -> None:
        self.address = address

    def fetch(self, route: str, body: dict | None = None, **query: str | int) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.address}/data/{route}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def ask(self, route: str, body: dict | None = None, **query: str | int):
        return json.loads(self.fetch(route, body, **query))

    def groups(self, *columns: dict) -> list[dict]:
        """Returns the rows of the HParams table; columns may filter."""
        body = {
            "experimentName": "",
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"],
            "aggregationType": "AGGREGATION_AVG",
            "colParams": list(columns),
            "startIndex": 0,
            "sliceSize": 1000,
        }
        return self.ask("plugin/hparams/session_groups", body)["sessionGroups"]

    def wait(self, runs: int) -> None:
        """Waits until all runs are there: the server loads in the background."""
        for _ in range(150):
            try:
                if len(self.ask("runs")) == runs and self.groups():
                    return
            except (urllib.error.HTTPError, KeyError):
                pass
            time.sleep(0.2)
        raise AssertionError("TensorBoard does not show every trial")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    write_sample_sweep(
        root,
        categories=("bottle", "screw"),
        methods=METHODS,
        trials=4,
        confirm=1,
        seeds=SEEDS,
        domains=["fog"],
    )
    _, store = read_sweep(root)
    writer = sweep_writer(root)
    for studies in (store.read_all(), store.read_confirmed()):
        for records in studies.values():
            for record in records:
                writer.update(record)
    write_toys(root)
    return root


@pytest.fixture(scope="module")
def server(sweep):
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(sweep / "tensorboard")]
    process = subprocess.Popen(
        [*command, "--port", "0", "--host", "127.0.0.1", "--reload_interval", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = next(line for line in process.stderr if "http://" in line)
        server = Server("http://" + address.split("http://")[1].split("/")[0])
        server.wait(len([*sweep.rglob("*tfevents*")]))
        yield server
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def confirmed(sweep):
    """A completed confirm run and the name of its folder."""
    record = next(iter(read_sweep(sweep)[1].read_confirmed().values()))[0]
    return record, f"{record.number:05d}-{record.seed}"


def column(name: str, *values: str) -> dict:
    return {"hparam": name, "filterDiscrete": list(values)}


def metrics(group: dict) -> dict[str, float]:
    return {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}


def test_every_trial_and_confirm_run_is_a_run(server, sweep):
    runs = set(server.ask("runs"))
    studies = [f"{category}/{method}" for category in ("bottle", "screw") for method in METHODS]
    trials = {f"{study}/{number:05d}" for study in studies for number in range(4)}
    toys = {f"plate/toy/{number:05d}" for number in range(3)}
    confirm = {
        f"{record.key}/{kind}/{record.number:05d}-{record.seed}"
        for records in read_sweep(sweep)[1].read_confirmed().values()
        for record in records
        for kind in ("confirm", "roc")
    }
    assert runs == trials | toys | confirm


def test_scalars_of_a_trial(server):
    tags = server.ask("plugin/scalars/tags")["plate/toy/00000"]
    assert set(tags) == {"auroc/validation", "train/loss", "train/diversity"}
    for tag, values in (
        ("auroc/validation", [0.6, 0.7, 0.8, 0.9]),
        ("train/diversity", [0.1, 0.2, 0.3, 0.4]),
    ):
        points = server.ask("plugin/scalars/scalars", run="plate/toy/00000", tag=tag)
        assert [step for _, step, _ in points] == [1, 2, 3, 4]
        assert [value for *_, value in points] == pytest.approx(values)


def test_histograms_of_a_trial(server):
    points = server.ask("plugin/histograms/histograms", run="plate/toy/00000", tag="train/weight")
    assert [(step, bins) for _, step, bins in points] == [
        (k, [[0, 0.5, k], [0.5, 1, 4 - k]]) for k in range(1, 5)
    ]


def test_figures_and_roc_curve_of_a_confirm_run(server, confirmed):
    record, name = confirmed
    run = f"{record.key}/confirm/{name}"
    ((_, _, value),) = server.ask("plugin/scalars/scalars", run=run, tag="auroc/held_out")
    assert value == pytest.approx(record.test.auroc)
    curve = server.ask("plugin/scalars/scalars", run=f"{record.key}/roc/{name}", tag=ROC)
    assert [step for _, step, _ in curve] == list(range(0, 1001, 2)), "no point is left out"
    rates = [value for *_, value in curve]
    assert rates == sorted(rates)
    assert np.mean(rates) == pytest.approx(record.test.auroc, abs=0.01)
    assert "held out" in server.fetch("plugin/text/text", run=run, tag="confirm/figures").decode()


def test_example_images_of_a_confirm_run(server, confirmed):
    record, name = confirmed
    run = f"{record.key}/confirm/{name}"
    tags = server.ask("plugin/images/tags")[run]
    assert set(tags) == {f"examples/{example.kind}" for example in record.examples}
    for example in record.examples:
        tag = f"examples/{example.kind}"
        assert html.escape(example.key) in tags[tag]["description"]
        (image,) = server.ask("plugin/images/images", run=run, tag=tag, sample=0)
        query = dict(urllib.parse.parse_qsl(image["query"]))
        content = server.fetch("plugin/images/individualImage", **query)
        picture = Image.open(io.BytesIO(content))
        width, height = picture.size
        assert width > 2.5 * height, "image, defect and heat map side by side"


def test_hparams_has_every_hyperparameter_of_every_method(server):
    experiment = server.ask("plugin/hparams/experiment", {"experimentName": ""})
    spaces = [plan_search(name, MethodConfig(), image_size=64).space for name in (*METHODS, "toy")]
    names = {name for space in spaces for name in space}
    infos = {info["name"]: info for info in experiment["hparamInfos"]}
    assert set(infos) == names | {"category", "method", "stage"}
    assert set(infos["category"]["domainDiscrete"]) == {"bottle", "screw", "plate"}
    assert set(infos["method"]["domainDiscrete"]) == {*METHODS, "toy"}
    assert infos["coreset_ratio"]["type"] == "DATA_TYPE_FLOAT64"
    shown = [info["name"]["tag"] for info in experiment["metricInfos"]]
    assert shown[:3] == ["auroc/confirmed", "auroc/held_out", "auroc/validation"]
    assert ROC not in shown


def test_hparams_can_be_filtered_by_category_method_and_stage(server):
    for name, value in (("category", "bottle"), ("method", "padim")):
        rows = server.groups(column(name, value))
        assert 8 < len(rows) < len(server.groups())
        assert {row["hparams"][name] for row in rows} == {value}
    one = [column("category", "bottle"), column("method", "padim")]
    trials = server.groups(*one, column("stage", "search"))
    assert [group["name"] for group in trials] == [f"bottle/padim/{n:05d}" for n in range(4)]
    good = {"metric": {"tag": "auroc/validation", "group": ""}, "excludeMissingValues": True}
    assert len(server.groups(*one, good)) == 4, "confirm runs have no such metric"


def test_hparams_shows_the_figures_of_trials_that_run_and_that_have_ended(server):
    metric = {"metric": {"tag": "auroc/validation", "group": ""}}
    groups = {g["name"]: g for g in server.groups(column("method", "toy"), metric)}
    running = groups["plate/toy/00002"]
    assert running["hparams"] == {
        "category": "plate",
        "method": "toy",
        "stage": "search",
        "quality": pytest.approx(0.2),
        "colour": "green",
    }
    assert metrics(running)["auroc/validation"] == pytest.approx(0.6)
    # TensorBoard's word for a session that has begun and not ended.
    assert running["sessions"][0]["status"] == "STATUS_UNKNOWN"
    for name in ("plate/toy/00000", "plate/toy/00001"):
        assert groups[name]["sessions"][0]["status"] == "STATUS_SUCCESS"


def test_hparams_shows_the_mean_of_a_confirmed_config_over_its_seeds(server, sweep):
    runs = read_sweep(sweep)[1].read_confirmed()
    wanted = {
        f"{key}/confirm/{number:05d}": [run for run in records if run.number == number]
        for key, records in runs.items()
        for number in {run.number for run in records}
    }
    metric = {"metric": {"tag": "auroc/held_out", "group": ""}}
    groups = server.groups(column("stage", "confirm"), metric)
    assert {group["name"] for group in groups} == set(wanted)
    for group in groups:
        seeds = wanted[group["name"]]
        assert len(group["sessions"]) == len(seeds) == len(SEEDS)
        mean = np.mean([run.test.auroc for run in seeds])
        assert metrics(group)["auroc/held_out"] == pytest.approx(mean)
        assert group["hparams"]["backbone"] == seeds[0].params["backbone"]
