"""PatchCore: towards total recall in industrial anomaly detection (Roth et al., CVPR 2022).

A memory bank keeps features of patches of the normal images, thinned by greedy coreset selection;
a patch is as anomalous as it is far from its nearest neighbour in the bank. Defaults are those of
the paper and of the official code's main setting (a bank of 10 %), with the features concatenated
as the paper tells it and most implementations do it. The paper's re-weighting of the image score
is done. The preset ``official`` is the official code in all that it does otherwise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from anomtune.models.layers.frozen import digests_of
from anomtune.models.layers.maps import scaled
from anomtune.models.layers.nested import nearest_changes, nearest_in
from anomtune.models.layers.patch_features import PatchFeatures
from anomtune.models.ranges import Choice, FloatRange
from anomtune.models.scoring import Scoring
from anomtune.models.training.one_pass import OnePassDetector, OnePassHyperparameters
from anomtune.models.training.report import Report

#: Numbers in one block of the distances of patches to the bank: 4 MB, which a CPU's caches hold.
_BLOCK = 1 << 20
#: Patches that the approximate selection begins with (official code).
_START = 10
#: Patches held while the bank is built, for each that it may hold; more if their numbers are fewer
#: than these, 600 MB.
_HELD, _HELD_NUMBERS = 4, 150_000_000
#: A bank that others share is this many times a smaller one, so that few are made.
_STEP = 4


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
        "many are held, or 600 MB if that is more; beyond, coresets of parts of the images are "
        "merged. "
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

    def nearest(self, patches: Tensor) -> Tensor:
        """Returns indices ``(P,)`` of the nearest in the bank.

        Args:
            patches: Patches ``(P, D)`` less ``centre``.
        """
        half_norms = self.bank.square().sum(1).div_(2)
        rows = max(1, _BLOCK // len(self.bank))
        # The norm of the patch itself does not decide which is nearest.
        return torch.cat(
            [
                _smallest(torch.addmm(half_norms, block, self.bank.T, alpha=-1))
                for block in split_rows(patches, rows)
            ]
        )

    def distances(self, patches: Tensor, indices: Tensor) -> Tensor:
        """Returns distances ``(3, P)`` of patches to those of the bank.

        The first is the distance, the others are what each layer has of it: their squares sum up
        to its square.

        Args:
            patches: Patches ``(P, D)`` less ``centre``.
            indices: Indices ``(P,)`` in the bank.
        """
        # From the difference, so that there is no error of cancellation.
        away = patches - self.bank[indices]
        layers = [torch.linalg.vector_norm(part, dim=1) for part in self.features.split(away)]
        return torch.stack([torch.linalg.vector_norm(away, dim=1), *layers])

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


def _smallest(rows: Tensor) -> Tensor:
    """Returns where each row has its smallest number."""
    if rows.device.type == "cpu" and not torch.compiler.is_compiling():
        # A sixth of the time of torch's min, a tenth of that of its argmin (2.14).
        return torch.from_numpy(rows.numpy().argmin(1))
    return rows.min(1).indices


@dataclass(frozen=True)
class _Shared:
    """A bank of which that of the detector is the beginning.

    Attributes:
        name: What it depends on.
        patches: Its patches ``(M, D)`` in the order of picking, less ``centre``.
        centre: Their mean ``(D,)``.
    """

    name: tuple[object, ...]
    patches: Tensor
    centre: Tensor


class PatchCore(OnePassDetector[PatchCoreHyperparameters]):
    """The detector of one category; see `Detector` for the arguments."""

    network: MemoryBank
    _shared: _Shared | None = None

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
        first = self.network(self.inputs(images[:1]))
        n_patches = len(images) * first.shape[1] * first.shape[2]
        size = self._size(n_patches)
        # A selection of selections has lost its order, and one of all patches has none.
        ordered = size < n_patches <= self._capacity(n_patches, first.shape[3])
        name = self._shared_name(n_patches)
        if self.memo is not None and ordered and self.memo.wanted(name):
            bank, radius = self._begin_of_shared(images, n_patches, name)
        else:
            bank, radius = self._gathered(images, n_patches, size).finish()
        self.network.fill(bank)
        return {"bank_size": float(len(bank)), "covering_radius": radius}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state; see `Detector.load_state_dict`."""
        super().load_state_dict(state)
        self._shared = None

    def _size(self, n_patches: int, ratio: float | None = None) -> int:
        """Returns how many of the patches a bank keeps."""
        hp = self.hyperparameters
        size = max(1, round((ratio or hp.coreset_ratio) * n_patches))
        return min(size, hp.max_bank or n_patches)

    def _capacity(self, n_patches: int, channels: int) -> int:
        """Returns how many patches are held at most while a bank is built."""
        most = _HELD * (self.hyperparameters.max_bank or n_patches)
        return min(n_patches, max(most, _HELD_NUMBERS // channels))

    def _gathered(self, images: Tensor, n_patches: int, size: int) -> CoresetBuilder:
        """Returns what selects so many of the patches of all images."""
        hp = self.hyperparameters
        builder = CoresetBuilder(
            size,
            self._capacity(n_patches, self.network.features.channels),
            hp.projected_channels,
            self.generator,
            start=_START if hp.coreset == "approximate" else 0,
        )
        for batch in self._batches(images):
            builder.add(self.network(batch).flatten(0, 2))
        return builder

    def _shared_name(self, n_patches: int) -> tuple[object, ...]:
        """Returns what the bank depends on that others share: its size first."""
        hp = self.hyperparameters
        ratio = _STEP ** math.ceil(math.log(hp.coreset_ratio, _STEP) - 1e-9)
        how = hp.coreset, hp.neighbourhood, hp.embedding, hp.projected_channels
        return self._size(n_patches, ratio), "coreset", self.seed, *how

    def _begin_of_shared(
        self, images: Tensor, n_patches: int, name: tuple[Any, ...]
    ) -> tuple[Tensor, float]:
        """Returns the first patches of a bank that others share, and their covering radius."""
        memo, size = self.memo, self._size(n_patches)
        assert memo is not None

        def select() -> Mapping[str, Tensor]:
            order, radii = self._gathered(images, n_patches, name[0]).order()
            return {"order": order, "radii": radii}

        kept = memo(name, select)
        order, radii = kept["order"], kept["radii"]
        patches = torch.empty(len(order), self.network.features.channels)
        start = 0
        for batch in self._batches(images):
            found = self.network(batch).flatten(0, 2)
            inside = (order >= start) & (order < start + len(found))
            patches[inside] = found[order[inside] - start]
            start += len(found)
        size = min(size, len(order))
        centre = patches.mean(0)
        self._shared = _Shared(name, patches - centre, centre)
        return patches[:size], float(radii[size - 1])

    def _nearest(self, images: Tensor, patches: Tensor) -> Tensor:
        """Returns which patches of the bank are nearest, ``(P,)``.

        Args:
            images: What the patches are of, uint8 ``(N, 3, I, I)``.
            patches: Patches ``(P, D)`` less the bank's centre.
        """
        network, shared, memo = self.network, self._shared, self.memo
        if shared is None or memo is None:
            self.spared = 0.0
            return network.nearest(patches)

        def compare() -> Mapping[str, Tensor]:
            moved = patches + (network.centre - shared.centre)
            begin = time.perf_counter()
            network.nearest(patches[: len(patches) // len(images)])
            seconds = (time.perf_counter() - begin) / len(network.bank)
            changes = nearest_changes(moved, shared.patches)
            return {"changes": changes, "seconds": torch.tensor(seconds)}

        kept = memo((*shared.name, [digest.hex() for digest in digests_of(images)]), compare)
        self.spared = float(kept["seconds"]) * len(network.bank)
        return nearest_in(kept["changes"], len(network.bank))

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
        indices = self._nearest(images, patches.flatten(0, 2))
        distances = network.distances(patches.flatten(0, 2), indices)
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
