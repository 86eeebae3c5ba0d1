"""KDAD: multiresolution knowledge distillation for anomaly detection (Salehi et al., CVPR 2021).

A small cloner learns to give the activations of a frozen VGG-16 at four of its pooling layers, in
value and in direction; it has seen normal images alone, so that it fails on others. The score of an
image is the loss of the last three layers. A place is as anomalous as the loss depends on its
pixels: the map is the absolute gradient of the loss.

Defaults are those of the official code, which shows the network pixels in [0, 1], not normalised as
for ImageNet, and leaves the first layer out of the score. Left out: its SmoothGrad and guided
backpropagation, and the morphological opening of its maps at each threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from anomtune.models.hyperparameters import Protocol, Setting, TrainedHyperparameters
from anomtune.models.images.pixels import unit_range
from anomtune.models.layers.backbones import Weights, load_vgg16, prepare_weights
from anomtune.models.layers.encoder import Encoder
from anomtune.models.layers.evidence import Evidence
from anomtune.models.layers.frozen import targets
from anomtune.models.layers.maps import Pair, cosine_map, gaussian_smooth, resized, scaled
from anomtune.models.ranges import Choice, FloatRange, SizeRange
from anomtune.models.scoring import Reduce, Scoring
from anomtune.models.training.gradient_detector import GradientDetector

#: Widths of the convolutions up to each pooling layer, of the cloner that the paper prefers.
_SMALL = ((16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512))
#: The same of VGG-16.
_EQUAL = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
#: The official code smooths its maps so, in pixels of a map of 256.
_OWN_SIGMA = 8.0

_DIGITS = {"resolution": 32, "lam": 0.01, "epochs": 51}


class KDADScoring(Scoring):
    """What can be set of `KDAD` after training."""

    forward = frozenset({"place"})
    own: ClassVar[Mapping[str, frozenset[str]]] = {"sigma": frozenset(), "reduce": frozenset()}

    place: Annotated[Literal["gradient", "distance"], Choice(choices=("gradient", "distance"))] = (
        Field(
            default="gradient",
            description="What a map shows: the gradient of the loss, or the loss of each position "
            "of the layers, which takes no backward pass. Source: paper; distance is ours.",
        )
    )
    reduce: Annotated[Reduce, Choice(choices=("max", "top", "mean", "own"))] = Field(
        default="own",
        description="The score: the loss of the image (own), or one of the map. Source: paper; "
        "those of the map are ours.",
    )


class KDADHyperparameters(TrainedHyperparameters):
    """What can be set of `KDAD`."""

    protocol: ClassVar[Protocol] = Protocol(
        "official code (test_functions.py); it tells no seed, and takes the best of many epochs by "
        "the test images.",
        inferred=True,
    )

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("mvtec", {"resolution": 128}, "paper, section 4; official code (config.yaml)."),
        Setting("mnist", _DIGITS, "official code (config.yaml, dataloader.py)."),
        Setting("fashion_mnist", _DIGITS, "official code (config.yaml, dataloader.py)."),
        Setting(
            "cifar10",
            {"resolution": 32, "lam": 0.01, "epochs": 201},
            "official code (config.yaml); the size is that of the images, while its later versions "
            "enlarge them.",
            inferred=True,
        ),
        Setting(
            "oct2017",
            {"resolution": 128, "lam": 0.01},
            "official code (config.yaml, dataloader.py).",
        ),
    )

    weights: Weights = Field(
        default="imagenet",
        description="Weights of the source network. Source: paper (which tries random as well).",
    )
    cloner: Annotated[Literal["small", "equal"], Choice(choices=("small", "equal"))] = Field(
        default="small",
        description="Widths of the cloner: most of them 16, or those of the source. Source: paper, "
        "ablation; official code.",
    )
    resolution: Annotated[int | None, SizeRange(factors=(0.75, 1.0, 1.5))] = Field(
        default=None,
        ge=32,
        multiple_of=32,
        description="Side of the images that the networks see, in pixels; null: the sweep's "
        "image_size. Source: official code (128, digits 32); range inferred.",
    )
    lam: Annotated[float, FloatRange(low=1e-3, high=1.0, log=True)] = Field(
        default=0.5,
        ge=0,
        description="Weight of the values beside the directions. Source: official code (MVTec 0.5, "
        "others 0.01); range inferred.",
    )
    epochs: int | None = Field(
        default=601,
        ge=1,
        description="Passes over the training images. Not searched: the rungs of a trial show "
        "what fewer give. Source: official code (MVTec 601, digits 51, CIFAR-10 201).",
    )
    batch_size: int = Field(
        default=64, ge=1, description="Images per optimiser step. Source: official code."
    )
    lr: Annotated[float, FloatRange(low=1e-4, high=1e-2, log=True)] = Field(
        default=1e-3,
        gt=0,
        description="Learning rate of Adam. Source: official code; range inferred.",
    )
    scoring: KDADScoring = Field(
        default=KDADScoring(sigma="own"),
        description="How evidence becomes maps and scores: each map between its least value and "
        "its 99th percentile, smoothed by a Gaussian of 4 pixels of 128; the loss. Source: "
        "official code.",
    )

    def input_size(self, image_size: int) -> int:
        """Returns ``resolution``, or the size of the maps."""
        return self.resolution or image_size


class Cloner(nn.Module):
    """A VGG of other widths without bias; convolutions before a pooling have no batch norm.

    Args:
        widths: Of the convolutions up to each pooling layer.
    """

    def __init__(self, widths: Sequence[Sequence[int]]) -> None:
        super().__init__()
        before, blocks = 3, []
        for block in widths:
            layers: list[nn.Module] = []
            for number, width in enumerate(block, start=1):
                conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
                nn.init.xavier_uniform_(conv.weight)
                layers.append(conv)
                if number < len(block):
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                before = width
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns what is pooled, the second time to the last, of images ``(B, 3, S, S)``."""
        pooled = [images]
        for block in self.blocks:
            pooled.append(block(pooled[-1]))
        return pooled[2:]


class Distillation(nn.Module):
    """The frozen source and its cloner.

    Args:
        weights: Those of the source.
        widths: Those of the cloner.
    """

    def __init__(self, weights: Weights, widths: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.source = load_vgg16(weights).requires_grad_(False)
        self.cloner = Cloner(widths)

    def train(self, mode: bool = True) -> Distillation:
        """Sets the cloner's mode; the source always stays in eval mode."""
        super().train(mode)
        self.source.eval()
        return self

    def forward(self, images: Tensor) -> list[Pair]:
        """Returns activations of source and cloner of images ``(B, 3, S, S)``, layer by layer."""
        return list(zip(targets(self.source, images), self.cloner(images), strict=True))


def distillation_losses(pairs: Sequence[Pair], lam: float) -> Tensor:
    """Returns the loss of each image ``(B,)``: of directions, and ``lam`` times that of values.

    Directions are those of whole layers as vectors, ``1 - cos``; values differ by their mean
    square. Both are summed over the layers (equations 1 to 3).
    """
    losses = []
    for target, prediction in pairs:
        a, b = target.float().flatten(1), prediction.float().flatten(1)
        losses.append(1 - F.cosine_similarity(b, a) + lam * (b - a).square().mean(1))
    return torch.stack(losses).sum(0)


class KDAD(GradientDetector[KDADHyperparameters]):
    """The detector of one category; see `Detector` for the arguments."""

    network: Distillation
    # The networks halve images five times.
    multiple_of = 32
    smallest_input = 32

    @classmethod
    def prepare(cls, hyperparameters: KDADHyperparameters) -> None:
        """Makes sure that the source's weights can be had; see `Detector.prepare`."""
        prepare_weights("vgg16", hyperparameters.weights)

    def build(self) -> Distillation:
        """Returns the networks; see `Detector.build`."""
        hp = self.hyperparameters
        return Distillation(hp.weights, _SMALL if hp.cloner == "small" else _EQUAL)

    def build_optimizers(self) -> list[Optimizer]:
        """Returns the cloner's Adam; see `GradientDetector.build_optimizers`."""
        weights = self.network.cloner.parameters()
        return [torch.optim.Adam(weights, self.hyperparameters.lr, fused=True)]

    def frozen_encoders(self) -> Sequence[Encoder]:
        """Returns the source; see `Detector.frozen_encoders`."""
        return [self.network.source]

    def inputs(self, images: Tensor) -> Tensor:
        """Returns uint8 images ``(B, 3, I, I)`` as the networks see them, in [0, 1]."""
        return unit_range(images, self.device)

    def batch(self, images: Tensor, rows: Tensor) -> Tensor:
        """Returns what the networks see of images; see `GradientDetector.batch`."""
        return self.inputs(images[rows])

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns the loss of four layers; see `GradientDetector.loss`."""
        return distillation_losses(self.network(images), self.hyperparameters.lam).mean()

    def evidence(self, images: Tensor) -> Evidence:
        """Returns maps and losses of three layers; see `Detector.evidence`."""
        pixels, lam = self.inputs(images), self.hyperparameters.lam
        if self.hyperparameters.scoring.place == "gradient":
            return self._gradient(pixels)
        pairs = self.network(pixels)[1:]
        maps = sum(
            resized(
                cosine_map(target, prediction) + lam * (target - prediction).square().mean(1),
                pairs[0][0].shape[-1],
            )
            for target, prediction in pairs
        )
        return Evidence((cast(Tensor, maps),), distillation_losses(pairs, lam))

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _gradient(self, pixels: Tensor) -> Evidence:
        """Returns how much the loss of each image depends on its pixels, through both networks."""
        shown = pixels.clone().requires_grad_()
        network = self.network
        pairs = list(zip(network.source.maps(shown), network.cloner(shown), strict=True))
        losses = distillation_losses(pairs[1:], self.hyperparameters.lam)
        (gradient,) = torch.autograd.grad(losses.sum(), shown)
        return Evidence((gradient.abs().sum(1),), losses.detach())

    def own_maps(self, maps: Mapping[str, Tensor], scoring: Scoring, size: int) -> Tensor:
        """Returns maps as parts of their own 99th percentile, smoothed; see `Detector.own_maps`."""
        (found,) = maps.values()
        low = found.amin((1, 2), keepdim=True)
        high = found.flatten(1).quantile(0.99, 1)[:, None, None]
        parts = ((found - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        return gaussian_smooth(self.resized(parts, size), scaled(_OWN_SIGMA, size))
