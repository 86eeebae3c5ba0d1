"""RD4AD: anomaly detection via reverse distillation (Deng and Li, CVPR 2022).

A student decodes the features of a frozen ImageNet encoder from a one-class embedding of them;
where it fails, the image is anomalous. Defaults are those of the official code, which produced
the published numbers: its loss compares whole feature maps (``global``), while the formula of
the paper compares points (``region``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from anomtune.models.hyperparameters import FloatRange
from anomtune.models.layers.backbones import Backbone, Weights, load_backbone
from anomtune.models.layers.losses import alpha_schedule, feature_loss
from anomtune.models.layers.maps import Pair
from anomtune.models.layers.reverse_distillation import Student
from anomtune.models.training.distillation import DistillationDetector, DistillationHyperparameters


class RD4ADHyperparameters(DistillationHyperparameters):
    """What can be set of `RD4AD`."""

    epochs: int = Field(
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

    def training_iterations(self, n_images: int) -> int:
        """Returns epochs times batches per epoch."""
        return self.steps(self.epochs, n_images)


class ReverseDistillation(nn.Module):
    """A frozen encoder and its student.

    Args:
        backbone: Name of the encoder.
        weights: Its weights.
    """

    def __init__(self, backbone: Backbone, weights: Weights) -> None:
        super().__init__()
        self.encoder = load_backbone(backbone, weights).requires_grad_(False)
        self.student = Student(self.encoder)

    def train(self, mode: bool = True) -> ReverseDistillation:
        """Sets the student's mode; the encoder always stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> list[Pair]:
        """Returns target and prediction of each scale of normalised images ``(B, 3, S, S)``."""
        with torch.no_grad():
            targets = self.encoder(images)
        return list(zip(targets, self.student(targets)[0], strict=True))


class RD4AD(DistillationDetector[RD4ADHyperparameters]):
    """The detector of one category; see `Detector` for the arguments."""

    Hyperparameters = RD4ADHyperparameters
    network: ReverseDistillation

    def _build(self) -> tuple[nn.Module, Sequence[Optimizer]]:
        network = ReverseDistillation(self.hyperparameters.backbone, self.hyperparameters.weights)
        network.to(self.device).to(memory_format=torch.channels_last)
        parameters = network.student.parameters()
        return network, [
            torch.optim.Adam(parameters, self.hyperparameters.lr, betas=(0.5, 0.999), fused=True)
        ]

    def _loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        # With hard-normal mining, ReContrast's schedule.
        alpha = alpha_schedule(iteration, total)
        return feature_loss(self.hyperparameters.loss, self.network(images), alpha=alpha)
