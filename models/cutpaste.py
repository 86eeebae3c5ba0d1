"""CutPaste: self-supervised learning for anomaly detection and localization (Li et al., CVPR 2021).

A network from nothing learns to tell images from those with a pasted patch, or with a pasted scar;
then a Gaussian is fitted to what it says of normal images, and an image is as anomalous as it is
unlikely. So whole images are judged, without a map; at level ``patch`` the same is learnt and done
for squares of an image, and each lends its score to the pixels that it covers.

There is no official code, and what is marked as the paper's here was taken from reimplementations
that quote it, not read in the paper itself. The paper leaves open the head (two layers of 512 and
128 here), momentum and the estimate of the covariance (Ledoit and Wolf's here, which needs no more
images than dimensions); that is inferred. Left out: its random translations, whose extent it does
not tell, GradCAM of the whole-image level, ensembles and pretrained EfficientNet-B4.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Annotated, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from anomtune.errors import MethodError
from anomtune.models.hyperparameters import Protocol, TrainedHyperparameters
from anomtune.models.images.augmentation import random_crops
from anomtune.models.images.cut_paste import draw_patches, draw_scars, jitter, paste
from anomtune.models.images.pixels import normalise_unit, unit_range
from anomtune.models.layers.blocks import split_rows
from anomtune.models.layers.evidence import Evidence
from anomtune.models.ranges import Choice, FloatRange, SizeRange
from anomtune.models.scoring import Reduce, Scoring
from anomtune.models.training.gradient_detector import GradientDetector
from anomtune.models.training.report import Report

Variant = Literal["cutpaste", "scar", "3way"]

#: A square is a quarter of the side of an image, and the next one a 64th further (paper: 64 and 4
#: pixels of 256).
_SQUARES, _STEPS = 4, 64
#: Images or squares that go through the network at a time where nothing is learnt.
_BATCH = 256
#: Images from this side on have more than one position before the last stage.
_LEAST_MIXED = 32
#: At most so many squares make the Gaussian.
_MOST = 20_000


class CutPasteScoring(Scoring):
    """What can be set of `CutPaste` after training."""

    own: ClassVar = {"reduce": frozenset()}

    reduce: Annotated[Reduce, Choice(choices=("max", "top", "mean", "own"))] = Field(
        default="own",
        description="The score: that of the image or of its worst square (own), or one of the map. "
        "Source: paper; those of the map are ours.",
    )


class CutPasteHyperparameters(TrainedHyperparameters):
    """What can be set of `CutPaste`."""

    protocol: ClassVar[Protocol] = Protocol(
        "section 4: means of five seeds, which it does not tell; published figures are of whole "
        "images for image AUROC, of squares for pixels.",
        inferred=True,
    )

    level: Literal["image", "patch"] = Field(
        default="image",
        description="Whether whole images are judged, or their squares. Source: paper (images for "
        "detection, squares for localization).",
    )
    variant: Annotated[Variant, Choice(choices=("cutpaste", "scar", "3way"))] = Field(
        default="3way",
        description="What is told from images as they are: patches, scars, or either. Source: "
        "paper, Table 1.",
    )
    resolution: Annotated[int | None, SizeRange(factors=(0.75, 1.0, 1.5))] = Field(
        default=None,
        ge=32,
        multiple_of=32,
        description="Side of the images that the network sees, in pixels; null: the sweep's "
        "image_size. Source: paper (256); range inferred.",
    )
    width: int = Field(
        default=64,
        # torch 2.14 (oneDNN, CPUs with AVX2 alone) writes past a gradient's end in the backward
        # pass of a strided 1 x 1 convolution of fewer channels.
        ge=8,
        description="Channels of the first of four stages. Source: ResNet-18.",
    )
    jitter: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="How much colours of images and of what is pasted change. Source: paper.",
    )
    iterations: int | None = Field(
        default=65536,
        ge=1,
        description="Optimiser steps. Not searched: the rungs of a trial show what fewer give. "
        "Source: paper (256 times 256).",
    )
    batch_size: int = Field(
        default=32,
        ge=1,
        description="Images per step, each with its pasted copies. Source: paper (64, and 96 for "
        "3way, copies included).",
    )
    lr: Annotated[float, FloatRange(low=1e-3, high=0.1, log=True)] = Field(
        default=0.03,
        gt=0,
        description="First learning rate of SGD; it falls along a cosine. Source: paper; range "
        "inferred.",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of SGD. Source: inferred.")
    weight_decay: float = Field(
        default=3e-5, ge=0, description="Weight decay of SGD. Source: paper."
    )
    scoring: CutPasteScoring = Field(
        default=CutPasteScoring(),
        description="How evidence becomes maps and scores. Source: paper, section 2.3 and 3.",
    )

    @property
    def localises(self) -> bool:
        """Whether squares are judged."""
        return self.level == "patch"

    def input_size(self, image_size: int) -> int:
        """Returns ``resolution``, or the size of the maps."""
        return self.resolution or image_size

    def training_damage(self) -> frozenset[str]:
        """Returns what it learns to find; see `Hyperparameters.training_damage`."""
        return frozenset({"cut_paste"})


class Classifier(nn.Module):
    """ResNet-18 without its last layer, and a head that tells the kinds of image apart.

    Args:
        width: Channels of the first stage; 64 is ResNet-18's.
        kinds: Number of kinds.
    """

    def __init__(self, width: int, kinds: int) -> None:
        super().__init__()
        # As for encoders: it takes seconds of a process's start.
        from torchvision.models.resnet import BasicBlock, conv1x1  # noqa: PLC0415

        stages: list[nn.Module] = [
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        ]
        before = width
        for stride, after in ((1, width), (2, 2 * width), (2, 4 * width), (2, 8 * width)):
            shortcut = (
                nn.Sequential(conv1x1(before, after, stride), nn.BatchNorm2d(after))
                if stride > 1
                else None
            )
            stages += [BasicBlock(before, after, stride, shortcut), BasicBlock(after, after)]
            before = after
        self.body = nn.Sequential(*stages)
        for layer in self.body.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.head = nn.Sequential(
            nn.Linear(before, 512), nn.ReLU(), nn.Linear(512, 128), nn.Linear(128, kinds)
        )
        self.dimensions = before

    def forward(self, images: Tensor) -> Tensor:
        """Returns the representations ``(B, 8 width)`` of normalised images ``(B, 3, S, S)``."""
        return cast(Tensor, self.body(images)).mean((2, 3))


def shrunk_covariance(rows: Tensor) -> Tensor:
    """Returns Ledoit and Wolf's estimate ``(d, d)`` of the covariance of rows ``(N, d)``.

    It draws the sample covariance to a multiple of the identity, by what makes the expected squared
    error least (Ledoit and Wolf, 2004).
    """
    n, d = rows.shape
    centred = rows - rows.mean(0)
    sample = centred.T @ centred / n
    scale = sample.diagonal().mean()
    spread = sample.square().sum() / d - scale.square()
    squares = centred.square()
    noise = ((squares.T @ squares / n - sample.square()).sum() / n / d).clamp_max(spread)
    share = noise / spread if spread > 0 else torch.zeros_like(scale)
    one = torch.eye(d, dtype=rows.dtype, device=rows.device)
    return (1 - share) * sample + share * scale * one


class CutPaste(GradientDetector[CutPasteHyperparameters]):
    """The detector of one category; see `Detector` for the arguments."""

    network: Classifier
    extra_state = ("mean", "precision_root")
    training_state = (*GradientDetector.training_state, "network.head.")
    smallest_input = 32

    def set_up(self) -> None:
        """Makes room for the Gaussian; see `Detector.set_up`."""
        super().set_up()
        #: Mean ``(d,)`` of the representations of normal images, and a matrix ``(d, d)`` that
        #: whitens them.
        self.mean: Tensor | None = None
        self.precision_root: Tensor | None = None

    def build(self) -> Classifier:
        """Returns the network; see `Detector.build`."""
        hp = self.hyperparameters
        return Classifier(hp.width, 3 if hp.variant == "3way" else 2)

    def build_optimizers(self) -> list[Optimizer]:
        """Returns SGD; see `GradientDetector.build_optimizers`."""
        hp, weights = self.hyperparameters, self.network.parameters()
        return [
            torch.optim.SGD(
                weights, hp.lr, hp.momentum, weight_decay=hp.weight_decay, foreach=False
            )
        ]

    def fit(self, images: Tensor, iterations: int) -> Report:
        """Trains on and fits the Gaussian; see `GradientDetector.fit`."""
        report = super().fit(images, iterations)
        self._fit_gaussian(images)
        return report

    def batch(self, images: Tensor, rows: Tensor) -> Tensor:
        """Returns images or squares of them in [0, 1]; see `GradientDetector.batch`."""
        if self.hyperparameters.level == "patch":
            return unit_range(
                random_crops(images, len(rows), self._side, self.generator, rows), self.device
            )
        return unit_range(images[rows], self.device)

    @property
    def _side(self) -> int:
        """Side of a square in pixels."""
        return self.input_size // _SQUARES

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns the cross entropy of telling the kinds apart; see `GradientDetector.loss`."""
        hp, n = self.hyperparameters, len(images)
        with torch.autocast(self.device.type, enabled=False):
            images = jitter(images, hp.jitter, self.generator)
            kinds = [images]
            for name, draw in (("cutpaste", draw_patches), ("scar", draw_scars)):
                if hp.variant in (name, "3way"):
                    contents = jitter(images, hp.jitter, self.generator)
                    kinds.append(paste(images, contents, draw(n, self.generator)))
            shown = normalise_unit(torch.cat(kinds))
        labels = torch.arange(len(kinds), device=self.device).repeat_interleave(n)
        # Steps of 2 over a single position have no gradient in bfloat16 on CPUs (torch 2.14): it is
        # whatever was in memory.
        small = self.device.type == "cpu" and shown.shape[-1] < _LEAST_MIXED
        with torch.autocast("cpu", enabled=False) if small else nullcontext():
            logits = self.network.head(self.network(shown))
        return F.cross_entropy(logits.float(), labels)

    def before_step(self, iteration: int, total: int) -> None:
        """Sets the learning rate, a cosine."""
        part = min(1.0, iteration / total)
        rate = self.hyperparameters.lr * (1 + math.cos(math.pi * part)) / 2
        self.optimizers[0].param_groups[0]["lr"] = rate

    @torch.no_grad()
    def _fit_gaussian(self, images: Tensor) -> None:
        self.network.eval()
        per_image = (_STEPS - _STEPS // _SQUARES + 1) ** 2
        every = max(1, per_image * len(images) // _MOST)
        rows = torch.cat(
            [
                self._represented(part)[::every]
                if self.hyperparameters.level == "patch"
                else self._represented(part)
                for part in torch.split(images, 8)
            ]
        ).double()
        self.mean = rows.mean(0).float()
        covariance = shrunk_covariance(rows)
        floor = 1e-9 * (1 + covariance.diagonal().mean())
        one = torch.eye(len(covariance), dtype=torch.float64, device=self.device)
        root = torch.linalg.cholesky(covariance + floor * one)
        self.precision_root = (
            torch.linalg.solve_triangular(root, one, upper=False).float().contiguous()
        )

    def _represented(self, images: Tensor) -> Tensor:
        """Returns the representations ``(N, d)`` of all images, or of all squares of them."""
        pixels = self.inputs(images)
        if self.hyperparameters.level == "patch":
            step = max(1, self.input_size // _STEPS)
            squares = pixels.unfold(2, self._side, step).unfold(3, self._side, step)
            pixels = squares.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return torch.cat([self.network(part) for part in split_rows(pixels, _BATCH)])

    def evidence(self, images: Tensor) -> Evidence:
        """Returns negative log-densities, less their least; see `Detector.evidence`.

        Raises:
            MethodError: If there is no Gaussian yet.
        """
        if self.mean is None or self.precision_root is None:
            raise MethodError("there is no Gaussian yet: fit the detector first")
        away = self._represented(images) - self.mean
        found = (away @ self.precision_root.T).square().sum(1) / 2
        if self.hyperparameters.level == "image":
            return Evidence((found.view(-1, 1, 1),), found)
        side = math.isqrt(len(found) // len(images))
        grid = found.view(len(images), 1, side, side)
        return Evidence((self._lent(grid).squeeze(1),), grid.amax((1, 2, 3)))

    def _lent(self, grid: Tensor) -> Tensor:
        """Returns the scores of squares as maps of pixels: means, weighted by a Gaussian."""
        middle = torch.arange(self._side, device=self.device) - (self._side - 1) / 2
        bell = (-0.5 * (middle / (self._side / 4)).square()).exp()
        kernel = (bell[:, None] * bell)[None, None]
        step = max(1, self.input_size // _STEPS)
        total = F.conv_transpose2d(grid, kernel, stride=step)
        return total / F.conv_transpose2d(torch.ones_like(grid[:1]), kernel, stride=step)
