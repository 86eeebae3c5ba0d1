from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from torch import Tensor

from anomtune.errors import MethodError
from anomtune.models.cutpaste import (
    Classifier,
    CutPaste,
    CutPasteHyperparameters,
    shrunk_covariance,
)
from anomtune.models.images.cut_paste import Patches, draw_patches, draw_scars, jitter, paste
from anomtune.models.testing import check_method

SMALL: dict[str, Any] = {"width": 8, "batch_size": 3}


def build(size: int = 32, **fields: Any) -> CutPaste:
    return CutPaste(CutPasteHyperparameters(**{**SMALL, **fields}), image_size=size)


def images(n: int = 6, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"level": "patch", "variant": "scar"}])
def test_it_keeps_the_contract(fields: dict[str, Any]) -> None:
    hp = CutPasteHyperparameters(**SMALL, **fields)
    check_method(CutPaste, hp, diverging=hp.model_copy(update={"lr": 1e30}), image_size=32)


def test_defaults_are_the_papers() -> None:
    hp = CutPasteHyperparameters()
    assert (hp.lr, hp.weight_decay, hp.batch_size, hp.variant) == (0.03, 3e-5, 32, "3way")
    assert hp.training_iterations(10) == 256 * 256
    assert hp.training_damage() == {"cut_paste"}
    assert not hp.localises
    assert CutPasteHyperparameters(level="patch").localises


def test_the_body_is_resnet18() -> None:
    from torchvision.models import resnet18

    network = Classifier(64, 3)
    ours = [tuple(p.shape) for p in network.body.parameters()]
    theirs = [tuple(p.shape) for name, p in resnet18().named_parameters() if "fc" not in name]
    assert sorted(ours) == sorted(theirs)
    assert sum(math.prod(shape) for shape in ours) == 11_176_512
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 512)


def test_patches_have_the_papers_areas_and_aspects() -> None:
    drawn = draw_patches(20_000, torch.Generator().manual_seed(0))
    area, ratio = drawn.sides.prod(1), drawn.sides[:, 1] / drawn.sides[:, 0]
    assert 0.02 <= float(area.min()) < 0.021
    assert 0.149 < float(area.max()) <= 0.15 + 1e-6
    assert float(area.mean()) == pytest.approx(0.085, abs=0.001)
    assert 0.3 - 1e-5 <= float(ratio.min()) < 0.31
    assert 3.2 < float(ratio.max()) <= 1 / 0.3 + 1e-4
    assert float((ratio < 1).float().mean()) == pytest.approx(0.5, abs=0.02)
    for middles in (drawn.sources, drawn.targets):
        assert bool((middles - drawn.sides / 2 >= -1e-6).all())
        assert bool((middles + drawn.sides / 2 <= 1 + 1e-6).all())


def test_scars_have_the_papers_sides_and_turn() -> None:
    drawn = draw_scars(20_000, torch.Generator().manual_seed(0))
    length, width = (256 * drawn.sides).unbind(1)
    assert (float(length.min()), float(length.max())) == pytest.approx((10, 25), abs=0.01)
    assert (float(width.min()), float(width.max())) == pytest.approx((2, 16), abs=0.01)
    degrees = drawn.angles * 180 / math.pi
    assert (float(degrees.min()), float(degrees.max())) == pytest.approx((-45, 45), abs=0.05)


def test_a_patch_is_cut_out_and_pasted() -> None:
    contents = torch.arange(3 * 64.0).view(1, 3, 8, 8)
    patches = Patches(
        torch.tensor([[0.25, 0.375]]),
        torch.zeros(1),
        torch.tensor([[3 / 8, 3.5 / 8]]),
        torch.tensor([[6 / 8, 5.5 / 8]]),
    )
    found = paste(torch.zeros(1, 3, 8, 8), contents, patches)
    expected = torch.zeros(1, 3, 8, 8)
    expected[..., 5:7, 4:7] = contents[..., 2:4, 2:5]
    assert torch.equal(found, expected)


def test_a_turned_scar_covers_its_area_and_lies_within() -> None:
    drawn = draw_scars(60, torch.Generator().manual_seed(0))
    blank = torch.zeros(60, 3, 256, 256)
    covered = paste(blank, torch.ones_like(blank), drawn)[:, 0].sum((1, 2))
    expected = 256**2 * drawn.sides.prod(1)
    assert float((covered / expected).mean()) == pytest.approx(1, abs=0.01)


def test_colours_change_by_so_much_and_grey_stays_grey() -> None:
    generator = torch.Generator().manual_seed(0)
    grey = torch.full((500, 3, 2, 2), 0.5)
    found = jitter(grey, 0.1, generator)
    assert float((found[:, 0] - found[:, 1]).abs().max()) < 1e-6
    levels = found[:, 0, 0, 0]
    assert 0.45 <= float(levels.min()) < 0.46
    assert 0.54 < float(levels.max()) <= 0.55 + 1e-6
    pixels = torch.rand(4, 3, 5, 5)
    torch.testing.assert_close(jitter(pixels, 0.0, generator), pixels)
    assert not torch.equal(jitter(pixels, 0.1, generator), pixels)


@pytest.mark.parametrize("n", [5, 40, 400])
def test_the_covariance_is_that_of_ledoit_and_wolf(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    rows = torch.randn(n, 12, generator=generator, dtype=torch.float64) @ mix + 3
    expected = LedoitWolf().fit(rows.numpy()).covariance_
    np.testing.assert_allclose(shrunk_covariance(rows).numpy(), expected, rtol=1e-9)


def test_scores_are_negative_log_densities() -> None:
    detector = build()
    detector.fit(images(), 2)
    with torch.no_grad():
        rows = detector.network.eval()(detector.inputs(images())).double().numpy()
    gaussian = multivariate_normal(rows.mean(0), LedoitWolf().fit(rows).covariance_)
    expected = gaussian.logpdf(rows.mean(0)) - gaussian.logpdf(rows)
    np.testing.assert_allclose(detector.score(images()).numpy(), expected, rtol=2e-3)


@pytest.mark.parametrize(("variant", "kinds"), [("cutpaste", 2), ("scar", 2), ("3way", 3)])
def test_kinds_of_image_are_told_apart(variant: Any, kinds: int) -> None:
    detector = build(variant=variant, jitter=0.0)
    seen: list[Tensor] = []
    detector.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    loss = detector.loss(torch.rand(3, 3, 32, 32), 0, 1)
    assert float(loss.detach()) == pytest.approx(math.log(kinds), abs=0.7)
    parts = seen[0].view(kinds, 3, 3, 32, 32)
    for part in parts[1:]:
        changed = (part != parts[0]).any(1).float().mean((1, 2))
        assert bool((changed > 0).all())
        assert bool((changed < 0.2).all())


def test_squares_lend_their_scores_to_the_pixels_they_cover() -> None:
    detector = build(64, level="patch")
    detector.fit(images(size=64), 1)
    found = detector.observe(images(2, size=64))
    assert found.maps[0].shape == (2, 64, 64)
    grid = torch.zeros(1, 1, 49, 49)
    torch.testing.assert_close(detector._lent(grid + 2), torch.full((1, 1, 64, 64), 2.0))
    grid[..., 10, 20] = 1
    covered = detector._lent(grid)[0, 0].nonzero()
    assert (covered.amin(0).tolist(), covered.amax(0).tolist()) == ([10, 20], [25, 35])


def test_the_learning_rate_falls_along_a_cosine() -> None:
    detector = build(iterations=4, lr=1.0)
    rates = []
    for iteration in range(5):
        detector.before_step(iteration, 4)
        rates.append(detector.optimizers[0].param_groups[0]["lr"])
    assert rates == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


def test_without_a_fit_there_is_no_gaussian() -> None:
    with pytest.raises(MethodError, match="no Gaussian yet: fit the detector first"):
        build().score(images())
