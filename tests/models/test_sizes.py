"""Parameters and multiply-accumulates of the published networks (METHODS: ReContrast, Table A5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomtune.models.layers.backbones import BACKBONES, Backbone
from anomtune.models.layers.reverse_distillation import Student
from anomtune.models.rd4ad import ReverseDistillation
from anomtune.models.recontrast import ContrastNetwork

pytestmark = pytest.mark.slow

RESNETS: tuple[Backbone, ...] = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")


def rd4ad(backbone: Backbone) -> ReverseDistillation:
    with torch.device("meta"):
        return ReverseDistillation(backbone, "random").eval()


def recontrast(backbone: Backbone) -> ContrastNetwork:
    with torch.device("meta"):
        return ContrastNetwork(backbone, "random", train_encoder=True, dual=True).eval()


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


#: RD4AD, ReContrast, encoder, bottleneck, dead layers in it, decoder without and with heads.
PARAMETERS: dict[Backbone, tuple[int, ...]] = {
    "resnet18": (18_691_264, 21_646_976, 2_782_784, 12_205_312, 525_312, 3_703_168, 3_876_096),
    "resnet34": (30_866_880, 39_210_112, 8_170_304, 16_925_952, 525_312, 5_770_624, 5_943_552),
    "resnet50": (63_587_392, 74_886_784, 8_543_296, 39_222_272, 8_392_704, 15_821_824, 18_577_920),
    "wide_resnet50_2": (
        *(117_057_856, 144_676_480, 24_862_528, 67_277_824, 8_392_704, 24_917_504, 27_673_600),
    ),
}


@pytest.mark.parametrize("backbone", RESNETS)
def test_parameter_counts_are_those_published(backbone: Backbone) -> None:
    plain, contrast = rd4ad(backbone), recontrast(backbone)
    assert count(contrast.encoder) == count(contrast.frozen) == count(plain.encoder)
    assert count(contrast.student.bottleneck) == count(plain.student.bottleneck)
    assert PARAMETERS[backbone] == (
        count(plain),
        count(contrast),
        count(plain.encoder),
        count(plain.student.bottleneck),
        count(plain.student.bottleneck.dead),
        count(plain.student.decoder),
        count(contrast.student.decoder),
    )


class Cost:
    """Counts multiply-accumulates of forward passes by hooks.

    Args:
        network: What to count.
        conv_only: Count convolutions with their biases alone, transposed ones at their input
            positions (the true cost); else as ptflops does: at output positions, and 2 per
            element of batch norm and 1 per input element of ReLU and max pooling.
    """

    def __init__(self, network: ReverseDistillation | ContrastNetwork, conv_only: bool) -> None:
        self.total = 0
        self._conv_only = conv_only
        # The official code runs both sets of output heads on both views and drops half of it,
        # and the published costs contain that; ours does not do it.
        self._unused = set(network.student.decoder.heads.modules())
        for module in network.modules():
            module.register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            before = self.total
            transposed = isinstance(module, nn.ConvTranspose2d)
            at = inputs[0] if transposed and self._conv_only else output
            self.total += module.weight.numel() * at.shape[0] * at.shape[2] * at.shape[3]
            if module.bias is not None:
                self.total += output.numel()
            if module in self._unused:
                self.total += self.total - before
        elif self._conv_only:
            return
        elif isinstance(module, nn.BatchNorm2d):
            self.total += 2 * inputs[0].numel()
        elif isinstance(module, nn.ReLU | nn.MaxPool2d):
            self.total += inputs[0].numel()


def giga_macs(network: ReverseDistillation | ContrastNetwork, conv_only: bool = False) -> float:
    cost = Cost(network, conv_only)
    with torch.no_grad():
        network(torch.empty(1, 3, 256, 256, device="meta"))
    return cost.total / 1e9


@pytest.mark.parametrize(
    ("backbone", "rd", "rc", "rd_true", "rc_true"),
    [
        ("resnet18", 4.945, 10.093, 4.323, 8.850),
        ("resnet34", 9.488, 19.179, 8.853, 17.909),
        ("resnet50", 19.387, 42.002, 14.314, 31.857),
        ("wide_resnet50_2", 36.005, 75.238, 30.454, 64.136),
    ],
)
def test_costs_are_those_published(
    backbone: Backbone, rd: float, rc: float, rd_true: float, rc_true: float
) -> None:
    assert giga_macs(rd4ad(backbone)) == pytest.approx(rd, abs=6e-4)
    assert giga_macs(recontrast(backbone)) == pytest.approx(rc, abs=6e-4)
    assert giga_macs(rd4ad(backbone), conv_only=True) == pytest.approx(rd_true, abs=6e-4)
    assert giga_macs(recontrast(backbone), conv_only=True) == pytest.approx(rc_true, abs=6e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_feature_shapes(backbone: Backbone) -> None:
    channels = {
        "resnet18": (64, 128, 256),
        "resnet34": (64, 128, 256),
        "mobilenet_v2": (24, 32, 96),
    }.get(backbone, (256, 512, 1024))
    shapes = [(2, c, s, s) for c, s in zip(channels, (64, 32, 16), strict=True)]
    images = torch.empty(2, 3, 256, 256, device="meta")
    single, dual = rd4ad(backbone), recontrast(backbone)
    assert single.encoder.channels == channels
    assert [tuple(f.shape) for f in single.encoder(images)] == shapes
    embedding = single.student.bottleneck(single.encoder(images))
    assert embedding.shape == (2, 2 * channels[2], 8, 8)
    for network, views in ((single, 1), (dual, 2)):
        pairs = network(images)
        assert [tuple(target.shape) for target, _ in pairs] == shapes * views
        assert [tuple(prediction.shape) for _, prediction in pairs] == shapes * views


def test_layer4_and_the_classifier_are_not_kept() -> None:
    names = rd4ad("resnet18").encoder.state_dict()
    assert not [name for name in names if name.startswith(("layer4", "fc"))]
    names = rd4ad("mobilenet_v2").encoder.state_dict()
    assert max(int(name.split(".")[1]) for name in names) == 13


def test_only_transposed_convolutions_keep_the_default_initialisation() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = ReverseDistillation("resnet18", "random").encoder
        student = Student(encoder)
    for layer in student.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            # kaiming_uniform with a = sqrt(5): bounded by 1 / sqrt(fan_in).
            fan_in = layer.out_channels * 4
            assert layer.weight.abs().max() <= fan_in**-0.5
        elif isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()
