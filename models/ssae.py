"""SSAE: self-supervised training with autoencoders (Bauer, Nakajima and Mueller, 2206.11723).

An autoencoder sees images with corrupted regions and learns to give back what was there, so that
it works as a filter that removes what is not normal: the reconstruction error is the anomaly map.
A second objective amplifies the error of corrupted regions instead. There is no official code;
numbers that the paper does not give are hyperparameters, marked as inferred.

Longer than 400 lines: half of it are the settings of MVTec's categories and what can be set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from anomtune.errors import MethodError
from anomtune.models.hyperparameters import Protocol, Setting, TrainedHyperparameters
from anomtune.models.images.augmentation import Augmentation, augment, random_crops
from anomtune.models.images.corruption_settings import (
    CorruptionHyperparameters,
    corruption_weights,
)
from anomtune.models.images.corruptions import Corruptor
from anomtune.models.images.pixels import unit_range
from anomtune.models.images.repair_objectives import amplify_objective, filter_objective
from anomtune.models.layers.evidence import Evidence, combined
from anomtune.models.layers.maps import scaled_window
from anomtune.models.layers.sdc_autoencoder import SDCAutoencoder
from anomtune.models.layers.separable import box_window, filter_maps
from anomtune.models.layers.ssim import ssim_distance
from anomtune.models.ranges import Choice, FloatRange
from anomtune.models.scoring import Combine, Scoring
from anomtune.models.training.gradient_detector import GradientDetector
from anomtune.models.training.report import Report

_TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
_OBJECTS = (
    *("bottle", "cable", "capsule", "hazelnut", "metal_nut"),
    *("pill", "screw", "toothbrush", "transistor", "zipper"),
)

#: The size of input that ``k`` is given for.
_REFERENCE_SIDE = 512

#: Progressive training: equal parts of the iterations with crops of these parts of the side.
_STAGES = 4


def _squared_difference(pixels: Tensor, output: Tensor) -> Tensor:
    """Returns the squared difference of images ``(B, 3, H, W)``, ``(B, H, W)`` (equation 2)."""
    return (pixels - output).square().mean(1)


_DIFFERENCES = {"squared": _squared_difference, "ssim": ssim_distance}


class SSAEScoring(Scoring):
    """What can be set of `SSAE` after training."""

    forward = frozenset({"diff"})
    own: ClassVar[Mapping[str, frozenset[str]]] = {"sigma": frozenset({"n", "k", "t"})}

    combine: Combine = Field(
        default="maximum",
        description="How the maps of two networks become one. Source: paper (ensemble).",
    )
    diff: Annotated[Literal["squared", "ssim"], Choice(choices=("squared", "ssim"))] = Field(
        default="squared",
        description="Difference between an image and its reconstruction: squared, or by "
        "structural similarity. Source: paper (ssim for some categories).",
    )
    n: int = Field(
        default=1,
        ge=0,
        description="How often the map is smoothed, where sigma is own. Source: paper (a natural "
        "number); default inferred.",
    )
    k: int = Field(
        default=21,
        ge=1,
        description="Side of the averaging filter in pixels of an input of 512, odd. Source: paper "
        "(a natural number); default inferred.",
    )
    t: Annotated[int, Choice(choices=(0, 1, 4))] = Field(
        default=0,
        ge=0,
        description="Exponent of the weight that lowers a map where validation images have high "
        "errors, where sigma is own; 0 = no weight. Source: paper (objects only, a natural "
        "number); choices inferred.",
    )

    @field_validator("k")
    @classmethod
    def _is_odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd: the filter has a middle")
        return value

    def subsets(self, scales: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """Yields all: an ensemble is one detector."""
        yield scales

    def acting(self, scales: tuple[str, ...]) -> dict[str, Any]:
        """Returns the fields that take part; see `Scoring.acting`."""
        values = super().acting(scales)
        if self.sigma == "own" and self.t == 0 and self.is_mean:
            # Nor does a filter that is mirrored at the edges move the mean.
            for name in ("sigma", *self.own["sigma"]):
                del values[name]
        return values


class SSAEHyperparameters(TrainedHyperparameters, CorruptionHyperparameters):
    """What can be set of `SSAE`."""

    protocol: ClassVar[Protocol] = Protocol(
        "section 4: image and pixel AUROC; neither seed nor masks are told.",
        inferred=True,
    )

    #: The kinds of category that the paper tells apart, for products of one's own.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "texture": {"resolution": 512, "f": 3, "augment": "all", "scoring": {"t": 0}},
        "object": {"scoring": {"t": 1}},
    }
    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "mvtec",
            {"resolution": 512, "f": 3, "scoring": {"t": 0}},
            "paper, section 4: textures at 512 pixels with f = 3, the average map for objects.",
            categories=_TEXTURES,
        ),
        Setting(
            "mvtec",
            {"scoring": {"t": 1}},
            "paper, equation 14: objects alone are weighted by the average map. It gives no t; and "
            "it searched resolution and f per object without saying what it found.",
            categories=_OBJECTS,
            inferred=True,
        ),
        Setting(
            "mvtec",
            {"scoring": {"diff": "ssim"}},
            "paper, section 4.",
            categories=(
                *("carpet", "tile", "bottle", "cable"),
                *("capsule", "metal_nut", "transistor", "zipper"),
            ),
        ),
        Setting(
            "mvtec",
            {"corruption": "elastic+occlusion"},
            "paper, section 4.",
            categories=("cable", "screw"),
        ),
        Setting(
            "mvtec",
            {"corruption": "elastic+occlusion+rotation"},
            "paper, section 4.",
            categories=("transistor",),
        ),
        Setting(
            "mvtec",
            {"augment": "all"},
            "paper, section 4: turns and flips depending on the category, which it does not list; "
            "these look the same turned and mirrored.",
            categories=(*_TEXTURES, "bottle", "hazelnut"),
            inferred=True,
        ),
        Setting(
            "mvtec",
            {"augment": "flips"},
            "paper, section 4: as above; these look the same mirrored (a mirrored metal_nut is one "
            "of its defects).",
            categories=("toothbrush", "zipper"),
            inferred=True,
        ),
    )

    iterations: int | None = Field(
        default=20000,
        ge=1,
        description="Optimiser steps. Not searched: the rungs of a trial show what fewer give. "
        "Source: inferred.",
    )
    batch_size: int = Field(
        default=8, ge=1, description="Images per optimiser step. Source: inferred."
    )
    lr: float = Field(default=1e-4, gt=0, description="Learning rate of Adam. Source: paper.")
    resolution: Annotated[int, Choice(choices=(256, 384, 512))] = Field(
        default=512,
        ge=16,
        multiple_of=8,
        description="Side of the images that the network sees. Source: paper (textures 512, "
        "objects searched).",
    )
    width: int = Field(
        default=64, ge=1, description="Filters of the first layer. Source: paper, Table 1."
    )
    f: Annotated[Literal[3, 5], Choice(choices=(3, 5))] = Field(
        default=3,
        description="Kernel of the dilated convolutions. Source: paper (textures 3, objects "
        "searched).",
    )
    objective: Annotated[Literal["1", "4", "ensemble"], Choice(choices=("1", "4", "ensemble"))] = (
        Field(
            default="1",
            description="Equation 1 (filter) or 4 (amplify), or one network of each and the larger "
            "of their maps. Source: paper, Table 4.",
        )
    )
    lam: Annotated[float, FloatRange(low=0.1, high=0.9)] = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Weight of the corrupted regions in the objective. Source: paper (0.5 in "
        "many cases); range inferred.",
    )
    squared: bool = Field(
        default=False,
        description="Whether the norms of the objectives are squared. Source: paper (as printed "
        "they are not).",
    )
    augment: Augmentation = Field(
        default="none",
        description="Training images are flipped at random, or flipped and turned by multiples "
        "of 90 degrees (all). Source: paper (by category); default inferred.",
    )
    progressive: bool = Field(
        default=True,
        description="Whether training starts with crops of a quarter of the side, then half, "
        "three quarters and all of it, for a quarter of the iterations each. Source: paper "
        "(growing inputs of the same resolution); the schedule is inferred.",
    )
    scoring: SSAEScoring = Field(
        default=SSAEScoring(sigma="own", reduce="sum"),
        description="How reconstructions become maps, of two networks the larger of theirs, and "
        "scores: the sum of the map. Source: paper, equations 2, 3 and 14.",
    )

    @field_validator("objective", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # YAML reads 1 as a number.
        return str(value) if isinstance(value, int) else value

    @property
    def scales(self) -> tuple[str, ...]:
        """A map of each network: they are always used together."""
        return ("filter", "amplify") if self.objective == "ensemble" else ("map",)

    def n_held_out(self, n_images: int) -> int:
        """Returns how many training images are held out for validation: 5 %, at least one."""
        return max(1, round(0.05 * n_images))

    def steps_per_epoch(self, n_images: int) -> int:
        """Returns the optimiser steps of a pass over the images that are not held out."""
        return super().steps_per_epoch(max(1, n_images - self.n_held_out(n_images)))

    def input_size(self, image_size: int) -> int:
        """Returns ``resolution``, whatever the size of the maps."""
        return self.resolution

    def foreign_images(self) -> str | None:
        """Returns where occlusions get their content; see `Hyperparameters.foreign_images`."""
        occlusion = "occlusion" in corruption_weights(self.corruption)
        if not occlusion or self.textures == "procedural":
            return None
        return "categories" if self.textures == "auto" else self.textures


class SSAE(GradientDetector[SSAEHyperparameters]):
    """The detector of one category; see `Detector` for the arguments.

    ``network`` is a list: one autoencoder, or two for the ensemble.
    """

    network: nn.ModuleList
    extra_state = ("split", "average")
    training_state = (*GradientDetector.training_state, "split")
    antialias = True

    def set_up(self) -> None:
        """Makes room for the split and the average maps; see `Detector.set_up`."""
        super().set_up()
        #: All training images in a random order; the first ones are held out for validation.
        self.split = torch.empty(0, dtype=torch.int64)
        side = self.hyperparameters.resolution
        #: The mean difference over the validation images, for each kind of difference and network,
        #: before it is smoothed (equation 13; smoothing is linear).
        self.average = torch.zeros(
            len(_DIFFERENCES), len(self.network), side, side, device=self.device
        )
        self._corruptor: Corruptor | None = None

    @classmethod
    def prepare(cls, hyperparameters: SSAEHyperparameters) -> None:
        """Makes sure that a folder of textures is there; see `Detector.prepare`."""
        folder = hyperparameters.foreign_images()
        if folder not in (None, "categories") and not Path(str(folder)).expanduser().is_dir():
            raise MethodError(
                f"textures: there is no folder {folder}: put images there (DTD, for instance), "
                "or use textures auto or procedural"
            )

    def build(self) -> nn.ModuleList:
        """Returns the networks; see `Detector.build`."""
        hp = self.hyperparameters
        return nn.ModuleList(SDCAutoencoder(hp.width, hp.f) for _ in self._objectives)

    @property
    def _objectives(self) -> tuple[str, ...]:
        """The objective of each network."""
        objective = self.hyperparameters.objective
        return ("1", "4") if objective == "ensemble" else (objective,)

    def fit(self, images: Tensor, iterations: int) -> Report:
        """Trains on; see `Detector.fit`.

        Of the images 5 %, at least one, are held out for validation.

        Returns:
            ``loss`` and ``validation_error``, the mean squared error of the reconstructions of
            the held-out images.

        Raises:
            MethodError: If there are no images, they have a wrong size, or textures are missing.
            TrainingDivergedError: If the loss is not finite.
        """
        self._corruptor = self._new_corruptor()
        report = super().fit(images, iterations)
        if iterations > 0:
            report["validation_error"] = self._validate(images, self._held_out(len(images)))
        return report

    def training_rows(self, n_images: int) -> Tensor:
        """Returns the numbers of the images that are not held out."""
        if len(self.split) != n_images:
            self.split = torch.randperm(n_images, generator=self.generator)
        # A single image has to serve for both.
        return self.split[min(len(self._held_out(n_images)), n_images - 1) :]

    def _held_out(self, n_images: int) -> Tensor:
        """Returns the numbers of the validation images, once there is a split."""
        return self.split[: self.hyperparameters.n_held_out(n_images)]

    def _new_corruptor(self) -> Corruptor:
        hp = self.hyperparameters
        source = hp.foreign_images()
        if source not in (None, "categories") and self.foreign is None:
            raise MethodError(f"the images of {source} are missing: set the detector's foreign")
        foreign = self.foreign if source is not None else None
        return Corruptor(hp, hp.resolution, self.device, foreign)

    def batch(self, images: Tensor, rows: Tensor) -> Tensor:
        """Returns crops in ``[0, 1]``, as large as is due; see `GradientDetector.batch`."""
        hp = self.hyperparameters
        progress = self.iteration / hp.training_iterations(len(images))
        size = crop_size(hp.resolution, progress) if hp.progressive else hp.resolution
        # Cut out before anything is copied: crops may be much smaller than images.
        crops = random_crops(images, len(rows), size, self.generator, rows)
        return unit_range(crops, self.device)

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns the loss of repairing crops in ``[0, 1]``; see `GradientDetector.loss`."""
        hp, corruptor = self.hyperparameters, self._corruptor
        assert corruptor is not None
        with torch.autocast(self.device.type, enabled=False):
            normal = augment(images, hp.augment, self.generator)
            corrupted, mask = corruptor(normal, self.generator)
        loss = torch.zeros((), device=self.device)
        for network, objective in zip(self.network, self._objectives, strict=True):
            output = network(corrupted)
            with torch.autocast(self.device.type, enabled=False):
                if objective == "1":
                    value = filter_objective(output, normal, mask, hp.lam, squared=hp.squared)
                else:
                    value = amplify_objective(
                        output, normal, corrupted, mask, hp.lam, squared=hp.squared
                    )
                # Each network has its own parameters: together they learn as they would alone.
                loss = loss + value
        return loss

    @torch.inference_mode()
    def _validate(self, images: Tensor, held_out: Tensor) -> float:
        """Measures the average maps; returns the mean squared error on validation images."""
        self.network.eval()
        maps = torch.zeros_like(self.average)
        error = torch.zeros((), device=self.device)
        for rows in torch.split(held_out, self.hyperparameters.batch_size):
            pixels = unit_range(images[rows.to(images.device)], self.device)
            for index, output in enumerate(self._reconstruct(pixels)):
                for kind, difference in enumerate(_DIFFERENCES.values()):
                    maps[kind, index] += difference(pixels, output).sum(0)
                error += (output - pixels).square().mean((1, 2, 3)).sum()
        self.average = maps / len(held_out)
        return float(error) / (len(held_out) * len(self.network))

    def _reconstruct(self, pixels: Tensor) -> list[Tensor]:
        return [network(pixels) for network in self.network]

    def evidence(self, images: Tensor) -> Evidence:
        """Returns the differences of images and reconstructions; see `Detector.evidence`."""
        pixels = unit_range(images, self.device)
        difference = _DIFFERENCES[self.hyperparameters.scoring.diff]
        return Evidence(tuple(difference(pixels, output) for output in self._reconstruct(pixels)))

    def own_maps(self, maps: Mapping[str, Tensor], scoring: Scoring, size: int) -> Tensor:
        """Returns smooth maps, weighted by the average one (equations 2, 3 and 14)."""
        assert isinstance(scoring, SSAEScoring)
        smooth = self._smooth(torch.stack(tuple(maps.values())), scoring)
        if scoring.t > 0:
            networks = [self.hyperparameters.scales.index(name) for name in maps]
            average = self.average[list(_DIFFERENCES).index(scoring.diff)][networks]
            weights = (1 - self._smooth(average, scoring)).clamp(0, 1) ** scoring.t
            smooth = smooth * weights.unsqueeze(1)
        return self.resized(combined(tuple(smooth), scoring.combine), size)

    def _smooth(self, maps: Tensor, scoring: SSAEScoring) -> Tensor:
        side = scaled_window(scoring.k, self.hyperparameters.resolution, _REFERENCE_SIDE)
        return filter_maps(maps, box_window(side), scoring.n)


def crop_size(resolution: int, progress: float) -> int:
    """Returns the side of the training crops, a multiple of 8 (section 3.2, schedule inferred).

    Args:
        resolution: Side of whole images.
        progress: Part of the iterations that is done.
    """
    stage = min(_STAGES, int(_STAGES * progress) + 1)
    return min(resolution, max(16, round(resolution * stage / _STAGES / 8) * 8))
