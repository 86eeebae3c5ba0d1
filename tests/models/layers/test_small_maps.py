"""Convolutions as matrix products: the same numbers and gradients, where they may be."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anomtune.models.layers import small_maps
from anomtune.models.layers.small_maps import (
    SmallMapConv2d,
    SmallMapConvTranspose2d,
    use_small_maps,
)


def replaced(layer: nn.Module) -> nn.Module:
    """A copy of the layer, as a network has it after `use_small_maps`."""
    layer = copy.deepcopy(layer)
    use_small_maps(layer)
    return layer


@pytest.fixture
def plain_calls(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The layers that were computed as convolutions."""
    calls: list[nn.Module] = []
    for kind in (nn.Conv2d, nn.ConvTranspose2d):
        forward = kind.forward

        def spied(self, *inputs, forward=forward):  # type: ignore[no-untyped-def]
            calls.append(self)
            return forward(self, *inputs)

        monkeypatch.setattr(kind, "forward", spied)
    return calls


def results(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients, each point of the output with another weight."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    (y * torch.arange(y.numel()).reshape(y.shape).to(y).cos()).sum().backward()
    return [y, x.grad, *(p.grad for p in layer.parameters())]  # type: ignore[list-item]


def assert_equal_results(plain: nn.Module, x: Tensor) -> None:
    """Compares a layer with the product that takes its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_maps, "_POINTS", 1e9)
        product = replaced(plain)
        for ours, theirs in zip(results(product, x), results(plain, x), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@given(
    batch=st.integers(1, 3),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    side=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    bias=st.booleans(),
)
def test_a_product_has_the_numbers_and_gradients_of_the_convolution(
    batch: int,
    inputs: int,
    outputs: int,
    side: tuple[int, int],
    kernel: int,
    stride: int,
    padding: int,
    bias: bool,
) -> None:
    if min(side) + 2 * padding < kernel:
        return
    plain = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias).double()
    x = torch.randn(batch, inputs, *side).double()
    assert_equal_results(plain, x)


@given(
    batch=st.integers(1, 3),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    side=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.integers(1, 3),
    bias=st.booleans(),
)
def test_so_has_a_transposed_one(
    batch: int, inputs: int, outputs: int, side: tuple[int, int], kernel: int, bias: bool
) -> None:
    plain = nn.ConvTranspose2d(inputs, outputs, kernel, kernel, bias=bias).double()
    x = torch.randn(batch, inputs, *side).double()
    assert_equal_results(plain, x)


def test_gradients_have_gradients() -> None:
    """A gradient penalty (f-AnoGAN) needs them."""
    layer = replaced(nn.Conv2d(2, 40, 3, 2, 1).double())
    x = torch.randn(1, 2, 4, 3).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, w: layer(x), (x, layer.weight))
    transposed = replaced(nn.ConvTranspose2d(2, 10, 2, 2).double())
    assert torch.autograd.gradgradcheck(lambda x, w: transposed(x), (x, transposed.weight))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(8, 64, 3, padding=1), SmallMapConv2d),
        (nn.ConvTranspose2d(8, 64, 2, 2), SmallMapConvTranspose2d),
    ],
)
def test_a_product_is_for_small_maps_of_what_learns(
    layer: nn.Module, kind: type[nn.Module], plain_calls: list[nn.Module]
) -> None:
    layer = replaced(layer)
    assert isinstance(layer, kind)
    small, large = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 64, 64)
    layer(small)
    with torch.inference_mode():
        layer.eval()(small)
    assert not plain_calls
    layer(large)
    assert len(plain_calls) == 1
    layer(small[0])  # one map without a batch
    assert len(plain_calls) == 2
    layer.requires_grad_(False)(small)
    assert len(plain_calls) == 3


def test_exported_graphs_keep_the_convolution() -> None:
    network = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.ConvTranspose2d(64, 8, 2, 2))
    use_small_maps(network)
    batch = torch.export.Dim("batch", min=1, max=4096)
    graph = torch.export.export(
        network.eval(), (torch.randn(2, 8, 4, 4),), dynamic_shapes={"input": {0: batch}}
    )
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert {name.split(".")[1] for name in called} == {"conv2d", "conv_transpose2d"}


def test_what_is_not_plain_stays() -> None:
    layers = [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, (1, 3)),
        nn.Conv2d(4, 4, 3, (1, 2)),
        nn.Conv2d(4, 4, 3, padding=(0, 1)),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 4, 2, padding=1),
        nn.ConvTranspose2d(4, 4, 3, 2),
        nn.ConvTranspose2d(4, 4, 2, 2, output_padding=1),
        nn.LazyConv2d(4, 3),
        nn.Linear(4, 4),
    ]
    network = nn.Sequential(*layers)
    kinds = [type(layer) for layer in layers]
    use_small_maps(network)
    assert [type(layer) for layer in layers] == kinds


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 64, 3, 2, 1), nn.ConvTranspose2d(8, 64, 2, 2)])
def test_precision_is_that_of_the_convolution(layer: nn.Module) -> None:
    x = torch.randn(4, 8, 4, 4)
    exact = copy.deepcopy(layer).double()(x.double())
    product = replaced(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = product(x)
        convolution = layer(x)
    assert rounded.dtype == convolution.dtype == torch.bfloat16
    scale = exact.abs().max()
    ours, theirs = ((y.double() - exact).abs().max() / scale for y in (rounded, convolution))
    assert ours <= max(2 * theirs, 2**-8)
    rounded.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in product.parameters())


def test_sums_of_gradients_are_not_rounded_on_the_way() -> None:
    """What nine patches say of one point is added in float32."""
    seen = torch.ones(1, 3, 3, 9, dtype=torch.bfloat16)
    seen[0, 2, 2, 0] = 256  # The first that is added to the middle; bfloat16 goes on with 258.
    total = small_maps._Sum.apply(seen, 3, 1, (5, 5))  # type: ignore[no-untyped-call]
    assert total.dtype == torch.bfloat16
    assert total[0, 2, 2, 0] == 264
