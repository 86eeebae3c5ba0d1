"""What every detector is: hyperparameters that carry their search ranges, and a network to fit.

This module knows nothing of Ray, Optuna or datasets: images arrive as tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from anomtune.models.hyperparameters import (
    Choice,
    FloatRange,
    Hyperparameters,
    IntRange,
    MethodError,
    SearchRange,
    TrainingDivergedError,
)

__all__ = [
    "Choice",
    "Detector",
    "FloatRange",
    "Hyperparameters",
    "IntRange",
    "MethodError",
    "SearchRange",
    "TrainingDivergedError",
]

H = TypeVar("H", bound=Hyperparameters)


class Detector(ABC, Generic[H]):
    """A detector of one method for one category.

    Images are ``uint8`` tensors of shape ``(N, 3, S, S)`` with ``S = image_size``, RGB, in any
    memory format (usually a channels-last view of a memory-mapped array: never write to them).

    A subclass sets ``Hyperparameters`` and builds ``network`` in its constructor; with the same
    seed, images and number of threads it trains to the same bits on a CPU.

    Args:
        hyperparameters: An instance of the class's own ``Hyperparameters``.
        image_size: Side of the square images and maps in pixels.
        device: Where the network lives.
        seed: Seed of initialisation and of the order of the batches.
    """

    Hyperparameters: ClassVar[type[Hyperparameters]]
    network: nn.Module

    def __init__(
        self,
        hyperparameters: H,
        *,
        image_size: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.hyperparameters = hyperparameters
        self.image_size = image_size
        self.device = torch.device(device)
        self.seed = seed
        #: Optimiser steps done so far.
        self.iteration = 0

    @classmethod
    def prepare(cls, hyperparameters: H) -> None:
        """Makes sure that whatever the method needs from outside (weights) can be had.

        Raises:
            MethodError: If not; the message says which file to put where.
        """

    @property
    @abstractmethod
    def score_rule(self) -> str:
        """How an image's score is drawn from its map, for the leaderboard (``max``, ``mean``)."""

    @abstractmethod
    def fit(self, images: Tensor, iterations: int) -> dict[str, float]:
        """Trains for some more iterations; calling it again continues where it stopped.

        Two calls of ``n`` iterations give the same network as one call of ``2 n``.

        Args:
            images: All training images of the category.
            iterations: Optimiser steps to do now.

        Returns:
            Means over these iterations, for monitoring; at least ``loss``.

        Raises:
            TrainingDivergedError: If the loss is not finite.
        """

    @abstractmethod
    def anomaly_maps(self, images: Tensor) -> Tensor:
        """Returns float32 maps ``(N, S, S)``, higher where more anomalous, of one batch."""

    @abstractmethod
    def image_scores(self, maps: Tensor) -> Tensor:
        """Returns float32 scores ``(N,)`` of maps ``(N, S, S)``."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Returns everything needed to predict and to go on training, as a flat dict of tensors.

        Optimiser state, iteration and random state included, so that it fits in a safetensors
        file and a detector that loads it goes on bit for bit.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the state of a detector with the same hyperparameters and image size."""

    def score(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Returns the scores ``(N,)`` (float32, CPU) of any number of images, batch by batch."""
        scores = [
            self.image_scores(self.anomaly_maps(batch.to(self.device)))
            for batch in torch.split(images, batch_size)
        ]
        # One copy at the end: each makes the CPU wait for the GPU.
        return torch.cat(scores).float().cpu()
