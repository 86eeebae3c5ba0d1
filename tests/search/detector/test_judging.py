"""Many scorings of one training: the first exactly, the others at the evidence's own size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from anomtune.models.base import Detector
from anomtune.models.hyperparameters import Hyperparameters
from anomtune.models.layers.evidence import Evidence
from anomtune.models.training.report import Report
from anomtune.registry import METHODS
from anomtune.search.detector import judging
from anomtune.search.detector.judging import judge

SMALL: dict[str, Any] = {"backbone": "mobilenet_v2", "weights": "random"}
SIDE = 32


class SmoothHyperparameters(Hyperparameters):
    @property
    def scales(self) -> tuple[str, ...]:
        return ("fine", "coarse")

    def training_iterations(self, n_images: int) -> int:
        return 1

    def input_size(self, image_size: int) -> int:
        return SIDE


class Smooth(Detector[SmoothHyperparameters]):
    """Its evidence is the images themselves, a quarter as large as the maps, and their means."""

    align_corners = True

    def build(self) -> nn.Module:
        return nn.Identity()

    def fit(self, images: Tensor, iterations: int) -> Report:
        return {}

    def evidence(self, images: Tensor) -> Evidence:
        fine = images.float().mean(1) / 255
        return Evidence((fine, F.avg_pool2d(fine, 2)))


def blots(n: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Smooth noise, and in every other image a blot that can just be seen."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, 9, 9, generator=generator)
    pixels = F.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=True)[:, 0]
    labels = np.arange(n) % 2
    place = torch.arange(SIDE)
    for number in range(1, n, 2):
        row, column = torch.randint(4, SIDE - 4, (2,), generator=generator)
        away = (place[:, None] - row) ** 2 + (place - column) ** 2
        pixels[number] += 0.6 * torch.exp(-away / 18)
    images = (pixels * 120 + 30).clamp(0, 255).to(torch.uint8)
    return images[:, None].expand(-1, 3, -1, -1), labels


@pytest.mark.parametrize(
    ("fine", "rank", "most", "usual"), [(True, 0.97, 0.02, 0.004), (False, 0.95, 0.04, 0.01)]
)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=4, deadline=None)
def test_small_maps_rank_images_as_large_ones_do(
    seed: int, *, fine: bool, rank: float, most: float, usual: float
) -> None:
    detector = Smooth(SmoothHyperparameters(), image_size=128)
    images, labels = blots(60, seed)
    detector.learn_normal(images[::2])
    scorings = detector.hyperparameters.scorings()
    found = judge(detector, images, scorings, fine=fine)
    evidence = detector.observe(images)
    gaps = []
    for row, scoring in zip(found, scorings, strict=True):
        exact = detector.judge(evidence, scoring)[1].numpy()
        assert spearmanr(row, exact).statistic > rank, scoring
        gaps.append(abs(roc_auc_score(labels, row) - roc_auc_score(labels, exact)))
    assert max(gaps) < most
    assert np.mean(gaps) < usual


def images(n: int = 5, seed: int = 1, side: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def trained(method: str, image_size: int = 48, **fields: Any) -> Any:
    kind = METHODS.get(method)
    detector = kind(kind.Hyperparameters(**fields), image_size=image_size, device="cpu")
    detector.fit(images(side=detector.input_size), 1)
    detector.learn_normal(images(side=detector.input_size))
    return detector


CASES: list[tuple[str, dict[str, Any]]] = [
    ("gnl", {**SMALL, "resolution": SIDE, "batch_size": 2}),
    ("patchcore", {**SMALL, "resolution": 64, "crop": 48}),
    ("spr", {"width": 4, "resolution": SIDE}),
    (
        "ssae",
        {
            **{"width": 2, "resolution": SIDE, "iterations": 4, "objective": "ensemble"},
            "scoring": {"t": 1, "n": 2, "k": 81},
        },
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fields"), CASES)
def test_the_first_row_is_what_the_detector_says(method: str, fields: dict[str, Any]) -> None:
    detector = trained(method, **fields)
    own, shown = detector.scoring, images(37, seed=2, side=detector.input_size)
    scorings = detector.hyperparameters.scorings()
    found = judge(detector, shown, scorings)
    assert detector.scoring == own
    assert found.shape == (len(scorings), 37)
    assert found.dtype == np.float32
    assert np.array_equal(found[0], detector.score(shown).numpy())
    assert np.isfinite(found).all()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fields"), CASES)
def test_every_row_belongs_to_its_scoring(method: str, fields: dict[str, Any]) -> None:
    """Maps that are judged whole: each scoring then gives what it gives all by itself."""
    detector = trained(method, image_size=16, **fields)
    own, shown = detector.scoring, images(2, seed=2, side=detector.input_size)
    scorings = detector.hyperparameters.scorings()
    order = [0, *reversed(range(1, len(scorings)))]
    found = judge(detector, shown, [scorings[i] for i in order])
    for row, index in zip(found[1:], order[1:], strict=True):
        detector.scoring = scorings[index]
        expected = detector.judge(detector.observe(shown), scorings[index])[1]
        np.testing.assert_allclose(row, expected.numpy(), rtol=1e-5, atol=1e-9)
    detector.scoring = own


def test_the_time_of_an_image_is_that_of_the_detectors_own_scoring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = trained("spr", width=4, resolution=SIDE)
    clock = iter(range(1000))
    monkeypatch.setattr(judging.time, "perf_counter", lambda: float(next(clock)))
    seconds: list[float] = []
    judge(detector, images(37), detector.hyperparameters.scorings(), seconds=seconds)
    # Every pass looks at the clock when it begins, the own one when it has judged as well.
    assert seconds == [1 / 32, 1 / 5]


def test_the_scoring_is_restored_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = trained("spr", width=4, resolution=SIDE)
    own, scorings = detector.scoring, detector.hyperparameters.scorings()
    original = type(detector).evidence

    def evidence(self: Any, pixels: Tensor) -> Evidence:
        if self.scoring.draws != own.draws:
            raise RuntimeError("out of memory")
        return original(self, pixels)

    monkeypatch.setattr(type(detector), "evidence", evidence)
    with pytest.raises(RuntimeError, match="out of memory"):
        judge(detector, images(3), scorings)
    assert detector.scoring == own


def test_evidence_is_computed_once_for_all_that_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = trained("spr", width=4, resolution=SIDE)
    original, passes = type(detector).evidence, []

    def evidence(self: Any, pixels: Tensor) -> Evidence:
        passes.append((self.scoring.draws, self.scoring.t_star, len(pixels)))
        return original(self, pixels)

    monkeypatch.setattr(type(detector), "evidence", evidence)
    judge(detector, images(35), detector.hyperparameters.scorings())
    kinds = {(3, 1e-3), (9, 1e-3), (3, 3e-4), (3, 3e-3)}
    assert sorted(passes) == sorted((*kind, n) for kind in kinds for n in (32, 3))
