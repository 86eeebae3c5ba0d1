"""Model-guided contrastive fine-tuning: the supplement's formulas, and what learns from what.

Long, because loss, projection and detector are tested on the same small mixtures and images.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from anomtune.errors import MethodError, TrainingDivergedError
from anomtune.models import gmm_contrastive
from anomtune.models.gmm_contrastive import GMMContrastive, GMMContrastiveHyperparameters
from anomtune.models.images.dead_leaves import dead_leaves
from anomtune.models.layers.backbones import prepare_weights
from anomtune.models.layers.gaussian_mixture import GaussianMixture
from anomtune.models.layers.maps import gaussian_smooth
from anomtune.models.layers.mixture_network import contrastive_loss, outliers, whitening
from anomtune.models.testing import check_method
from anomtune.models.training.report import Histogram

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "backbone": "mobilenet_v2",
    "weights": "random",
    "batch_size": 3,
    "dimensions": 6,
    "components": 3,
    "em_steps": 5,
}
PRESETS = GMMContrastiveHyperparameters.presets


@pytest.fixture(autouse=True)
def _few_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gmm_contrastive, "_DRAWN", 12)


def build(seed: int = 0, image_size: int = 64, **fields: Any) -> GMMContrastive:
    hp = GMMContrastiveHyperparameters(**{**SMALL, **fields})
    return GMMContrastive(hp, image_size=image_size, seed=seed)


def images(n: int = 6, size: int = 64, seed: int = 1) -> Tensor:
    """Noise around an edge: something to learn, and no natural image."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(60, 110, (n, size, size, 3), dtype=torch.uint8, generator=generator)
    pixels[:, :, size // 2 :] += 90
    return pixels.permute(0, 3, 1, 2)


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def mixture(seed: int = 0) -> GaussianMixture:
    """Three Gaussians in the plane, in float64."""
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    means = 2 * torch.randn(3, 2, generator=generator, dtype=torch.float64)
    result = GaussianMixture(3, 2).double()
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    result._set(weights, means, roots @ roots.mT + 0.3 * torch.eye(2, dtype=torch.float64))
    return result


# --- The loss -------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_losses_are_the_supplements_with_the_uniform_component(alpha: float) -> None:
    model, volume = mixture(), 40.0
    u = 2 * torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    density, uniform = model.log_density(u).exp(), alpha / volume
    normal = (1 - alpha) * density / ((1 - alpha) * density + uniform)
    odds = model.log_density(u) - (math.log(alpha / (1 - alpha)) - math.log(volume))
    torch.testing.assert_close(odds.sigmoid(), normal)
    every = torch.ones(9, dtype=torch.bool)
    loss = contrastive_loss(odds, odds, every)
    torch.testing.assert_close(loss, (-normal.log()).mean() + (-(1 - normal).log()).mean())


def test_gradients_are_directions_weighted_by_misclassification() -> None:
    model, tau = mixture(), -3.0
    u = 2 * torch.randn(2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(points: Tensor) -> Tensor:
        odds = model.log_density(points) - tau
        return contrastive_loss(odds[:1], odds[1:], torch.tensor([True]))

    shares = model.log_joint(u).softmax(1)
    pulls = torch.linalg.solve(
        model.covariances.unsqueeze(0), (u.unsqueeze(1) - model.means).unsqueeze(-1)
    )
    h = -(shares.unsqueeze(-1) * pulls.squeeze(-1)).sum(1)
    normal = (model.log_density(u) - tau).sigmoid()
    expected = torch.stack([-h[0] * (1 - normal[0]), h[1] * normal[1]])

    points = u.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(points), points)
    torch.testing.assert_close(gradient, expected)
    step = 1e-5
    for row in range(2):
        for column in range(2):
            shift = torch.zeros_like(u)
            shift[row, column] = step
            slope = (loss(u + shift) - loss(u - shift)) / (2 * step)
            assert abs(slope - expected[row, column]) < 1e-8


def test_points_on_their_side_hardly_learn() -> None:
    odds = torch.tensor([40.0, -40.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        contrastive_loss(odds[:1], odds[1:], torch.tensor([True])), odds
    )
    assert gradient.abs().max() < 1e-12


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=60), st.sampled_from([0.05, 0.1, 0.5, 1.0])
)
@settings(max_examples=200, deadline=None)
def test_negatives_outside_learn_or_else_the_most_outside(
    values: list[float], fraction: float
) -> None:
    odds = torch.tensor(values, dtype=torch.float64)
    kept = outliers(odds, fraction)
    least = math.ceil(fraction * len(odds))
    outside = odds < 0
    if outside.sum() >= least:
        assert torch.equal(kept, outside)
    else:
        assert kept.sum() == least
        if not kept.all():
            assert odds[kept].max() <= odds[~kept].min()


def test_negatives_that_are_left_out_get_no_gradient_and_do_not_count() -> None:
    odds = torch.tensor([-1.0, 2.0, 5.0], requires_grad=True)
    kept = torch.tensor([True, False, False])
    loss = contrastive_loss(torch.tensor([3.0]), odds, kept)
    torch.testing.assert_close(loss, F.softplus(torch.tensor([-3.0, -1.0])).sum())
    (gradient,) = torch.autograd.grad(loss, odds)
    assert gradient[0] > 0
    assert gradient[1:].abs().max() == 0


# --- The projection -------------------------------------------------------------------------


def test_whitened_features_are_white() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    features += 7
    mean, projection, count = whitening(iter(features.split(120)), 5)
    assert (projection.shape, count) == ((5, 8), 500)
    white = (features - mean) @ projection.T
    torch.testing.assert_close(white.T @ white / 500, torch.eye(5), rtol=0, atol=1e-3)
    # The five directions of most variance: the rest of the variance is what five cannot hold.
    values = torch.linalg.eigvalsh(torch.cov(features.T, correction=0))
    torch.testing.assert_close((1 / projection.square().sum(1)).sort().values, values[-5:])


def test_directions_without_variance_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(50, 2, generator=generator) @ torch.randn(2, 8, generator=generator)
    assert len(whitening(iter([flat]), 5)[1]) == 2
    few = torch.randn(4, 8, generator=generator)
    assert len(whitening(iter([few]), 5)[1]) == 3
    constant = whitening(iter([torch.ones(50, 8)]), 5)[1]
    assert len(constant) == 1
    assert constant.isfinite().all()


# --- The detector ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "image_size"),
    [
        ({"lr": 1e-3}, 64),
        (
            {
                "backbone": "resnet18",
                "diagonal_covariance": True,
                "calibration": "volume",
                "random_rho": True,
                "outlier_filter": False,
                "features_per_step": 50,
            },
            32,
        ),
        ({"fine_tune": False, "scoring": {"reduce": "top"}}, 48),
        ({"resolution": 48, "scoring": {"sigma": 2.0}}, 80),
    ],
)
def test_gmm_contrastive_keeps_the_contract(fields: dict[str, Any], image_size: int) -> None:
    hp = GMMContrastiveHyperparameters(**{**SMALL, **fields})
    diverging = hp.model_copy(update={"lr": 1e30}) if image_size == 64 else None
    check_method(GMMContrastive, hp, diverging=diverging, image_size=image_size)


def test_the_network_sees_its_resolution_and_maps_have_the_image_size() -> None:
    small, large = (build(image_size=96, resolution=side) for side in (64, 128))
    seen: list[int] = []
    for detector in (small, large):
        detector.network.features.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].shape[-1])
        )
        with pytest.raises(MethodError, match="give the detector images of shape"):
            detector.fit(images(size=96), 1)
        shown = images(size=detector.input_size)
        detector.fit(shown, 1)
        maps, scores = detector.predict(shown[:2])
        assert (maps.shape, scores.shape) == ((2, 96, 96), (2,))
        assert detector._pool().shape[-1] == detector.input_size, "negatives are cut out of these"
        assert set(seen) == {detector.input_size}
        seen.clear()
    alone = build(image_size=64)
    alone.fit(images(), 1)
    fresh = build(image_size=64, resolution=64)
    fresh.fit(images(), 1)
    assert torch.equal(alone.anomaly_maps(images()), fresh.anomaly_maps(images()))
    with pytest.raises(ValidationError, match="multiple of 16"):
        GMMContrastiveHyperparameters(resolution=72)


def test_defaults_are_those_of_the_reconstruction() -> None:
    hp = GMMContrastiveHyperparameters()
    assert (hp.backbone, hp.weights, hp.dimensions, hp.components) == (
        *("wide_resnet50_2", "imagenet", 64, 20),
    )
    assert (hp.lr, hp.weight_decay, hp.clip_norm, hp.iterations) == (1e-5, 1e-5, 1, 1000)
    assert (hp.batch_size, hp.features_per_step, hp.eta) == (8, 4096, 0.01)
    assert (hp.rho, hp.random_rho, hp.transfer) == (1, False, "monge_kantorovich")
    assert (hp.outlier_filter, hp.outlier_fraction, hp.quantile, hp.alpha) == (True, 0.1, 0.01, 0.5)
    assert (hp.covariance_floor, hp.negatives) == (1e-3, "procedural")
    assert (hp.scoring.sigma, hp.scoring.reduce, hp.scales) == (4, "max", ("map",))
    assert (hp.training_iterations(37), hp.foreign_images()) == (1000, None)
    searched = hp.search_space().keys()
    assert {"lr", "eta", "rho", "components", "dimensions", "outlier_fraction"} <= searched
    assert (hp.resolution, hp.input_size(96)) == (None, 96)
    assert not {"weights", "iterations", "batch_size", "negatives", "fine_tune"} & searched
    with pytest.raises(ValidationError):
        GMMContrastiveHyperparameters(rho=1.1)


def test_presets_leave_out_one_part_each() -> None:
    built = {name: GMMContrastiveHyperparameters(**fields) for name, fields in PRESETS.items()}
    assert not built["baseline"].fine_tune
    assert built["baseline"].training_iterations(100) == 1
    assert built["diagonal_transfer"].transfer == "diagonal"
    assert built["no_transfer"].rho == 0
    assert not built["no_filter"].outlier_filter
    assert built["static_gmm"].eta == 0
    assert all(len(fields) == 1 for fields in PRESETS.values())


def test_the_backbone_learns_and_its_statistics_and_the_projection_stay() -> None:
    detector = build(lr=1e-3)
    detector.fit(images(), 1)
    before = copied(detector.state_dict())
    detector.fit(images(), 2)
    after = detector.state_dict()
    names = {name for name, _ in detector.network.named_parameters()}
    assert all(".encoder." in name for name in names)
    assert all(not torch.equal(before[f"network.{n}"], after[f"network.{n}"]) for n in names)
    kept = [n for n in before if n.endswith(("running_mean", "running_var"))]
    kept += ["network.mean", "network.projection", "network.tau"]
    assert len(kept) > 10
    assert all(torch.equal(before[name], after[name]) for name in kept)


@pytest.mark.parametrize("eta", [0.0, 0.2])
def test_the_online_mixture_follows_the_normal_features_of_the_step(
    eta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = build(eta=eta)
    detector.fit(images(), 0)
    before = detector.network.online.means.clone()
    expected = detector.network.new_mixture(*before.shape)
    expected.load_state_dict(detector.network.online.state_dict())
    seen: list[Tensor] = []
    loss = detector.loss

    def spy(batch: Tensor, iteration: int, total: int) -> Tensor:
        value = loss(batch, iteration, total)
        with torch.no_grad():
            normal = detector.network.patches(batch)
        seen.append(detector.network.project(normal))
        return value

    monkeypatch.setattr(detector, "loss", spy)
    detector.fit(images(), 1)
    online = detector.network.online
    if eta > 0:
        expected.update(seen[0], eta)
        assert not torch.equal(online.means, before)
    torch.testing.assert_close(online.means, expected.means)
    torch.testing.assert_close(online.covariances, expected.covariances, rtol=1e-4, atol=1e-4)


def test_maps_come_from_a_mixture_that_is_fitted_to_all_features_again() -> None:
    detector = build(lr=1e-3, em_steps=3, scoring={"sigma": 2.0})
    detector.fit(images(), 3)
    with torch.no_grad():
        features = detector.network.features_of(images(), 10**6)
    assert len(features) == 6 * 64
    expected = detector.network.new_mixture(*detector.network.online.means.shape)
    expected.load_state_dict(detector.network.online.state_dict())
    expected.fit(features, 3)
    final = detector.network.final
    assert torch.equal(final.means, expected.means)
    assert not torch.equal(final.means, detector.network.online.means)
    test = images(2, seed=5)
    with torch.no_grad():
        density = final.log_density(detector.network.features_of(test, 10**6)).view(2, 1, 8, 8)
    maps = F.interpolate(-density, size=64, mode="bilinear").squeeze(1)
    torch.testing.assert_close(
        detector.anomaly_maps(test), gaussian_smooth(maps, 2.0 * 64 / 256), rtol=1e-4, atol=1e-3
    )


def test_without_fine_tuning_nothing_learns() -> None:
    detector = build(fine_tune=False)
    before = copied(dict(detector.network.features.state_dict()))
    report = detector.fit(images(), 1)
    after = detector.network.features.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "loss" not in report
    assert report["positive_weight"] == report["positive_weight_before"]
    online, final = detector.network.online, detector.network.final
    assert torch.equal(online.covariances, final.covariances)


def test_a_quantile_of_the_normal_features_lies_outside_at_first() -> None:
    detector = build(quantile=0.05)
    detector.fit(images(), 0)
    with torch.no_grad():
        odds = detector.network.log_odds(detector.network.features_of(images(), 10**6))
    assert (odds < 1e-3).float().mean() == pytest.approx(0.05, abs=0.01)


def test_the_uniform_component_fills_the_box_around_all_features() -> None:
    taus = []
    for alpha in (0.5, 0.9):
        detector = build(calibration="volume", alpha=alpha)
        detector.fit(images(), 0)
        taus.append(float(detector.network.tau))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        negatives = detector._negatives(32, images(), generator)
        both = [detector.network.features_of(part, 10**6) for part in (images(), negatives)]
    sides = torch.cat(both).amax(0) - torch.cat(both).amin(0)
    assert taus[0] == pytest.approx(-float(sides.log().sum()), abs=1e-3)
    assert taus[1] - taus[0] == pytest.approx(math.log(9), abs=1e-4)


def test_few_features_make_few_components() -> None:
    small = build(dimensions=256, components=100, image_size=32)
    small.fit(images(1, size=32), 1)  # 16 features
    components, dimensions = small.network.online.means.shape
    assert components == 1
    assert dimensions <= 15
    assert small.anomaly_maps(images(2, size=32)).isfinite().all()
    many = build(dimensions=6, components=100)  # 384 features, 21 values per covariance
    many.fit(images(), 0)
    assert many.network.online.components == 384 // 21
    diagonal = build(dimensions=6, components=100, diagonal_covariance=True)
    diagonal.fit(images(), 0)
    assert diagonal.network.online.components == 384 // 6


def test_images_that_are_all_alike_give_finite_maps() -> None:
    detector = build()
    alike = torch.full((4, 3, 64, 64), 7, dtype=torch.uint8)
    detector.fit(alike, 2)
    assert detector.anomaly_maps(alike).isfinite().all()
    assert detector.anomaly_maps(images(2)).isfinite().all()


def test_features_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gmm_contrastive, "_FIRST_FEATURES", 120)
    monkeypatch.setattr(gmm_contrastive, "_FINAL_FEATURES", 240)
    detector = build()
    with torch.no_grad():
        assert sum(len(part) for part in detector.network.sample(images(), 120)) == 120
    detector.fit(images(), 2)
    detector.fit(images(), 2)
    whole = build()
    whole.fit(images(), 4)
    assert torch.equal(detector.network.final.means, whole.network.final.means)


def test_steps_look_at_so_many_features_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    loss = contrastive_loss

    def spy(positive: Tensor, negative: Tensor, kept: Tensor) -> Tensor:
        sizes.append((len(positive), len(negative)))
        return loss(positive, negative, kept)

    monkeypatch.setattr(gmm_contrastive, "contrastive_loss", spy)
    build().fit(images(4), 2)  # the second batch has one normal image and still three negatives
    build(features_per_step=50).fit(images(4), 1)
    assert sizes == [(192, 192), (64, 192), (50, 50)]


def test_the_filter_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = []
    loss = contrastive_loss

    def spy(positive: Tensor, negative: Tensor, mask: Tensor) -> Tensor:
        kept.append(mask == outliers(negative, 0.1))
        kept.append(mask)
        return loss(positive, negative, mask)

    monkeypatch.setattr(gmm_contrastive, "contrastive_loss", spy)
    build(quantile=1e-9, dimensions=2, components=1).fit(images(), 1)
    build(quantile=1e-9, dimensions=2, components=1, outlier_filter=False).fit(images(), 1)
    assert kept[0].all()
    assert not kept[1].all(), "some negatives lie in the mixture"
    assert kept[3].all()


def test_the_diagnostic_shows_how_negatives_leave_the_mixture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no downloads in tests")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    try:
        prepare_weights("mobilenet_v2", "imagenet")
    except MethodError:
        pytest.skip("no MobileNetV2 weights in TORCH_HOME, ../shared/weights or a package")
    detector = build(
        weights="imagenet", lr=3e-4, dimensions=2, components=2, eta=0.2, quantile=1e-4
    )
    first = detector.fit(images(), 1)
    again = detector.fit(images(), 15)
    assert {name for name in first if name not in again} == {
        "positive_weight_before",
        "negative_weight_before",
        "positive_weights_before",
        "negative_weights_before",
    }
    for name in ("positive_weights", "negative_weights"):
        histogram = first[name]
        assert isinstance(histogram, Histogram)
        assert (len(histogram.counts), sum(histogram.counts)) == (20, 6 * 64)
        assert (histogram.edges[0], histogram.edges[-1]) == (0, 1)
    before, after = first["negative_weight_before"], again["negative_weight"]
    assert isinstance(before, float)
    assert isinstance(after, float)
    assert before > 0.5
    assert after < 0.1
    assert isinstance(again["positive_weight"], float)
    assert again["positive_weight"] < 0.1


def test_negatives_may_come_from_a_folder(tmp_path: Path) -> None:
    fields = {**SMALL, "negatives": str(tmp_path)}
    hp = GMMContrastiveHyperparameters(**fields)
    assert hp.foreign_images() == str(tmp_path)
    GMMContrastive.prepare(hp)
    with pytest.raises(MethodError, match="no folder"):
        GMMContrastive.prepare(hp.model_copy(update={"negatives": str(tmp_path / "none")}))
    detector = build(negatives=str(tmp_path))
    with pytest.raises(MethodError, match="no image"):
        detector.fit(images(), 1)
    black = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    white = torch.full_like(black, 255)
    seen = []
    for foreign in (black, white):
        detector = build(negatives=str(tmp_path), rho=0.0)
        detector.foreign = foreign
        detector.fit(images(), 2)
        seen.append(detector._negatives(2, images(), torch.Generator().manual_seed(0)))
        whole = build(negatives=str(tmp_path), rho=0.0)
        whole.foreign = foreign
        whole.load_state_dict(detector.state_dict())
        detector.fit(images(), 1)
        whole.fit(images(), 1)
        assert torch.equal(detector.score(images()), whole.score(images()))
    assert (seen[0].unique().tolist(), seen[1].unique().tolist()) == ([0], [255])


@pytest.mark.parametrize(
    ("fields", "is_grey"),
    [
        ({}, True),
        ({"transfer": "diagonal"}, False),
        ({"rho": 0.0}, False),
        ({"random_rho": True}, False),
    ],
)
def test_negatives_of_grey_images_are_grey_unless_the_transfer_is_weakened(
    fields: dict[str, Any], is_grey: bool
) -> None:
    grey = images()[:, :1].expand(-1, 3, -1, -1)
    negatives = build(**fields)._negatives(3, grey, torch.Generator().manual_seed(0))
    assert ((negatives.amax(1) - negatives.amin(1)).max() == 0) == is_grey


def test_gradients_are_clipped_and_the_optimiser_is_as_asked() -> None:
    moves = []
    for clip_norm in (1.0, 1e-12):
        detector = build(clip_norm=clip_norm, lr=1e-3, weight_decay=0.0)
        before = [p.detach().clone() for p in detector.network.parameters()]
        detector.fit(images(), 1)
        after = detector.network.parameters()
        moves.append(
            max(float((a.detach() - b).abs().max()) for a, b in zip(after, before, strict=True))
        )
    # The first step of AdamW is lr g / (|g| + 1e-8): far below lr if all gradients are tiny.
    assert moves[0] > 0.9e-3
    assert moves[1] < 1e-6
    (group,) = build(lr=2e-4, weight_decay=0.3).optimizers[0].param_groups
    assert (group["lr"], group["weight_decay"]) == (2e-4, 0.3)


def test_scores_follow_their_rule() -> None:
    detector = build()
    detector.fit(images(), 1)
    for rule in ("max", "mean"):
        detector.scoring = detector.scoring.changed({"reduce": rule})
        assert detector.scoring.rule == rule
        maps, scores = detector.predict(images(2, seed=5))
        torch.testing.assert_close(
            scores, getattr(maps, f"a{rule}" if rule == "max" else rule)((1, 2))
        )


def test_drawn_negatives_are_as_large_as_the_images() -> None:
    detector = build(image_size=48)
    assert torch.equal(detector._pool(), dead_leaves(12, 48))
    assert detector._pool() is detector._pool()


def test_the_density_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16)

    monkeypatch.setattr("anomtune.models.training.gradient_detector.mixed_precision", half)
    seen: list[torch.dtype] = []
    detector = build()
    detector.network.features.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    report = detector.fit(images(), 2)
    assert torch.bfloat16 in seen
    maps = detector.anomaly_maps(images())
    assert detector.network.online.covariances.dtype == torch.float32
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert isinstance(report["loss"], float)


@pytest.mark.parametrize("image_size", [0, 16, 40])
def test_an_image_size_that_does_not_suit_is_refused(image_size: int) -> None:
    with pytest.raises(MethodError, match="multiple of 16"):
        build(image_size=image_size)


def test_what_has_not_been_fitted_has_no_maps() -> None:
    with pytest.raises(MethodError, match="fit it first"):
        build().anomaly_maps(images())
    with pytest.raises(MethodError, match="no training image"):
        build().fit(images()[:0], 1)


def test_weights_that_become_infinite_at_the_last_step_are_noticed() -> None:
    detector = build()
    detector.fit(images(), 2)
    with torch.no_grad():
        next(detector.network.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="after iteration 2"):
        detector.fit(images(), 0)
