"""SSAE's network: that of Table 1, layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomtune.models.layers.sdc_autoencoder import SDC, SDCAutoencoder


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def table_1(kernel: int) -> SDCAutoencoder:
    with torch.device("meta"):
        return SDCAutoencoder(64, kernel)


@pytest.mark.parametrize(("kernel", "parameters"), [(3, 14_131_459), (5, 22_782_211)])
def test_parameter_counts(kernel: int, parameters: int) -> None:
    assert count(table_1(kernel)) == parameters


def test_layers_are_those_of_table_1() -> None:
    network = SDCAutoencoder(64, 3).eval()
    seen: list[tuple[str, int, int, int]] = []

    def note(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        channels, height, width = output.shape[1:]
        # At a sixteenth of the paper's resolution, to be quick.
        seen.append((type(module).__name__, 16 * height, 16 * width, channels))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.MaxPool2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        output = network(uniform(1, 3, 32, 32))
    assert output.shape == (1, 3, 32, 32)

    def conv(side: int, filters: int, times: int) -> list[tuple[str, int, int, int]]:
        return [("Conv2d", side, side, filters)] * times

    def other(kind: str, side: int, filters: int) -> list[tuple[str, int, int, int]]:
        return [(kind, side, side, filters)]

    up = "ConvTranspose2d"
    assert seen == [
        *conv(512, 64, 2),
        *other("MaxPool2d", 256, 64),
        *conv(256, 128, 2),
        *other("MaxPool2d", 128, 128),
        *conv(128, 256, 2),
        *other("MaxPool2d", 64, 256),
        *[*conv(64, 64, 6), *conv(64, 384, 1)] * 4,
        *other(up, 128, 256),
        *conv(128, 256, 2),
        *other(up, 256, 128),
        *conv(256, 128, 2),
        *other(up, 512, 64),
        *conv(512, 64, 2),
        *conv(512, 3, 1),
    ]
    rates = [
        [conv.dilation[0] for conv in block.dilated]  # type: ignore[union-attr]
        for block in network.modules()
        if isinstance(block, SDC)
    ]
    assert rates == [[1, 2, 4, 8, 16, 32]] * 4


def test_all_but_the_last_layer_have_batch_norm_and_relu() -> None:
    network = table_1(3)
    kinds = [type(module) for module in network.modules()]
    # Six dilated convolutions are normalised together.
    assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.ReLU) == 6 + 3 + 6 + 8
    assert [m.bias is not None for m in network.modules() if isinstance(m, nn.Conv2d)].count(
        True
    ) == 1
    small = SDCAutoencoder(2).eval()
    output = small(uniform(1, 3, 24, 40))
    assert output.shape == (1, 3, 24, 40)
    assert 0 < output.min() < output.max() < 1


def test_one_batch_norm_after_six_convolutions_is_six_after_one_each() -> None:
    torch.manual_seed(0)
    block = SDC(3, 2, 3).train()
    x = torch.randn(2, 3, 16, 16)
    singly = [
        nn.functional.batch_norm(conv(x), None, None, training=True) for conv in block.dilated
    ]
    torch.testing.assert_close(
        block.norm(torch.cat([conv(x) for conv in block.dilated], 1)), torch.cat(singly, 1).relu()
    )
