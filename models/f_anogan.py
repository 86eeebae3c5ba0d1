"""f-AnoGAN: fast unsupervised anomaly detection with GANs (Schlegl et al., MedIA 54, 2019).

A generator learns normal images from a Wasserstein critic with gradient penalty. Then both stay as
they are, and an encoder learns to map images to codes that the generator gives them back from
(``izi_f``: in pixels, and in features of the critic). Images that do not come back are anomalous:
the score is the error in pixels and, weighted by kappa, in features; the map is the absolute error
of pixels.

Networks are those of the official code for 64 pixels, here with three colours. It tells no number
of training images, so that the length is inferred. It updates the generator before the critic, here
both at once. While the GAN learns, the encoder has not: rungs of that part of a training say
nothing of its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from anomtune.models.hyperparameters import Protocol, TrainedHyperparameters
from anomtune.models.images.pixels import symmetric_range
from anomtune.models.layers.evidence import Evidence
from anomtune.models.ranges import Choice, FloatRange
from anomtune.models.scoring import Reduce, Scoring
from anomtune.models.training.gradient_detector import GradientDetector

#: Channels of the four blocks, from images to codes, in units of the width.
_WIDTHS = (1, 2, 4, 8, 8)


class FAnoGANScoring(Scoring):
    """What can be set of `FAnoGAN` after training."""

    own: ClassVar[Mapping[str, frozenset[str]]] = {"reduce": frozenset()}

    reduce: Annotated[Reduce, Choice(choices=("max", "top", "mean", "own"))] = Field(
        default="own",
        description="The score: errors of pixels and features (own), or one of the map. Source: "
        "paper, equation 8; those of the map are ours.",
    )


class FAnoGANHyperparameters(TrainedHyperparameters):
    """What can be set of `FAnoGAN`."""

    protocol: ClassVar[Protocol] = Protocol(
        "on images of the retina that are not public; figures on other sets are those of other "
        "papers.",
        inferred=True,
    )

    resolution: Annotated[int, Choice(choices=(32, 64, 128))] = Field(
        default=64,
        ge=16,
        multiple_of=16,
        description="Side of the images that the networks see, in pixels. Source: paper (64); "
        "range inferred.",
    )
    width: int = Field(
        default=64, ge=1, description="Channels of the finest maps. Source: official code."
    )
    codes: int = Field(default=128, ge=1, description="Size of a code. Source: paper.")
    iterations: int | None = Field(
        default=150_000,
        ge=1,
        description="Optimiser steps, of the critic and then of the encoder. Not searched: the "
        "rungs of a trial show what fewer give. Source: inferred (the encoder's 50,000 from the "
        "official code).",
    )
    encoder_part: float = Field(
        default=1 / 3,
        gt=0,
        lt=1,
        description="Part of the training that is the encoder's. Source: inferred, as above.",
    )
    critic_steps: int = Field(
        default=5, ge=1, description="Steps of the critic for each of the generator. Source: paper."
    )
    penalty: float = Field(
        default=10.0, ge=0, description="Weight of the gradient penalty. Source: official code."
    )
    kappa: Annotated[float, FloatRange(low=0.1, high=10.0, log=True)] = Field(
        default=1.0,
        ge=0,
        description="Weight of the features beside the pixels, in training and score. Source: "
        "paper; range inferred.",
    )
    batch_size: int = Field(
        default=64, ge=1, description="Images per optimiser step. Source: official code."
    )
    lr: Annotated[float, FloatRange(low=1e-5, high=1e-3, log=True)] = Field(
        default=1e-4,
        gt=0,
        description="Learning rate of Adam, of generator and critic. Source: official code; range "
        "inferred.",
    )
    encoder_lr: Annotated[float, FloatRange(low=1e-5, high=1e-3, log=True)] = Field(
        default=5e-5,
        gt=0,
        description="Learning rate of RMSprop, of the encoder. Source: official code; range "
        "inferred.",
    )
    scoring: FAnoGANScoring = Field(
        default=FAnoGANScoring(),
        description="How evidence becomes maps and scores. Source: paper, section 2.3.",
    )

    def input_size(self, image_size: int) -> int:
        """Returns ``resolution``, whatever the size of the maps."""
        return self.resolution

    def gan_iterations(self, total: int) -> int:
        """Returns how many of the iterations train the GAN."""
        return total - max(1, round(self.encoder_part * total))


def _batch_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


def _layer_norm(channels: int) -> nn.Module:
    """Over all values of an image, with a scale and a shift per channel."""
    return nn.GroupNorm(1, channels)


class Block(nn.Module):
    """Twice norm, ReLU and convolution, and a shortcut; half or twice the side.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        resample: Which of the two.
        norm: Makes the norms.
    """

    def __init__(
        self,
        before: int,
        after: int,
        resample: Literal["down", "up"],
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        middle = before if resample == "down" else after
        self.norms = nn.ModuleList([norm(before), norm(middle)])
        self.first = nn.Conv2d(before, middle, 3, padding=1, bias=False)
        self.second = nn.Conv2d(middle, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)
        for conv in (self.first, self.second):
            nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
        nn.init.xavier_uniform_(self.shortcut.weight)
        self._resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(B, after, h', w')`` of ``(B, before, h, w)``."""
        inner = F.relu(self.norms[0](x))
        if self._resample == "up":
            inner = self.first(F.interpolate(inner, scale_factor=2.0))
            inner = self.second(F.relu(self.norms[1](inner)))
            return cast(Tensor, self.shortcut(F.interpolate(x, scale_factor=2.0)) + inner)
        inner = self.second(F.relu(self.norms[1](self.first(inner))))
        return cast(Tensor, self.shortcut(F.avg_pool2d(x, 2)) + F.avg_pool2d(inner, 2))


class Generator(nn.Module):
    """Makes images in [-1, 1] of codes.

    Args:
        codes: Size of a code.
        width: Channels of the finest maps.
        side: Side of the images in pixels.
    """

    def __init__(self, codes: int, width: int, side: int) -> None:
        super().__init__()
        widths = [width * part for part in reversed(_WIDTHS)]
        grid = side // 16
        self.input = nn.Linear(codes, widths[0] * grid**2)
        self.blocks = nn.Sequential(
            *(Block(before, after, "up", _batch_norm) for before, after in pairwise(widths))
        )
        self.norm = nn.BatchNorm2d(width)
        self.output = nn.Conv2d(width, 3, 3, padding=1)
        self._shape = (widths[0], grid, grid)

    def forward(self, codes: Tensor) -> Tensor:
        """Returns images ``(B, 3, S, S)`` of codes ``(B, codes)``."""
        x = self.blocks(self.input(codes).unflatten(1, self._shape))
        return cast(Tensor, self.output(F.relu(self.norm(x)))).tanh()


class Pyramid(nn.Module):
    """Features of images and a layer on top: the critic, with layer norm, or the encoder.

    Args:
        width: Channels of the finest maps.
        side: Side of the images in pixels.
        outputs: Size of what the layer gives.
        norm: Makes the norms.
    """

    def __init__(
        self, width: int, side: int, outputs: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        widths = [width * part for part in _WIDTHS]
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            *(Block(before, after, "down", norm) for before, after in pairwise(widths)),
            nn.Flatten(),
        )
        self.output = nn.Linear(widths[-1] * (side // 16) ** 2, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Returns ``(B, outputs)`` of images ``(B, 3, S, S)``."""
        return cast(Tensor, self.output(self.body(images)))


class Networks(nn.Module):
    """Generator, critic and encoder.

    Args:
        hyperparameters: Of the method.
    """

    def __init__(self, hyperparameters: FAnoGANHyperparameters) -> None:
        super().__init__()
        hp = hyperparameters
        self.generator = Generator(hp.codes, hp.width, hp.resolution)
        self.critic = Pyramid(hp.width, hp.resolution, 1, _layer_norm)
        self.encoder = Pyramid(hp.width, hp.resolution, hp.codes, _batch_norm)

    def forward(self, images: Tensor) -> Tensor:
        """Returns what comes back of images ``(B, 3, S, S)`` in [-1, 1]."""
        return cast(Tensor, self.generator(self.encoder(images)))


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, parts: Tensor
) -> Tensor:
    """Returns the mean of ``(|gradient| - 1)^2`` of the critic between real and made images.

    Args:
        critic: Gives the values of images.
        real: Images ``(B, 3, S, S)``.
        fake: As many, without gradient.
        parts: How far from real to made each place lies ``(B,)``.
    """
    between = torch.lerp(real, fake, parts.view(-1, 1, 1, 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    slopes: Tensor = gradient.flatten(1).norm(dim=1)
    return (slopes - 1).square().mean()


@contextmanager
def _resting(*modules: nn.Module) -> Iterator[None]:
    """Lets what is computed here give the modules' weights no gradient."""
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(True)


class FAnoGAN(GradientDetector[FAnoGANHyperparameters]):
    """The detector of one category; see `Detector` for the arguments."""

    network: Networks

    def build(self) -> Networks:
        """Returns the networks; see `Detector.build`."""
        return Networks(self.hyperparameters)

    def build_optimizers(self) -> list[Optimizer]:
        """Returns those of generator, critic and encoder; see the base class."""
        hp, network = self.hyperparameters, self.network
        gan = [
            torch.optim.Adam(part.parameters(), hp.lr, betas=(0.0, 0.9), fused=True)
            for part in (network.generator, network.critic)
        ]
        encoder = network.encoder.parameters()
        # The decay and epsilon of TensorFlow's, which the official code uses.
        return [*gan, torch.optim.RMSprop(encoder, hp.encoder_lr, alpha=0.9, eps=1e-10)]

    def inputs(self, images: Tensor) -> Tensor:
        """Returns uint8 images ``(B, 3, I, I)`` in [-1, 1], float32."""
        return symmetric_range(images, self.device)

    def batch(self, images: Tensor, rows: Tensor) -> Tensor:
        """Returns images in [-1, 1]; see `GradientDetector.batch`."""
        return self.inputs(images[rows])

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns the losses of the phase; see `GradientDetector.loss`."""
        if iteration < self.hyperparameters.gan_iterations(total):
            return self._gan_loss(images, iteration)
        network = self.network
        network.generator.eval()
        with _resting(network.generator, network.critic):
            return torch.stack(self._errors(images, network(images).float())[1:]).sum(0).mean()

    def _gan_loss(self, images: Tensor, iteration: int) -> Tensor:
        """Returns the critic's loss, and now and then the generator's: each has its own weights."""
        hp, network, n = self.hyperparameters, self.network, len(images)
        codes = torch.randn(n, hp.codes, generator=self.generator).to(self.device)
        parts = torch.rand(n, generator=self.generator).to(self.device)
        learns = iteration % hp.critic_steps == 0 and iteration > 0
        with torch.set_grad_enabled(learns):
            made = network.generator(codes).float()
        # The penalty is differentiated twice, which 16 bits do not do well.
        with torch.autocast(self.device.type, enabled=False):
            fake, critic = made.detach(), network.critic
            value: Tensor = critic(fake).mean() - critic(images).mean()
            value = value + hp.penalty * gradient_penalty(critic, images, fake, parts)
            if learns:
                with _resting(critic):
                    value = value - critic(made).mean()
        return value

    def _errors(self, images: Tensor, back: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns maps of absolute errors, and what pixels and features add to scores ``(B,)``."""
        features = self.network.critic.body
        away = images - back
        with torch.autocast(self.device.type, enabled=False):
            difference = (features(images) - features(back)).square().mean(1)
        pixels = away.square().mean((1, 2, 3))
        return away.abs().mean(1), pixels, self.hyperparameters.kappa * difference

    def evidence(self, images: Tensor) -> Evidence:
        """Returns errors of pixels, and scores; see `Detector.evidence`."""
        pixels = self.inputs(images)
        maps, of_pixels, of_features = self._errors(pixels, self.network(pixels))
        return Evidence((maps,), of_pixels + of_features)
