"""How long a detector takes: one definition, for the leaderboard and for `anomtune bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from anomtune.search.detector import timing
from anomtune.search.detector.bench import bench
from anomtune.search.detector.predict import load_model
from anomtune.search.detector.timing import image_ms, times, usual
from tests.search.toy_models import save_toy


class Clock:
    """A clock that stands still but for what calls take."""

    def __init__(self, *taken: float) -> None:
        self.now, self.calls = 0.0, 0
        self._taken = iter(taken)

    def __call__(self) -> float:
        return self.now

    def work(self) -> None:
        self.calls += 1
        self.now += next(self._taken)


def test_the_first_call_warms_up_and_does_not_count():
    clock = Clock(60, 1, 2, 3, 4)
    assert times(clock.work, 6, clock=clock) == [1, 2, 3]
    assert clock.calls == 4


def test_slow_calls_are_few_and_quick_ones_are_bounded():
    clock = Clock(60, 100, 100, 100)
    assert times(clock.work, 6, clock=clock) == [100, 100]
    clock = Clock(*[0.0] * 2000)
    assert len(times(clock.work, 6, clock=clock)) == 1000


def test_of_what_was_called_anyway_the_first_does_not_count():
    assert usual([9.0]) == 9.0
    assert usual([9.0, 1.0]) == 1.0
    assert usual([9.0, 1.0, 2.0, 3.0]) == 2.0


@pytest.fixture(scope="module")
def model(tmp_path_factory, toy_data) -> Path:
    return save_toy(toy_data, tmp_path_factory.mktemp("models") / "plate")


def test_image_ms_is_the_median_of_calls_by_the_images_of_one(model, monkeypatch):
    detector = load_model(model).detector
    seen: list[int] = []
    predict = type(detector).predict
    monkeypatch.setattr(
        type(detector), "predict", lambda self, x: seen.append(len(x)) or predict(self, x)
    )
    asked: list[float] = []

    def fake(call, seconds, **_) -> list[float]:
        call()
        asked.append(seconds)
        return [0.5, 0.8, 4.0]

    monkeypatch.setattr(timing, "times", fake)
    images = torch.zeros((20, 3, 32, 32), dtype=torch.uint8)
    assert image_ms(detector, images) == pytest.approx(100)
    assert image_ms(detector, images[:4]) == pytest.approx(200)
    assert seen == [8, 4]  # of twenty images so many pass together on a CPU
    assert asked == [0.5, 0.5]


def test_bench_says_what_it_measured_and_what_not(run, model, toy_data):
    options = ["--seconds", "0.1", "--no-onnx"]
    code, out, err = run("bench", model, *options, "--json")
    assert (code, err) == (0, "")
    whole, *timings = map(json.loads, out.splitlines())
    assert whole["row"] == "model"
    assert whole["device"] == "cpu"
    assert whole["threads"] == torch.get_num_threads()
    assert whole["load_seconds"] > 0
    assert whole["peak_memory_bytes"] > 10**7
    assert whole["notes"] == ["files are not read: give some with --images"]
    assert [(t["engine"], t["work"], t["batch"]) for t in timings] == [
        ("torch", "network", 1),
        ("torch", "network", 8),
    ]
    for row in timings:
        assert row["image_ms"] == pytest.approx(row["median_ms"] / row["batch"])
        assert row["median_ms"] <= row["p95_ms"]
        assert row["calls"] >= 2

    images = toy_data / "plate/test"
    code, out, _ = run("bench", model, *options, "--images", images, "--batch", 3)
    assert code == 0
    for words in ("decoded images", "decoding alone", "images/s", "MiB at most", "threads"):
        assert words in out


@pytest.mark.slow
def test_onnx_runtime_is_measured_too(model):
    pytest.importorskip("onnxruntime")
    found = bench(model, seconds=0.1, batches=[2])
    assert [(t.engine, t.batch) for t in found.timings] == [("torch", 2), ("onnxruntime", 2)]


def test_what_cannot_be_exported_is_measured_without_onnx_runtime(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    found = bench(model, seconds=0.1, batches=[1])
    assert len(found.timings) == 1
    (_, note) = found.notes
    assert note.startswith("not measured with ONNX Runtime: onnxruntime is not installed")


def test_bench_refuses_in_a_line(run, model, tmp_path):
    for arguments in (
        ("bench", tmp_path),
        ("bench", model, "--images", tmp_path),
        ("bench", model, "--device", "tpu"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("anomtune: ")
        assert err.count("\n") == 1
