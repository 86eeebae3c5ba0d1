"""What the detectors of the reverse distillation family share: all but network and loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, TypeVar, cast, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from anomtune.errors import MethodError
from anomtune.models.base import Detector, Report
from anomtune.models.hyperparameters import Choice, Hyperparameters
from anomtune.models.layers.backbones import Backbone, Weights, prepare_weights
from anomtune.models.layers.losses import Loss
from anomtune.models.layers.maps import Pair, ScoreRule, anomaly_map, image_scores
from anomtune.models.training.trainer import BatchOrder, Trainer, mixed_precision, normalise


class DistillationHyperparameters(Hyperparameters):
    """What can be set of every method of the family."""

    backbone: Annotated[Backbone, Choice(choices=get_args(Backbone))] = Field(
        default="wide_resnet50_2",
        description="The encoder. Source: both papers; range from ReContrast, Table A5, and "
        "RD4AD's code; mobilenet_v2 is ours, for CPUs.",
    )
    weights: Weights = Field(
        default="imagenet", description="Weights the encoder starts from. Source: both papers."
    )
    batch_size: int = Field(
        default=16,
        ge=1,
        description="Images per optimiser step. Source: both official codes (ReContrast: 32 on "
        "medical images).",
    )
    drop_last: bool = Field(
        default=False,
        description="Whether a last, smaller batch of a pass over the images is left out. "
        "Source: both official codes (ReContrast's stable scripts: true).",
    )
    loss: Annotated[Loss, Choice(choices=get_args(Loss))] = Field(
        default="global",
        description="Compares features point by point (region), as whole maps (global), or so "
        "with hard-normal mining (global_hm). Source: RD4AD's code; range from ReContrast, "
        "Table 5.",
    )
    sigma: Annotated[float, Choice(choices=(0.0, 2.0, 4.0, 6.0, 8.0))] = Field(
        default=4.0,
        ge=0,
        description="Gaussian smoothing of the maps in pixels. Source: both official codes; "
        "range inferred.",
    )
    score: Annotated[ScoreRule, Choice(choices=get_args(ScoreRule))] = Field(
        default="max",
        description="Image score: the map's maximum, its mean, or the mean of its highest 1 %. "
        "Source: both papers; range from ReContrast's official scripts.",
    )

    def steps(self, epochs: int, n_images: int) -> int:
        """Returns the optimiser steps of so many passes over the images."""
        full, rest = divmod(n_images, self.batch_size)
        return epochs * (full if self.drop_last and full else full + (rest > 0))


D = TypeVar("D", bound=DistillationHyperparameters)


class DistillationDetector(Detector[D]):
    """A network that returns pairs of target and prediction, trained to make them agree.

    A subclass builds its network and optimisers in `_build` and gives the loss in `_loss`.
    See `Detector` for the arguments.

    Raises:
        MethodError: If the image size does not suit the networks, or weights cannot be had.
    """

    training_state: ClassVar[tuple[str, ...]] = Trainer.TRAINING_STATE

    def __init__(
        self,
        hyperparameters: D,
        *,
        image_size: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(hyperparameters, image_size=image_size, device=device, seed=seed)
        if image_size < 32 or image_size % 32:
            raise MethodError(
                f"image_size {image_size} does not suit the network, which halves images five "
                f"times: use {max(32, round(image_size / 32) * 32)} or another multiple of 32"
            )
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the GPUs' generators as well.
            torch.default_generator.manual_seed(seed)
            network, optimizers = self._build()
        self.network = network
        # At 32 pixels the embedding is a single point, and batch norm needs two values.
        smallest = 2 if image_size == 32 else 1
        order = BatchOrder(
            hyperparameters.batch_size, seed, smallest, drop_last=hyperparameters.drop_last
        )
        self._trainer = Trainer(network, optimizers, order, self.device)

    @abstractmethod
    def _build(self) -> tuple[nn.Module, Sequence[Optimizer]]:
        """Returns the network on its device, and its optimisers, under the detector's seed."""

    @abstractmethod
    def _loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns the scalar loss of normalised images, at an iteration out of ``total``."""

    def _before_step(self, iteration: int) -> None:
        """Called when the gradients of an iteration are there and not yet used."""

    def _input(self, batch: Tensor) -> Tensor:
        """Returns what `_loss` is given for a batch of uint8 images: they, normalised."""
        return normalise(batch, self.device)

    def _pairs(self, images: Tensor) -> Sequence[Pair]:
        """Returns the pairs that the maps of normalised images are made of."""
        return cast(Sequence[Pair], self.network(images))

    @classmethod
    def prepare(cls, hyperparameters: D) -> None:
        """Makes sure that the encoder's weights can be had; see `Detector.prepare`."""
        prepare_weights(hyperparameters.backbone, hyperparameters.weights)

    @property
    def score_rule(self) -> str:
        """The hyperparameter ``score``."""
        return self.hyperparameters.score

    def fit(self, images: Tensor, iterations: int) -> Report:
        """Trains on; see `Detector.fit`.

        Raises:
            MethodError: If there are no images.
            TrainingDivergedError: If the loss is not finite.
        """
        total = self.hyperparameters.training_iterations(len(images))

        def loss(batch: Tensor, iteration: int) -> Tensor:
            return self._loss(self._input(batch), iteration, total)

        try:
            return {**self._trainer.fit(images, iterations, loss, before_step=self._before_step)}
        finally:
            self.iteration = self._trainer.iteration

    @torch.inference_mode()
    def anomaly_maps(self, images: Tensor) -> Tensor:
        """Returns maps; see `Detector.anomaly_maps`."""
        self.network.eval()
        batch = normalise(images, self.device)
        with mixed_precision(self.device):
            pairs = self._pairs(batch)
        return anomaly_map(pairs, self.image_size, self.hyperparameters.sigma)

    def image_scores(self, maps: Tensor) -> Tensor:
        """Returns scores; see `Detector.image_scores`."""
        return image_scores(maps, self.hyperparameters.score)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the state; see `Detector.state_dict`."""
        return self._trainer.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state; see `Detector.load_state_dict`."""
        self._trainer.load_state_dict(state)
        self.iteration = self._trainer.iteration
