"""Backbones by timm's name: which maps, which files, and what is refused in a line."""

from __future__ import annotations

import copy
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from anomtune.errors import MethodError
from anomtune.models.images.pixels import normalise, unit_range
from anomtune.models.layers import timm_backbones
from anomtune.models.layers.backbones import load_backbone, prepare_weights
from anomtune.models.layers.batch_norm import use_partial_norm
from anomtune.models.layers.feature_matching import MatchedEncoder, match
from anomtune.models.layers.timm_backbones import TimmEncoder, pyramid_of
from anomtune.models.testing import check_method
from anomtune.registry import METHODS
from tests.conftest import SHARED
from tests.models.test_every_method import SHORT

pytestmark = pytest.mark.slow

timm = pytest.importorskip("timm")

#: The smallest member of each family.
FAMILIES = ("test_resnet", "test_efficientnet", "test_vit")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_is_asked_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of torch's hub cache, an empty one, and an empty one of Hugging Face's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(timm_backbones, "_in_hub_cache", lambda *_: [])
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def pixels(n: int = 2, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def network(name: str, seed: int = 0, **options: Any) -> Any:
    """A whole network of timm, with statistics that are not those of a new one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = timm.create_model(name, **options).eval()
        for key, value in made.state_dict().items():
            if key.endswith(("running_mean", "running_var")):
                value.uniform_(0.5, 1.5)
    return made


def write(model: Any, path: Path) -> Path:
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("method", ["padim", "patchcore", "rd4ad"])
@pytest.mark.parametrize("name", FAMILIES)
def test_methods_keep_the_contract(method: str, name: str) -> None:
    kind = METHODS.get(method)
    hp = kind.Hyperparameters(**SHORT[method] | {"backbone": f"timm/{name}"})
    check_method(kind, hp, image_size=64)


@pytest.mark.parametrize(
    ("method", "name", "fields"),
    [
        ("recontrast", "test_vit", {}),
        ("recontrast", "test_efficientnet", {"encoder_bn": "partial"}),
        ("gnl", "test_convnext", {}),
        ("gmm_contrastive", "test_resnet", {}),
    ],
)
def test_so_do_the_methods_that_train_or_change_it(
    method: str, name: str, fields: dict[str, Any]
) -> None:
    kind = METHODS.get(method)
    hp = kind.Hyperparameters(**SHORT[method] | {"backbone": f"timm/{name}"} | fields)
    check_method(kind, hp, image_size=64)


@pytest.mark.parametrize(
    ("name", "modules", "strides"),
    [
        ("resnet50", ("layer1", "layer2", "layer3"), (4, 8, 16)),
        ("mobilenetv2_100", ("blocks.1", "blocks.2", "blocks.4"), (4, 8, 16)),
        ("vit_tiny_patch16_224", ("blocks.2", "blocks.5", "blocks.8"), (16, 16, 16)),
        ("levit_128s", ("stages.0", "stages.1", "stages.2"), (16, 32, 64)),
    ],
)
def test_three_maps_are_taken(name: str, modules: tuple[str, ...], strides: tuple[int]) -> None:
    levels = pyramid_of(name)
    assert (levels.modules, levels.strides) == (modules, strides)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_timms_own(name: str, tmp_path: Path) -> None:
    """Of a file of the whole network, with pixels as its weights want them normalised."""
    whole = network(name, **({"img_size": 64} if "vit" in name else {}))
    file = write(whole, tmp_path / "own.safetensors")
    encoder = load_backbone(f"timm/{name}", str(file), 64)
    mean, std = (torch.tensor(whole.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    seen = (unit_range(pixels(), CPU) - mean) / std
    with torch.no_grad():
        found = encoder(normalise(pixels(), CPU))
        indices = list(pyramid_of(name).indices)
        expected = whole.forward_intermediates(seen, indices=indices, intermediates_only=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not encoder.training
    assert encoder.digest() != load_backbone(f"timm/{name}", "random", 64).digest()


def test_networks_with_the_same_weights_are_told_apart(tmp_path: Path) -> None:
    """Those of TensorFlow pad otherwise: what is known of one's features is not the other's."""
    names = ("efficientnet_b0", "tf_efficientnet_b0")
    file = str(write(network(names[0]), tmp_path / "own.safetensors"))
    one, other = (load_backbone(f"timm/{name}", file, 64) for name in names)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert one.digest() != other.digest()


def test_positions_are_fitted_to_the_size_of_the_images(tmp_path: Path) -> None:
    file = write(network("test_vit"), tmp_path / "own.safetensors")
    for side in (64, 96):
        encoder = load_backbone("timm/test_vit", str(file), side)
        maps = encoder(normalise(pixels(side=side), CPU))
        assert [tuple(found.shape[1:]) for found in maps] == [(64, side // 16, side // 16)] * 3


def test_torchvisions_mobilenet_is_timms(tmp_path: Path) -> None:
    """With torchvision's file, its tensors under timm's names."""
    source = SHARED / "weights/hub/checkpoints/mobilenet_v2-b0353104.pth"
    if not source.is_file():
        pytest.skip("needs torchvision's MobileNetV2 file in ../shared/weights")
    theirs = torch.load(source, weights_only=True)
    names = timm.create_model("mobilenetv2_100").state_dict()
    renamed = dict(zip(names, theirs.values(), strict=True))
    assert all(renamed[name].shape == value.shape for name, value in names.items())
    save_file(renamed, tmp_path / "renamed.safetensors")
    images = normalise(pixels(), CPU)
    with torch.no_grad():
        ours = load_backbone("mobilenet_v2", "imagenet")(images)
        found = load_backbone("timm/mobilenetv2_100", str(tmp_path / "renamed.safetensors"))(images)
    for one, other in zip(ours, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    with pytest.raises(MethodError, match=r"no conv_stem\.weight in it; its first is features\.0"):
        load_backbone("timm/mobilenetv2_100", str(source))


def test_timms_own_weights_are_files_that_are_here(hub: Path) -> None:
    for call in (prepare_weights, load_backbone):
        with pytest.raises(MethodError) as caught:
            call("timm/test_resnet", "imagenet")
        assert f"as {hub / 'test_resnet.r160_in1k.safetensors'}, or set weights" in str(
            caught.value
        )
        assert "https://huggingface.co/timm/test_resnet.r160_in1k" in str(caught.value)
    whole = network("test_resnet")
    write(whole, hub / "test_resnet.r160_in1k.safetensors")
    prepare_weights("timm/test_resnet", "imagenet")
    encoder: Any = load_backbone("timm/test_resnet", "imagenet")
    assert torch.equal(encoder.network.layer1[0].conv1.weight, whole.layer1[0].conv1.weight)


def test_huggingface_s_cache_is_looked_into(tmp_path: Path, monkeypatch: Any) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    pytest.importorskip("huggingface_hub.file_download")
    repository = tmp_path / "cache/models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots/abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    write(network("test_resnet"), snapshot / "model.safetensors")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    prepare_weights("timm/test_resnet", "imagenet")


@pytest.mark.parametrize("lost", ["layer2.0.conv1.weight", "layer3.0.bn1.running_var"])
def test_nothing_stays_as_it_was_initialised(lost: str, tmp_path: Path) -> None:
    state = network("test_resnet").state_dict()
    state.pop(lost)
    torch.save({"state_dict": {f"module.{key}": v for key, v in state.items()}}, tmp_path / "a.pth")
    with pytest.raises(MethodError, match=f"a.pth does not fit timm/test_resnet: no {lost} in it"):
        load_backbone("timm/test_resnet", str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("timm/resnet19", "random", "has no network 'resnet19'; did you mean 'resnet18'?"),
        ("timm/test_vit.wrong", "random", "test_vit has no weights 'wrong'; there is r160_in1k"),
        ("timm/test_vit", "weights.pth", "give weights.pth by its absolute path"),
        ("timm/test_vit", "/no/such.pth", "there is no file /no/such.pth"),
        ("resnet18", "/no/such.pth", "there is no file /no/such.pth"),
    ],
)
def test_what_does_not_exist_is_named(name: str, weights: str, message: str) -> None:
    with pytest.raises(MethodError) as caught:
        prepare_weights(name, weights)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "fields", "size", "message"),
    [
        ("padim", {"backbone": "timm/vit_small_patch14_dinov2"}, 256, "use 252 or another"),
        ("rd4ad", {"backbone": "timm/vit_small_patch14_dinov2"}, 256, "use 224 or another"),
        ("patchcore", {"backbone": "timm/test_vit", "crop": 60}, 64, "images of 60 x 60"),
        ("rd4ad", {"backbone": "timm/inception_v3"}, 96, "do not double"),
        ("gmm_contrastive", {"backbone": "timm/levit_128s"}, 64, "multiple of 128"),
        ("rd4ad", {"backbone": "timm/test_vit", "pixels": "unit"}, 64, "set pixels to imagenet"),
    ],
)
def test_what_a_method_cannot_take_is_said_in_a_line(
    method: str, fields: dict[str, Any], size: int, message: str
) -> None:
    kind = METHODS.get(method)
    with pytest.raises(MethodError) as caught:
        kind.check_input_size(kind.Hyperparameters(**fields), size)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_are_matched_where_stages_follow_each_other() -> None:
    kind = METHODS.get("gnl")
    fields = {"backbone": "timm/hrnet_w18_small", "weights": "random"}
    with pytest.raises(MethodError, match=r"set scoring\.fdm to none"):
        kind.prepare(kind.Hyperparameters(**fields))
    kind.prepare(kind.Hyperparameters(**fields, scoring={"fdm": "none"}))


@pytest.mark.parametrize("name", [*FAMILIES, "test_convnext"])
def test_matched_maps_feed_what_follows(name: str) -> None:
    encoder: Any = load_backbone(f"timm/{name}", "random", 64)
    images = normalise(pixels(), CPU)
    with torch.no_grad():
        plain, again = encoder(images), encoder.maps(images, lambda _, found: found)
        matched = MatchedEncoder(encoder, images[:1], "efdm", 0.5, (2,))
        maps = matched(images)
    assert all(map(torch.equal, plain, again))
    assert torch.equal(maps[0], plain[0])
    torch.testing.assert_close(maps[1], match(plain[1], matched._distributions[2], "efdm", 0.5))
    assert not torch.equal(maps[2][1], plain[2][1])
    with torch.no_grad():
        assert all(map(torch.equal, plain, encoder(images))), "something stayed changed"


def test_partial_norms_keep_the_activation() -> None:
    encoder = load_backbone("timm/test_efficientnet", "random", 64)
    other = copy.deepcopy(encoder)
    use_partial_norm(other, 1e-9, pretrained=False)
    images = normalise(pixels(), CPU)
    with torch.no_grad():
        for one, changed in zip(encoder(images), other.eval()(images), strict=True):
            torch.testing.assert_close(one, changed, rtol=1e-3, atol=1e-4)


def test_nothing_is_dropped_at_random() -> None:
    encoder = TimmEncoder("test_vit_relpos", 64).train()
    images = normalise(pixels(), CPU)
    assert all(map(torch.equal, encoder(images), encoder(images)))


def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for method in ("padim", "rd4ad", "gmm_contrastive"):
        kind = METHODS.get(method)
        hp = kind.Hyperparameters(backbone="timm/test_resnet", weights="random")
        for call in (lambda: kind.prepare(hp), lambda: kind(hp, image_size=64)):  # noqa: B023
            with pytest.raises(MethodError, match=r"pip install 'anomtune\[timm\]'"):
                call()
        kind.prepare(kind.Hyperparameters(backbone="mobilenet_v2", weights="random"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet19"}, "no 'resnet19'; there is resnet18, .*, timm/NAME; did you"),
        ({"backbone": "timm/hf-hub:a/b"}, "no 'timm/hf-hub:a/b'"),
        ({"weights": "imagnet"}, "no 'imagnet'; there is imagenet, .*; did you mean 'imagenet'"),
    ],
)
def test_a_wrong_name_is_a_wrong_hyperparameter(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        METHODS.get("padim").Hyperparameters(**fields)
