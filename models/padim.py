"""PaDiM: a patch distribution modeling framework for anomaly detection (Defard et al., 2020).

Each position of the image has a Gaussian of the features that normal images show there; a patch is
as anomalous as its Mahalanobis distance is large. Features of three stages are concatenated, and
a random choice of their channels is kept, which is the paper's reduction of the rank. How that is
computed without bringing coarse features to the fine grid: `anomtune.models.layers.gaussians`.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from anomtune.errors import MethodError
from anomtune.models.layers.backbones import Backbone, Weights, load_backbone
from anomtune.models.layers.evidence import Evidence
from anomtune.models.layers.gaussians import Gaussians
from anomtune.models.layers.levels import Levels, levels_of
from anomtune.models.ranges import IntRange
from anomtune.models.training.moments import FewImages, ManyImages, n_numbers
from anomtune.models.training.one_pass import OnePassDetector, OnePassHyperparameters
from anomtune.models.training.report import Report

#: Most bytes of a model. The paper's largest (550 channels at 256 pixels) takes 2.1 GiB at most.
_LARGEST = 6 * 2**30
#: How many times larger the form of few images may be: it is learnt in a fraction of the time.
_WORTH = 2


class PaDiMHyperparameters(OnePassHyperparameters):
    """What can be set of `PaDiM`."""

    channels: Annotated[int, IntRange(low=50, high=550, log=True)] = Field(
        default=550,
        ge=1,
        description="Channels chosen at random from the three stages; all of them if there are "
        "fewer (wide_resnet50_2 1792, resnet18 448, mobilenet_v2 152). Source: paper (550 for "
        "wide_resnet50_2, 100 for resnet18); range inferred.",
    )


class PatchGaussians(nn.Module):
    """An encoder, a choice of its channels, and one Gaussian per position of its finest stage.

    Args:
        backbone: Name of the encoder.
        weights: Its weights.
        channels: Channels to choose, at most as many as there are.
        generator: Where the choice comes from.
        size: Side of the images that the encoder will see, in pixels.

    Attributes:
        drawn: Of which stage each of the chosen channels is, in the order in which they were drawn.
        gaussians: Those of the positions, with the chosen channels of each stage.
    """

    def __init__(
        self,
        backbone: Backbone,
        weights: Weights,
        channels: int,
        generator: torch.Generator,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = load_backbone(backbone, weights, size)
        bounds = torch.tensor(self.encoder.channels).cumsum(0)
        chosen = torch.randperm(int(bounds[-1]), generator=generator)[:channels]
        self.drawn = torch.bucketize(chosen, bounds, right=True)
        for stage, count in enumerate(self.encoder.channels):
            inside = chosen[self.drawn == stage].sort().values
            self.register_buffer(f"channels_{stage}", inside - (int(bounds[stage]) - count))
        self.gaussians = Gaussians(self.drawn.bincount(minlength=len(bounds)).tolist())

    def forward(self, images: Tensor) -> tuple[list[Tensor], Levels]:
        """Returns float32 features ``(B, cells, d_s)`` of normalised images by level, and levels.

        Each position of the finest stage takes the features of the coarser patches that it lies in.

        Args:
            images: ``(B, 3, S, S)``.
        """
        stages = self.encoder(images)
        grids = tuple((stage.shape[2], stage.shape[3]) for stage in stages)
        levels = levels_of(grids, images.device)
        features = []
        for number, (stage, own) in enumerate(zip(stages, levels.own, strict=True)):
            chosen = self.get_buffer(f"channels_{number}")
            # A view: encoders give channels last in memory.
            by_cell = stage.permute(0, 2, 3, 1).flatten(1, 2)
            if len(chosen) < stage.shape[1]:
                # In two dimensions, where it takes a fraction of the time on a CPU.
                flat = by_cell.flatten(0, 1).index_select(1, chosen)
                by_cell = flat.view(*by_cell.shape[:2], len(chosen))
            features.append(by_cell if own is None else by_cell[:, own])
        return features, levels

    def distances(self, images: Tensor) -> Tensor:
        """Returns Mahalanobis distances ``(B, h, w)`` of normalised images (eq. 2)."""
        features, levels = self(images)
        height, width = levels.grid
        by_position: Tensor = self.gaussians(features, levels)
        return by_position.T.reshape(-1, height, width)


class PaDiM(OnePassDetector[PaDiMHyperparameters]):
    """The detector of one category; see `Detector` for the arguments.

    Its model grows with the images until the form of many is half as large; see `Gaussians`.
    Fitting takes little more than the model; beyond 6 GiB it is refused.
    """

    network: PatchGaussians

    def build(self) -> PatchGaussians:
        """Returns encoder and empty statistics; see `Detector.build`."""
        hp = self.hyperparameters
        return PatchGaussians(hp.backbone, hp.weights, hp.channels, self.generator, self.input_size)

    def learn(self, images: Tensor) -> Report:
        """Fills the statistics; see `OnePassDetector.learn`."""
        network = self.network
        statistics: FewImages | ManyImages | None = None
        for batch in self._batches(images):
            features, levels = network(batch)
            if statistics is None:
                few, many = n_numbers(levels.counts, network.gaussians.channels, len(images))
                _check_size(network.drawn, levels, len(images))
                is_few = few <= _WORTH * many and 4 * few <= _LARGEST
                kind = FewImages if is_few else ManyImages
                statistics = kind(len(images), features, levels)
            statistics.add(features)
        assert statistics is not None
        return {"variance": statistics.finish(network.gaussians)}

    def evidence(self, images: Tensor) -> Evidence:
        """Returns the distances of the positions; see `Detector.evidence`.

        Raises:
            MethodError: If there are no Gaussians yet.
        """
        if len(self.network.gaussians.get_buffer("mean_0")) == 0:
            raise MethodError("there are no Gaussians yet: fit the detector first")
        return Evidence((self.network.distances(self.inputs(images)),))


def _check_size(drawn: Tensor, levels: Levels, n_images: int) -> None:
    """Raises a `MethodError` if the Gaussians would need too much memory.

    Args:
        drawn: Of which stage each channel is, in the order of choice: fewer are its beginning.
        levels: Of the stages.
        n_images: Number of training images.
    """

    def size(channels: int) -> int:
        of_stages = drawn[:channels].bincount(minlength=len(levels.counts)).tolist()
        return 4 * min(n_numbers(levels.counts, of_stages, n_images))

    channels = len(drawn)
    if size(channels) > _LARGEST:
        fitting = bisect_left(range(1, channels), True, key=lambda n: size(n) > _LARGEST)
        raise MethodError(
            f"Gaussians of {channels} channels at {levels.counts[0]} positions take "
            f"{size(channels) / 2**30:.1f} GiB: use channels {fitting} or fewer, or a smaller "
            "resolution"
        )
