"""PatchCore: towards total recall in industrial anomaly detection (Roth et al., CVPR 2022).

A memory bank keeps features of patches of the normal images, thinned by greedy coreset selection;
a patch is as anomalous as it is far from its nearest neighbour in the bank. Defaults are those of
the paper and of the official code's main setting (a bank of 10 %), with the features concatenated
as the paper tells it and most implementations do it. The paper's re-weighting of the image score
is done. The preset ``official`` is the official code in all that it does otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from anomtune.errors import MethodError
from anomtune.models.hyperparameters import Protocol
from anomtune.models.layers.backbones import Backbone, Weights, load_backbone
from anomtune.models.layers.blocks import split_rows
from anomtune.models.layers.coreset import CoresetBuilder
from anomtune.models.layers.evidence import Evidence
from anomtune.models.layers.maps import scaled
from anomtune.models.layers.patch_features import PatchFeatures
from anomtune.models.ranges import Choice, FloatRange
from anomtune.models.scoring import Scoring
from anomtune.models.training.one_pass import OnePassDetector, OnePassHyperparameters
from anomtune.models.training.report import Report

#: Numbers in one block of the distances of patches to the bank: 4 MB, which a CPU's caches hold.
_BLOCK = 1 << 20
#: Patches that the approximate selection begins with (official code).
_START = 10
#: Patches held while the bank is built, for each that it may hold.
_HELD = 4


class PatchCoreScoring(Scoring):
    """What can be set of `PatchCore` after training."""

    forward = frozenset({"n_neighbours", "squared"})
    own: ClassVar[Mapping[str, frozenset[str]]] = {"reduce": frozenset({"n_neighbours"})}

    n_neighbours: int = Field(
        default=9,
        ge=1,
        description="Patches of the bank by which an image's own score is re-weighted (b of eq. "
        "7); 1 = not at all, as in the official code. Source: inferred, the paper gives no value; "
        "9 is usual.",
    )
    squared: bool = Field(
        default=False,
        description="Whether distances are squared before maps are interpolated and smoothed. "
        "Source: paper; the official code's index gives squared ones.",
    )

    def subsets(self, scales: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """Yields the scales that are used together: all patches say what their layers do."""
        joint, *layers = scales
        yield (joint,)
        yield from super().subsets(tuple(layers))

    def acting(self, scales: tuple[str, ...]) -> dict[str, Any]:
        """Returns the fields that take part; see `Scoring.acting`."""
        values = super().acting(scales)
        joint, *layers = scales
        if self.squared and values.get("scales") == (*layers,) and self.combine == "sum":
            # The squared distance of a patch is the sum of what each layer has of it.
            values["scales"] = (joint,)
            del values["combine"]
        return values


class PatchCoreHyperparameters(OnePassHyperparameters):
    """What can be set of `PatchCore`."""

    protocol: ClassVar[Protocol] = Protocol(
        "official code (run_patchcore.py): seed 0; with a crop the rim is in no figure of pixels. "
        "How masks are resized is our reading.",
        middle="crop",
        inferred=True,
    )

    #: The main setting of patchcore-inspection (IM224, WR50, L2-3, P01, D1024-1024, PS-3, AN-1).
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {
            "resolution": 256,
            "crop": 224,
            "embedding": 1024,
            "coreset": "approximate",
            "max_bank": None,
            "scoring": {"n_neighbours": 1, "squared": True},
        },
    }

    scoring: PatchCoreScoring = Field(
        default=PatchCoreScoring(scales=("patches",), sigma=4.0, reduce="own"),
        description="How distances become maps, smoothed by a Gaussian of 4 pixels, and scores: "
        "of the farthest patch, re-weighted. Source: paper.",
    )
    crop: int | None = Field(
        default=None,
        ge=32,
        description="Side of the middle of the images that the encoder sees, in pixels; null: all "
        "of them. Maps are 0 around it. Source: official code (224 of 256).",
    )
    embedding: int = Field(
        default=0,
        ge=0,
        description="Length of a patch's features, to which both stages are pooled; 0: they are "
        "concatenated, 1536 with wide_resnet50_2. Source: paper; official code 1024.",
    )
    neighbourhood: Annotated[int, Choice(choices=(1, 3, 5))] = Field(
        default=3,
        ge=1,
        description="Side of the neighbourhood over which features are averaged, in positions; "
        "odd. Source: paper (3), which also compares other sizes; range inferred.",
    )
    coreset_ratio: Annotated[float, FloatRange(low=0.01, high=0.25, log=True)] = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Part of the patches that the bank keeps. Source: paper (0.25, 0.1 and 0.01 "
        "differ by 0.1 % AUROC); 0.1 is the official code's main setting.",
    )
    coreset: Literal["greedy", "approximate"] = Field(
        default="greedy",
        description="How the bank is selected: greedily, or greedily from mean distances to ten "
        "patches on. Source: paper, algorithm 1; official code approximate.",
    )
    projected_channels: int = Field(
        default=128,
        ge=1,
        description="Channels of the random projection in which the coreset is selected, if "
        "features have more. Source: official code (128).",
    )
    max_bank: int | None = Field(
        default=25_000,
        ge=1,
        description="Most patches in the bank; null: any number. While it is built, four times as "
        "many are held; beyond that many patches, coresets of parts of the images are merged. "
        "Source: ours, to bound memory; 25,000 are 154 MB with wide_resnet50_2.",
    )

    @property
    def scales(self) -> tuple[str, ...]:
        """Distances of whole patches, and what each layer has of them."""
        return ("patches", "layer2", "layer3")

    @field_validator("neighbourhood")
    @classmethod
    def _check_odd(cls, side: int) -> int:
        if side % 2 == 0:
            raise ValueError("a neighbourhood has a middle: use an odd side")
        return side


class MemoryBank(nn.Module):
    """An encoder of patches, and the bank of normal patches.

    Args:
        backbone: Name of the encoder.
        weights: Its weights.
        neighbourhood: See `PatchFeatures`.
        embedding: Its ``pooled``.
        size: Side of the images that the encoder will see, in pixels.

    Attributes:
        features: The encoder of patches.
        centre: Mean ``(D,)`` of the bank's patches.
        bank: Patches ``(M, D)`` less ``centre``: distances come from products, which lose less
            near the origin.
    """

    centre: Tensor
    bank: Tensor

    def __init__(
        self,
        backbone: Backbone,
        weights: Weights,
        neighbourhood: int,
        embedding: int = 0,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.features = PatchFeatures(
            load_backbone(backbone, weights, size), (1, 2), neighbourhood, pooled=embedding
        )
        self.register_buffer("centre", torch.zeros(self.features.channels))
        self.register_buffer("bank", torch.empty(0, self.features.channels))

    def fill(self, patches: Tensor) -> None:
        """Makes patches ``(M, D)`` the bank."""
        self.centre = patches.mean(0)
        self.bank = patches - self.centre

    def forward(self, images: Tensor) -> Tensor:
        """Returns float32 patches ``(B, h, w, D)`` of normalised images ``(B, 3, S, S)``."""
        features: Tensor = self.features(images)
        return features.permute(0, 2, 3, 1).contiguous()

    def nearest(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Returns distances ``(3, P)`` to, and indices ``(P,)`` of, the nearest in the bank.

        The first is the distance, the others are what each layer has of it: their squares sum up
        to its square.

        Args:
            patches: Patches ``(P, D)`` less ``centre``.
        """
        half_norms = self.bank.square().sum(1).div_(2)
        rows = max(1, _BLOCK // len(self.bank))
        # The norm of the patch itself does not decide which is nearest. Not argmin, which takes
        # twice the time of min on a CPU.
        indices = torch.cat(
            [
                torch.addmm(half_norms, block, self.bank.T, alpha=-1).min(1).indices
                for block in split_rows(patches, rows)
            ]
        )
        # Taken again from the difference, the distance has no error of cancellation.
        away = patches - self.bank[indices]
        layers = [torch.linalg.vector_norm(part, dim=1) for part in self.features.split(away)]
        return torch.stack([torch.linalg.vector_norm(away, dim=1), *layers]), indices

    def weight(self, patches: Tensor, distances: Tensor, indices: Tensor, n: int) -> Tensor:
        """Returns the weights ``(B,)`` of eq. 7 for the farthest patch of each image.

        It is near 1 if, among the neighbours of the patch's nearest neighbour, most are much
        farther from the patch than that one; else smaller, down to ``1 - 1 / n``.

        Args:
            patches: Patches ``(B, D)`` less ``centre``.
            distances: Distances ``(B,)`` to their nearest neighbours in the bank.
            indices: Indices ``(B,)`` of those neighbours.
            n: Number of neighbours in the bank, the nearest itself included; 1 gives weight 1.
        """
        n = min(n, len(self.bank))
        if n == 1:
            return torch.ones_like(distances)
        nearest = self.bank[indices]
        half_norms = self.bank.square().sum(1).div_(2)
        mutual = torch.addmm(half_norms, nearest, self.bank.T, alpha=-1)
        # The first of its neighbours is the patch itself, or one that is equal to it.
        others = mutual.topk(n, dim=1, largest=False).indices[:, 1:]
        far = torch.linalg.vector_norm(patches[:, None] - self.bank[others], dim=2)
        return 1 - torch.cat([distances[:, None], far], dim=1).softmax(1)[:, 0]


class PatchCore(OnePassDetector[PatchCoreHyperparameters]):
    """The detector of one category; see `Detector` for the arguments."""

    network: MemoryBank

    @classmethod
    def check_input_size(cls, hyperparameters: PatchCoreHyperparameters, image_size: int) -> None:
        """Makes sure that there is a middle to see; see `Detector.check_input_size`."""
        side, crop = hyperparameters.input_size(image_size), hyperparameters.crop
        if crop is not None and crop > side:
            raise MethodError(
                f"crop {crop} of images of {side} pixels: set resolution to {crop} or more, or a "
                "smaller crop"
            )
        super().check_input_size(hyperparameters, image_size)

    @classmethod
    def seen(cls, hyperparameters: PatchCoreHyperparameters, image_size: int) -> int:
        """Returns the side of the middle that the encoder sees; see `OnePassDetector.seen`."""
        return hyperparameters.crop or super().seen(hyperparameters, image_size)

    def build(self) -> MemoryBank:
        """Returns encoder and empty bank; see `Detector.build`."""
        hp = self.hyperparameters
        size = self.seen(hp, self.image_size)
        return MemoryBank(hp.backbone, hp.weights, hp.neighbourhood, hp.embedding, size)

    def inputs(self, images: Tensor) -> Tensor:
        """Returns the middle of images as the encoder sees it; see `OnePassDetector.inputs`."""
        seen = self.seen(self.hyperparameters, self.image_size)
        before = (self.input_size - seen) // 2
        return super().inputs(images[..., before : before + seen, before : before + seen])

    def learn(self, images: Tensor) -> Report:
        """Fills the bank; see `OnePassDetector.learn`."""
        hp = self.hyperparameters
        builder: CoresetBuilder | None = None
        for batch in self._batches(images):
            patches = self.network(batch)
            if builder is None:
                n_patches = len(images) * patches.shape[1] * patches.shape[2]
                most = hp.max_bank or n_patches
                builder = CoresetBuilder(
                    min(max(1, round(hp.coreset_ratio * n_patches)), most),
                    min(n_patches, _HELD * most),
                    hp.projected_channels,
                    self.generator,
                    start=_START if hp.coreset == "approximate" else 0,
                )
            builder.add(patches.flatten(0, 2))
        assert builder is not None
        bank, radius = builder.finish()
        self.network.fill(bank)
        return {"bank_size": float(len(bank)), "covering_radius": radius}

    @property
    def seen_size(self) -> int:
        """Side of the middle of a map that the encoder sees."""
        seen = self.seen(self.hyperparameters, self.image_size)
        return round(scaled(seen, self.image_size, self.input_size))

    def evidence(self, images: Tensor) -> Evidence:
        """Returns the distances of the patches to the bank; see `Detector.evidence`.

        The method's own score is the distance of the farthest patch (eq. 6), re-weighted (eq. 7).

        Raises:
            MethodError: If the bank is empty.
        """
        how, network = self.hyperparameters.scoring, self.network
        if len(network.bank) == 0:
            raise MethodError("the memory bank is empty: fit the detector first")
        patches = network(self.inputs(images)).sub_(network.centre)
        n_images, height, width, _ = patches.shape
        distances, indices = network.nearest(patches.flatten(0, 2))
        indices = indices.view(n_images, -1)
        farthest, place = distances[0].view(n_images, -1).max(1, keepdim=True)
        everywhere = place[:, :, None].expand(-1, -1, patches.shape[-1])
        weight = network.weight(
            patches.flatten(1, 2).gather(1, everywhere).squeeze(1),
            farthest.squeeze(1),
            indices.gather(1, place).squeeze(1),
            how.n_neighbours,
        )
        if how.squared:
            distances, farthest = distances.square(), farthest.square()
        maps = distances.view(-1, n_images, height, width)
        return Evidence(tuple(maps), weight * farthest.squeeze(1))
