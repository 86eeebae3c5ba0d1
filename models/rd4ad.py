"""RD4AD: anomaly detection via reverse distillation (Deng and Li, CVPR 2022).

A student decodes the features of a frozen ImageNet encoder from a one-class embedding of them;
where it fails, the image is anomalous. Defaults are those of the official code, which produced
the published numbers: its loss compares whole feature maps (``global``), while the formula of
the paper compares points (``region``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from anomtune.models.hyperparameters import Protocol, Setting
from anomtune.models.layers.backbones import Backbone, Weights, load_backbone
from anomtune.models.layers.encoder import Encoder
from anomtune.models.layers.frozen import targets
from anomtune.models.layers.losses import alpha_schedule, feature_loss
from anomtune.models.layers.maps import Pair
from anomtune.models.layers.reverse_distillation import Student
from anomtune.models.ranges import FloatRange
from anomtune.models.training.distillation import DistillationDetector, DistillationHyperparameters

#: Images of 32 pixels, and maps of 32 smoothed by 4 pixels: 32 of a map of 256.
_SMALL = {"resolution": 32, "scoring": {"sigma": 32.0}}
_SMALL_SOURCE = "RD4AD, official code (dataset.py; detection in test.py)."


class RD4ADHyperparameters(DistillationHyperparameters):
    """What can be set of `RD4AD`."""

    protocol: ClassVar[Protocol] = Protocol(
        "official code (main.py, test.py).", seeds=(111,), aupro_per_image=True
    )

    settings: ClassVar[tuple[Setting, ...]] = (
        *DistillationHyperparameters.settings,
        Setting("mnist", {**_SMALL, "pixels": "unit"}, _SMALL_SOURCE),
        Setting("fashion_mnist", {**_SMALL, "pixels": "unit"}, _SMALL_SOURCE),
        Setting("cifar10", _SMALL, _SMALL_SOURCE),
        Setting(
            "mnist",
            {"backbone": "resnet18"},
            "GNL, supplement, section 2.1, whose table has the published figures.",
            inferred=True,
        ),
    )

    epochs: int | None = Field(
        default=200,
        ge=1,
        description="Passes over the training images. Not searched: the rungs of a trial show "
        "what fewer give. Source: official code; about 10 often suffice (its issue 14).",
    )
    lr: Annotated[float, FloatRange(low=1e-3, high=1e-2, log=True)] = Field(
        default=5e-3,
        gt=0,
        description="Learning rate of Adam. Source: official code; range inferred.",
    )


class ReverseDistillation(nn.Module):
    """A frozen encoder and its student.

    Args:
        backbone: Name of the encoder.
        weights: Its weights.
        size: Side of the images that it will see, in pixels.
    """

    def __init__(self, backbone: Backbone, weights: Weights, size: int | None = None) -> None:
        super().__init__()
        self.encoder = load_backbone(backbone, weights, size).requires_grad_(False)
        self.student = Student(self.encoder)

    def train(self, mode: bool = True) -> ReverseDistillation:
        """Sets the student's mode; the encoder always stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> list[Pair]:
        """Returns target and prediction of each scale of normalised images ``(B, 3, S, S)``."""
        features = targets(self.encoder, images)
        return list(zip(features, self.student(features)[0], strict=True))

    def student_optimizer(self, lr: float) -> torch.optim.Adam:
        """Returns the optimiser of the papers that train this network (RD4AD, GNL)."""
        return torch.optim.Adam(self.student.parameters(), lr, betas=(0.5, 0.999), fused=True)


class RD4AD(DistillationDetector[RD4ADHyperparameters]):
    """The detector of one category; see `Detector` for the arguments."""

    network: ReverseDistillation

    def build(self) -> ReverseDistillation:
        """Returns the network; see `Detector.build`."""
        hp = self.hyperparameters
        return ReverseDistillation(hp.backbone, hp.weights, self.input_size)

    def build_optimizers(self) -> list[Optimizer]:
        """Returns the student's Adam; see `GradientDetector.build_optimizers`."""
        return [self.network.student_optimizer(self.hyperparameters.lr)]

    def frozen_encoders(self) -> Sequence[Encoder]:
        """Returns the encoder; see `Detector.frozen_encoders`."""
        return [self.network.encoder]

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns the loss of images that the network sees; see `GradientDetector.loss`."""
        # With hard-normal mining, ReContrast's schedule.
        alpha = alpha_schedule(iteration, total)
        return feature_loss(self.hyperparameters.loss, self.network(images), alpha=alpha)
