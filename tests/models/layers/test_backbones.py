from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models as tv

from anomtune.errors import MethodError
from anomtune.models.layers import backbones
from anomtune.models.layers.backbones import load_backbone, prepare_weights

pytestmark = pytest.mark.slow

NAME = "resnet18"


class Hub:
    """A hub cache of our own, and no network."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "hub" / "checkpoints"
        self.downloads: list[str] = []

    def weights(self, seed: int = 0) -> tuple[bytes, str]:
        """Returns a weights file of ResNet18 and its name, which carries its hash."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = tv.resnet18().state_dict()
        path = self.root / "made"
        torch.save(state, path)
        content = path.read_bytes()
        return content, f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path)

    def download(url: str, *args: Any, **kwargs: Any) -> None:
        hub.downloads.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(backbones, "_PACKAGE", "no-such-package-at-all")
    backbones._state.cache_clear()
    yield hub
    backbones._state.cache_clear()


def use(monkeypatch: pytest.MonkeyPatch, filename: str) -> None:
    source = replace(backbones._sources()[NAME], url=f"https://example.org/models/{filename}")
    monkeypatch.setitem(backbones._sources(), NAME, source)


def test_the_hub_cache_is_read_once(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    content, filename = hub.weights()
    use(monkeypatch, filename)
    hub.checkpoints.mkdir(parents=True)
    (hub.checkpoints / filename).write_bytes(content)
    prepare_weights(NAME, "imagenet")
    first = load_backbone(NAME, "imagenet")
    monkeypatch.setattr(torch, "load", None)
    second = load_backbone(NAME, "imagenet")
    with torch.no_grad():
        first.conv1.weight.zero_()  # type: ignore[union-attr]
    assert second.conv1.weight.abs().sum() > 0  # type: ignore[union-attr]
    assert not hub.downloads
    assert not second.training


def test_features_are_torchvisions(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    content, filename = hub.weights()
    use(monkeypatch, filename)
    hub.checkpoints.mkdir(parents=True)
    (hub.checkpoints / filename).write_bytes(content)
    reference = tv.resnet18()
    reference.load_state_dict(torch.load(hub.root / "made", weights_only=True))
    reference.eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = load_backbone(NAME, "imagenet")(images)
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))
        for layer, feature in zip(
            (reference.layer1, reference.layer2, reference.layer3), features, strict=True
        ):
            x = layer(x)
            assert torch.equal(x, feature)


def test_missing_weights_say_which_file_to_put_where(hub: Hub) -> None:
    for call in (prepare_weights, load_backbone):
        with pytest.raises(MethodError) as caught:
            call(NAME, "imagenet")
        message = str(caught.value)
        assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
        assert str(hub.checkpoints) in message
        assert "no route to host" in message
        assert "\n" not in message
    assert len(hub.downloads) == 2


def test_a_damaged_file_is_named(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    content, filename = hub.weights()
    use(monkeypatch, filename)
    hub.checkpoints.mkdir(parents=True)
    path = hub.checkpoints / filename
    path.write_bytes(content[: len(content) // 2])
    for call in (prepare_weights, load_backbone):
        with pytest.raises(MethodError, match="damaged") as caught:
            call(NAME, "imagenet")
        assert str(path) in str(caught.value)
    assert not hub.downloads


def test_a_file_that_is_no_checkpoint_is_named(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    content = b"not a checkpoint"
    filename = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    use(monkeypatch, filename)
    hub.checkpoints.mkdir(parents=True)
    (hub.checkpoints / filename).write_bytes(content)
    with pytest.raises(MethodError, match=f"{filename} cannot be read") as caught:
        load_backbone(NAME, "imagenet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("intact", [True, False])
def test_a_package_can_ship_the_file(
    monkeypatch: pytest.MonkeyPatch, hub: Hub, intact: bool
) -> None:
    content, filename = hub.weights()
    use(monkeypatch, filename)
    site = hub.root / "site"
    (site / "shipped" / "weights").mkdir(parents=True)
    (site / "shipped" / "weights" / filename).write_bytes(content if intact else content[:-9])
    info = site / "weights_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weights-package\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"shipped/weights/{filename},,\nshipped/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(backbones, "_PACKAGE", "weights-package")
    if intact:
        load_backbone(NAME, "imagenet")
        assert not hub.downloads
    else:  # another file under that name is passed over
        with pytest.raises(MethodError, match="no ImageNet weights"):
            load_backbone(NAME, "imagenet")


def test_random_weights_need_no_file(hub: Hub) -> None:
    prepare_weights(NAME, "random")
    load_backbone(NAME, "random")
    assert not hub.downloads


def test_whether_weights_are_at_hand_is_told_without_a_download(tmp_path, monkeypatch) -> None:
    from anomtune.models.layers import backbones

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    assert not backbones.weights_at_hand("resnet18")
    place = tmp_path / "checkpoints/resnet18-f37072fd.pth"
    place.parent.mkdir()
    place.write_bytes(b"damaged")
    assert not backbones.weights_at_hand("resnet18")
    monkeypatch.setattr(backbones, "_hash_matches", lambda path: True)
    assert backbones.weights_at_hand("resnet18")
