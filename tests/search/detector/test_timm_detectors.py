"""Detectors with backbones of timm: as good as ours, saved, exported, refused before a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from anomtune.errors import SweepError
from anomtune.search.detector.onnx_export import export_onnx
from anomtune.search.detector.predict import load_model
from anomtune.search.detector.train import train
from anomtune.search.preparation import prepare
from anomtune.search.store.storage import Storage
from tests.conftest import SHARED
from tests.search.conftest import parse_sweep, sweep_dict
from tests.search.toy_models import toy_config

pytestmark = pytest.mark.slow

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("method", ["padim", "patchcore"])
def test_mobilenet_of_timm_is_as_good_as_ours(
    method: str, tmp_path: Path, shared_data: Path
) -> None:
    source = SHARED / "weights/hub/checkpoints/mobilenet_v2-b0353104.pth"
    if not source.is_file():
        pytest.skip("needs torchvision's MobileNetV2 file in ../shared/weights")
    names = timm.create_model("mobilenetv2_100").state_dict()
    theirs = torch.load(source, weights_only=True).values()
    file = tmp_path / "renamed.safetensors"
    save_file(dict(zip(names, theirs, strict=True)), file)

    def measured(backbone: str, weights: str) -> float:
        config = {
            "dataset": {"name": "folder", "root": str(shared_data / "battery_weld")},
            "category": "battery_weld",
            "method": method,
            "image_size": 64,
            "hyperparameters": {"backbone": backbone, "weights": weights},
        }
        return train(config, device="cpu").config.measured.auroc

    ours = measured("mobilenet_v2", "imagenet")
    assert ours > 0.7
    assert measured("timm/mobilenetv2_100", str(file)) == pytest.approx(ours, abs=0.002)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_saved_model_needs_no_other_file(name: str, tmp_path: Path, toy_data: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_file(timm.create_model(name).state_dict(), file)
    fields = {"backbone": f"timm/{name}", "weights": str(file), "channels": 8}
    config = toy_config(toy_data) | {"method": "padim", "hyperparameters": fields}
    model = train(config, device="cpu")
    model.save(tmp_path / "model")
    file.unlink()
    again = load_model(tmp_path / "model", device="cpu")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(model.detector.score(images), again.detector.score(images))
    if name == "test_vit":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        assert export_onnx(again, tmp_path / "model.onnx") < 1e-4


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            {"padim": {"fixed": {"backbone": "timm/vit_small_patch14_dinov2"}}},
            "methods.padim: images of 64 x 64 pixels do not suit timm/vit_small_patch14_dinov2: "
            "use 70 or another multiple of 14",
        ),
        (
            {"rd4ad": {"space": {"backbone": {"choices": ["resnet18", "timm/mixer_s32_224"]}}}},
            "methods.rd4ad: images of 96 x 96 pixels do not suit timm/mixer_s32_224: "
            "use 128 or another multiple of 64",
        ),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_before_it_begins(
    methods: dict[str, Any], message: str, tmp_path: Path, toy_data: Path
) -> None:
    for method in methods.values():
        method.setdefault("fixed", {})["weights"] = "random"
    size = 64 if "padim" in methods else 96
    if "rd4ad" in methods:
        methods["rd4ad"]["fixed"]["resolution"] = 96
    dataset = {"name": "folder", "root": str(toy_data)}
    given = sweep_dict(dataset=dataset, methods=methods, image_size=size)
    with pytest.raises(SweepError) as caught:
        prepare(parse_sweep(given, "test"), Storage(tmp_path / "sweep"), lambda event: None)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "sweep" / "sweep.yaml").exists()
