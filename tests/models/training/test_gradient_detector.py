"""What a method written in a script gets from `GradientDetector`, and what it may change."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from anomtune.errors import MethodError
from anomtune.models.base import Detector
from anomtune.models.hyperparameters import Hyperparameters
from anomtune.models.layers.evidence import Evidence
from anomtune.models.rd4ad import RD4AD, RD4ADHyperparameters
from anomtune.models.scoring import Scoring
from anomtune.models.testing import check_method
from anomtune.models.training.gradient_detector import GradientDetector


class MineHyperparameters(Hyperparameters):
    steps: int = Field(default=20, description="Optimiser steps.")
    lr: float = Field(default=1e-2, description="Learning rate of Adam.")

    def training_iterations(self, n_images: int) -> int:
        return self.steps


class Mine(GradientDetector[MineHyperparameters]):
    def build(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ConvTranspose2d(4, 3, 8, 8))

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        return F.mse_loss(self.network(images / 255), images / 255)

    def evidence(self, images: Tensor) -> Evidence:
        return Evidence(((self.network(images / 255) - images / 255).square().mean(1),))


def images(n: int = 5, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def build(kind: type[Mine] = Mine, seed: int = 0, **fields: Any) -> Mine:
    return kind(MineHyperparameters(**fields), image_size=32, seed=seed)


def test_fifteen_lines_keep_the_contract() -> None:
    check_method(Mine, diverging=MineHyperparameters(lr=1e30), image_size=32)


def test_it_learns_from_all_images_in_turn() -> None:
    detector = build()
    first = detector.fit(images(), 5)["loss"]
    detector.fit(images(), 100)
    last = detector.fit(images(), 5)["loss"]
    assert isinstance(first, float)
    assert isinstance(last, float)
    assert last < 0.8 * first
    assert detector.iteration == 110


def test_the_optimiser_is_adam_with_the_hyperparameter_lr() -> None:
    (optimizer,) = build(lr=0.25).optimizers
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 0.25


class Frozen(Mine):
    def build(self) -> nn.Module:
        network = super().build()
        next(network.parameters()).requires_grad_(False)
        return network


def test_frozen_weights_are_left_to_no_optimiser() -> None:
    detector = build(Frozen)
    (group,) = detector.optimizers[0].param_groups
    assert len(group["params"]) == 3
    before = next(detector.network.parameters()).clone()
    detector.fit(images(), 2)
    assert torch.equal(next(detector.network.parameters()), before)


class Richer(Mine):
    """Uses every hook: a second optimiser, noise, images held out, an average and a mean image."""

    extra_state = ("average", "mean")
    training_state = (*Mine.training_state, "network.")

    def __init__(self, hyperparameters: MineHyperparameters, **where: Any) -> None:
        super().__init__(hyperparameters, **where)
        self.average = AveragedModel(self.network)
        self.mean: Tensor | None = None
        self.seen: list[tuple[str, int, int]] = []
        self.trained_on: set[int] = set()

    def build_optimizers(self) -> Sequence[Optimizer]:
        return [torch.optim.AdamW(layer.parameters(), 1e-3) for layer in self.network.children()]

    def training_rows(self, n_images: int) -> Tensor:
        return torch.arange(1, n_images)

    def batch(self, images: Tensor, rows: Tensor) -> Tensor:
        self.trained_on |= set(rows.tolist())
        self.mean = images[0].float() / 255
        return super().batch(images, rows)

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        assert self.network.training
        self.seen.append(("loss", iteration, total))
        noise = torch.randn(images.shape, generator=self.generator)
        return F.mse_loss(self.network(images / 255 + 0.1 * noise), images / 255)

    def before_step(self, iteration: int, total: int) -> None:
        assert all(p.grad is not None for p in self.network.parameters())
        self.seen.append(("before", iteration, total))

    def after_step(self, iteration: int, total: int) -> None:
        self.average.update_parameters(self.network)
        self.seen.append(("after", iteration, total))

    def evidence(self, images: Tensor) -> Evidence:
        assert not self.network.training
        assert torch.is_inference_mode_enabled()
        shift = 0 if self.mean is None else self.mean
        return Evidence(((self.average(images / 255) - images / 255 + shift).square().mean(1),))


def test_a_method_that_uses_every_hook_keeps_the_contract() -> None:
    check_method(Richer, image_size=32)


def test_hooks_are_called_in_order_and_held_out_images_are_not_used() -> None:
    detector = build(Richer)
    assert isinstance(detector, Richer)
    detector.fit(images(), 1)
    detector.fit(images(), 1)
    expected = [(name, step, 20) for step in (0, 1) for name in ("loss", "before", "after")]
    assert detector.seen == expected
    assert detector.trained_on == {1, 2, 3, 4}


def test_the_state_holds_what_the_class_names_and_prediction_less() -> None:
    detector = build(Richer)
    assert "mean" not in detector.state_dict(), "None is left out"
    detector.fit(images(), 2)
    state = detector.state_dict()
    beginnings = {name.split(".")[0] for name in state}
    kept = {name.split(".")[0] for name in detector.inference_state()}
    assert kept == {"average", "mean", "iteration"}
    assert beginnings == kept | {"network", "optimizer", "order", "generator"}
    reader = build(Richer, seed=5)
    reader.load_inference_state(detector.inference_state())
    assert torch.equal(reader.anomaly_maps(images()), detector.anomaly_maps(images()))
    detector.load_state_dict(build(Richer).state_dict())
    assert detector.iteration == 0
    assert "mean" not in detector.state_dict()


@pytest.mark.parametrize("shape", [(5, 3, 48, 48), (5, 3, 32, 48), (5, 1, 32, 32), (5, 3, 32)])
def test_images_of_a_wrong_size_are_refused_in_one_line(shape: tuple[int, ...]) -> None:
    wrong = torch.zeros(shape, dtype=torch.uint8)
    detector = build()
    for use in (lambda: detector.fit(wrong, 1), lambda: detector.anomaly_maps(wrong)):
        with pytest.raises(MethodError, match=r"of shape \(N, 3, 32, 32\)") as caught:
            use()
        assert "\n" not in str(caught.value)
        assert str(tuple(shape)) in str(caught.value)
    with pytest.raises(MethodError, match="no training image"):
        detector.fit(images(0), 1)


class Halving(Mine):
    multiple_of = 8
    smallest_input = 16


@pytest.mark.parametrize(("side", "use"), [(0, 16), (8, 16), (30, 32), (33, 32)])
def test_an_image_size_that_does_not_suit_is_told_the_next(side: int, use: int) -> None:
    with pytest.raises(MethodError, match=f"use {use} or another multiple of 8$"):
        Halving(MineHyperparameters(), image_size=side)


def test_scores_follow_the_scoring() -> None:
    class SummedHyperparameters(MineHyperparameters):
        scoring: Scoring = Field(default=Scoring(reduce="sum"), description="Source: ours.")

    class Summed(GradientDetector[SummedHyperparameters]):
        build, loss, evidence = Mine.build, Mine.loss, Mine.evidence

    summed, plain = Summed(SummedHyperparameters(), image_size=32), build()
    maps, scores = summed.predict(images())
    torch.testing.assert_close(scores, maps.sum((1, 2)))
    maps, scores = plain.predict(images())
    assert torch.equal(scores, maps.amax((1, 2)))
    plain.scoring = Scoring(reduce="sum")
    torch.testing.assert_close(plain.score(images()), maps.sum((1, 2)))
    with pytest.raises(ValidationError, match="Input should be 'max', 'top', 'mean'"):
        MineHyperparameters(scoring={"reduce": "maximum"})


@pytest.mark.parametrize("field", ["sigma", "reduce"])
def test_what_a_method_does_not_do_of_its_own_is_refused_when_it_is_read(field: str) -> None:
    with pytest.raises(ValidationError, match="this method has none of its own") as refusal:
        MineHyperparameters(scoring={field: "own"})
    assert refusal.value.errors()[0]["loc"] == ("scoring", field)


class TwoHyperparameters(MineHyperparameters):
    @property
    def scales(self) -> tuple[str, ...]:
        return ("fine", "coarse")


class Two(Mine):
    Hyperparameters = TwoHyperparameters

    def evidence(self, images: Tensor) -> Evidence:
        (error,) = super().evidence(images).maps
        return Evidence((error, F.avg_pool2d(error, 4)))


def test_a_method_of_two_scales_keeps_the_contract() -> None:
    check_method(Two, image_size=32)


def test_a_scoring_may_be_set_and_must_suit_the_method() -> None:
    detector = Two(TwoHyperparameters(), image_size=32)
    both = detector.anomaly_maps(images())
    detector.scoring = detector.scoring.changed({"scales": ("coarse",)})
    coarse = detector.anomaly_maps(images())
    detector.scoring = detector.scoring.changed({"scales": ("fine",)})
    torch.testing.assert_close(detector.anomaly_maps(images()) + coarse, both)
    with pytest.raises(ValidationError, match=r"no map 'corse'; .*did you mean 'coarse'"):
        detector.scoring = Scoring(scales=("corse",))
    assert detector.scoring.scales == ("fine",)


class Less(Two):
    def evidence(self, images: Tensor) -> Evidence:
        return Evidence(super().evidence(images).maps[:1])


class Flat(Mine):
    def evidence(self, images: Tensor) -> Evidence:
        return Evidence((super().evidence(images).maps[0].mean((1, 2)),))


class Sticky(Mine):
    def evidence(self, images: Tensor) -> Evidence:
        self.smoothed = getattr(self, "smoothed", 0) + (self.scoring.sigma != 0)
        return Evidence((super().evidence(images).maps[0] + self.smoothed,))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Less, "1 maps, and scales names"),
        (Flat, "the evidence's map has shape"),
        (Sticky, "left something behind"),
    ],
)
def test_evidence_that_is_none_breaks_the_contract(kind: type[Mine], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        check_method(kind, image_size=32)


H = TypeVar("H", bound=Hyperparameters)
K = TypeVar("K")


class Between(Detector[H], Generic[H, K]):
    pass


class Last(Between[MineHyperparameters, int]):
    pass


class Child(Last):
    pass


class Explicit(Between[MineHyperparameters, int]):
    Hyperparameters = RD4ADHyperparameters


def test_the_class_in_brackets_is_the_one_of_the_hyperparameters() -> None:
    assert Mine.Hyperparameters is MineHyperparameters
    assert RD4AD.Hyperparameters is RD4ADHyperparameters
    assert Last.Hyperparameters is Child.Hyperparameters is MineHyperparameters
    assert Explicit.Hyperparameters is RD4ADHyperparameters
    assert not hasattr(Between, "Hyperparameters")
    assert not hasattr(GradientDetector, "Hyperparameters")


SCRIPT = """
import sys
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from ray import cloudpickle
from torch import Tensor, nn

from anomtune.models.hyperparameters import Hyperparameters
from anomtune.models.layers.evidence import Evidence
from anomtune.models.ranges import FloatRange
from anomtune.models.training.gradient_detector import GradientDetector


class MineHyperparameters(Hyperparameters):
    steps: int = Field(default=20, description="Optimiser steps.")
    lr: Annotated[float, FloatRange(low=1e-3, high=1e-1, log=True)] = Field(1e-2, description="lr.")

    @field_validator("steps")
    @classmethod
    def check(cls, steps: int) -> int:
        if steps == 13:
            raise ValueError("not 13")
        return steps

    def training_iterations(self, n_images: int) -> int:
        return self.steps


class Mine(GradientDetector[MineHyperparameters]):
    def build(self) -> nn.Module:
        return nn.Conv2d(3, 3, 3, padding=1)

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        return F.mse_loss(self.network(images / 255), images / 255)

    def evidence(self, images: Tensor) -> Evidence:
        return Evidence(((self.network(images / 255) - images / 255).square().mean(1),))


images = torch.arange(4 * 3 * 256).view(4, 3, 16, 16).to(torch.uint8)
detector = Mine(MineHyperparameters(steps=7), image_size=16)
detector.fit(images, 3)
what = (Mine, detector.hyperparameters, images, detector.score(images))
Path(sys.argv[1]).write_bytes(cloudpickle.dumps(what))
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "from __future__ import annotations\n"])
def test_a_method_of_a_script_travels_by_value(tmp_path: Path, first: str) -> None:
    script, pickled = tmp_path / "script.py", tmp_path / "pickled"
    script.write_text(first + SCRIPT)
    subprocess.run([sys.executable, script, pickled], check=True, timeout=120)
    method, hyperparameters, images, scores = pickle.loads(pickled.read_bytes())
    assert (method.__module__, method.__qualname__) == ("__main__", "Mine")
    assert type(hyperparameters) is method.Hyperparameters
    assert hyperparameters == method.Hyperparameters(steps=7)
    assert set(method.Hyperparameters.search_space()) == {"lr"}
    with pytest.raises(ValueError, match="not 13"):
        method.Hyperparameters(steps=13)
    detector = method(hyperparameters, image_size=16)
    detector.fit(images, 3)
    assert torch.equal(detector.score(images), scores)
