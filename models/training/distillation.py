"""What the detectors of the reverse distillation family share: all but network and loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, TypeVar, cast, get_args

from pydantic import Field
from torch import Tensor

from anomtune.models.hyperparameters import Setting, TrainedHyperparameters
from anomtune.models.images.pixels import normalise, unit_range
from anomtune.models.layers.backbones import (
    BACKBONES,
    Backbone,
    Weights,
    check_input,
    prepare_weights,
)
from anomtune.models.layers.evidence import Evidence
from anomtune.models.layers.losses import Loss
from anomtune.models.layers.maps import Pair, distance_maps
from anomtune.models.ranges import Choice, SizeRange
from anomtune.models.scoring import Scoring
from anomtune.models.training.batches import BatchOrder
from anomtune.models.training.gradient_detector import GradientDetector


class DistillationHyperparameters(TrainedHyperparameters):
    """What can be set of every method of the family."""

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "isic2018",
            {"scoring": {"reduce": "mean"}},
            "ReContrast, appendix B: the mean of the map, for it and for all reproduced methods.",
        ),
    )

    backbone: Annotated[Backbone, Choice(choices=BACKBONES)] = Field(
        default="wide_resnet50_2",
        description="The encoder. Source: both papers; range from ReContrast, Table A5, and "
        "RD4AD's code; mobilenet_v2 is ours, for CPUs, and timm/NAME is any of timm's with "
        "feature maps.",
    )
    weights: Weights = Field(
        default="imagenet",
        description="Weights the encoder starts from: imagenet, random or a file. Source: both "
        "papers.",
    )
    resolution: Annotated[int | None, SizeRange(factors=(0.75, 1.0, 1.5))] = Field(
        default=None,
        ge=32,
        multiple_of=32,
        description="Side of the images that the network sees, in pixels; null: the sweep's "
        "image_size. Source: both official codes (256; RD4AD on MNIST and CIFAR-10 32, "
        "ReContrast on ISIC 224); range inferred.",
    )
    pixels: Literal["imagenet", "unit"] = Field(
        default="imagenet",
        description="What the network sees of a pixel: values normalised as for ImageNet, or as "
        "they are, in [0, 1]. Source: both official codes (RD4AD on MNIST and Fashion-MNIST: "
        "unit).",
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
    scoring: Scoring = Field(
        default=Scoring(sigma=4.0),
        description="How evidence becomes maps and scores: the distances of the features of three "
        "stages, summed, smoothed by a Gaussian of 4 pixels; the maximum. Source: both official "
        "codes.",
    )

    @property
    def scales(self) -> tuple[str, ...]:
        """The stages of the encoder."""
        return ("layer1", "layer2", "layer3")

    def input_size(self, image_size: int) -> int:
        """Returns ``resolution``, or the size of the maps."""
        return self.resolution or image_size

    def steps_per_epoch(self, n_images: int) -> int:
        """Returns the optimiser steps of a pass over so many training images."""
        full, rest = divmod(n_images, self.batch_size)
        return full if self.drop_last and full else full + (rest > 0)


D = TypeVar("D", bound=DistillationHyperparameters)


class DistillationDetector(GradientDetector[D]):
    """A network that returns pairs of target and prediction, trained to make them agree.

    A subclass builds its network and optimisers and gives the loss of images as `inputs` gives
    them.
    See `Detector` for the arguments.
    """

    # The network halves images five times.
    multiple_of = 32
    smallest_input = 32
    align_corners = True

    @classmethod
    def check_input_size(cls, hyperparameters: D, image_size: int) -> None:
        """Makes sure that the network can see the images; see `Detector.check_input_size`."""
        super().check_input_size(hyperparameters, image_size)
        side = hyperparameters.input_size(image_size)
        check_input(
            hyperparameters.backbone,
            side,
            step=cls.multiple_of,
            exact=True,
            unit=hyperparameters.pixels == "unit",
        )

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
        """Returns what the network sees of images; see `GradientDetector.batch`."""
        return self.inputs(images[rows])

    def inputs(self, images: Tensor) -> Tensor:
        """Returns uint8 images ``(B, 3, I, I)`` as the network sees them, float32."""
        convert = normalise if self.hyperparameters.pixels == "imagenet" else unit_range
        return convert(images, self.device)

    def pairs(self, images: Tensor) -> Sequence[Pair]:
        """Returns the pairs that the evidence of images, as `inputs` gives them, is made of."""
        return cast(Sequence[Pair], self.network(images))

    def evidence(self, images: Tensor) -> Evidence:
        """Returns the distances of features; see `Detector.evidence`."""
        return Evidence(distance_maps(self.pairs(self.inputs(images))))
