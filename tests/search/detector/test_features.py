"""Features of frozen encoders: computed once, the same bits, and never of held-out images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anomtune.models.layers import frozen, precision
from anomtune.models.layers.frozen import KnownFeatures, digests_of
from anomtune.registry import METHODS
from anomtune.search.detector import features
from anomtune.search.detector.judging import judge
from anomtune.search.detector.look import look, make_saved_config
from anomtune.search.detector.opened import OpenedDetector, open_detector
from anomtune.search.detector.spec import TrainingSpec
from anomtune.search.metrics.image import auroc
from tests.conftest import draw_category

SMALL: dict[str, Any] = {"backbone": "mobilenet_v2", "weights": "random"}
SHORT = {
    "patchcore": SMALL,
    "padim": SMALL | {"channels": 20},
    "rd4ad": SMALL | {"batch_size": 4, "iterations": 4},
    "recontrast": SMALL | {"batch_size": 4, "iterations": 4},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    draw_category(root / "plate", train=10)
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ANOMTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(data: Path, method: str, size: int = 64, seed: int = 0, **fields: Any) -> OpenedDetector:
    hyperparameters = METHODS.get(method).Hyperparameters(**SHORT[method] | fields)
    spec = TrainingSpec(
        dataset={"name": "folder", "root": str(data)},
        category="plate",
        method=method,
        image_size=size,
        seed=seed,
        hyperparameters=hyperparameters.model_dump(mode="json"),
        validation={"protocol": "labelled"},
    )
    return open_detector(spec, torch.device("cpu"))


def trained(found: OpenedDetector) -> np.ndarray:
    found.detector.fit(found.train, found.iterations)
    found.detector.learn_normal(found.train)
    return judge(found.detector, found.validation, found.detector.hyperparameters.scorings(()))


def passes(monkeypatch: pytest.MonkeyPatch, found: OpenedDetector) -> list[int]:
    """Notes how many images each pass of the frozen encoders has."""
    counts: list[int] = []
    for encoder in found.detector.frozen_encoders():
        stage = encoder.stage
        monkeypatch.setattr(
            encoder,
            "stage",
            lambda number, x, stage=stage: (
                (counts.append(len(x)) if number == 1 else None) or stage(number, x)
            ),
        )
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_one_pass_methods_find_the_same_bits(data, cache, method):
    plain, known = opened(data, method), opened(data, method)
    known.know_features()
    assert np.array_equal(trained(plain), trained(known))


@pytest.mark.slow
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("rd4ad", {}),
        ("recontrast", {}),
        ("recontrast", {"train_encoder": False, "dual": False}),
    ],
)
def test_trained_methods_find_the_same(data, cache, method, fields, bfloat16, monkeypatch):
    """Also where this CPU would not train in bfloat16 by itself."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: bfloat16)
    plain, known, again = (opened(data, method, **fields) for _ in range(3))
    known.know_features()
    again.know_features()
    scores, found = trained(plain), trained(known)
    np.testing.assert_allclose(found, scores, rtol=0.02)
    assert abs(auroc(plain.labels, scores[0]).value - auroc(known.labels, found[0]).value) < 0.06
    assert np.array_equal(found, trained(again)), "of the same table the same bits"


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(SHORT))
def test_the_encoder_sees_each_image_once(data, cache, method, monkeypatch):
    first, second = opened(data, method), opened(data, method)
    counts = passes(monkeypatch, first)
    first.know_features()
    everything = len(first.train) + len(first.validation)
    assert sum(counts) == everything
    trained(first)
    assert sum(counts) == everything
    counts = passes(monkeypatch, second)
    second.know_features()
    trained(second)
    assert counts == []


@pytest.mark.slow
def test_what_is_seen_and_by_whom_makes_another_entry(data, cache):
    def entries() -> int:
        folder = cache / "features"
        return sum(path.is_dir() for path in folder.iterdir()) if folder.exists() else 0

    for number, changes in enumerate(
        (
            {},
            {"size": 32},
            {"seed": 1},  # random weights
            {"backbone": "resnet18"},
            {"crop": 32, "resolution": 64, "size": 64},
        ),
        start=1,
    ):
        opened(data, "patchcore", **changes).know_features()
        assert entries() == number, changes
    opened(data, "patchcore", coreset_ratio=0.5, neighbourhood=1).know_features()
    opened(data, "padim").know_features()
    assert entries() == number, "methods share what their encoders say"


def test_unknown_images_are_computed(data, cache):
    found = opened(data, "patchcore")
    found.know_features()
    (encoder,) = found.detector.frozen_encoders()
    inputs = found.detector.inputs(found.train[:3])
    assert encoder.known is not None
    assert encoder.known.find(inputs) is not None
    inputs[1, 0, 0, 0] += 1e-6
    assert encoder.known.find(inputs) is None
    assert len(encoder(inputs)[0]) == 3


def test_held_out_images_are_not_among_them(data, cache):
    from anomtune.datasets.splits.held_out import load_test_split

    found = opened(data, "patchcore")
    found.know_features()
    spec = TrainingSpec(
        dataset={"name": "folder", "root": str(data)},
        category="plate",
        method="patchcore",
        image_size=64,
        validation={"protocol": "labelled"},
    )
    split = load_test_split(spec.dataset.open(), "plate", 64, spec.validation)
    shown = torch.from_numpy(np.array(split.images)).permute(0, 3, 1, 2)
    (encoder,) = found.detector.frozen_encoders()
    assert encoder.known is not None
    for image in torch.split(found.detector.inputs(shown), 1):
        assert encoder.known.find(image) is None
    (folder,) = [path for path in (cache / "features").iterdir() if path.is_dir()]
    kept = json.loads((folder / "meta.json").read_text())["digests"]
    assert len(kept) == len(found.train) + len(found.validation)


@pytest.mark.slow
def test_other_weights_forget_them(data, cache):
    found, other = opened(data, "rd4ad"), opened(data, "rd4ad", seed=1)
    found.know_features()
    found.detector.load_state_dict(other.detector.state_dict())
    assert found.detector.network.encoder.known is None
    found.know_features()
    other.know_features()
    expected = other.detector.score(other.validation)
    assert torch.equal(found.detector.score(found.validation), expected)


def test_what_takes_too_much_of_the_cache_is_not_kept(data, cache, monkeypatch):
    monkeypatch.setenv("ANOMTUNE_CACHE_GB", "0.001")
    found = opened(data, "patchcore")
    found.know_features()
    (encoder,) = found.detector.frozen_encoders()
    assert encoder.known is None
    assert not [path for path in (cache / "features").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_a_model_that_is_kept_computes_them_itself(data, cache):
    """Else its threshold would be of scores that no other batch gives."""
    found = opened(data, "patchcore")
    found.know_features()
    trained(found)
    (encoder,) = found.detector.frozen_encoders()
    assert encoder.known is not None
    spec = TrainingSpec(
        dataset={"name": "folder", "root": str(data)},
        category="plate",
        method="patchcore",
        image_size=64,
        hyperparameters=found.detector.hyperparameters.model_dump(mode="json"),
        validation={"protocol": "labelled"},
    )
    make_saved_config(spec, found, look(found))
    assert encoder.known is None


def test_the_time_of_an_image_has_the_encoders_part(data, cache, monkeypatch):
    monkeypatch.setattr(features.time, "perf_counter", iter(np.arange(0, 1000, 0.5)).__next__)
    found = opened(data, "patchcore")
    found.know_features()
    # Half a second for each batch: ten images of training are one, twelve of validation the other.
    sizes = [len(found.train), len(found.validation)]
    assert found.image_ms(0.1) == pytest.approx(100 + 1e3 * np.median([0.5 / n for n in sizes]))


_BUILDER = """
import sys, time, torch
from anomtune.search.detector import features
from tests.search.detector.test_features import opened
from pathlib import Path
write = features._build
def build(*arguments):
    print("building", flush=True)
    time.sleep(float(sys.argv[2]))
    write(*arguments)
features._build = build
found = opened(Path(sys.argv[1]), "patchcore")
found.know_features()
print(float(found.detector.frozen_encoders()[0].known.seconds) >= 0, flush=True)
"""


def builder(data: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _BUILDER, data, str(seconds)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_two_builders_do_the_work_once_and_a_killed_one_leaves_nothing(data, cache):
    opened(data, "patchcore")  # its images are there
    with builder(data, 60) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "building\n"
        os.kill(killed.pid, signal.SIGKILL)
    assert not [p for p in (cache / "features").iterdir() if p.is_dir() and "." not in p.name]
    pair = [builder(data, 2) for _ in range(2)]
    told = [process.communicate(timeout=120)[0].split() for process in pair]
    assert sorted(map(len, told)) == [1, 2], told
    left = [p.suffix for p in (cache / "features").iterdir()]
    assert ".tmp" not in left


def test_a_damaged_entry_is_made_again(data, cache):
    opened(data, "patchcore").know_features()
    (folder,) = [path for path in (cache / "features").iterdir() if path.is_dir()]
    (folder / "stage1.npy").write_bytes(b"")
    found = opened(data, "patchcore")
    found.know_features()
    (encoder,) = found.detector.frozen_encoders()
    assert encoder.known is not None
    assert encoder.known.find(found.detector.inputs(found.train[:1])) is not None


def test_digests_know_values_not_memory():
    images = torch.rand(2, 3, 8, 8)
    other = images.contiguous(memory_format=torch.channels_last)
    assert digests_of(images) == digests_of(other)
    assert digests_of(images)[0] != digests_of(images)[1]
    known = KnownFeatures(digests_of(images), [torch.arange(2.0).view(2, 1, 1, 1)])
    found = known.find(other[[1, 0, 1]])
    assert found is not None
    assert found[0].flatten().tolist() == [1, 0, 1]
    assert frozen.KnownFeatures([], []).find(images) is None
