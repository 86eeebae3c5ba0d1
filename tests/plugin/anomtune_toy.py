"""A method for tests, from another package: it trains in no time, and fails on request."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anomtune.errors import TrainingDivergedError
from anomtune.models.base import Detector
from anomtune.models.hyperparameters import Hyperparameters
from anomtune.models.layers.evidence import Evidence
from anomtune.models.ranges import Choice, FloatRange
from anomtune.models.training.report import Histogram, Report
from anomtune.search.results.logger import Logger


class ToyHyperparameters(Hyperparameters):
    quality: Annotated[float, FloatRange(low=0.0, high=1.0)] = Field(0.5, ge=0, le=1)
    colour: Annotated[Literal["red", "green"], Choice(choices=("red", "green"))] = "red"
    iterations: int = 8
    seconds: float = 0.0
    behaviour: Literal[
        "work",
        "raise",
        "diverge",
        "die",
        "die_once",
        "die_halfway",
        "wait",
        "wait_halfway",
        "fail_later",
    ] = "work"
    marker: str = ""
    side: int = 0
    others: str | None = None

    def training_iterations(self, n_images: int) -> int:
        return self.iterations

    def input_size(self, image_size: int) -> int:
        return self.side or image_size

    def foreign_images(self) -> str | None:
        return self.others


class Toy(Detector[ToyHyperparameters]):
    """Scores the brightest pixel, the better the higher ``quality`` and the longer it trains."""

    def build(self) -> nn.Module:
        return nn.Linear(1, 1)

    def fit(self, images: Tensor, iterations: int) -> Report:
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
            case "die_halfway" if Path(h.marker).exists() and self.iteration == iterations:
                raise RuntimeError("this toy began again")
            case "die_halfway" if not Path(h.marker).exists() and 2 * self.iteration > h.iterations:
                Path(h.marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail_later" if Path(h.marker).exists():
                raise RuntimeError("this toy is broken by now")
            case "fail_later" if self.iteration == h.iterations:
                Path(h.marker).touch()
            case "wait":
                Path(h.marker).write_text(str(os.getpid()))
                self._wait()
            case "wait_halfway":
                with Path(h.marker).open("a") as log:
                    log.write(f"{self.iteration - iterations}\n")
                if 2 * self.iteration > h.iterations:
                    self._wait()
        foreign = 0 if self.foreign is None else len(self.foreign)
        return {
            "loss": 1.0 / (1 + self.iteration),
            "foreign": float(foreign),
            "input_side": float(images.shape[-1]),
            "nothing": float("nan"),
            "spread": Histogram((0.0, 0.5, 1.0), (1, self.iteration)),
        }

    def _wait(self) -> None:
        while not Path(self.hyperparameters.marker + ".go").exists():
            time.sleep(0.02)

    def evidence(self, images: Tensor) -> Evidence:
        maps = images.float().mean(1) / 255
        trained = self.hyperparameters.quality * self.iteration / self.hyperparameters.iterations
        # Noise of the image itself: the same image gets the same score in every process.
        noise = torch.sin(images.float().sum((1, 2, 3)) * 12.9898).abs()
        return Evidence((maps * trained + noise.view(-1, 1, 1) * (1 - trained),))


class BrokenLogger(Logger):
    """Takes nothing."""

    def update(self, record: object) -> None:
        raise RuntimeError("on a Sunday")
