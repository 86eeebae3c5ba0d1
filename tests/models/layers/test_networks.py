"""What learns and what stays, in every configuration of ReContrast's Table 5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from anomtune.models.layers.backbones import load_backbone
from anomtune.models.layers.batch_norm import PartialNorm
from anomtune.models.layers.encoder import StridedDepthwise, use_strided_depthwise
from anomtune.models.rd4ad import RD4AD, RD4ADHyperparameters
from anomtune.models.recontrast import (
    ContrastNetwork,
    EncoderBatchNorm,
    ReContrast,
    ReContrastHyperparameters,
)

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"backbone": "mobilenet_v2", "weights": "random", "batch_size": 4}
PRESETS = ReContrastHyperparameters.presets


def build(preset: str = "full", **fields: Any) -> ReContrast:
    hp = ReContrastHyperparameters(**{**SMALL, **PRESETS[preset], **fields})
    return ReContrast(hp, image_size=64)


def images(n: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8, generator=generator)


def normalised() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_presets_are_the_rows_of_table_5() -> None:
    rows = {
        "A": ("region", False, False),
        "B": ("global", False, False),
        "C": ("global", True, False),
        "D": ("global", True, False),
        "E-": ("global", True, True),
        "E": ("global", True, True),
        "B+": ("global_hm", False, False),
        "full": ("global_hm", True, True),
    }
    assert {
        name: (PRESETS[name]["loss"], PRESETS[name]["train_encoder"], PRESETS[name]["dual"])
        for name in PRESETS
        if name not in {"stable", "appendix_e"}
    } == rows
    assert {name for name in rows if not PRESETS[name]["stop_grad"]} == {"C", "E-"}
    assert ReContrastHyperparameters(**PRESETS["full"]) == ReContrastHyperparameters()


def test_two_equal_encoders_are_refused() -> None:
    with pytest.raises(ValidationError, match="set train_encoder true or dual false"):
        ReContrastHyperparameters(dual=True, train_encoder=False)


def test_defaults_are_the_papers() -> None:
    rd = RD4ADHyperparameters()
    assert (rd.epochs, rd.lr, rd.batch_size, rd.loss) == (200, 5e-3, 16, "global")
    assert rd.training_iterations(37) == 600
    assert rd.model_copy(update={"drop_last": True}).training_iterations(37) == 400
    assert rd.model_copy(update={"drop_last": True}).training_iterations(7) == 200
    rc = ReContrastHyperparameters()
    assert (rc.iterations, rc.decoder_lr, rc.encoder_lr) == (2000, 2e-3, 1e-5)
    assert (rc.alpha_final, rc.alpha_ramp, rc.hm_factor, rc.encoder_bn) == (1, 0.1, 0, "train")
    for hp in (rd, rc):
        assert (hp.backbone, hp.weights, hp.scoring.sigma, hp.scoring.reduce) == (
            *("wide_resnet50_2", "imagenet", 4, "max"),
        )
        unsearched = {"weights", "epochs", "iterations", "batch_size"}
        assert not unsearched & hp.search_space().keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_only_what_should_learn_learns(preset: str) -> None:
    detector = build(preset)
    network = detector.network
    encoder, student = buffers(network.encoder), buffers(network.student)
    frozen = buffers(network.frozen) if network.frozen is not None else {}
    detector.fit(images(), 3)
    trained = PRESETS[preset].get("train_encoder", True)
    names = {name for name, _ in network.encoder.named_parameters()}
    changed = {n for n in names if not torch.equal(encoder[n], network.encoder.state_dict()[n])}
    assert bool(changed) == trained
    assert trained or same(encoder, buffers(network.encoder))  # batch norm buffers as well
    assert not same(student, buffers(network.student))
    assert (network.frozen is not None) == PRESETS[preset].get("dual", True)
    if network.frozen is not None:
        assert same(frozen, buffers(network.frozen))
        assert all(p.grad is None and not p.requires_grad for p in network.frozen.parameters())


def target_gradients(preset: str) -> list[Tensor | None]:
    """Gradients of the loss that reach each target, by way of the target alone."""
    detector = build(preset)
    detector.network.train()
    pairs = detector.network(normalised())
    targets = [
        target.detach().requires_grad_() if target.requires_grad else target for target, _ in pairs
    ]
    cut = list(zip(targets, [prediction for _, prediction in pairs], strict=True))
    detector.network.forward = lambda _: cut  # type: ignore[method-assign, assignment]
    detector.loss(normalised(), 0, 100).backward()
    return [target.grad for target in targets]


@pytest.mark.parametrize("preset", ["A", "B", "D", "E", "B+", "full"])
def test_targets_get_no_gradient(preset: str) -> None:
    assert all(gradient is None for gradient in target_gradients(preset))


def test_targets_learn_in_c_and_in_the_adapted_view_of_e_minus() -> None:
    assert all(g is not None and g.abs().max() > 0 for g in target_gradients("C"))
    frozen, adapted = target_gradients("E-")[:3], target_gradients("E-")[3:]
    assert all(gradient is None for gradient in frozen)
    assert all(g is not None and g.abs().max() > 0 for g in adapted)


@pytest.mark.parametrize("preset", ["D", "E"])
def test_the_encoder_learns_through_the_decoder_all_the_same(preset: str) -> None:
    detector = build(preset)
    detector.network.train()
    detector.loss(normalised(), 0, 100).backward()
    gradient = detector.network.encoder.features[0][0].weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_each_view_is_predicted_from_the_other_by_its_own_head() -> None:
    network = build("full").network.eval()
    with torch.no_grad():
        before = network(normalised())
        for head in network.student.decoder.heads[0]:  # type: ignore[union-attr]
            head.weight.mul_(2)
        next(network.encoder.parameters()).mul_(1.5)  # the adapted view changes, the other not
        after = network(normalised())
    unchanged = [
        (torch.equal(old[0], new[0]), torch.allclose(old[1], new[1]))
        for old, new in zip(before, after, strict=True)
    ]
    # (frozen target, prediction from adapted), then (adapted target, prediction from frozen).
    assert unchanged == [(True, False)] * 3 + [(False, True)] * 3


@pytest.mark.parametrize(
    ("encoder_bn", "updates"),
    [("train", 1), ("eval", 0), ("partial", 1), ("partial_pretrained", 1)],
)
def test_batch_norm_modes_of_the_encoder(encoder_bn: str, updates: int) -> None:
    detector = build("full", encoder_bn=encoder_bn)
    norms = [m for m in detector.network.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    detector.fit(images(), 1)
    after = [norm.running_mean for norm in norms]
    assert all(
        torch.equal(a, b) != bool(updates)
        for a, b in zip(before, after, strict=True)
        if b is not None
    )
    assert all(isinstance(norm, PartialNorm) for norm in norms) == encoder_bn.startswith("partial")
    frozen = detector.network.frozen
    assert frozen is not None
    assert not any(module.training for module in frozen.modules())


def test_a_frozen_encoder_keeps_its_statistics() -> None:
    detector = RD4AD(RD4ADHyperparameters(**SMALL), image_size=64)
    before = buffers(detector.network.encoder)
    detector.fit(images(), 3)
    assert same(before, buffers(detector.network.encoder))


@pytest.mark.parametrize("encoder_bn", ["train", "eval", "partial", "partial_pretrained"])
def test_the_frozen_encoder_is_the_pretrained_one(encoder_bn: EncoderBatchNorm) -> None:
    def seeded(make: Callable[[], nn.Module]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return make()

    network = seeded(
        lambda: ContrastNetwork(
            "mobilenet_v2", "random", train_encoder=True, dual=True, encoder_bn=encoder_bn
        )
    ).train()
    pretrained = seeded(lambda: load_backbone("mobilenet_v2", "random"))
    with torch.no_grad():
        for actual, expected in zip(
            cast(ContrastNetwork, network).frozen(normalised()),  # type: ignore[misc]
            pretrained(normalised()),
            strict=True,
        ):
            assert torch.equal(actual, expected)


def test_construction_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build()
    assert torch.equal(before, torch.get_rng_state())


def test_strided_depthwise_convolutions_are_float32_on_cpus() -> None:
    encoder = load_backbone("mobilenet_v2", "random").train()
    images = torch.randn(2, 3, 64, 64)
    layers = [layer for layer in encoder.modules() if isinstance(layer, StridedDepthwise)]
    assert [layer.stride for layer in layers] == [(2, 2)] * 3
    seen: list[torch.dtype] = []
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder(images)[2].float().sum().backward()
    assert seen == [torch.float32] * 3
    plain = nn.Conv2d(96, 96, 3, stride=2, padding=1, groups=96, bias=False)
    x = torch.randn(1, 96, 8, 8)
    expected = plain(x)
    use_strided_depthwise(plain)
    assert type(plain) is StridedDepthwise
    assert torch.equal(plain(x), expected)
