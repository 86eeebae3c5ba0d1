"""Deep SVDD: deep one-class classification (Ruff et al., ICML 2018).

A small network without bias learns to map normal images close to a centre; an image is as anomalous
as it lies far from there. The encoder begins as that of an autoencoder. The objective is the mean
distance (one class), or a sphere that all but a part of the images lie in (soft boundary).

Defaults are those of the official code where it differs from the paper: 50 and 100 epochs with two
learning rates (the paper says 150 and 100), leaky ReLU with a slope of 0.01 (0.1), and in its later
port to PyTorch batch norm that learns nothing, as biases of any kind allow the collapse that the
paper warns of. The weight decay is the paper's: that port has half of it. It judges images as a
whole: its map is a single value.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from anomtune.errors import MethodError
from anomtune.models.hyperparameters import Protocol, Setting, TrainedHyperparameters
from anomtune.models.images.pixels import unit_range
from anomtune.models.layers.evidence import Evidence
from anomtune.models.ranges import Choice, FloatRange
from anomtune.models.training.gradient_detector import GradientDetector
from anomtune.models.training.report import Report

Network = Literal["mnist", "cifar"]
Objective = Literal["one_class", "soft_boundary"]

#: No coordinate of the centre lies nearer to 0: weights of 0 would match it there.
_LEAST = 0.1
#: Side of what the decoder begins with.
_CODE_SIDE = 4
#: Training images that go through the network at a time where nothing is learnt.
_BATCH = 200

C = TypeVar("C", nn.Conv2d, nn.ConvTranspose2d)

_DIGITS = {
    "network": "mnist",
    "resolution": 28,
    "epochs": 300,
    "pretraining": 0.5,
    "pretraining_drop": 1 / 3,
}


class DeepSVDDHyperparameters(TrainedHyperparameters):
    """What can be set of `DeepSVDD`."""

    protocol: ClassVar[Protocol] = Protocol(
        "official code (src/experiments): ten seeds; image AUROC alone.", seeds=tuple(range(1, 11))
    )

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("mnist", _DIGITS, "paper, section 4.2; official code (mnist_svdd.sh; its port)."),
        Setting("fashion_mnist", _DIGITS, "as for MNIST, which is of its size.", inferred=True),
    )

    network: Network = Field(
        default="cifar",
        description="Two blocks of 8 and 4 filters and 32 outputs, which see the mean of the three "
        "colours (mnist), or three of 32, 64 and 128 filters and 128 outputs (cifar). Source: "
        "paper, section 4.2.",
    )
    resolution: Annotated[int, Choice(choices=(32, 64, 96))] = Field(
        default=32,
        ge=8,
        multiple_of=4,
        description="Side of the images that the network sees, in pixels: a multiple of 4, for "
        "network cifar of 8. Source: paper (MNIST 28, CIFAR-10 32); range inferred.",
    )
    objective: Annotated[Objective, Choice(choices=("one_class", "soft_boundary"))] = Field(
        default="one_class",
        description="Mean squared distance to the centre, or a sphere of least radius. Source: "
        "paper, equations 4 and 3.",
    )
    nu: Annotated[float, Choice(choices=(0.01, 0.1))] = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Part of the images that may lie outside; for objective soft_boundary alone. "
        "Source: paper (the better one of 0.01 and 0.1).",
    )
    warm_up: float = Field(
        default=1 / 15,
        ge=0,
        le=1,
        description="Part of the training of the sphere before its radius, 0 until then, follows "
        "the distances; for objective soft_boundary alone. Source: official code (10 of 150 "
        "epochs).",
    )
    epochs: int | None = Field(
        default=500,
        ge=1,
        description="Passes over the training images, those of the autoencoder included. Not "
        "searched: the rungs of a trial show what fewer give. Source: official code (350 and "
        "150; MNIST 150 and 150).",
    )
    pretraining: Annotated[float, Choice(choices=(0.0, 0.35, 0.7))] = Field(
        default=0.7,
        ge=0,
        lt=1,
        description="Part of the training that is the autoencoder's. Source: official code (350 of "
        "500 epochs; MNIST 150 of 300); range inferred.",
    )
    pretraining_drop: float = Field(
        default=5 / 7,
        ge=0,
        le=1,
        description="Part of that after which the learning rate is a tenth. Source: official code "
        "(after 250 of 350 epochs; MNIST 50 of 150).",
    )
    drop: float = Field(
        default=1 / 3,
        ge=0,
        le=1,
        description="The same for the part that follows. Source: official code (after 50 of 150 "
        "epochs).",
    )
    batch_size: int = Field(
        default=200, ge=1, description="Images per optimiser step. Source: paper."
    )
    lr: Annotated[float, FloatRange(low=1e-5, high=1e-3, log=True)] = Field(
        default=1e-4, gt=0, description="Learning rate of Adam. Source: paper; range inferred."
    )
    weight_decay: Annotated[float, FloatRange(low=1e-7, high=1e-3, log=True)] = Field(
        default=1e-6,
        ge=0,
        description="Weight decay, lambda of equations 3 and 4. Source: paper; range inferred.",
    )

    @property
    def localises(self) -> bool:
        """False: an image has one distance."""
        return False

    def input_size(self, image_size: int) -> int:
        """Returns ``resolution``, whatever the size of the maps."""
        return self.resolution

    def pretraining_iterations(self, total: int) -> int:
        """Returns how many of the iterations train the autoencoder."""
        return round(self.pretraining * total)


class LeNet(nn.Sequential):
    """Blocks of convolution, batch norm, leaky ReLU and pooling, and a layer; no bias anywhere.

    Args:
        channels: Those of the images, and of each block.
        outputs: Size of the representation.
        side: Side of the images in pixels, a multiple of 2 to the power of the number of blocks.
    """

    def __init__(self, channels: tuple[int, ...], outputs: int, side: int) -> None:
        blocks: list[nn.Module] = []
        for before, after in pairwise(channels):
            blocks += [
                _xavier(nn.Conv2d(before, after, 5, padding=2, bias=False)),
                nn.BatchNorm2d(after, eps=1e-4, affine=False),
                nn.LeakyReLU(0.01),
                nn.MaxPool2d(2),
            ]
        grid = side // 2 ** (len(channels) - 1)
        last = nn.Linear(channels[-1] * grid**2, outputs, bias=False)
        super().__init__(*blocks, nn.Flatten(), last)


class Decoder(nn.Module):
    """Turns representations into images; what is trained with the encoder first.

    Each map is enlarged to the nearest pixel before the next convolution. MNIST's second one cuts a
    pixel off each edge, to meet 28 pixels.

    Args:
        channels: Those of the encoder.
        outputs: Size of the representation, a multiple of 16.
        side: Side of the images in pixels.
    """

    def __init__(self, channels: tuple[int, ...], outputs: int, side: int) -> None:
        super().__init__()
        code = outputs // _CODE_SIDE**2
        *mirrored, image = reversed(channels)
        widths = (code, *mirrored)
        cut = len(mirrored) == 2
        self.convs = nn.ModuleList(
            _xavier(nn.ConvTranspose2d(before, after, 5, padding=padding, bias=False))
            for before, after, padding in zip(
                widths, mirrored, (2, 3) if cut else (2, 2, 2), strict=False
            )
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(width, eps=1e-4, affine=False) for width in mirrored
        )
        self.last = _xavier(nn.ConvTranspose2d(mirrored[-1], image, 5, padding=2, bias=False))
        self._code = (code, _CODE_SIDE, _CODE_SIDE)
        self._first = 2 * _CODE_SIDE if cut else _CODE_SIDE
        self._sides = (side // 2 + 2, side) if cut else (side // 4, side // 2, side)

    def forward(self, codes: Tensor) -> Tensor:
        """Returns images ``(B, C, H, H)`` in [0, 1] of representations ``(B, outputs)``."""
        x = F.interpolate(F.leaky_relu(codes.view(-1, *self._code), 0.01), self._first)
        for conv, norm, side in zip(self.convs, self.norms, self._sides, strict=True):
            x = F.interpolate(F.leaky_relu(norm(conv(x)), 0.01), side)
        return cast(Tensor, self.last(x)).sigmoid()


def _xavier(layer: C) -> C:
    nn.init.xavier_uniform_(layer.weight, nn.init.calculate_gain("leaky_relu", 0.01))
    return layer


class Autoencoder(nn.Module):
    """The network and the decoder that it is pretrained with.

    Args:
        network: Which of the paper's.
        side: Side of the images in pixels.
    """

    def __init__(self, network: Network, side: int) -> None:
        super().__init__()
        channels, outputs = ((1, 8, 4), 32) if network == "mnist" else ((3, 32, 64, 128), 128)
        self.encoder = LeNet(channels, outputs, side)
        self.decoder = Decoder(channels, outputs, side)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the representations of images."""
        return cast(Tensor, self.encoder(images))


def contrast_normalised(images: Tensor) -> Tensor:
    """Returns images ``(B, C, H, W)``, each with mean 0 and a mean absolute value of 1."""
    centred = images - images.mean((1, 2, 3), keepdim=True)
    return centred / centred.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-8)


def away_from_zero(centre: Tensor) -> Tensor:
    """Returns a centre whose coordinates are at least 0.1 away from 0, on the side they were on."""
    least = torch.full_like(centre, _LEAST)
    return torch.where(centre.abs() < _LEAST, least.copysign(centre), centre)


def soft_boundary_loss(distances: Tensor, radius: Tensor, nu: float) -> Tensor:
    """Returns ``R^2 + mean(max(0, d - R^2)) / nu`` of squared distances ``(B,)`` (equation 3)."""
    return radius.square() + (distances - radius.square()).clamp_min(0).mean() / nu


class DeepSVDD(GradientDetector[DeepSVDDHyperparameters]):
    """The detector of one category; see `Detector` for the arguments.

    While the autoencoder learns, distances are those to the centre that its encoder has by then.
    """

    network: Autoencoder
    extra_state = ("limits", "centre", "radius")
    training_state = (*GradientDetector.training_state, "network.decoder.")

    def set_up(self) -> None:
        """Makes room for limits, centre and radius; see `Detector.set_up`."""
        super().set_up()
        #: Least and largest value of the training images, normalised by contrast.
        self.limits: Tensor | None = None
        #: Centre of the sphere ``(outputs,)``.
        self.centre: Tensor | None = None
        #: Its radius, for the soft boundary.
        self.radius = torch.zeros((), device=self.device)
        self._distances = torch.empty(0)

    @classmethod
    def check_input_size(cls, hyperparameters: DeepSVDDHyperparameters, image_size: int) -> None:
        """Makes sure that the blocks can halve the images; see `Detector.check_input_size`."""
        side, step = hyperparameters.resolution, 4 if hyperparameters.network == "mnist" else 8
        if side % step:
            raise MethodError(
                f"resolution {side} does not suit the network {hyperparameters.network}: "
                f"use {round(side / step) * step} or another multiple of {step}"
            )

    def build(self) -> Autoencoder:
        """Returns the network; see `Detector.build`."""
        return Autoencoder(self.hyperparameters.network, self.input_size)

    def build_optimizers(self) -> list[Optimizer]:
        """Returns Adam; see `GradientDetector.build_optimizers`."""
        hp = self.hyperparameters
        weights = self.network.parameters()
        return [torch.optim.Adam(weights, hp.lr, weight_decay=hp.weight_decay, fused=True)]

    def fit(self, images: Tensor, iterations: int) -> Report:
        """Trains on; see `Detector.fit`.

        Returns:
            ``loss``, of the autoencoder or of the sphere, whichever came last, and with the soft
            boundary its ``radius``.

        Raises:
            MethodError, TrainingDivergedError: As `GradientDetector.fit`.
        """
        self.check_training_images(images)
        hp = self.hyperparameters
        border = hp.pretraining_iterations(hp.training_iterations(len(images)))
        if self.limits is None:
            self.limits = self._limits(images)
        before = max(0, min(iterations, border - self.iteration))
        report = super().fit(images, before) if before > 0 else {}
        if self.iteration <= border:
            self.centre = self._new_centre(images)
        if iterations > before:
            report = super().fit(images, iterations - before)
        if hp.objective == "soft_boundary":
            report["radius"] = float(self.radius)
        return report

    def batch(self, images: Tensor, rows: Tensor) -> Tensor:
        """Returns what the network sees of images; see `GradientDetector.batch`."""
        return self.inputs(images[rows])

    def inputs(self, images: Tensor) -> Tensor:
        """Returns images normalised by contrast, in the units of the training images.

        Raises:
            MethodError: If there have been none.
        """
        if self.limits is None:
            raise MethodError("there is no centre yet: fit the detector first")
        low, high = self.limits.unbind()
        return (self._contrast(images) - low) / (high - low).clamp_min(1e-8)

    def _contrast(self, images: Tensor) -> Tensor:
        pixels = unit_range(images, self.device)
        if self.hyperparameters.network == "mnist":
            pixels = pixels.mean(1, keepdim=True)
        return contrast_normalised(pixels)

    def _limits(self, images: Tensor) -> Tensor:
        ends = [torch.stack(self._contrast(part).aminmax()) for part in torch.split(images, _BATCH)]
        low, high = torch.stack(ends, 1)
        return torch.stack([low.amin(), high.amax()])

    @torch.no_grad()
    def _new_centre(self, images: Tensor) -> Tensor:
        """Returns the mean representation of the images, as the network is now."""
        self.network.eval()
        sums: list[Tensor] = [
            self.network(self.inputs(part)).sum(0) for part in torch.split(images, _BATCH)
        ]
        return away_from_zero(torch.stack(sums).sum(0) / len(images))

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns the loss of the phase; see `GradientDetector.loss`."""
        hp = self.hyperparameters
        codes = self.network(images)
        if iteration < hp.pretraining_iterations(total):
            return F.mse_loss(self.network.decoder(codes).float(), images)
        assert self.centre is not None
        distances: Tensor = (codes.float() - self.centre).square().sum(1)
        self._distances = distances.detach()
        if hp.objective == "one_class":
            return distances.mean()
        return soft_boundary_loss(distances, self.radius, hp.nu)

    def before_step(self, iteration: int, total: int) -> None:
        """Sets the learning rate of the phase, which begins with an optimiser of its own."""
        hp = self.hyperparameters
        border = hp.pretraining_iterations(total)
        if iteration == border:
            self.optimizers[0].state.clear()
        if iteration < border:
            lowered = iteration >= hp.pretraining_drop * border
        else:
            lowered = iteration - border >= hp.drop * (total - border)
        self.optimizers[0].param_groups[0]["lr"] = hp.lr * (0.1 if lowered else 1)

    def after_step(self, iteration: int, total: int) -> None:
        """Lets the radius follow: all but a part ``nu`` of the batch lie within it."""
        hp = self.hyperparameters
        border = hp.pretraining_iterations(total)
        if hp.objective == "soft_boundary" and (
            iteration >= border + hp.warm_up * (total - border)
        ):
            self.radius = self._distances.sqrt().quantile(1 - hp.nu)

    def evidence(self, images: Tensor) -> Evidence:
        """Returns squared distances to the centre; see `Detector.evidence`.

        Raises:
            MethodError: If there is no centre yet.
        """
        codes = self.network(self.inputs(images))
        assert self.centre is not None
        return Evidence(((codes - self.centre).square().sum(1).view(-1, 1, 1),))
