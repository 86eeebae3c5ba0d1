"""What onnxruntime makes of an exported model is what the detector says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anomtune.errors import MethodError
from anomtune.models.layers.evidence import Evidence
from anomtune.search.detector import onnx_export
from anomtune.search.detector.onnx_export import export_onnx
from anomtune.search.detector.predict import load_model
from anomtune.search.detector.train import train
from tests.models.test_every_method import SHORT
from tests.search.toy_models import save_toy, toy_config

pytestmark = pytest.mark.slow

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

#: A translation takes as long as there are layers; ResNet18 has the fewest.
SMALL = {"backbone": "resnet18"}
#: Short trainings, and settings that take the harder ways to a map.
SETTINGS: dict[str, dict[str, Any]] = {
    "cutpaste": {"iterations": 2},
    "deep_svdd": {"iterations": 4},
    "f_anogan": {"iterations": 2},
    "gmm_contrastive": {**SMALL, "iterations": 1, "resolution": 48},
    "gnl": {**SMALL, "epochs": 1, "scoring": {"fdm": "both", "normalise": "position"}},
    "kdad": {"iterations": 1, "scoring": {"place": "distance"}},  # no graph has a gradient
    # Of few images, and with grids of 13, 7 and 4.
    "padim": {**SMALL, "resolution": 52},
    "patchcore": {**SMALL, "coreset_ratio": 1.0},
    "rd4ad": {**SMALL, "epochs": 1, "scoring": {"reduce": "top", "border": 0.0625}},
    "recontrast": {**SMALL, "iterations": 1},
    "spr": {"epochs": 1, "resolution": 48},
    "ssae": {"iterations": 1, "resolution": 48, "scoring": {"diff": "ssim", "t": 1}},
}


@pytest.mark.parametrize("method", sorted(SHORT))
def test_every_method_gives_the_same_maps(method, tmp_path, toy_data):
    _check(tmp_path, toy_data, method, SHORT[method] | SETTINGS[method])


def test_padim_gives_the_same_maps_with_moments_of_many_images(tmp_path, toy_data):
    detector = _check(tmp_path, toy_data, "padim", SHORT["padim"] | SMALL | {"channels": 10})
    assert detector.network.gaussians.get_buffer("rows_0").numel() == 0


def _check(tmp_path, toy_data, method: str, settings: dict[str, Any]) -> Any:
    config = toy_config(toy_data) | {"method": method, "hyperparameters": settings}
    model = train(config, device="cpu")
    assert export_onnx(model, tmp_path / "model.onnx") < 1e-4
    side = model.detector.input_size
    # GNL matches features by their order: of two that are nearly equal it may take either.
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8, generator=drawn)
    maps, scores = _run(tmp_path / "model.onnx", images)
    expected, expected_scores = model.detector.predict(images)
    np.testing.assert_allclose(maps, expected.numpy(), rtol=1e-3, atol=1e-4 * expected.max().item())
    np.testing.assert_allclose(scores, expected_scores.numpy(), rtol=1e-3)
    return model.detector


def _run(path: Path, images: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    return session.run(["maps", "scores"], {"images": images.numpy()})


def test_the_command_writes_a_file_that_says_what_it_needs(run, tmp_path, toy_data):
    folder = save_toy(toy_data, tmp_path / "model")
    code, out, err = run("export", folder, "--onnx", tmp_path / "toy.onnx")
    assert code == 0, err
    assert "images uint8 (batch, 3, 32, 32) -> maps (batch, 32, 32)" in out
    session = onnxruntime.InferenceSession(tmp_path / "toy.onnx")
    (images,) = session.get_inputs()
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape == ["batch", 3, 32, 32]
    described = session.get_modelmeta().custom_metadata_map
    assert float(described["anomtune.threshold"]) == load_model(folder).config.threshold
    assert described["anomtune.method"] == "toy"


def test_a_file_that_differs_is_not_kept(tmp_path, toy_data, monkeypatch):
    model = load_model(save_toy(toy_data, tmp_path / "model"))
    monkeypatch.setattr(onnx_export, "_compare", lambda *_: 0.01)
    with pytest.raises(MethodError, match="so there is none"):
        export_onnx(model, tmp_path / "toy.onnx")
    assert not (tmp_path / "toy.onnx").exists()


def test_maps_that_no_graph_can_express(tmp_path, toy_data, monkeypatch):
    model = load_model(save_toy(toy_data, tmp_path / "model"))
    kind = type(model.detector)
    evidence = kind.evidence
    # What is computed depends on a pixel: no graph has such a branch.
    monkeypatch.setattr(
        kind,
        "evidence",
        lambda self, images: (
            evidence(self, images) if images.amax() > 0 else Evidence((images[:, 0].float(),))
        ),
    )
    with pytest.raises(MethodError, match="toy cannot be expressed in ONNX") as refusal:
        export_onnx(model, tmp_path / "toy.onnx")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "toy.onnx").exists()


def test_missing_packages_are_named(tmp_path, toy_data, monkeypatch):
    model = load_model(save_toy(toy_data, tmp_path / "model"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MethodError, match=r"pip install 'anomtune\[onnx\]'"):
        export_onnx(model, tmp_path / "toy.onnx")


def test_one_of_two_exports_must_be_chosen(run, tmp_path):
    for options in ((), ("--onnx", "x.onnx", "--optuna", "sqlite:///x.db")):
        code, _, err = run("export", tmp_path, *options)
        assert code == 2
        assert "either --onnx FILE.onnx or --optuna URL" in err
