"""What the detectors of the reverse distillation family share: all but network and loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar, cast, get_args

from pydantic import Field
from torch import Tensor

from anomtune.models.hyperparameters import Choice, Hyperparameters
from anomtune.models.images.pixels import normalise
from anomtune.models.layers.backbones import Backbone, Weights, prepare_weights
from anomtune.models.layers.losses import Loss
from anomtune.models.layers.maps import Pair, ScoreRule, anomaly_map
from anomtune.models.layers.precision import mixed_precision
from anomtune.models.training.batches import BatchOrder
from anomtune.models.training.gradient_detector import GradientDetector


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


class DistillationDetector(GradientDetector[D]):
    """A network that returns pairs of target and prediction, trained to make them agree.

    A subclass builds its network and optimisers and gives the loss of normalised images.
    See `Detector` for the arguments.
    """

    # The network halves images five times.
    multiple_of = 32
    smallest_input = 32

    @classmethod
    def prepare(cls, hyperparameters: D) -> None:
        """Makes sure that the encoder's weights can be had; see `Detector.prepare`."""
        prepare_weights(hyperparameters.backbone, hyperparameters.weights)

    def build_order(self) -> BatchOrder:
        """Returns the order of the batches; see `GradientDetector`."""
        hp = self.hyperparameters
        # At 32 pixels the embedding is a single point, and batch norm needs two values.
        smallest = 2 if self.input_size == 32 else 1
        return BatchOrder(hp.batch_size, self.seed, smallest, drop_last=hp.drop_last)

    def batch(self, images: Tensor, rows: Tensor) -> Tensor:
        """Returns normalised images; see `GradientDetector.batch`."""
        return normalise(images[rows], self.device)

    def pairs(self, images: Tensor) -> Sequence[Pair]:
        """Returns the pairs that the maps of normalised images are made of."""
        return cast(Sequence[Pair], self.network(images))

    def maps(self, images: Tensor) -> Tensor:
        """Returns maps; see `Detector.anomaly_maps`."""
        batch = normalise(images, self.device)
        with mixed_precision(self.device):
            pairs = self.pairs(batch)
        return anomaly_map(pairs, self.image_size, self.hyperparameters.sigma)

    @property
    def score_rule(self) -> str:
        """The hyperparameter ``score``."""
        return self.hyperparameters.score
