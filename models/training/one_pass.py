"""What the detectors share that look at the training images once and use no gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from anomtune.models.base import Detector
from anomtune.models.hyperparameters import Hyperparameters
from anomtune.models.layers.backbones import (
    BACKBONES,
    Backbone,
    Weights,
    check_input,
    prepare_weights,
)
from anomtune.models.layers.encoder import Encoder
from anomtune.models.ranges import Choice, SizeRange
from anomtune.models.scoring import Scoring
from anomtune.models.training.report import Report

#: Training images that go through the encoder at a time.
_BATCH = 16


class OnePassHyperparameters(Hyperparameters):
    """What can be set of every method of the kind."""

    backbone: Annotated[Backbone, Choice(choices=BACKBONES)] = Field(
        default="wide_resnet50_2",
        description="The frozen encoder. Source: both papers (PaDiM: ResNet-18 as well); "
        "the other ones are ours, as for the other methods; timm/NAME is any of timm's with "
        "feature maps.",
    )
    weights: Weights = Field(
        default="imagenet",
        description="Weights of the encoder: imagenet, random or a file. Source: both papers.",
    )
    resolution: Annotated[int | None, SizeRange(factors=(0.75, 1.0, 1.5, 2.0))] = Field(
        default=None,
        ge=32,
        description="Side of the images that the encoder sees, in pixels; null: the sweep's "
        "image_size. Source: both papers (256, of which PatchCore sees the middle 224); range "
        "inferred.",
    )
    scoring: Scoring = Field(
        default=Scoring(sigma=4.0),
        description="How evidence becomes maps and scores: distances smoothed by a Gaussian of 4 "
        "pixels; the maximum. Source: both papers.",
    )

    def input_size(self, image_size: int) -> int:
        """Returns ``resolution``, or the size of the maps."""
        return self.resolution or image_size

    def training_iterations(self, n_images: int) -> int:
        """Returns 1: the only iteration is the pass over all training images."""
        return 1


H = TypeVar("H", bound=OnePassHyperparameters)


class OnePassDetector(Detector[H]):
    """A frozen encoder, and statistics of its features as buffers of ``network``.

    The first iteration is the pass over all images. Further ones change nothing, as they would
    see the same images.

    A subclass builds its network, fills its buffers in `learn` and makes maps.
    See `Detector` for the arguments.
    """

    smallest_input = 32  # Else the encoder has no grid of positions.

    def set_up(self) -> None:
        """Freezes the network; see `Detector.set_up`."""
        self.network.requires_grad_(False).eval()

    @abstractmethod
    def learn(self, images: Tensor) -> Report:
        """Fills the network's buffers from all training images; returns figures about them."""

    @classmethod
    def check_input_size(cls, hyperparameters: H, image_size: int) -> None:
        """Makes sure that the encoder can see the images; see `Detector.check_input_size`."""
        super().check_input_size(hyperparameters, image_size)
        check_input(hyperparameters.backbone, cls.seen(hyperparameters, image_size))

    @classmethod
    def seen(cls, hyperparameters: H, image_size: int) -> int:
        """Returns the side of the part of the images that the encoder sees, in pixels."""
        return hyperparameters.input_size(image_size)

    @classmethod
    def prepare(cls, hyperparameters: H) -> None:
        """Makes sure that the encoder's weights can be had; see `Detector.prepare`."""
        prepare_weights(hyperparameters.backbone, hyperparameters.weights)

    # Not inference mode: its tensors could not be overwritten when a state is loaded.
    @torch.no_grad()
    def fit(self, images: Tensor, iterations: int) -> Report:
        """Passes over the images once; see `Detector.fit`.

        Returns:
            Figures of the pass, if there was none before.

        Raises:
            MethodError: If there are no images, they have a wrong size, or the statistics would be
                too large.
        """
        self.check_training_images(images)
        report = self.learn(images) if self.iteration == 0 and iterations > 0 else {}
        self.iteration += iterations
        return report

    def frozen_encoders(self) -> Sequence[Encoder]:
        """Returns the encoder; see `Detector.frozen_encoders`."""
        return [module for module in self.network.modules() if isinstance(module, Encoder)]

    def _batches(self, images: Tensor) -> Iterator[Tensor]:
        """Yields all images as the encoder sees them, batch by batch."""
        for batch in torch.split(images, _BATCH):
            yield self.inputs(batch)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state; see `Detector.load_state_dict`."""
        for name, buffer in list(self.network.named_buffers()):
            # Statistics have a size once they are learnt, and another one before.
            learnt = state.get(f"network.{name}")
            if learnt is not None and buffer.shape != learnt.shape:
                owner, _, attribute = name.rpartition(".")
                empty = buffer.new_empty(learnt.shape)
                setattr(self.network.get_submodule(owner), attribute, empty)
        super().load_state_dict(state)
