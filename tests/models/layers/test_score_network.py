"""The U-Net of SPR: its layer table, its size, and its division by the noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anomtune.models.layers.score_network import (
    DoubleConv,
    FourierEmbedding,
    ScoreNetwork,
    perturbation_std,
)


def count(module: nn.Module, learnt: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learnt)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def seeded(width: int = 4, **fields: Any) -> ScoreNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return ScoreNetwork(width, **fields)


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (1e-5, 0.0031623),
        (1e-4, 0.0100016),
        (5e-4, 0.0223787),
        (1e-3, 0.0316737),
        (2e-3, 0.0448657),
        (5e-3, 0.0712835),
        (1e-2, 0.101631),
        (0.1, 0.374657),
        (0.5, 1.930805),
        (1.0, 9.845215),
    ],
)
def test_the_noise_grows_as_tabulated(t: float, expected: float) -> None:
    assert float(perturbation_std(torch.tensor(t), 25.0)) == pytest.approx(expected, rel=2e-5)


@given(st.floats(1e-5, 1.0), st.floats(1.5, 60.0))
def test_the_noise_is_exact_in_float32(t: float, sigma: float) -> None:
    expected = math.sqrt((math.pow(sigma, 2 * t) - 1) / (2 * math.log(sigma)))
    actual = perturbation_std(torch.tensor(t), sigma)
    assert actual.dtype == torch.float32
    assert float(actual) == pytest.approx(expected, rel=1e-6)


def test_block_by_block_the_network_has_the_published_size() -> None:
    network = ScoreNetwork()
    double = {
        "inc": 38_976,
        "down.0": 221_952,
        "down.1": 886_272,
        "down.2": 3_542_016,
        "down.3": 4_721_664,
        "up.0": 5_900_544,
        "up.1": 1_475_712,
        "up.2": 369_216,
        "up.3": 110_976,
    }
    time = [16_448, 32_896, 65_792, 131_584, 131_584, 65_792, 32_896, 16_448, 16_448]
    blocks = {name: network.get_submodule(name) for name in double}
    assert {name: count(block.convs) for name, block in blocks.items()} == double
    assert [count(block.time) for block in blocks.values()] == time
    assert count(network.embedding) == 65_920
    assert count(network.outc) == 195
    assert count(network) == 17_843_331
    assert count(network, learnt=True) == 17_843_203


def test_the_layers_are_those_of_table_1() -> None:
    network = ScoreNetwork()
    side = 32  # the channels do not depend on it
    seen: list[tuple[int, int, int, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0].shape[1], output.shape[1], inputs[0].shape[2], output.shape[2]))

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, 3, side, side), torch.ones(1))
    channels = [
        *((3, 64), (64, 64)),
        *((64, 128), (128, 128)),
        *((128, 256), (256, 256)),
        *((256, 512), (512, 512)),
        *((512, 512), (512, 512)),
        *((1024, 512), (512, 256)),
        *((512, 256), (256, 128)),
        *((256, 128), (128, 64)),
        *((128, 64), (64, 64)),
        (64, 3),
    ]
    sides = [side // 2**level for level in (0, 1, 2, 3, 4, 3, 2, 1, 0) for _ in range(2)]
    expected = [
        (c_in, c_out, at, at) for (c_in, c_out), at in zip(channels, [*sides, side], strict=True)
    ]
    assert seen == expected
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 18
    assert all(norm.num_groups == 32 for norm in norms)
    assert all(conv.bias is not None for conv in network.modules() if isinstance(conv, nn.Conv2d))


@pytest.mark.parametrize(("width", "groups"), [(2, 1), (4, 2), (6, 1), (16, 8), (48, 8), (128, 32)])
def test_narrow_blocks_have_at_least_two_channels_per_group(width: int, groups: int) -> None:
    network = ScoreNetwork(width)
    first = network.inc.convs[1]
    assert isinstance(first, nn.GroupNorm)
    assert first.num_groups == groups
    assert network(torch.zeros(1, 3, 16, 16), torch.ones(1)).isfinite().all()


def test_a_block_adds_its_time_after_the_last_swish() -> None:
    block = DoubleConv(3, 8, 4)
    x, embedding = normal(2, 3, 5, 5), normal(2, 256)
    expected = block.convs(x) + block.time(embedding).reshape(2, 4, 1, 1)
    assert torch.equal(block(x, embedding), expected)
    assert [type(m).__name__ for m in block.convs] == 2 * ["Conv2d", "GroupNorm", "SiLU"]


def test_skips_carry_the_time() -> None:
    network = seeded()
    carried: list[Tensor] = []
    network.up[3].register_forward_pre_hook(lambda module, args: carried.append(args[0]))
    x, t = normal(1, 3, 16, 16), torch.ones(1)
    with torch.no_grad():
        network(x, t)
        expected = network.inc(x, network.embedding(t))
    torch.testing.assert_close(carried[0][:, :4], expected)


def test_decoders_upsample_with_aligned_corners() -> None:
    network = seeded()
    ramp = torch.arange(8.0).expand(1, 4, 8, 8)
    inputs: list[Tensor] = []
    network.up[2].register_forward_hook(lambda module, args, output: ramp)
    network.up[3].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        network(normal(1, 3, 16, 16), torch.ones(1))
    # 16 evenly spaced points from the first to the last of 8.
    expected = torch.linspace(0, 7, 16).expand(1, 4, 16, 16)
    torch.testing.assert_close(inputs[0][:, 4:], expected)


def test_the_embedding_is_sine_and_cosine_of_fixed_frequencies() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        embedding = FourierEmbedding()
    assert embedding.frequencies.shape == (128,)
    assert not embedding.frequencies.requires_grad
    assert 24 < float(embedding.frequencies.std()) < 36
    t = torch.tensor([0.0, 0.3])
    phases = 2 * math.pi * t.reshape(2, 1) * embedding.frequencies
    hidden = embedding.linear(torch.cat([phases.sin(), phases.cos()], 1))
    torch.testing.assert_close(embedding(t), hidden * hidden.sigmoid())


def test_the_output_is_divided_by_the_noise() -> None:
    network = seeded(sigma=10.0)
    raw: list[Tensor] = []
    network.outc.register_forward_hook(lambda module, args, output: raw.append(output))
    t = torch.tensor([1e-3, 0.5])
    with torch.no_grad():
        score = network(normal(2, 3, 16, 16), t)
    torch.testing.assert_close(score * perturbation_std(t, 10.0).reshape(2, 1, 1, 1), raw[0])


def test_mixed_precision_leaves_input_and_output_in_float32() -> None:
    network = seeded()
    x, t = normal(1, 3, 16, 16), torch.full((1,), 1e-3)
    kinds: dict[str, torch.dtype] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            kinds[name] = output.dtype

        return hook

    for name in ("embedding", "inc.convs.0", "inc.convs.3", "up.3.convs.3", "outc"):
        network.get_submodule(name).register_forward_hook(note(name))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network(x, t)
    assert kinds["inc.convs.3"] == kinds["up.3.convs.3"] == torch.bfloat16
    assert {kinds[name] for name in ("embedding", "inc.convs.0", "outc")} == {torch.float32}
    assert mixed.dtype == torch.float32
    with torch.no_grad():
        std = perturbation_std(t, 25.0)
        torch.testing.assert_close(mixed * std, network(x, t) * std, rtol=0, atol=0.3)
