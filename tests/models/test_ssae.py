from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from anomtune.errors import MethodError
from anomtune.models import ssae
from anomtune.models.images.augmentation import augment
from anomtune.models.images.repair_objectives import amplify_objective, filter_objective
from anomtune.models.layers.sdc_autoencoder import SDC, SDCAutoencoder
from anomtune.models.layers.separable import box_window, filter_maps
from anomtune.models.layers.ssim import ssim_distance
from anomtune.models.ssae import SSAE, SSAEHyperparameters, crop_size
from anomtune.models.testing import check_method

SMALL: dict[str, Any] = {"resolution": 32, "width": 2, "batch_size": 3, "iterations": 4, "k": 3}
EVERYTHING = "elastic+zeros+patch_swap+occlusion+brightness+rotation"
lams = st.floats(0, 1)


def build(image_size: int = 32, seed: int = 0, **fields: Any) -> SSAE:
    hp = SSAEHyperparameters(**{**SMALL, **fields})
    return SSAE(hp, image_size=image_size, seed=seed)


def photos(n: int = 6, size: int = 32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# The contract, in structurally different settings.


@pytest.mark.parametrize(
    "fields",
    [
        {"corruption": EVERYTHING, "augment": "all", "t": 3},
        {"objective": "4", "f": 5, "squared": True, "progressive": False, "clean": 0.3},
        {"objective": "ensemble", "diff": "ssim", "t": 1, "n": 2, "augment": "flips"},
    ],
)
def test_ssae_keeps_the_contract(fields: dict[str, Any]) -> None:
    hp = SSAEHyperparameters(**SMALL, **fields)
    diverging = SSAEHyperparameters(**SMALL, **fields, lr=1e30)
    check_method(SSAE, hp, diverging=diverging, image_size=24)


def test_defaults_are_the_papers() -> None:
    hp = SSAEHyperparameters()
    assert (hp.lr, hp.resolution, hp.width, hp.f, hp.lam) == (1e-4, 512, 64, 3, 0.5)
    assert (hp.objective, hp.squared, hp.corruption, hp.diff) == ("1", False, "elastic", "squared")
    assert hp.training_iterations(5) == hp.training_iterations(500) == hp.iterations
    assert hp.input_size(256) == 512
    assert set(hp.search_space()) == {
        *("corruption", "resolution", "f", "objective", "lam", "diff", "n", "k", "t"),
    }


def test_yaml_may_write_objectives_as_numbers() -> None:
    assert SSAEHyperparameters(objective=4).objective == "4"  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        SSAEHyperparameters(objective=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("resolution", [8, 100])
def test_a_resolution_that_cannot_be_halved_three_times_is_refused(resolution: int) -> None:
    with pytest.raises(ValidationError):
        SSAEHyperparameters(resolution=resolution)


# The network of Table 1.


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


# Objectives 1 and 4.


def reference(
    output: Tensor,
    target: Tensor,
    mask: Tensor,
    lam: float,
    squared: bool,
    corrupted: Tensor | None,
) -> float:
    """The equations, image by image with masks of all channels."""
    losses = []
    for index in range(len(output)):
        m = mask[index].expand(3, -1, -1).double()
        error = (output[index] - target[index]).double()
        power = 2 if squared else 1
        first = ((1 - m) * error).norm() ** power / (1 - m).sum()
        weights = m if corrupted is None else (corrupted[index] - target[index]).abs().double()
        second = (weights * error).norm() ** power / m.sum()
        sign = 1 if corrupted is None else -1
        losses.append((1 - lam) * first + sign * lam * second)
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("squared", [False, True])
@given(lam=lams)
@settings(max_examples=10)
def test_objectives_are_the_equations(squared: bool, lam: float) -> None:
    output, target, corrupted = uniform(3, 2, 3, 8, 8)
    mask = uniform(2, 1, 8, 8, seed=1)
    assert float(filter_objective(output, target, mask, lam, squared=squared)) == pytest.approx(
        reference(output, target, mask, lam, squared, None), rel=1e-4
    )
    value = amplify_objective(output, target, corrupted, mask, lam, squared=squared)
    expected = reference(output, target, mask, lam, squared, corrupted)
    assert float(value) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_an_unrepaired_image_costs_what_is_corrupted() -> None:
    images, noise = uniform(2, 2, 3, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 3:7] = 1
    corrupted = images + mask * (noise - images)
    value = filter_objective(corrupted, images, mask, 1.0)
    expected = (mask * (corrupted - images)).flatten(1).norm(dim=1) / mask.flatten(1).sum(1) / 3
    assert value == pytest.approx(float(expected.mean()), rel=1e-5)


@pytest.mark.parametrize("squared", [False, True])
def test_a_perfect_repair_costs_nothing(squared: bool) -> None:
    images, corrupted = uniform(2, 2, 3, 8, 8)
    mask = uniform(2, 1, 8, 8)
    assert filter_objective(images, images, mask, 0.4, squared=squared) == 0
    assert amplify_objective(images, images, corrupted, mask, 0.4, squared=squared) == 0


@given(lam=lams, squared=st.booleans())
@settings(max_examples=20)
def test_objective_4_is_never_above_its_first_term(lam: float, squared: bool) -> None:
    output, images, corrupted = uniform(3, 2, 3, 8, 8)
    mask = uniform(2, 1, 8, 8)
    first = (1 - lam) * filter_objective(output, images, mask, 0.0, squared=squared)
    value = amplify_objective(output, images, corrupted, mask, lam, squared=squared)
    assert value <= first + 1e-7
    assert amplify_objective(output, images, images, mask, lam, squared=squared) == pytest.approx(
        float(first), rel=1e-5
    )  # nothing is corrupted: nothing to amplify


@given(lam=lams, squared=st.booleans())
@settings(max_examples=20)
def test_under_a_mask_of_one_half_both_terms_are_equal(lam: float, squared: bool) -> None:
    output, images = uniform(2, 2, 3, 8, 8)
    mask = torch.full((2, 1, 8, 8), 0.5)
    one, other = (filter_objective(output, images, mask, x, squared=squared) for x in (lam, 0.5))
    assert one == pytest.approx(float(other), rel=1e-5)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_masks_have_a_finite_loss_and_gradient(value: float, squared: bool) -> None:
    images = uniform(2, 3, 8, 8)
    output = images.clone().requires_grad_()
    mask = torch.full((2, 1, 8, 8), value)
    for loss in (
        filter_objective(output, images, mask, 0.5, squared=squared),
        amplify_objective(output, images, images, mask, 0.5, squared=squared),
        filter_objective(output * 0.9, images, mask, 0.5, squared=squared),
    ):
        (gradient,) = torch.autograd.grad(loss, output)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("objective", ["1", "4"])
def test_training_minimises_the_objective_that_was_asked_for(
    objective: str, squared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "filter_objective" if objective == "1" else "amplify_objective"
    original = getattr(ssae, name)
    seen = []

    def note(*args: Any, squared: bool) -> Tensor:
        seen.append((args[-1], squared))
        return torch.as_tensor(original(*args, squared=squared))

    monkeypatch.setattr(ssae, name, note)
    build(objective=objective, squared=squared, lam=0.3).fit(photos(), 2)
    assert seen == [(0.3, squared)] * 2


# Maps and scores.


@given(n=st.integers(0, 3), k=st.integers(1, 9), value=st.floats(0, 1, width=32))
@settings(max_examples=25)
def test_smoothing_leaves_constant_maps_alone(n: int, k: int, value: float) -> None:
    constant = torch.full((2, 6, 7), value)
    torch.testing.assert_close(filter_maps(constant, box_window(k), n), constant)


def test_smoothing_without_neighbours_or_repetitions_is_the_identity() -> None:
    maps = uniform(2, 8, 8)
    for n in (0, 1, 3):
        assert torch.equal(filter_maps(maps, box_window(1), n), maps)
    assert torch.equal(filter_maps(maps, box_window(5), 0), maps)


def test_smoothing_is_scipys_uniform_filter() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    maps = uniform(1, 12, 15)
    for k in (2, 3, 5, 31):
        for n in (1, 2, 3):
            expected = maps[0].double().numpy()
            for _ in range(n):
                expected = ndimage.uniform_filter(expected, k, mode="reflect")
            actual = filter_maps(maps, box_window(k), n)[0]
            torch.testing.assert_close(
                actual, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5
            )


def test_ssim_distance_is_the_definition() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    a, b = uniform(2, 1, 3, 16, 16).double().unbind(0)

    def mean(x: Tensor) -> Tensor:
        filtered = ndimage.gaussian_filter(x.numpy(), 1.5, mode="reflect", radius=5, axes=(-2, -1))
        return torch.from_numpy(filtered)

    cov = mean(a * b) - mean(a) * mean(b)
    var = [mean(x * x) - mean(x) ** 2 for x in (a, b)]
    c1, c2 = 0.01**2, 0.03**2
    ssim = ((2 * mean(a) * mean(b) + c1) * (2 * cov + c2)) / (
        (mean(a) ** 2 + mean(b) ** 2 + c1) * (var[0] + var[1] + c2)
    )
    torch.testing.assert_close(
        ssim_distance(a.float(), b.float()).double(), (1 - ssim).mean(1) / 2, rtol=1e-3, atol=1e-4
    )


def test_ssim_distance_of_equal_and_of_opposite_images() -> None:
    a = uniform(2, 3, 16, 16)
    torch.testing.assert_close(ssim_distance(a, a), torch.zeros(2, 16, 16), atol=1e-4, rtol=0)
    assert ssim_distance(a, 1 - a).mean() > 0.6
    flat = torch.full_like(a, 0.4)
    assert ssim_distance(flat, flat).abs().max() < 1e-4
    assert ssim_distance(flat, a).max() <= 1


class Fixed(nn.Module):
    """Reconstructs everything as a fixed image, scaled."""

    def __init__(self, factor: float, target: Tensor | None = None) -> None:
        super().__init__()
        self.factor = factor
        self.target = target

    def forward(self, images: Tensor) -> Tensor:
        return (images if self.target is None else self.target) * self.factor


def fixed(networks: list[nn.Module], **fields: Any) -> SSAE:
    detector = build(**fields)
    detector.network = nn.ModuleList(networks)
    return detector


def test_the_score_of_a_grey_image_without_smoothing_is_its_squared_distance() -> None:
    grey = photos(4)[:, :1].expand(-1, 3, -1, -1)
    target = uniform(1, 1, 32, 32).expand(-1, 3, -1, -1)
    detector = fixed([Fixed(1, target)], n=0)
    expected = (grey[:, 0] / 255 - target[:, 0]).flatten(1).norm(dim=1) ** 2
    torch.testing.assert_close(detector.score(grey), expected)


def test_the_score_is_the_sum_of_the_map() -> None:
    detector = build()
    assert detector.score_rule == "sum"
    maps = uniform(3, 32, 32)
    torch.testing.assert_close(detector.image_scores(maps), maps.sum((1, 2)))


def test_colour_differences_are_averaged() -> None:
    detector = fixed([Fixed(0.0)], n=0)
    expected = (photos() / 255).square().mean(1)
    torch.testing.assert_close(detector.anomaly_maps(photos()), expected)


@pytest.mark.parametrize("diff", ["squared", "ssim"])
def test_the_map_is_the_smoothed_difference(diff: str) -> None:
    pixels = photos() / 255
    detector = fixed([Fixed(0.5)], diff=diff, n=2, k=5)
    plain = (
        (0.5 * pixels).square().mean(1) if diff == "squared" else ssim_distance(pixels, pixels / 2)
    )
    expected = filter_maps(plain, box_window(5), 2)
    torch.testing.assert_close(detector.anomaly_maps(photos()), expected)


def test_the_average_map_of_one_validation_image_is_its_own() -> None:
    detector = build(n=1)
    images = photos(5)
    detector.fit(images, 2)
    (held_out,) = detector._held_out(5)
    plain = detector.anomaly_maps(images[held_out : held_out + 1])
    torch.testing.assert_close(detector.average, plain)


@pytest.mark.parametrize("t", [0, 1, 4])
def test_the_average_map_weights_the_maps(t: int) -> None:
    plain, weighted = build(), build(t=t)
    images = photos(60)
    for detector in (plain, weighted):
        detector.fit(images, 2)
    held_out = plain._held_out(60)
    assert len(held_out) == 3
    average = plain.anomaly_maps(images[held_out]).mean(0)
    expected = plain.anomaly_maps(images[:4]) * (1 - average) ** t
    torch.testing.assert_close(weighted.anomaly_maps(images[:4]), expected)
    if t == 0:
        assert torch.equal(weighted.anomaly_maps(images), plain.anomaly_maps(images))


def test_the_average_map_follows_the_weights() -> None:
    detector = build(t=1)
    detector.fit(photos(), 1)
    before = detector.average.clone()
    detector.fit(photos(), 3)
    assert not torch.equal(detector.average, before)


def test_the_ensemble_is_the_larger_map_of_each_pixel() -> None:
    one, other = Fixed(1, uniform(1, 3, 32, 32)), Fixed(1, uniform(1, 3, 32, 32, seed=1))
    a, b = (fixed([network]).anomaly_maps(photos()) for network in (one, other))
    both = fixed([one, other], objective="ensemble").anomaly_maps(photos())
    assert torch.equal(both, torch.maximum(a, b))
    assert (both > a).any()
    assert (both > b).any()
    twice = fixed([one, one], objective="ensemble").anomaly_maps(photos())
    assert torch.equal(twice, a)


def test_the_ensemble_weights_each_map_by_its_own_average() -> None:
    networks: list[nn.Module] = [Fixed(0.5), Fixed(0.9)]
    detector = fixed(networks, objective="ensemble", t=2, n=0)
    detector._validate(photos(20), torch.tensor([3, 4]))
    alone = []
    for network in networks:
        single = fixed([network], t=2, n=0)
        single._validate(photos(20), torch.tensor([3, 4]))
        alone.append(single.anomaly_maps(photos()))
    torch.testing.assert_close(detector.anomaly_maps(photos()), torch.maximum(*alone))


def test_networks_of_an_ensemble_learn_as_they_would_alone() -> None:
    both = build(objective="ensemble")
    alone = build(objective="1")
    same = zip(both.network[0].parameters(), alone.network[0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    both.fit(photos(), 3)
    alone.fit(photos(), 3)
    for a, b in zip(both.network[0].parameters(), alone.network[0].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert count(both.network) == 2 * count(alone.network)


def test_maps_have_the_size_that_is_asked_for() -> None:
    same, larger, smaller = (build(image_size=size, n=0) for size in (32, 48, 8))
    maps = same.anomaly_maps(photos())
    assert larger.anomaly_maps(photos()).shape == (6, 48, 48)
    shrunk = smaller.anomaly_maps(photos())
    assert shrunk.shape == (6, 8, 8)
    # Every pixel of the larger map counts in the smaller one.
    torch.testing.assert_close(shrunk.mean((1, 2)), maps.mean((1, 2)), rtol=0.01, atol=0)


def test_images_of_another_size_than_the_resolution_are_refused() -> None:
    detector = build(image_size=48)
    for use in (lambda: detector.fit(photos(size=48), 1), lambda: detector.score(photos(size=48))):
        with pytest.raises(MethodError, match=r"shape \(N, 3, 32, 32\)"):
            use()


# Training.


def test_held_out_images_are_not_trained_on() -> None:
    images = photos(40)
    changed = images.clone()
    detector, other = build(), build()
    detector.fit(images, 1)
    train, held_out = detector.training_rows(40), detector._held_out(40)
    assert len(held_out) == 2
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(40))
    changed[held_out] = 0
    other.fit(changed, 1)
    detector.fit(images, 20)
    other.fit(changed, 20)
    for a, b in zip(detector.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(detector.average, other.average)


def test_a_single_image_serves_for_training_and_validation() -> None:
    report = build().fit(photos(1), 2)
    assert set(report) == {"loss", "validation_error"}


def test_no_image_is_an_error() -> None:
    with pytest.raises(MethodError, match="no training image"):
        build().fit(photos(0), 1)


def test_the_validation_error_is_the_mean_squared_error_of_the_reconstructions() -> None:
    detector = fixed([Fixed(0.0)], n=1, k=5)
    images = photos(10)
    assert detector._validate(images, torch.tensor([2, 7])) == pytest.approx(
        float((images[[2, 7]] / 255).square().mean()), rel=1e-5
    )


def test_crops_grow_in_four_equal_parts() -> None:
    def sides(resolution: int) -> list[int]:
        return [crop_size(resolution, step / 100) for step in (0, 24, 25, 49, 50, 74, 75, 99, 100)]

    assert sides(512) == [128, 128, 256, 256, 384, 384, 512, 512, 512]
    assert sides(72) == [16, 16, 32, 32, 56, 56, 72, 72, 72]
    assert sides(16) == [16] * 9


@pytest.mark.parametrize(("progressive", "sides"), [(True, [16, 32, 48, 64]), (False, [64] * 4)])
def test_training_sees_growing_crops(progressive: bool, sides: list[int]) -> None:
    detector = build(resolution=64, progressive=progressive)
    seen = []
    detector.network[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape[-1]) if module.training else None
    )
    detector.fit(photos(size=64), 2)
    detector.fit(photos(size=64), 2)
    assert seen == sides


@pytest.mark.parametrize(("how", "symmetries"), [("none", 1), ("flips", 4), ("all", 8)])
def test_augmentation_has_all_symmetries(how: Any, symmetries: int) -> None:
    image = uniform(1, 3, 5, 5)
    results = augment(image.expand(200, -1, -1, -1), how, torch.Generator().manual_seed(0))
    expected = [image.rot90(turn, (2, 3)) for turn in range(4)]
    expected += [other.flip(-1) for other in expected]
    distinct = {tuple(result.flatten().tolist()) for result in results}
    assert len(distinct) == symmetries
    assert distinct <= {tuple(other.flatten().tolist()) for other in expected}


def trained_on(detector: SSAE, images: Tensor) -> Tensor:
    inputs: list[Tensor] = []
    detector.network[0].register_forward_pre_hook(
        lambda module, args: inputs.append(args[0]) if module.training else None
    )
    detector.fit(images, 4)
    return torch.cat(inputs)


def test_training_sees_corrupted_images() -> None:
    white = torch.full((6, 3, 32, 32), 255, dtype=torch.uint8)
    batch = trained_on(build(corruption="zeros", progressive=False), white)
    assert batch.amin((1, 2, 3)).max() < 0.1
    assert (batch.amax((1, 2, 3)) == 1).all()


@pytest.mark.parametrize(("how", "varied"), [("none", False), ("all", True)])
def test_training_sees_augmented_images(how: str, varied: bool) -> None:
    image = photos(1).expand(6, -1, -1, -1)
    batch = trained_on(build(augment=how, clean=0.9999, progressive=False), image)
    same = (batch == image[:1] / 255).all((1, 2, 3))
    assert same.all() != varied


def test_a_network_learns_to_repair() -> None:
    place = torch.arange(32)
    stripes = (127 + 100 * torch.sin(place / 3)).to(torch.uint8).expand(8, 3, 32, 32)
    detector = build(
        corruption="zeros", width=8, lr=1e-2, iterations=120, progressive=False, squared=True
    )
    first = detector.fit(stripes, 10)["validation_error"]
    last = detector.fit(stripes, 110)["validation_error"]
    assert last < 0.1 * first
    defect = stripes[:1].clone()
    defect[:, :, 10:18, 10:18] = 0
    maps = detector.anomaly_maps(torch.cat([stripes[:1], defect]))
    scores = detector.image_scores(maps)
    assert scores[1] > 3 * scores[0]
    assert maps[1, 12:16, 12:16].mean() > 10 * maps[1, :, 24:].mean()


# Textures.


@pytest.mark.parametrize(
    ("corruption", "textures", "source"),
    [
        ("elastic", "auto", None),
        ("elastic", "/no/where", None),
        ("elastic+occlusion:0", "auto", None),
        ("elastic+occlusion", "auto", "categories"),
        ("occlusion", "procedural", None),
        ("occlusion:2+elastic", "/no/where", "/no/where"),
    ],
)
def test_foreign_images_are_wanted_for_occlusions_alone(
    corruption: str, textures: str, source: str | None
) -> None:
    hp = SSAEHyperparameters(corruption=corruption, textures=textures)
    assert hp.foreign_images() == source
    if source == "/no/where":
        with pytest.raises(MethodError, match="there is no folder /no/where: put images there"):
            SSAE.prepare(hp)
    else:
        SSAE.prepare(hp)


def test_a_folder_of_textures_that_is_there_can_be_used(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"corruption": "occlusion", "textures": str(tmp_path)}
    SSAE.prepare(SSAEHyperparameters(**fields))
    detector = build(**fields)
    with pytest.raises(MethodError, match="are missing"):
        detector.fit(photos(), 1)
    detector.foreign = photos(4, seed=9)
    detector.fit(photos(), 1)


@pytest.mark.parametrize(("textures", "used"), [("auto", True), ("procedural", False)])
def test_foreign_images_are_used_if_they_are_asked_for(textures: str, used: bool) -> None:
    losses = []
    for foreign in (None, torch.zeros(2, 3, 32, 32, dtype=torch.uint8)):
        detector = build(corruption="occlusion", textures=textures)
        detector.foreign = foreign
        losses.append(detector.fit(photos(), 1)["loss"])
    assert (losses[0] != losses[1]) == used


# Precision, randomness, presets.


def test_training_in_mixed_precision_corrupts_and_measures_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = build(corruption=EVERYTHING)
    seen: set[tuple[torch.dtype, ...]] = set()
    inner: set[torch.dtype] = set()

    def note(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        assert not torch.is_autocast_enabled("cpu")
        return images, torch.ones_like(images[:, :1])

    monkeypatch.setattr(detector, "_new_corruptor", lambda: note)
    objective = filter_objective

    def check(output: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        seen.add((output.dtype, args[0].dtype))
        return objective(output, *args, **kwargs)

    monkeypatch.setattr(ssae, "filter_objective", check)
    network = detector.network[0]
    assert isinstance(network, SDCAutoencoder)
    network.context.register_forward_hook(lambda _m, _i, out: inner.add(out.dtype))

    def half(device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16)

    monkeypatch.setattr("anomtune.models.training.gradient_detector.mixed_precision", half)
    monkeypatch.setattr(ssae, "mixed_precision", half)
    detector.fit(photos(), 1)
    assert detector.anomaly_maps(photos()).dtype == torch.float32
    assert seen == {(torch.float32, torch.float32)}
    assert inner == {torch.bfloat16}


def test_construction_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build()
    assert torch.equal(before, torch.get_rng_state())


def test_presets_are_the_papers_categories() -> None:
    presets = SSAEHyperparameters.presets
    assert {"texture", "cable", "screw", "transistor"} <= set(presets)
    made = {name: SSAEHyperparameters(**fields) for name, fields in presets.items()}
    assert (made["texture"].resolution, made["texture"].f, made["texture"].t) == (512, 3, 0)
    assert made["cable"].corruption == made["screw"].corruption == "elastic+occlusion"
    assert made["transistor"].corruption == "elastic+occlusion+rotation"
    assert (made["cable"].diff, made["screw"].diff) == ("ssim", "squared")
    assert all(hp.t > 0 for name, hp in made.items() if not name.startswith("texture"))
