"""What every detector is: hyperparameters that carry their search ranges, and a network to fit.

This module knows nothing of Ray, Optuna or datasets: images arrive as tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar, get_args

import torch
from torch import Tensor, nn

from anomtune.errors import MethodError
from anomtune.models.hyperparameters import Hyperparameters
from anomtune.models.layers.maps import image_scores
from anomtune.models.layers.precision import full_precision
from anomtune.models.training.report import Report
from anomtune.models.training.state import part_of, prefixed, seeded, self_contained

H = TypeVar("H", bound=Hyperparameters)


class Detector(ABC, Generic[H]):
    """A detector of one method for one category.

    Images are ``uint8`` tensors of shape ``(N, 3, I, I)``, RGB, in any memory format (usually a
    channels-last view of a memory-mapped array: never write to them). ``I`` is what the
    hyperparameters ask for (`Hyperparameters.input_size`), by default ``image_size``; maps are
    ``S x S`` with ``S = image_size`` whatever ``I`` is.

    A subclass names its hyperparameters in brackets, ``class Mine(Detector[MineHyperparameters])``,
    and writes `build`, `fit` and `maps`; one that is trained by gradient descent derives from
    `anomtune.models.training.gradient_detector.GradientDetector` and gives its loss instead of
    `fit`. With the same seed, images and number of threads it trains to the same bits on a CPU.

    Args:
        hyperparameters: An instance of the class's own ``Hyperparameters``.
        image_size: Side ``S`` of the square maps in pixels.
        device: Where the network lives.
        seed: Seed of initialisation and of all that training draws.

    Raises:
        MethodError: If the size of the images does not suit the method, or weights cannot be had.
    """

    #: The class in brackets: set by itself.
    Hyperparameters: ClassVar[type[Hyperparameters]]
    #: What `build` returns, on its device and with channels last in memory.
    network: nn.Module

    #: The side ``I`` of the images must be a multiple of this, and at least ``smallest_input``.
    multiple_of: ClassVar[int] = 1
    smallest_input: ClassVar[int] = 1

    #: Attributes beside network, generator and iteration that are part of the state: modules, and
    #: tensors or ``None``.
    extra_state: ClassVar[tuple[str, ...]] = ()
    #: Beginnings of the names in `state_dict` that training needs and prediction does not.
    training_state: ClassVar[tuple[str, ...]] = ("generator",)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "Hyperparameters" not in cls.__dict__:
            for base in cls.__dict__.get("__orig_bases__", ()):
                for argument in get_args(base):
                    if isinstance(argument, type) and issubclass(argument, Hyperparameters):
                        cls.Hyperparameters = argument

    def __init__(
        self,
        hyperparameters: H,
        *,
        image_size: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.hyperparameters = hyperparameters
        self.image_size = image_size
        self.input_size: int = hyperparameters.input_size(image_size)
        self._check_input_size()
        self.device = torch.device(device)
        self.seed = seed
        #: Iterations done so far.
        self.iteration = 0
        #: Where training draws from: on the CPU, so that a state fits every device.
        self.generator = torch.Generator().manual_seed(seed)
        #: Images of other things, uint8 ``(M, 3, I, I)``, if the hyperparameters ask for any and
        #: there are some. Given before the first `fit`, and the same ones after a load.
        self.foreign: Tensor | None = None
        #: Which training image comes first by file name; training images are not in that order.
        #: Given before the first `fit`.
        self.first_image = 0
        with seeded(seed):
            network = self.build()
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        self.set_up()

    def set_up(self) -> None:
        """Called when the network is there: the place for what a method keeps beside it."""

    def _check_input_size(self) -> None:
        side, step = self.input_size, self.multiple_of
        if side < self.smallest_input or side % step:
            nearest = max(self.smallest_input, round(side / step) * step)
            others = "more" if step == 1 else f"another multiple of {step}"
            raise MethodError(
                f"images of {side} x {side} pixels do not suit the network: "
                f"use {nearest} or {others}"
            )

    @classmethod
    def prepare(cls, hyperparameters: H) -> None:
        """Makes sure that whatever the method needs from outside (weights) can be had.

        Raises:
            MethodError: If not; the message says which file to put where.
        """

    @abstractmethod
    def build(self) -> nn.Module:
        """Returns the new network. PyTorch's own random numbers follow the detector's seed here."""

    @abstractmethod
    def fit(self, images: Tensor, iterations: int) -> Report:
        """Trains for some more iterations; calling it again continues where it stopped.

        Two calls of ``n`` iterations give the same network as one call of ``2 n``. A method that
        learns in one pass has one iteration. ``iteration`` counts them.

        Args:
            images: All training images of the category.
            iterations: Optimiser steps to do now.

        Returns:
            Figures for monitoring. ``loss``, the mean over these iterations, is there unless the
            method has none.

        Raises:
            MethodError: If there are no images, or they have a wrong size.
            TrainingDivergedError: If the loss is not finite.
        """

    @abstractmethod
    def maps(self, images: Tensor) -> Tensor:
        """Returns the maps of `predict`; images are checked, and the network is in eval mode."""

    def maps_and_scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `predict` does; images are checked, and the network is in eval mode.

        For methods whose scores are not drawn from their maps.
        """
        maps = self.maps(images)
        return maps, self.image_scores(maps)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns maps ``(N, S, S)`` and scores ``(N,)`` of one batch, higher = more anomalous.

        Both are float32, and computed in float32 on every device: scores in bfloat16 move the
        AUROC by up to 1.7 points.

        Raises:
            MethodError: If the images have a wrong size, or nothing has been learnt.
        """
        self.check_images(images)
        self.network.eval()
        with full_precision(self.device):
            return self.maps_and_scores(images)

    def anomaly_maps(self, images: Tensor) -> Tensor:
        """Returns the maps alone; see `predict`."""
        return self.predict(images)[0]

    @property
    def score_rule(self) -> str:
        """How an image's score is drawn from its map: ``max``, ``mean``, ``sum`` or ``top1``.

        For the leaderboard. A method with another rule names it and overrides `image_scores`, or
        `maps_and_scores` if its scores are not drawn from its maps.
        """
        return "max"

    def image_scores(self, maps: Tensor) -> Tensor:
        """Returns float32 scores ``(N,)`` of maps ``(N, S, S)``; `predict` knows better."""
        return image_scores(maps, self.score_rule)

    def score(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Returns the scores ``(N,)`` (float32, CPU) of any number of images, batch by batch."""
        scores = [
            self.predict(batch.to(self.device))[1] for batch in torch.split(images, batch_size)
        ]
        # One copy at the end: each makes the CPU wait for the GPU.
        return torch.cat(scores).float().cpu()

    def check_images(self, images: Tensor) -> None:
        """Makes sure that images have the size that the method asked for.

        Raises:
            MethodError: If they have another one.
        """
        side = self.input_size
        if images.shape[1:] != (3, side, side):
            raise MethodError(
                f"the images have shape {tuple(images.shape)}: give the detector images of "
                f"shape (N, 3, {side}, {side})"
            )

    def check_training_images(self, images: Tensor) -> None:
        """Makes sure that there are images to `fit`, and that they have the right size.

        Raises:
            MethodError: If not.
        """
        if len(images) == 0:
            raise MethodError("there is no training image")
        self.check_images(images)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns everything needed to predict and to go on training, as a flat dict of tensors.

        Optimiser state, iteration and random state included, so that it fits in a safetensors
        file and a detector that loads it goes on bit for bit.
        """
        state = prefixed("network.", self.network.state_dict())
        for name in self.extra_state:
            value = getattr(self, name)
            if isinstance(value, nn.Module):
                state |= prefixed(f"{name}.", value.state_dict())
            elif value is not None:
                state[name] = value
        state["generator"] = self.generator.get_state()
        state["iteration"] = torch.tensor(self.iteration)
        return self_contained(state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the state of a detector with the same hyperparameters and image size."""
        self.network.load_state_dict(part_of(state, "network."))
        for name in self.extra_state:
            value = getattr(self, name)
            if isinstance(value, nn.Module):
                value.load_state_dict(part_of(state, f"{name}."))
            else:
                device = self.device if value is None else value.device
                loaded = state.get(name)
                setattr(self, name, None if loaded is None else loaded.to(device, copy=True))
        self.generator.set_state(state["generator"].cpu())
        self.iteration = int(state["iteration"])

    def inference_state(self) -> dict[str, Tensor]:
        """Returns the part of `state_dict` that prediction needs."""
        state = self.state_dict()
        return {k: value for k, value in state.items() if not k.startswith(self.training_state)}

    def load_inference_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over an `inference_state`: maps and scores become the same, training does not.

        Raises:
            MethodError: If the state is not one of a detector like this.
        """
        whole = self.state_dict()
        missing = [k for k in whole if not k.startswith(self.training_state) and k not in state]
        if missing:  # else they would silently stay as they were initialised
            raise MethodError(f"the state has no {missing[0]} (and lacks {len(missing)} in all)")
        try:
            self.load_state_dict(whole | dict(state))
        except (RuntimeError, KeyError, ValueError, IndexError) as error:
            raise MethodError(f"the state does not fit: {' '.join(str(error).split())}") from error
