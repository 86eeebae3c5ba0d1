"""The list of metrics, and their evaluation: one pass, and nobody's metric ends a run."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from anomtune.errors import SweepError
from anomtune.registry import METRICS
from anomtune.search.metrics.evaluation import Evaluation
from anomtune.search.metrics.image import auroc, f1_threshold
from anomtune.search.metrics.metric import BUILT_IN, Metric, metrics, register_metric
from anomtune.search.metrics.pixel import PixelMetrics

LABELS = np.array([0, 0, 1, 1, 0, 1], np.int8)
SCORES = np.array([0.1, 0.6, 0.4, 0.9, 0.2, 0.8], np.float32)


@pytest.fixture(autouse=True)
def _forget():
    before = dict(METRICS._registered)
    yield
    METRICS._registered.clear()
    METRICS._registered.update(before)


def maps_and_masks() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    masks = np.zeros((6, 8, 8), np.uint8)
    masks[LABELS == 1, 2:5, 2:5] = 1
    return (masks + generator.normal(size=masks.shape)).astype(np.float32), masks


def evaluate(*listed: Metric) -> tuple[dict[str, float | None], list[str]]:
    evaluation = Evaluation(listed)
    maps, masks = maps_and_masks()
    for start in (0, 3):
        evaluation.add(maps[start : start + 3], masks[start : start + 3])
    return evaluation.figures(LABELS, SCORES), evaluation.notes


def test_those_of_anomtune_are_what_they_are_called():
    figures, notes = evaluate(*BUILT_IN)
    assert list(figures) == ["auroc", "pixel_auroc", "aupro", "aupro_per_image", "f1", "accuracy"]
    assert notes == []
    assert figures["auroc"] == auroc(LABELS, SCORES).value
    assert (figures["f1"], figures["accuracy"]) == f1_threshold(LABELS, SCORES)[1:]
    pixels = PixelMetrics()
    pixels.add(*maps_and_masks())
    expected = pixels.result()
    assert figures["pixel_auroc"] == pytest.approx(expected.pixel_auroc)
    assert figures["aupro"] == pytest.approx(expected.aupro)
    assert figures["aupro_per_image"] == expected.aupro_per_image


def test_figures_of_pixels_share_one_pass(monkeypatch):
    calls = []
    add = PixelMetrics.add
    monkeypatch.setattr(PixelMetrics, "add", lambda self, *a: (calls.append(1), add(self, *a)))
    evaluate(*BUILT_IN)
    assert len(calls) == 2  # two batches, three metrics


def test_a_metric_that_fails_or_is_no_number_is_null_and_says_why():
    def broken(labels, scores):
        raise RuntimeError("a plug-in's\nmistake")

    figures, notes = evaluate(
        *BUILT_IN,
        Metric("broken", "", "", broken),
        Metric("no_number", "", "", lambda labels, scores: math.nan),
        Metric("no_figure", "", "", lambda labels, scores: "much"),
        Metric("undefined", "", "", lambda labels, scores: None),
    )
    assert [figures[name] for name in ("broken", "no_number", "no_figure", "undefined")] == [
        None, None, None, None,
    ]  # fmt: skip
    assert notes == [
        "broken: RuntimeError: a plug-in's mistake",
        "no_number: gives nan, not a finite number",
        "no_figure: gives 'much', not a finite number",
    ]
    assert figures["auroc"] is not None
    assert figures["aupro"] is not None


class Peak:
    """The highest value of a map in a defect."""

    def __init__(self):
        self.highest = -math.inf

    def add(self, maps, masks):
        self.highest = max(self.highest, maps[masks == 1].max(initial=-math.inf))

    def result(self):
        return self.highest


def test_a_metric_of_maps_is_given_them_batch_by_batch():
    maps, masks = maps_and_masks()
    figures, notes = evaluate(Metric("peak", "", "", Peak, "pixel"))
    assert figures == {"peak": maps[masks == 1].max()}
    assert notes == []


def test_a_metric_of_maps_that_fails_is_not_asked_again():
    class Broken(Peak):
        def add(self, maps, masks):
            raise ValueError("no")

    figures, notes = evaluate(Metric("broken", "", "", Broken, "pixel"), *BUILT_IN)
    assert figures["broken"] is None
    assert figures["aupro"] is not None
    assert notes == ["broken: ValueError: no"]


def test_where_there_is_nothing_to_measure_nobody_is_asked():
    def never(*_):
        raise AssertionError

    class Never(Peak):
        add = result = never

    evaluation = Evaluation([Metric("a", "", "", never), Metric("b", "", "", Never, "pixel")])
    evaluation.add(np.empty((0, 8, 8), np.float32), np.empty((0, 8, 8), np.uint8))
    ones = np.ones(3, np.int8)
    assert evaluation.figures(ones, SCORES[:3]) == {"a": None, "b": None}
    assert evaluation.notes == []
    assert evaluation.figures(LABELS, SCORES * np.nan) == {"a": None, "b": None}
    assert evaluation.notes == ["anomaly scores are not finite: no figures of images"]


def test_registered_metrics_come_after_those_of_anomtune():
    for name in ("z_metric", "a_metric"):
        register_metric(name, title=name, meaning="")(lambda labels, scores: 1.0)
    assert [metric.name for metric in metrics()] == [
        *(metric.name for metric in BUILT_IN), "a_metric", "z_metric",
    ]  # fmt: skip


def test_the_decorator_leaves_the_function_as_it_is():
    def compute(labels, scores):
        return 1.0

    assert register_metric("mine", title="M", meaning="Mine.")(compute) is compute
    assert METRICS.get("mine") == Metric("mine", "M", "Mine.", compute)


@pytest.mark.parametrize(
    ("name", "message"),
    [("auroc", "one of anomtune's own"), ("a b", "letters, digits"), ("a/b", "letters, digits")],
)
def test_names_that_cannot_be(name, message):
    with pytest.raises(SweepError, match=message):
        register_metric(name, title="", meaning="")(lambda labels, scores: 1.0)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package with one metric."""

    def make(code: str) -> None:
        (tmp_path / "lab_metrics.py").write_text(code)
        info = tmp_path / "lab_metrics-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-metrics\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[anomtune.metrics]\ntop = lab_metrics:TOP\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "lab_metrics", raising=False)

    return make


def test_a_metric_of_an_installed_package(install):
    install(
        "from anomtune.search.metrics.metric import Metric\n"
        "TOP = Metric('top', 'top', 'The highest score.', lambda labels, scores: scores.max())\n"
    )
    assert METRICS.get("lab_metrics:TOP") is METRICS.get("top")
    figures, _ = evaluate(*metrics())
    assert figures["top"] == SCORES.max()


def test_a_metric_of_an_installed_package_that_cannot_be_used(install):
    install("TOP = max\n")
    with pytest.raises(SweepError, match=r"metric 'top' .*lab-metrics.* it is no .*uninstall"):
        metrics()


def test_two_of_one_name_are_refused():
    METRICS.register("one", Metric("same", "", "", auroc))
    METRICS.register("other", Metric("same", "", "", auroc))
    with pytest.raises(SweepError, match=r"metric .same.: two have that name; rename one of them"):
        metrics()
