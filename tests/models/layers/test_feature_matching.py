from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anomtune.models.layers import feature_matching
from anomtune.models.layers.backbones import Backbone, load_backbone
from anomtune.models.layers.feature_matching import (
    Distribution,
    MatchedEncoder,
    match,
    match_order,
    match_statistics,
)

pytestmark = pytest.mark.slow

seeds = st.integers(0, 10**6)
weights = st.floats(0, 1, width=32)


def features(seed: int, n: int = 1, shape: tuple[int, ...] = (4, 5, 7)) -> Tensor:
    """Half of the channels end in ReLU, as a ResNet's do: many equal values."""
    maps = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    maps[:, ::2] = maps[:, ::2].relu()
    return maps


def test_the_example_of_equation_1() -> None:
    content, style = (torch.tensor(v).view(1, 1, 1, 3) for v in ([3.0, 1, 2], [10.0, 30, 20]))
    matched = match_order(content, Distribution.of(style[0]), 0.5)
    assert matched.flatten().tolist() == [16.5, 5.5, 11.0]


@given(seed=seeds, weight=weights)
@settings(max_examples=30, deadline=None)
def test_sorted_values_are_interpolated_channel_by_channel(seed: int, weight: float) -> None:
    content, style = features(seed, 3), features(seed + 1)[0]
    matched = match_order(content, Distribution.of(style), weight).flatten(2)
    expected = (1 - weight) * content.flatten(2).sort().values
    expected += weight * style.flatten(1).sort().values
    torch.testing.assert_close(matched.sort().values, expected, rtol=1e-5, atol=1e-5)


@given(seed=seeds, weight=weights)
@settings(max_examples=30, deadline=None)
def test_ranks_are_kept(seed: int, weight: float) -> None:
    content = features(seed, 2)
    matched = match_order(content, Distribution.of(features(seed + 1)[0]), weight).flatten(2)
    in_order = matched.gather(2, content.flatten(2).argsort(dim=-1, stable=True))
    assert (in_order.diff() >= -1e-5).all()


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_the_ends_of_the_weight_are_exact(seed: int) -> None:
    content, style = features(seed, 2), features(seed + 1)[0]
    reference = Distribution.of(style)
    assert torch.equal(match_order(content, reference, 0.0), content)
    histogram = match_order(content, reference, 1.0).flatten(2).sort().values
    assert torch.equal(histogram, style.flatten(1).sort().values.expand(2, -1, -1))


@given(seed=seeds, weight=weights)
@settings(max_examples=30, deadline=None)
def test_a_reference_stays_as_it_is(seed: int, weight: float) -> None:
    content = features(seed)
    reference = Distribution.of(content[0])
    assert torch.equal(match_order(content, reference, weight), content)
    torch.testing.assert_close(match_statistics(content, reference, weight), content)


@given(seed=seeds, weight=weights)
@settings(max_examples=30, deadline=None)
def test_mixstyle_moves_mean_and_deviation(seed: int, weight: float) -> None:
    content, style = features(seed, 2), features(seed + 1)[0]
    matched = match_statistics(content, Distribution.of(style), weight)
    mean = (1 - weight) * content.mean((2, 3)) + weight * style.mean((1, 2))
    torch.testing.assert_close(matched.mean((2, 3)), mean, rtol=1e-4, atol=1e-4)
    std = (1 - weight) * content.std((2, 3)) + weight * style.std((1, 2))
    torch.testing.assert_close(matched.std((2, 3)), std, rtol=1e-3, atol=1e-4)


def test_mixstyle_divides_by_the_root_of_the_variance_and_1e_6() -> None:
    content = torch.tensor([1e-3, -1e-3]).view(1, 1, 1, 2)  # unbiased variance 2e-6
    style = torch.tensor([1.0, 3.0]).view(1, 1, 2)
    matched = match_statistics(content, Distribution.of(style), 1.0).flatten()
    offset = 1e-3 / (2e-6 + 1e-6) ** 0.5 * (2 + 1e-6) ** 0.5
    assert matched.tolist() == pytest.approx([2 + offset, 2 - offset])


def test_a_channel_of_one_value_is_finite() -> None:
    content, style = torch.full((1, 1, 2, 2), 3.0), torch.full((1, 2, 2), 5.0)
    for kind in ("efdm", "mixstyle", "both"):
        matched = match(content, Distribution.of(style), kind, 0.5)  # type: ignore[arg-type]
        torch.testing.assert_close(matched, torch.full_like(matched, 4.0))


def test_both_is_the_mean_of_both() -> None:
    content, reference = features(0, 2), Distribution.of(features(1)[0])
    torch.testing.assert_close(
        match(content, reference, "both", 0.3),
        (match_order(content, reference, 0.3) + match_statistics(content, reference, 0.3)) / 2,
    )


def test_images_are_matched_on_their_own_whatever_their_memory_format() -> None:
    content, reference = features(0, 4), Distribution.of(features(1)[0])
    for kind in ("efdm", "mixstyle", "both"):
        whole = match(content, reference, kind, 0.7)  # type: ignore[arg-type]
        alone = match(content[2:3], reference, kind, 0.7)  # type: ignore[arg-type]
        strided = content.to(memory_format=torch.channels_last)
        torch.testing.assert_close(whole[2:3], alone)
        torch.testing.assert_close(whole, match(strided, reference, kind, 0.7))  # type: ignore[arg-type]


def test_equal_values_are_ranked_by_their_place() -> None:
    content = torch.zeros(1, 1, 40, 40)
    style = torch.randn(1, 40, 40, generator=torch.Generator().manual_seed(0))
    matched = match_order(content, Distribution.of(style), 1.0)
    assert torch.equal(matched.flatten(), style.flatten().sort().values)


def test_16_bit_features_are_matched_in_float32() -> None:
    content, style = features(0).bfloat16(), features(1)[0].bfloat16()
    for kind in ("efdm", "mixstyle", "both"):
        matched = match(content, Distribution.of(style), kind, 0.3)  # type: ignore[arg-type]
        assert matched.dtype == torch.float32
        expected = match(content.float(), Distribution.of(style.float()), kind, 0.3)  # type: ignore[arg-type]
        assert torch.equal(matched, expected)


def normalised(n: int) -> Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(n))


@pytest.fixture(params=["mobilenet_v2", "resnet18"])
def encoder(request: pytest.FixtureRequest) -> Any:
    backbone: Backbone = request.param
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return load_backbone(backbone, "random").requires_grad_(False)


def test_stages_one_after_another_are_the_encoder(encoder: Any) -> None:
    images = normalised(2)
    first, second, third = encoder(images)
    assert torch.equal(encoder.stage(1, images), first)
    assert torch.equal(encoder.stage(2, first), second)
    assert torch.equal(encoder.stage(3, second), third)


def test_mobilenet_stages_end_where_the_stride_is_about_to_double() -> None:
    encoder: Any = load_backbone("mobilenet_v2", "random")
    strides = [
        [m.stride for m in block.modules() if isinstance(m, nn.Conv2d)]
        for block in encoder.features
    ]
    starts = [number for number, inside in enumerate(strides) if (2, 2) in inside]
    assert starts == [0, 2, 4, 7]
    maps: list[Tensor] = []
    for number, block in enumerate(encoder.features):
        block.register_forward_hook(
            lambda _module, _inputs, output, number=number: (
                maps.append(output) if number in (3, 6, 13) else None
            )
        )
    assert all(a is b for a, b in zip(encoder(normalised(1)), maps, strict=True))


@pytest.mark.parametrize("stages", [(1,), (2,), (3,), (1, 2), (1, 3), (1, 2, 3)])
def test_matched_maps_feed_the_next_stage(encoder: Any, stages: tuple[int, ...]) -> None:
    images, reference = normalised(2), normalised(1)
    actual = MatchedEncoder(encoder, reference, "efdm", 0.5, stages)(images)
    unmatched = encoder(reference)  # the reference's own branch
    x = images
    for number, result in enumerate(actual, start=1):
        x = encoder.stage(number, x)
        if number in stages:
            x = match_order(x, Distribution.of(unmatched[number - 1][0]), 0.5)
        torch.testing.assert_close(result, x)
    plain = encoder(images)
    changed = [not torch.equal(a, b) for a, b in zip(actual, plain, strict=True)]
    assert changed == [number >= min(stages) for number in (1, 2, 3)]


def test_the_reference_is_encoded_and_sorted_once(
    encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    of = Distribution.of
    monkeypatch.setattr(
        feature_matching.Distribution, "of", lambda maps: calls.append(len(maps)) or of(maps)
    )
    matched = MatchedEncoder(encoder, normalised(1), "efdm", 0.5, (1, 2))
    for n in (1, 2, 3):
        matched(normalised(n))
    assert calls == list(encoder.channels[:2])


def test_the_reference_itself_passes_unchanged(encoder: Any) -> None:
    reference = normalised(1)
    for kind in ("efdm", "mixstyle", "both"):
        matched = MatchedEncoder(encoder, reference, kind, 0.8, (1, 2, 3))  # type: ignore[arg-type]
        for actual, plain in zip(matched(reference), encoder(reference), strict=True):
            torch.testing.assert_close(actual, plain, rtol=1e-3, atol=1e-5)
