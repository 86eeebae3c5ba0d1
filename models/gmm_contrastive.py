"""Model-guided contrastive fine-tuning (Artola, Kolodziej, Morel and Ehret, CVPRW 2024, VAND).

A Gaussian mixture models the features of normal images. The network is fine-tuned so that they
stay in it while natural images, given the colours of normal ones, leave it; the mixture follows
the features. What the supplement says is followed to the letter. It leaves open backbone,
projection, sizes and schedule: these are marked as inferred, and every one can be set. The paper's
negatives are ImageNet's images. Any folder of natural images does; without one they are drawn
(`dead_leaves`), so that nothing has to be downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from anomtune.errors import MethodError, TrainingDivergedError
from anomtune.models.hyperparameters import TrainedHyperparameters
from anomtune.models.images.color_transfer import Transfer
from anomtune.models.images.dead_leaves import dead_leaves
from anomtune.models.images.negatives import draw_negatives
from anomtune.models.layers.backbones import (
    BACKBONES,
    Backbone,
    Weights,
    check_input,
    prepare_weights,
)
from anomtune.models.layers.evidence import Evidence
from anomtune.models.layers.mixture_network import (
    MixtureNetwork,
    contrastive_loss,
    outliers,
    some_of,
)
from anomtune.models.ranges import Choice, FloatRange, IntRange, SizeRange
from anomtune.models.scoring import Scoring
from anomtune.models.training.gradient_detector import GradientDetector
from anomtune.models.training.report import Histogram, Report

Calibration = Literal["quantile", "volume"]

#: At most so many features make the first mixture, and the final one: they bound memory.
_FIRST_FEATURES = 200_000
_FINAL_FEATURES = 1_000_000

#: Number and largest side of the drawn negatives.
_DRAWN = 96
_DRAWN_SIDE = 256

#: Images that the diagnostic looks at.
_DIAGNOSED = 32

#: Limits of the diagnostic's bins.
_EDGES = tuple(index / 20 for index in range(21))


class GMMContrastiveHyperparameters(TrainedHyperparameters):
    """What can be set of `GMMContrastive`."""

    #: The ablations: what the supplement argues for, each left out.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "baseline": {"fine_tune": False},
        "diagonal_transfer": {"transfer": "diagonal"},
        "no_transfer": {"rho": 0.0},
        "no_filter": {"outlier_filter": False},
        "static_gmm": {"eta": 0.0},
    }

    backbone: Annotated[Backbone, Choice(choices=BACKBONES)] = Field(
        default="wide_resnet50_2",
        description="The network that is fine-tuned. Source: inferred (that of GLAD, the same "
        "authors' earlier method); timm/NAME is any of timm's with feature maps.",
    )
    weights: Weights = Field(
        default="imagenet",
        description="Weights it starts from; imagenet, random or a file. Source: supplement (a "
        "pre-trained network).",
    )
    resolution: Annotated[int | None, SizeRange(factors=(0.75, 1.0, 1.5))] = Field(
        default=None,
        ge=32,
        multiple_of=16,
        description="Side of the images that the network sees, in pixels; null: the sweep's "
        "image_size. Source: inferred, with its range.",
    )
    dimensions: Annotated[int, IntRange(low=32, high=256, log=True)] = Field(
        default=64,
        ge=1,
        description="Dimensions that PCA keeps of the features and whitens; fewer if the training "
        "features span fewer. Source: inferred, with its range.",
    )
    components: Annotated[int, IntRange(low=1, high=100, log=True)] = Field(
        default=20,
        ge=1,
        description="Gaussians of the mixture; fewer if the training features were not at least "
        "as many as the free values of all covariances. Source: inferred, with its range.",
    )
    diagonal_covariance: bool = Field(
        default=False,
        description="Whether covariances are diagonal instead of full. Source: supplement (full).",
    )
    covariance_floor: float = Field(
        default=1e-3,
        gt=0,
        description="Added to the variances, in units of whitened features. Source: inferred.",
    )
    em_steps: int = Field(
        default=50,
        ge=1,
        description="Most steps of EM for the first and for the final mixture. Source: inferred.",
    )
    calibration: Annotated[Calibration, Choice(choices=get_args(Calibration))] = Field(
        default="quantile",
        description="Density of the negative component: such that a quantile of the normal "
        "features lies on the border, or uniform over the bounding box of the first features and "
        "weighted by alpha. Source: volume from the supplement, quantile and default inferred.",
    )
    quantile: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Share of the normal features outside at first; for calibration quantile "
        "alone. Source: inferred.",
    )
    alpha: Annotated[float, FloatRange(low=0.01, high=0.9)] = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Weight of the negative component; for calibration volume alone. "
        "Source: inferred, with its range.",
    )
    negatives: str = Field(
        default="procedural",
        min_length=1,
        description="Folder of natural images (any, such as ImageNet or DTD), or procedural: "
        "dead-leaves images that are drawn here. Source: supplement (ImageNet); procedural is "
        "ours, for want of a download.",
    )
    rho: Annotated[float, Choice(choices=(0.0, 0.5, 0.75, 1.0))] = Field(
        default=1.0,
        ge=0,
        le=1,
        description="How far negatives get the colours of a normal image. Source: supplement, "
        "Figure 1; 0 and default inferred.",
    )
    random_rho: bool = Field(
        default=False,
        description="Whether every negative draws its rho from [0.5, 1] instead. Source: inferred.",
    )
    transfer: Transfer = Field(
        default="monge_kantorovich",
        description="Linear map of the colours. Source: supplement, Figure 1.",
    )
    fine_tune: bool = Field(
        default=True,
        description="Whether the network learns; if not, the first mixture is all. "
        "Source: supplement (before and after).",
    )
    iterations: int | None = Field(
        default=1000,
        ge=1,
        description="Optimiser steps. Not searched: the rungs of a trial show what fewer give. "
        "Source: inferred.",
    )
    lr: Annotated[float, FloatRange(low=1e-6, high=1e-4, log=True)] = Field(
        default=1e-5,
        gt=0,
        description="Learning rate of AdamW. Source: inferred, with its range.",
    )
    weight_decay: float = Field(
        default=1e-5, ge=0, description="Weight decay of AdamW. Source: inferred."
    )
    clip_norm: float = Field(
        default=1.0, gt=0, description="Largest norm of the gradient. Source: inferred."
    )
    batch_size: int = Field(
        default=8,
        ge=1,
        description="Normal images per step, and as many negatives. Source: inferred.",
    )
    features_per_step: int = Field(
        default=4096,
        ge=1,
        description="Most features per step of normal images, and of negatives. Source: inferred.",
    )
    eta: Annotated[float, FloatRange(low=1e-3, high=0.1, log=True)] = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Weight of a batch in the mixture that follows the features; 0: it stays. "
        "Source: inferred, with its range (supplement: the mixture is updated online).",
    )
    outlier_filter: bool = Field(
        default=True,
        description="Whether only negatives outside the mixture learn. Source: supplement.",
    )
    outlier_fraction: Annotated[float, FloatRange(low=0.05, high=0.5)] = Field(
        default=0.10,
        gt=0,
        le=1,
        description="Share of the negatives, the most outside, that learn if fewer are outside. "
        "Source: supplement; range inferred.",
    )
    scoring: Scoring = Field(
        default=Scoring(sigma=4.0),
        description="How evidence becomes maps and scores: negative log-densities smoothed by a "
        "Gaussian of 4 pixels; the maximum. Source: inferred.",
    )

    def training_iterations(self, n_images: int) -> int:
        """Returns the length that is set, or 1 without fine-tuning."""
        return super().training_iterations(n_images) if self.fine_tune else 1

    def input_size(self, image_size: int) -> int:
        """Returns ``resolution``, or the size of the maps."""
        return self.resolution or image_size

    def foreign_images(self) -> str | None:
        """Returns the folder of negatives, or ``None`` if they are drawn."""
        return None if self.negatives == "procedural" else self.negatives


class GMMContrastive(GradientDetector[GMMContrastiveHyperparameters]):
    """The detector of one category; see `Detector` for the arguments."""

    network: MixtureNetwork
    # The network halves images four times.
    multiple_of = 16
    smallest_input = 32

    def set_up(self) -> None:
        """Makes room for features and drawn negatives; see `Detector.set_up`."""
        super().set_up()
        self._positives = torch.empty(0)
        self._drawn: Tensor | None = None

    def build(self) -> MixtureNetwork:
        """Returns the network, without mixtures; see `Detector.build`."""
        hp = self.hyperparameters
        return MixtureNetwork(
            hp.backbone,
            hp.weights,
            self.input_size,
            floor=hp.covariance_floor,
            diagonal=hp.diagonal_covariance,
        )

    def build_optimizers(self) -> list[Optimizer]:
        """Returns AdamW; see `GradientDetector.build_optimizers`."""
        hp, weights = self.hyperparameters, self.network.parameters()
        return [torch.optim.AdamW(weights, hp.lr, weight_decay=hp.weight_decay, fused=True)]

    @classmethod
    def check_input_size(
        cls, hyperparameters: GMMContrastiveHyperparameters, image_size: int
    ) -> None:
        """Makes sure that the network can see the images; see `Detector.check_input_size`."""
        super().check_input_size(hyperparameters, image_size)
        side = hyperparameters.input_size(image_size)
        check_input(hyperparameters.backbone, side, step=cls.multiple_of, exact=True)

    @classmethod
    def prepare(cls, hyperparameters: GMMContrastiveHyperparameters) -> None:
        """Makes sure that weights and negatives can be had; see `Detector.prepare`."""
        prepare_weights(hyperparameters.backbone, hyperparameters.weights)
        folder = hyperparameters.foreign_images()
        if folder is not None and not Path(folder).expanduser().is_dir():
            raise MethodError(
                f"negatives: there is no folder {folder!r}; give one that holds images, "
                "or 'procedural'"
            )

    def fit(self, images: Tensor, iterations: int) -> Report:
        """Trains on and fits the mixture of the maps; see `Detector.fit`.

        Reports ``loss`` (with fine-tuning), and of some normal images and negatives, always the
        same: the probabilities of being misclassified, ``P(-|u+)`` and ``P(+|u-)`` of the
        supplement's Figure 2, as the means ``positive_weight`` and ``negative_weight`` and as
        histograms ``positive_weights`` and ``negative_weights``. The first fit also reports them
        as they were before it, with names that end in ``_before``.

        Raises:
            MethodError: If there are no images, they have a wrong size, or there are no negatives.
            TrainingDivergedError: If the loss or a feature is not finite.
        """
        self.check_training_images(images)
        report: Report = {}
        if self.iteration == 0:
            self._initialise(images)
            report |= self._misclassified(images, "_before")
        if self.hyperparameters.fine_tune:
            report |= super().fit(images, iterations)
        else:
            self.iteration += iterations
        self._finish(images)
        return report | self._misclassified(images, "")

    def evidence(self, images: Tensor) -> Evidence:
        """Returns ``-log G(u)``; see `Detector.evidence`.

        Raises:
            MethodError: If the detector has not been fitted.
        """
        network = self.network
        if network.final.components == 0:
            raise MethodError("the detector has no mixture yet: fit it first")
        density = network.final.log_densities(network.project(network.patches(images)))
        side = self.input_size // network.features.stride
        return Evidence((-density.view(-1, side, side),))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state; see `Detector.load_state_dict`."""
        online, dimensions = state["network.online.means"].shape
        self.network.allocate(online, len(state["network.final.means"]), dimensions)
        super().load_state_dict(state)

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns the loss of normal images against new negatives; see `GradientDetector.loss`."""
        hp = self.hyperparameters
        negatives = self._negatives(hp.batch_size, images, self.generator)
        both = torch.cat([images, negatives])
        patches = self.network.patches(both)
        border = len(images) * len(patches) // len(both)
        positive = some_of(patches[:border], hp.features_per_step, self.generator)
        negative = some_of(patches[border:], hp.features_per_step, self.generator)
        features = self.network.project(torch.cat([positive, negative]))
        self._positives = features[: len(positive)].detach()
        log_odds = self.network.log_odds(features)
        inside, outside = log_odds[: len(positive)], log_odds[len(positive) :]
        kept = outliers(outside, hp.outlier_fraction if hp.outlier_filter else 1.0)
        return contrastive_loss(inside, outside, kept)

    def before_step(self, iteration: int, total: int) -> None:
        """Clips the gradient."""
        nn.utils.clip_grad_norm_(self.network.parameters(), self.hyperparameters.clip_norm)

    def after_step(self, iteration: int, total: int) -> None:
        """Lets the mixture follow the features of the step's normal images."""
        if self.hyperparameters.eta > 0:
            self.network.online.update(self._positives, self.hyperparameters.eta)
        self._positives = torch.empty(0)

    def _negatives(self, count: int, normal: Tensor, generator: torch.Generator) -> Tensor:
        hp = self.hyperparameters
        return draw_negatives(
            count,
            self._pool(),
            normal,
            self.device,
            generator,
            rho=None if hp.random_rho else hp.rho,
            transfer=hp.transfer,
        )

    def _pool(self) -> Tensor:
        """Returns the images that negatives are cut out of, uint8 ``(M, 3, H, W)``."""
        folder = self.hyperparameters.foreign_images()
        if folder is None:
            if self._drawn is None:
                side = min(self.input_size, _DRAWN_SIDE)
                self._drawn = dead_leaves(_DRAWN, side).to(self.device)
            return self._drawn
        if self.foreign is None or len(self.foreign) == 0:
            raise MethodError(f"negatives: no image was found in {folder!r}")
        return self.foreign

    @torch.no_grad()
    def _initialise(self, images: Tensor) -> None:
        """Makes projection, first mixture and border from the features of all images."""
        hp, network = self.hyperparameters, self.network
        network.whiten(images, _FIRST_FEATURES, hp.dimensions, hp.components)
        features = network.features_of(images, _FIRST_FEATURES)
        network.online.initialise(features, torch.Generator().manual_seed(self.seed))
        network.online.fit(features, hp.em_steps)
        if hp.calibration == "quantile":
            rank = max(1, math.ceil(hp.quantile * len(features)))
            network.tau = network.online.log_densities(features).kthvalue(rank).values
        else:
            generator = torch.Generator().manual_seed(0)
            negatives = self._negatives(_DIAGNOSED, images, generator)
            both = torch.cat([features, network.features_of(negatives, _FIRST_FEATURES)])
            log_volume = (both.amax(0) - both.amin(0)).log().sum()
            network.tau = math.log(hp.alpha / (1 - hp.alpha)) - log_volume

    @torch.no_grad()
    def _finish(self, images: Tensor) -> None:
        """Fits the mixture of the maps to the features of all images as they are now.

        It starts from the one that follows the training and leaves that as it is.
        """
        self.network.final.load_state_dict(self.network.online.state_dict())
        if self.hyperparameters.fine_tune:
            features = self.network.features_of(images, _FINAL_FEATURES)
            if not math.isfinite(self.network.final.fit(features, self.hyperparameters.em_steps)):
                raise TrainingDivergedError(
                    f"features are not finite after iteration {self.iteration}: "
                    "lower the learning rate"
                )

    @torch.no_grad()
    def _misclassified(self, images: Tensor, suffix: str) -> Report:
        """Returns how likely normal and negative features are taken for the other."""
        some = images[:: max(1, len(images) // _DIAGNOSED)][:_DIAGNOSED]
        negatives = self._negatives(len(some), some, torch.Generator().manual_seed(0))
        report: Report = {}
        for name, sign, shown in (("positive", -1, some), ("negative", 1, negatives)):
            features = self.network.features_of(shown, _FINAL_FEATURES)
            log_odds = self.network.online.log_densities(features) - self.network.tau
            weights = (sign * log_odds).sigmoid()
            report[f"{name}_weight{suffix}"] = float(weights.mean())
            counts = weights.cpu().histc(len(_EDGES) - 1, 0, 1).long().tolist()
            report[f"{name}_weights{suffix}"] = Histogram(_EDGES, tuple(counts))
        return report
