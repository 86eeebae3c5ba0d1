"""What the detectors share that look at the training images once and use no gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, TypeVar, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from anomtune.errors import MethodError
from anomtune.models.base import Detector, Report
from anomtune.models.hyperparameters import Choice, Hyperparameters
from anomtune.models.layers.backbones import Backbone, Weights, prepare_weights
from anomtune.models.layers.maps import gaussian_smooth
from anomtune.models.training.trainer import normalise

#: Training images that go through the encoder at a time.
_BATCH = 16


class OnePassHyperparameters(Hyperparameters):
    """What can be set of every method of the kind."""

    backbone: Annotated[Backbone, Choice(choices=get_args(Backbone))] = Field(
        default="wide_resnet50_2",
        description="The frozen encoder. Source: both papers (PaDiM: ResNet-18 as well); "
        "the other ones are ours, as for the other methods.",
    )
    weights: Weights = Field(
        default="imagenet", description="Weights of the encoder. Source: both papers."
    )
    sigma: Annotated[float, Choice(choices=(0.0, 2.0, 4.0, 6.0, 8.0))] = Field(
        default=4.0,
        ge=0,
        description="Gaussian smoothing of the maps in pixels. Source: both papers; range "
        "inferred.",
    )

    def training_iterations(self, n_images: int) -> int:
        """Returns 1: the only iteration is the pass over all training images."""
        return 1


H = TypeVar("H", bound=OnePassHyperparameters)


class OnePassDetector(Detector[H]):
    """A frozen encoder, and statistics of its features as buffers of ``network``.

    The first iteration is the pass over all images. Further ones change nothing, as they would
    see the same images.

    A subclass builds its network in `_build`, fills its buffers in `_learn` and makes maps.
    See `Detector` for the arguments.

    Raises:
        MethodError: If the image size does not suit the encoder, or weights cannot be had.
    """

    training_state = ("generator",)

    def __init__(
        self,
        hyperparameters: H,
        *,
        image_size: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(hyperparameters, image_size=image_size, device=device, seed=seed)
        if image_size < 32:
            raise MethodError(
                f"image_size {image_size} leaves the encoder no grid of positions: use 32 or more"
            )
        self._generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            # Random weights. Not torch.manual_seed, which would seed the GPUs as well.
            torch.default_generator.manual_seed(seed)
            network = self._build()
        network.requires_grad_(False).eval().to(self.device)
        self.network = network.to(memory_format=torch.channels_last)

    @abstractmethod
    def _build(self) -> nn.Module:
        """Returns the network, under the detector's seed."""

    @abstractmethod
    def _learn(self, images: Tensor) -> Report:
        """Fills the network's buffers from all training images; returns figures about them."""

    @classmethod
    def prepare(cls, hyperparameters: H) -> None:
        """Makes sure that the encoder's weights can be had; see `Detector.prepare`."""
        prepare_weights(hyperparameters.backbone, hyperparameters.weights)

    @property
    def score_rule(self) -> str:
        """``max``."""
        return "max"

    # Not inference mode: its tensors could not be overwritten when a state is loaded.
    @torch.no_grad()
    def fit(self, images: Tensor, iterations: int) -> Report:
        """Passes over the images once; see `Detector.fit`.

        Returns:
            Figures of the pass, if there was none before.

        Raises:
            MethodError: If there are no images, or the statistics would be too large.
        """
        if len(images) == 0:
            raise MethodError("there is no training image")
        report = self._learn(images) if self.iteration == 0 and iterations > 0 else {}
        self.iteration += iterations
        return report

    def _batches(self, images: Tensor) -> Iterator[Tensor]:
        """Yields all images, normalised, batch by batch."""
        for batch in torch.split(images, _BATCH):
            yield normalise(batch, self.device)

    def _upsample(self, distances: Tensor) -> Tensor:
        """Returns smooth maps ``(B, S, S)`` of distances ``(B, h, w)`` of positions."""
        # Both official and common code: bilinear between pixel centres, then the Gaussian.
        size = (self.image_size, self.image_size)
        maps = F.interpolate(distances.unsqueeze(1), size, mode="bilinear")
        return gaussian_smooth(maps.squeeze(1), self.hyperparameters.sigma)

    def image_scores(self, maps: Tensor) -> Tensor:
        """Returns the maximum of each map; see `Detector.image_scores`."""
        return maps.flatten(1).amax(1)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns network with its statistics, random state and iteration; see `Detector`."""
        state = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        state["generator"] = self._generator.get_state()
        state["iteration"] = torch.tensor(self.iteration)
        return {
            key: value.detach().clone(memory_format=torch.contiguous_format)
            for key, value in state.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state; see `Detector.load_state_dict`."""
        network = {
            key.removeprefix("network."): value
            for key, value in state.items()
            if key.startswith("network.")
        }
        for name, buffer in list(self.network.named_buffers()):
            # Statistics have a size once they are learnt, and another one before.
            if name in network and buffer.shape != network[name].shape:
                owner, _, attribute = name.rpartition(".")
                empty = buffer.new_empty(network[name].shape)
                setattr(self.network.get_submodule(owner), attribute, empty)
        self.network.load_state_dict(network)
        self._generator.set_state(state["generator"].cpu())
        self.iteration = int(state["iteration"])
