"""Detectors of the laboratory, named in sweeps by import path."""

from pydantic import Field
from torch import Tensor, nn

import anomtune as at


class BrightnessHyperparameters(at.Hyperparameters):
    """Nothing to set but what is searched."""

    margin: float = Field(default=0.0, ge=0, le=1, description="Subtracted. Source: ours.")

    def training_iterations(self, n_images: int) -> int:
        """Returns 1: one pass is enough."""
        return 1


class Brightness(at.GradientDetector[BrightnessHyperparameters]):
    """Calls anomalous what is brighter than the training images were on average."""

    def build(self) -> nn.Module:
        """Returns a network that learns one grey level."""
        return nn.Conv2d(3, 1, 1)

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns how far the prediction is from the mean."""
        return self.network(images / 255).square().mean()

    def evidence(self, images: Tensor) -> at.Evidence:
        """Returns the brightness of every pixel."""
        return at.Evidence((images.float().mean(1) / 255 - self.hyperparameters.margin,))
