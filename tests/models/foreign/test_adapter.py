"""The adapter: names, hyperparameters of a signature, weights, maps, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anomtune.errors import MethodError
from anomtune.models.foreign import catalogue
from anomtune.models.foreign.table import entry_of, table
from anomtune.models.ranges import FloatRange, IntRange
from anomtune.registry import METHODS


@pytest.fixture
def without_anomalib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_location", lambda: None)


@pytest.mark.usefixtures("without_anomalib")
def test_without_the_extra_the_error_names_it() -> None:
    assert not [name for name in METHODS.names() if name.startswith("anomalib")]
    with pytest.raises(MethodError) as caught:
        METHODS.get("anomalib.padim")
    assert str(caught.value).endswith('needs anomalib: pip install "anomtune[anomalib]"')


def test_an_old_version_is_no_anomalib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_location", lambda: "somewhere")
    monkeypatch.setattr(catalogue, "version", lambda name: "2.6.2")
    assert not catalogue.models()
    with pytest.raises(MethodError, match=r"needs anomalib 2\.7 or newer, not 2\.6\.2: pip"):
        METHODS.get("anomalib.padim")


@pytest.mark.parametrize("name", ["cfm", "winclip", "vlm_ad", "anomalyvfm"])
def test_what_cannot_be_trained_says_why_in_a_line(name: str) -> None:
    assert f"anomalib.{name}" not in METHODS.names()
    with pytest.raises(MethodError, match=f"^method 'anomalib.{name}': .*(train|needs)") as caught:
        METHODS.get(f"anomalib.{name}")
    assert "\n" not in str(caught.value)


def test_every_range_names_a_source_and_a_hyperparameter() -> None:
    pytest.importorskip("anomalib")
    for name in METHODS.names():
        if not name.startswith("anomalib."):
            continue
        kind = METHODS.get(name).Hyperparameters
        entry = entry_of(name.removeprefix("anomalib."))
        assert set(entry.ranges) | set(entry.defaults) <= set(kind.model_fields), name
        assert set(entry.ranges) <= set(kind.search_space()), name
        for field, info in kind.model_fields.items():
            if field != "scoring":
                assert "Source: " in (info.description or ""), (name, field)
        defaults = kind()
        assert type(defaults)(**defaults.model_dump(mode="json")) == defaults, name
        for field, item in kind.search_space().items():
            if isinstance(item, FloatRange | IntRange):
                value = getattr(defaults, field)
                assert item.low <= value <= item.high, (name, field, value)


def test_the_table_is_of_models_that_there_are() -> None:
    pytest.importorskip("anomalib")
    assert set(table()) == set(catalogue.models())


def test_names_are_known_without_importing_anything() -> None:
    code = (
        "import sys; from anomtune.registry import METHODS; METHODS.names(); "
        "print([m for m in ('torch', 'anomalib', 'lightning') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_importing_models_changes_nothing_of_the_process() -> None:
    pytest.importorskip("anomalib")
    code = (
        "import os, warnings, logging, torch, sklearn\n"
        "before = dict(os.environ), list(warnings.filters), list(logging.root.handlers)\n"
        "from anomtune.registry import METHODS\n"
        "METHODS.get('anomalib.padim')\n"
        "after = dict(os.environ), list(warnings.filters), list(logging.root.handlers)\n"
        "print(before == after)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"
    assert not out.stderr


def method(name: str, **settings: Any) -> Any:
    pytest.importorskip("anomalib")
    kind = METHODS.get(f"anomalib.{name}")
    return kind(kind.Hyperparameters(weights="random", **settings), image_size=64, seed=3)


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("padim", {"n_features": 20}),
        ("patchcore", {"backbone": "resnet18"}),
        ("stfpm", {"batch_size": 3}),
        ("reverse_distillation", {"backbone": "resnet18", "batch_size": 3}),
        ("cfa", {"backbone": "resnet18", "batch_size": 3}),
    ],
)
def test_maps_and_scores_are_those_of_the_model(
    name: str, settings: dict[str, Any], images: Tensor
) -> None:
    detector = method(name, **settings)
    detector.fit(images, 2)
    maps, scores = detector.predict(images)
    with torch.no_grad():
        theirs = detector.network.model.eval()(detector.inputs(images))
    torch.testing.assert_close(maps, theirs.anomaly_map.reshape(maps.shape), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(scores, theirs.pred_score.reshape(-1), rtol=1e-3, atol=1e-5)
    rough = detector.observe(images).maps
    assert len(rough) == len(detector.hyperparameters.scales)
    if entry_of(name).smoothing is not None and len(rough) == 1:
        assert (rough[0] - maps).abs().max() > 1e-3, "the evidence is smoothed already"


def test_layers_can_be_taken_alone(images: Tensor) -> None:
    detector = method("stfpm", batch_size=3)
    detector.fit(images, 1)
    evidence = detector.observe(images)
    assert [tuple(m.shape[1:]) for m in evidence.maps] == [(16, 16), (8, 8), (4, 4)]
    one = detector.scoring.changed({"scales": ("layer2",)})
    assert not torch.equal(detector.judge(evidence, one)[1], detector.predict(images)[1])


def test_weights_that_are_not_there_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("anomalib")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    kind = METHODS.get("anomalib.padim")
    with pytest.raises(MethodError, match="nothing is downloaded: put the file https") as caught:
        kind.prepare(kind.Hyperparameters())
    assert "weights: random" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_weights_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("anomalib")
    import timm
    from safetensors.torch import save_file

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    config = timm.get_pretrained_cfg("resnet18")
    known = timm.create_model("resnet18", pretrained=False)
    torch.nn.init.constant_(known.bn1.weight, 0.25)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    save_file(known.state_dict(), folder / f"resnet18.{config.tag}.safetensors")
    kind = METHODS.get("anomalib.padim")
    kind.prepare(kind.Hyperparameters())
    detector = kind(kind.Hyperparameters(), image_size=64)
    extractor = detector.network.model.feature_extractor.feature_extractor
    assert torch.equal(extractor.bn1.weight, known.bn1.weight)
    assert torch.equal(extractor.conv1.weight, known.conv1.weight)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("padim", {"n_features": 5000}, "n_features <= 448, found 5000"),
        ("cfa", {"backbone": "nothing"}, "Supported backbones are"),
        ("dfm", {"score_type": "nll"}, "score_type nll"),
        ("super_add", {}, "set a larger resolution"),
    ],
)
def test_what_a_model_refuses_is_a_line(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message) as caught:
        method(name, **settings)
    assert "\n" not in str(caught.value)


def test_a_size_that_patches_do_not_divide_is_rounded_or_refused() -> None:
    pytest.importorskip("anomalib")
    kind = METHODS.get("anomalib.anomaly_dino").Hyperparameters
    assert kind().input_size(256) == 252
    assert kind(encoder_name="vit_small_patch16_dinov3").input_size(250) == 256
    with pytest.raises(MethodError, match="use 98 or another multiple of 14"):
        METHODS.get("anomalib.anomaly_dino").check_input_size(kind(resolution=100), 100)


def test_nothing_learnt_is_an_error(images: Tensor) -> None:
    with pytest.raises(MethodError, match="nothing is learnt yet"):
        method("padim", n_features=20).score(images)


def test_learning_rates_can_be_scaled(images: Tensor) -> None:
    detector = method("stfpm", batch_size=3, lr_factor=0.5)
    detector.fit(images, 1)
    assert detector._loop.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.2)
