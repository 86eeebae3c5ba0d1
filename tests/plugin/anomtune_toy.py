"""A method for tests, from another package: it trains in no time, and fails on request."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anomtune.models.base import Detector
from anomtune.models.hyperparameters import (
    Choice,
    FloatRange,
    Hyperparameters,
    TrainingDivergedError,
)


class ToyHyperparameters(Hyperparameters):
    quality: Annotated[float, FloatRange(low=0.0, high=1.0)] = Field(0.5, ge=0, le=1)
    colour: Annotated[Literal["red", "green"], Choice(choices=("red", "green"))] = "red"
    iterations: int = 8
    seconds: float = 0.0
    behaviour: Literal["work", "raise", "diverge", "die", "die_once", "wait"] = "work"
    marker: str = ""

    def training_iterations(self, n_images: int) -> int:
        return self.iterations


class Toy(Detector[ToyHyperparameters]):
    """Scores the brightest pixel, the better the higher ``quality`` and the longer it trains."""

    Hyperparameters = ToyHyperparameters

    def __init__(self, hyperparameters, **kwargs):
        super().__init__(hyperparameters, **kwargs)
        self.network = nn.Linear(1, 1)

    @property
    def score_rule(self) -> str:
        return "max"

    def fit(self, images: Tensor, iterations: int) -> dict[str, float]:
        h = self.hyperparameters
        time.sleep(h.seconds * iterations)
        self.iteration += iterations
        match h.behaviour:
            case "raise":
                raise RuntimeError("this toy is broken")
            case "diverge":
                raise TrainingDivergedError(f"the loss is nan at iteration {self.iteration}")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die_once" if not Path(h.marker).exists():
                Path(h.marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            case "wait":
                Path(h.marker).write_text(str(os.getpid()))
                while not Path(h.marker + ".go").exists():
                    time.sleep(0.02)
        return {"loss": 1.0 / (1 + self.iteration)}

    def anomaly_maps(self, images: Tensor) -> Tensor:
        maps = images.float().mean(1) / 255
        trained = self.hyperparameters.quality * self.iteration / self.hyperparameters.iterations
        # Noise of the image itself: the same image gets the same score in every process.
        noise = torch.sin(images.float().sum((1, 2, 3)) * 12.9898).abs()
        return maps * trained + noise.view(-1, 1, 1) * (1 - trained)

    def image_scores(self, maps: Tensor) -> Tensor:
        return maps.amax((1, 2))

    def state_dict(self) -> dict[str, Tensor]:
        return {"iteration": torch.tensor(self.iteration)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.iteration = int(state["iteration"])
