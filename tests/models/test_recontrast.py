"""The recipes and probes of ReContrast beside its ablation rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomtune.models.layers.batch_norm import PartialNorm
from anomtune.models.recontrast import ReContrast, ReContrastHyperparameters

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"backbone": "mobilenet_v2", "weights": "random", "batch_size": 4}
PRESETS = ReContrastHyperparameters.presets


def build(preset: str = "full", **fields: Any) -> ReContrast:
    hp = ReContrastHyperparameters(**{**SMALL, **PRESETS[preset], **fields})
    return ReContrast(hp, image_size=64)


def images(n: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8, generator=generator)


def copies(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_stable_recipe_is_that_of_the_official_scripts() -> None:
    detector = build("stable")
    hp = detector.hyperparameters
    assert (hp.loss, hp.train_encoder, hp.stop_grad, hp.dual) == ("global_hm", True, True, True)
    assert (hp.reset_every, hp.encoder_pause, hp.alpha_ramp, hp.drop_last) == (500, 99, 0.2, True)
    assert hp.scoring == detector.scoring
    assert (hp.scoring.reduce, hp.scoring.share, hp.scoring.rule) == ("top", 0.01, "top 1 %")
    assert hp.scoring.sigma == 4, "the rest of the scoring is that of all recipes"
    norms = [m for m in detector.network.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, PartialNorm) and norm.eps == 1e-6 for norm in norms)
    assert all(group["eps"] == 1e-10 for o in detector.optimizers for group in o.param_groups)
    plain = build("full")
    assert all(group["eps"] == 1e-8 for o in plain.optimizers for group in o.param_groups)


def test_a_reset_forgets_the_students_moments_and_stops_the_encoder_for_a_while() -> None:
    detector = build(reset_every=4, encoder_pause=2, encoder_lr=1e-3)
    student, encoder = detector.optimizers
    moved, steps = [], []
    for _ in range(10):
        before = copies(detector.network.encoder)
        detector.fit(images(), 1)
        moved.append(not same(before, copies(detector.network.encoder)))
        steps.append(int(next(iter(student.state.values()))["step"]))
    assert steps == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2], "the optimiser starts over at 4 and at 8"
    assert moved == [True] * 4 + [False] * 2 + [True] * 2 + [False] * 2
    assert int(next(iter(encoder.state.values()))["step"]) == 6, "and its own moments stay"


def test_without_resets_everything_moves_all_the_time() -> None:
    detector = build(encoder_lr=1e-3)
    for _ in range(3):
        before = copies(detector.network.encoder)
        detector.fit(images(), 1)
        assert not same(before, copies(detector.network.encoder))


def test_feature_diversity_of_extreme_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build()
    channels = 32

    def encode(points: Tensor) -> None:
        monkeypatch.setattr(detector.network.encoder, "forward", lambda batch: [None, points, None])

    direction = torch.rand(1, channels, 1, 1)
    encode(direction * torch.rand(4, 1, 8, 8).add(0.1))
    assert detector._feature_diversity(images()) == pytest.approx(0, abs=1e-6)
    encode(torch.randn(16, channels, 24, 24, generator=torch.Generator().manual_seed(0)))
    assert detector._feature_diversity(images()) == pytest.approx(channels**-0.5, rel=0.01)


def test_feature_diversity_is_reported_and_constant_where_the_encoder_is_frozen() -> None:
    detector = build("B")
    values = [detector.fit(images(), 1)["feature_diversity"] for _ in range(3)]
    assert values[0] == values[1] == values[2]
    assert values[0] > 0
