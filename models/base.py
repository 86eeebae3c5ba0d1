"""What every detector is: hyperparameters that carry their search ranges, and a network to fit.

This module knows nothing of Ray, Optuna or datasets: images arrive as tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from anomtune.errors import MethodError, TrainingDivergedError
from anomtune.models.hyperparameters import (
    Choice,
    FloatRange,
    Hyperparameters,
    IntRange,
    SearchRange,
)

__all__ = [
    "Choice",
    "Detector",
    "FloatRange",
    "Histogram",
    "Hyperparameters",
    "IntRange",
    "MethodError",
    "SearchRange",
    "TrainingDivergedError",
]

H = TypeVar("H", bound=Hyperparameters)


@dataclass(frozen=True)
class Histogram:
    """How often values fall into bins, for monitoring.

    Attributes:
        edges: ``n + 1`` ascending limits of the bins.
        counts: How many values fall into each of the ``n`` bins.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


#: What `Detector.fit` reports for monitoring.
Report = dict[str, float | Histogram]


class Detector(ABC, Generic[H]):
    """A detector of one method for one category.

    Images are ``uint8`` tensors of shape ``(N, 3, I, I)``, RGB, in any memory format (usually a
    channels-last view of a memory-mapped array: never write to them). ``I`` is what the
    hyperparameters ask for (`Hyperparameters.input_size`), by default ``image_size``; maps are
    ``S x S`` with ``S = image_size`` whatever ``I`` is.

    A subclass sets ``Hyperparameters`` and builds ``network`` in its constructor; with the same
    seed, images and number of threads it trains to the same bits on a CPU.

    Args:
        hyperparameters: An instance of the class's own ``Hyperparameters``.
        image_size: Side ``S`` of the square maps in pixels.
        device: Where the network lives.
        seed: Seed of initialisation and of the order of the batches.
    """

    Hyperparameters: ClassVar[type[Hyperparameters]]
    network: nn.Module

    #: Beginnings of the names in `state_dict` that training needs and prediction does not.
    training_state: ClassVar[tuple[str, ...]] = ()

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
        self.input_size: int = hyperparameters.input_size(image_size)
        self.device = torch.device(device)
        self.seed = seed
        #: Optimiser steps done so far.
        self.iteration = 0
        #: Images of other things, uint8 ``(M, 3, I, I)``, if the hyperparameters ask for any and
        #: there are some. Given before the first `fit`, and the same ones after a load.
        self.foreign: Tensor | None = None

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
    def fit(self, images: Tensor, iterations: int) -> Report:
        """Trains for some more iterations; calling it again continues where it stopped.

        Two calls of ``n`` iterations give the same network as one call of ``2 n``. A method that
        learns in one pass has one iteration.

        Args:
            images: All training images of the category.
            iterations: Optimiser steps to do now.

        Returns:
            Figures for monitoring. ``loss``, the mean over these iterations, is there unless the
            method has none.

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

    def inference_state(self) -> dict[str, Tensor]:
        """Returns the part of `state_dict` that prediction needs."""
        state = self.state_dict()
        return {k: value for k, value in state.items() if not k.startswith(self.training_state)}

    def load_inference_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over an `inference_state`: maps and scores become the same, training does not.

        Raises:
            MethodError: If the state is not one of a detector like this.
        """
        whole = self.state_dict()
        missing = [k for k in whole if not k.startswith(self.training_state) and k not in state]
        if missing:  # else they would silently stay as they were initialised
            raise MethodError(f"the state has no {missing[0]} (and lacks {len(missing)} in all)")
        try:
            self.load_state_dict(whole | dict(state))
        except (RuntimeError, KeyError, ValueError, IndexError) as error:
            raise MethodError(f"the state does not fit: {' '.join(str(error).split())}") from error

    def score(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Returns the scores ``(N,)`` (float32, CPU) of any number of images, batch by batch."""
        scores = [
            self.image_scores(self.anomaly_maps(batch.to(self.device)))
            for batch in torch.split(images, batch_size)
        ]
        # One copy at the end: each makes the CPU wait for the GPU.
        return torch.cat(scores).float().cpu()
