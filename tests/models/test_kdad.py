from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from anomtune.errors import MethodError
from anomtune.models import kdad
from anomtune.models.kdad import (
    KDAD,
    Cloner,
    Distillation,
    KDADHyperparameters,
    distillation_losses,
)
from anomtune.models.layers import backbones
from anomtune.models.layers.frozen import KnownFeatures, digests_of
from anomtune.models.testing import check_method

SMALL: dict[str, Any] = {"weights": "random", "batch_size": 3}


def build(image_size: int = 32, **fields: Any) -> KDAD:
    return KDAD(KDADHyperparameters(**{**SMALL, **fields}), image_size=image_size)


def images(n: int = 4, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def narrow_features() -> nn.Sequential:
    """VGG-16's layers with an eighth of the channels: states of 60 MB take their time."""
    widths = [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M"]
    return make_layers(widths)


@pytest.mark.slow
def test_it_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(backbones._sources()["vgg16"], build=narrow_features)
    monkeypatch.setitem(backbones._sources(), "vgg16", source)
    monkeypatch.setattr(kdad, "_SMALL", ((8, 8), (8, 16), (8, 8, 32), (8, 8, 64), (8, 8, 64)))
    check_method(KDAD, KDADHyperparameters(**SMALL), image_size=32)


def test_defaults_are_those_of_the_official_code() -> None:
    hp = KDADHyperparameters()
    assert (hp.batch_size, hp.lr, hp.lam, hp.epochs) == (64, 1e-3, 0.5, 601)
    assert (hp.scoring.place, hp.scoring.sigma, hp.scoring.reduce) == ("gradient", "own", "own")
    assert KDADHyperparameters.paper_values("mvtec", "tile") == {"resolution": 128}
    digits = KDADHyperparameters(**KDADHyperparameters.paper_values("mnist", "3"))
    assert (digits.lam, digits.epochs, digits.input_size(256)) == (0.01, 51, 32)


def test_the_cloner_has_the_official_layers() -> None:
    """Rows of the official table; M pools, and before it there is no batch norm."""
    table = [16, 16, "M", 16, 128, "M", 16, 16, 256, "M", 16, 16, 512, "M", 16, 16, 512, "M"]
    expected: list[str] = []
    before, weights = 3, 0
    for width, after in zip(table, [*table[1:], None], strict=True):
        if width == "M":
            expected.append("pool")
            continue
        assert isinstance(width, int)
        norm = after != "M"
        expected += [f"conv {before} {width}", *["norm"] * norm, "relu"]
        weights += 9 * before * width + 2 * width * norm
        before = width
    found = []
    cloner = Distillation("random", _widths("small")).cloner
    for layer in cloner.modules():
        match layer:
            case nn.Conv2d():
                assert layer.bias is None
                found.append(f"conv {layer.in_channels} {layer.out_channels}")
            case nn.BatchNorm2d():
                found.append("norm")
            case nn.ReLU():
                found.append("relu")
            case nn.MaxPool2d():
                found.append("pool")
    assert found == expected
    assert count(cloner) == weights == 343_984


def _widths(name: str) -> Any:
    detector = build(cloner=name)
    blocks = detector.network.cloner.blocks
    return [
        [layer.out_channels for layer in block if isinstance(layer, nn.Conv2d)]
        for block in blocks  # type: ignore[union-attr]
    ]


def test_the_source_is_vgg16_and_layers_meet() -> None:
    network = build().network
    assert count(network.source) == 14_714_688
    assert not any(p.requires_grad for p in network.source.parameters())
    pixels = torch.rand(2, 3, 64, 64)
    for widths in (_widths("small"), _widths("equal")):
        for (target, prediction), side in zip(
            zip(network.source(pixels), Cloner(widths)(pixels), strict=True),
            (16, 8, 4, 2),
            strict=True,
        ):
            assert target.shape == prediction.shape
            assert target.shape[-1] == side
    network.train()
    assert not any(module.training for module in network.source.modules())


def test_the_loss_by_hand() -> None:
    target = torch.tensor([[3.0, 0.0], [1.0, 1.0]]).view(2, 2, 1, 1)
    prediction = torch.tensor([[0.0, 2.0], [2.0, 2.0]]).view(2, 2, 1, 1)
    # At a right angle 1, and 6.5 apart in the mean square; the same direction, and 1 apart.
    losses = distillation_losses([(target, prediction)], 0.5)
    assert losses.tolist() == pytest.approx([1 + 0.5 * 6.5, 0.5])
    twice = distillation_losses([(target, prediction)] * 2, 0.5)
    torch.testing.assert_close(twice, 2 * losses)


def test_the_score_leaves_the_first_layer_out_that_training_has() -> None:
    detector = build()
    detector.fit(images(), 1)
    with torch.no_grad():
        pairs = detector.network.eval()(detector.inputs(images()))
    expected = distillation_losses(pairs[1:], 0.5)
    torch.testing.assert_close(detector.score(images()), expected, rtol=1e-4, atol=1e-6)
    everything = detector.loss(detector.inputs(images()), 0, 1)
    torch.testing.assert_close(everything, distillation_losses(pairs, 0.5).mean())


def test_the_map_is_the_gradient_of_the_score() -> None:
    """Compared with differences of the score itself, at a few pixels, in float64."""
    detector = build()
    detector.fit(images(), 2)
    detector.network.eval()
    found = detector.observe(images(2))
    maps = found.maps[0]
    network = detector.network.double()
    pixels = detector.inputs(images(2)).double()

    def loss(shown: Tensor) -> float:
        with torch.no_grad():
            pairs = zip(network.source.maps(shown), network.cloner(shown), strict=True)
            wide = [
                1 - torch.cosine_similarity(b.flatten(1), a.flatten(1))
                + 0.5 * (b - a).square().flatten(1).mean(1)
                for a, b in list(pairs)[1:]
            ]  # fmt: skip
        return float(torch.stack(wide).sum(0)[1])

    for row, column in ((3, 4), (20, 17)):
        slopes = []
        for channel in range(3):
            step = torch.zeros_like(pixels)
            step[1, channel, row, column] = 1e-6
            slopes.append((loss(pixels + step) - loss(pixels - step)) / 2e-6)
        assert float(maps[1, row, column]) == pytest.approx(np.abs(slopes).sum(), rel=2e-3)


def test_own_maps_are_parts_of_their_99th_percentile() -> None:
    detector = build(64)
    raw = torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(0))
    found = detector.own_maps({"map": raw}, detector.scoring, 64)
    for one, expected in zip(found.numpy(), raw.numpy(), strict=True):
        high, low = np.percentile(expected, 99), expected.min()
        parts = np.clip((expected - low) / (high - low), 0, 1)
        np.testing.assert_allclose(one, gaussian_filter(parts, 4 * 64 / 128), atol=1e-5)


def test_gradients_go_through_the_source_where_its_features_are_known() -> None:
    detector = build()
    detector.fit(images(), 1)
    before = detector.observe(images())
    inputs = detector.inputs(images())
    stages = [stage.permute(0, 2, 3, 1).contiguous() for stage in detector.network.source(inputs)]
    detector.network.source.known = KnownFeatures(digests_of(inputs), stages)
    after = detector.observe(images())
    assert torch.equal(before.maps[0], after.maps[0])
    assert detector.frozen_encoders() == [detector.network.source]


def test_distances_are_maps_of_the_same_loss() -> None:
    detector = build(64, scoring={"place": "distance", "sigma": 0.0})
    detector.fit(images(size=64), 1)
    found = detector.observe(images(size=64))
    assert found.maps[0].shape == (4, 8, 8)
    gradient = build(64)
    gradient.load_state_dict(detector.state_dict())
    torch.testing.assert_close(gradient.observe(images(size=64)).scores, found.scores)


def test_missing_weights_name_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no downloads in tests")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(MethodError, match=r"put the file .*vgg16-397923af\.pth into .*checkpoints"):
        KDAD.prepare(KDADHyperparameters())
