"""Gaussian mixtures against their formulas, scipy and scikit-learn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture as Reference
from torch import Tensor

from anomtune.models.layers import gaussian_mixture
from anomtune.models.layers.gaussian_mixture import GaussianMixture

FLOOR = 1e-3


def random_mixture(
    components: int = 3, dimensions: int = 2, *, seed: int = 0, floor: float = FLOOR
) -> GaussianMixture:
    """A mixture in float64 with random parameters."""
    generator = torch.Generator().manual_seed(seed)
    mixture = GaussianMixture(components, dimensions, floor=floor).double()
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.2
    means = 2 * torch.randn(components, dimensions, generator=generator, dtype=torch.float64)
    roots = torch.randn(
        components, dimensions, dimensions, generator=generator, dtype=torch.float64
    )
    identity = torch.eye(dimensions, dtype=torch.float64)
    mixture._set(weights / weights.sum(), means, roots @ roots.mT + 0.3 * identity)
    return mixture


def clouds(n: int = 300, dimensions: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.randn(n // 3, dimensions, generator=generator, dtype=torch.float64) * (0.3 + k)
        + 3 * k
        for k in range(3)
    ]
    return torch.cat(parts)


def reference(mixture: GaussianMixture, kind: str = "full", steps: int = 1) -> Reference:
    """scikit-learn's mixture that starts where ours is."""
    precisions = torch.linalg.inv(mixture.covariances)
    if kind == "diag":
        precisions = precisions.diagonal(dim1=-2, dim2=-1)
    return Reference(
        mixture.components,
        covariance_type=kind,
        reg_covar=FLOOR,
        max_iter=steps,
        tol=0,
        weights_init=mixture.weights.numpy(),
        means_init=mixture.means.numpy(),
        precisions_init=precisions.numpy(),
    )


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_densities_are_those_of_scipy(components: int, dimensions: int, seed: int) -> None:
    mixture = random_mixture(components, dimensions, seed=seed)
    features = clouds(12, dimensions, seed)
    logs = [
        np.log(weight) + multivariate_normal(mean, covariance).logpdf(features.numpy())
        for weight, mean, covariance in zip(
            mixture.weights.numpy(),
            mixture.means.numpy(),
            mixture.covariances.numpy(),
            strict=True,
        )
    ]
    np.testing.assert_allclose(mixture.log_density(features), logsumexp(logs, axis=0), rtol=1e-8)
    np.testing.assert_allclose(mixture.log_densities(features), logsumexp(logs, axis=0), rtol=1e-8)


def test_densities_far_away_are_finite_logs() -> None:
    mixture = random_mixture()
    far = torch.full((1, 2), 1e4, dtype=torch.float64)
    assert mixture.log_density(far).exp() == 0
    assert mixture.log_density(far).isfinite()


def test_the_gradient_is_a_mean_of_directions_to_the_centres() -> None:
    mixture = random_mixture()
    features = clouds(30).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(features).sum(), features)
    joint = mixture.log_joint(features.detach())
    shares = joint.softmax(1)
    offsets = features.detach().unsqueeze(1) - mixture.means
    pulls = torch.einsum("kij,nkj->nki", torch.linalg.inv(mixture.covariances), offsets)
    torch.testing.assert_close(gradient, -(shares.unsqueeze(-1) * pulls).sum(1))


def test_a_single_round_gaussian_pulls_straight_to_its_mean() -> None:
    mixture = GaussianMixture(1, 3).double()
    mean = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    mixture._set(mixture.weights, mean, 4 * torch.eye(3, dtype=torch.float64).unsqueeze(0))
    features = torch.cat([clouds(6, 3), mean]).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(features).sum(), features)
    torch.testing.assert_close(gradient, -(features.detach() - mean) / 4)
    assert gradient[-1].abs().max() == 0


@pytest.mark.parametrize("kind", ["full", "diag"])
@pytest.mark.parametrize("steps", [1, 7])
def test_steps_of_em_are_those_of_scikit_learn(
    kind: str, steps: int, recwarn: pytest.WarningsRecorder
) -> None:
    features = clouds()
    mixture = random_mixture()
    mixture._diagonal = kind == "diag"
    mixture._set(mixture.weights, mixture.means, mixture.covariances)
    theirs = reference(mixture, kind, steps).fit(features.numpy())
    mixture.fit(features, steps, tolerance=0)
    np.testing.assert_allclose(mixture.weights, theirs.weights_, rtol=1e-6)
    np.testing.assert_allclose(mixture.means, theirs.means_, rtol=1e-6, atol=1e-8)
    covariances = theirs.covariances_
    if kind == "diag":
        covariances = np.stack([np.diag(row) for row in covariances])
    np.testing.assert_allclose(mixture.covariances, covariances, rtol=1e-5, atol=1e-8)


def test_one_whole_online_step_is_a_step_of_em() -> None:
    features = clouds()
    mixture = random_mixture()
    shares = mixture.log_joint(features).softmax(1)
    n = shares.sum(0)
    means = shares.T @ features / n[:, None]
    second = torch.einsum("nk,ni,nj->kij", shares, features, features) / n[:, None, None]
    covariances = second - means.unsqueeze(-1) * means.unsqueeze(-2)
    mixture.update(features, eta=1.0)
    torch.testing.assert_close(mixture.weights, n / len(features))
    torch.testing.assert_close(mixture.means, means)
    identity = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(mixture.covariances, covariances + FLOOR * identity)


def test_online_steps_keep_running_sums() -> None:
    mixture = random_mixture()
    plain = mixture.covariances - FLOOR * torch.eye(2, dtype=torch.float64)
    n = mixture.weights.clone()
    first = n[:, None] * mixture.means
    outer = mixture.means.unsqueeze(-1) * mixture.means.unsqueeze(-2)
    second = n[:, None, None] * (plain + outer)
    for number, eta in enumerate((0.1, 0.3, 0.02)):
        features = clouds(60, seed=number)
        shares = mixture.log_joint(features).softmax(1) / len(features)
        n = (1 - eta) * n + eta * shares.sum(0)
        first = (1 - eta) * first + eta * shares.T @ features
        products = torch.einsum("nk,ni,nj->kij", shares, features, features)
        second = (1 - eta) * second + eta * products
        mixture.update(features, eta)
    means = first / n[:, None]
    covariances = second / n[:, None, None] - means.unsqueeze(-1) * means.unsqueeze(-2)
    torch.testing.assert_close(mixture.weights, n / n.sum())
    torch.testing.assert_close(mixture.means, means)
    torch.testing.assert_close(
        mixture.covariances, covariances + FLOOR * torch.eye(2, dtype=torch.float64)
    )


def test_no_weight_for_new_features_changes_nothing() -> None:
    mixture = random_mixture()
    before = {name: value.clone() for name, value in mixture.state_dict().items()}
    mixture.update(clouds(), eta=0.0)
    for name, value in mixture.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_em_never_loses_likelihood() -> None:
    features = clouds()
    mixture = GaussianMixture(3, 2, floor=1e-9).double()
    mixture.initialise(features, torch.Generator().manual_seed(0))
    logs = [float(mixture.update(features)) for _ in range(30)]
    assert all(after >= before - 1e-9 for before, after in pairwise(logs))
    assert logs[-1] > logs[0]


def test_em_stops_when_it_no_longer_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clouds()
    mixture = GaussianMixture(3, 2).double()
    mixture.initialise(features, torch.Generator().manual_seed(0))
    steps = []
    update = mixture.update
    monkeypatch.setattr(mixture, "update", lambda u: steps.append(1) or update(u))
    mixture.fit(features, 100)
    assert 1 < len(steps) < 100


def test_features_that_are_not_finite_give_no_finite_likelihood() -> None:
    features = clouds()
    features[7, 0] = float("nan")
    assert not np.isfinite(random_mixture().fit(features, 5))


def test_a_component_that_nothing_belongs_to_stays_where_it_is() -> None:
    mixture = random_mixture()
    means = mixture.means.clone()
    means[1] = 1e3
    mixture._set(mixture.weights, means, mixture.covariances)
    covariance = mixture.covariances[1].clone()
    for _ in range(3):
        mixture.update(clouds())
    assert mixture.weights[1] == 0
    assert torch.equal(mixture.means[1], means[1])
    assert torch.equal(mixture.covariances[1], covariance)
    assert mixture.log_density(clouds()).isfinite().all()


def test_the_start_finds_clouds_that_lie_apart() -> None:
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(3, 200, 2, generator=generator, dtype=torch.float64)
    features = (centres.unsqueeze(1) + noise).flatten(0, 1)
    for seed in range(5):
        mixture = GaussianMixture(3, 2).double()
        mixture.initialise(features, torch.Generator().manual_seed(seed))
        order = mixture.means.sum(1).argsort()
        assert (torch.cdist(mixture.means, centres).amin(1) < 0.5).all()
        assert len(order) == len(
            {int(torch.cdist(m[None], centres).argmin()) for m in mixture.means}
        )
        covariances = mixture.covariances - torch.eye(2, dtype=torch.float64)
        assert covariances.abs().max() < 0.4
        torch.testing.assert_close(mixture.weights, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_the_size_of_a_block_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = random_mixture(), random_mixture()
    features = clouds()
    whole.update(features)
    expected = whole.log_densities(features)
    monkeypatch.setattr(gaussian_mixture, "_BLOCK", 37)
    parts.update(features)
    torch.testing.assert_close(parts.means, whole.means)
    torch.testing.assert_close(parts.covariances, whole.covariances)
    torch.testing.assert_close(parts.log_densities(features), expected)


def test_far_from_the_origin_no_digits_are_lost_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 4, generator=generator) * 0.1 + 300
    mixture = GaussianMixture(2, 4)
    mixture.initialise(features, torch.Generator().manual_seed(0))
    mixture.fit(features, 5)
    spread = (mixture.weights[:, None, None] * mixture.covariances).sum(0)
    assert 0.003 < spread.diagonal().mean() < 0.02
