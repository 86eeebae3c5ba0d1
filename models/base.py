"""What every detector is: hyperparameters that carry their search ranges, and a network to fit.

This module knows nothing of Ray, Optuna or datasets: images arrive as tensors. It is longer than
most, as it says in words what each method promises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar, get_args

import torch
from torch import Tensor, nn

from anomtune.errors import MethodError
from anomtune.models.hyperparameters import Hyperparameters
from anomtune.models.images.pixels import normalise
from anomtune.models.layers.evidence import Evidence, combined, image_scores
from anomtune.models.layers.maps import gaussian_smooth, resized, scaled, surround
from anomtune.models.layers.precision import full_precision
from anomtune.models.scoring import Scoring
from anomtune.models.training.report import Report
from anomtune.models.training.state import part_of, prefixed, seeded, self_contained

if TYPE_CHECKING:
    from anomtune.models.layers.backbones import AnyEncoder

H = TypeVar("H", bound=Hyperparameters)

#: So many training images show what is normal at each place.
_NORMAL = 32


class Detector(ABC, Generic[H]):
    """A detector of one method for one category.

    Images are ``uint8`` tensors of shape ``(N, 3, I, I)``, RGB, in any memory format (usually a
    channels-last view of a memory-mapped array: never write to them). ``I`` is what the
    hyperparameters ask for (`Hyperparameters.input_size`), by default ``image_size``; maps are
    ``S x S`` with ``S = image_size`` whatever ``I`` is.

    A subclass names its hyperparameters in brackets, ``class Mine(Detector[MineHyperparameters])``,
    and writes `build`, `fit` and `evidence`; one that is trained by gradient descent derives from
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
    #: How the maps of the evidence are brought to one size: corner pixels on each other, or not.
    align_corners: ClassVar[bool] = False
    #: Whether they are antialiased where they become smaller.
    antialias: ClassVar[bool] = False

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
        self.check_input_size(hyperparameters, image_size)
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
        #: Mean and deviation ``(2, h, h)`` of each map of the evidence over normal images, for
        #: scorings that are normalised; none before `learn_normal`.
        self.normal: tuple[Tensor, ...] = ()
        with seeded(seed):
            network = self.build()
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        self.set_up()

    def set_up(self) -> None:
        """Called when the network is there: the place for what a method keeps beside it."""

    @classmethod
    def check_input_size(cls, hyperparameters: H, image_size: int) -> None:
        """Makes sure that the network can see images of the size that hyperparameters ask for.

        Args:
            hyperparameters: Of the method.
            image_size: Side of the maps in pixels.

        Raises:
            MethodError: If it cannot.
        """
        side, step = hyperparameters.input_size(image_size), cls.multiple_of
        if side < cls.smallest_input or side % step:
            nearest = max(cls.smallest_input, round(side / step) * step)
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
    def evidence(self, images: Tensor) -> Evidence:
        """Returns what the network says of images, before anything is summed or smoothed.

        Images are checked, the network is in eval mode, and nothing is recorded for gradients.

        Returns:
            A map for each name in ``Hyperparameters.scales``, and scores if the method draws them
            from something else.
        """

    def own_maps(self, maps: Mapping[str, Tensor], scoring: Scoring, size: int) -> Tensor:
        """Returns maps ``(N, size, size)`` where the scoring's ``sigma`` is ``own``.

        For methods that do not smooth by a Gaussian; their `Scoring` names ``sigma`` in ``own``.

        Args:
            maps: Those of the evidence that the scoring chooses, by name.
            scoring: How they become one.
            size: Side of the maps.
        """
        raise MethodError("sigma: this method has no smoothing of its own; use a number")

    def frozen_encoders(self) -> Sequence[AnyEncoder]:
        """Returns encoders that never learn and see all images as `inputs` gives them.

        What they say of the images of a search is then computed once (`KnownFeatures`). None here.
        """
        return ()

    def inputs(self, images: Tensor) -> Tensor:
        """Returns uint8 images ``(B, 3, I, I)`` as the network sees them, float32 on its device."""
        return normalise(images, self.device)

    def learn_normal(self, images: Tensor) -> None:
        """Measures the evidence of normal images at each place, as the network is now.

        To be called after `fit` for a scoring whose ``normalise`` is ``position``.

        Args:
            images: The training images, of which a few are looked at.
        """
        chosen = torch.linspace(0, len(images) - 1, min(len(images), _NORMAL)).long()
        found = Evidence.joined(
            [
                self.observe(images[rows.to(images.device)].to(self.device))
                for rows in torch.split(chosen, _NORMAL // 2)
            ]
        )
        self.normal = tuple(
            torch.stack([maps.mean(0), maps.std(0, correction=0)]) for maps in found.maps
        )

    @property
    def scoring(self) -> Scoring:
        """How evidence becomes maps and scores; may be set to another at any time."""
        return self.hyperparameters.scoring

    @scoring.setter
    def scoring(self, scoring: Scoring) -> None:
        self.hyperparameters = self.hyperparameters.scored(scoring)

    @property
    def seen_size(self) -> int:
        """Side of the part of a map, its middle, that the network sees."""
        return self.image_size

    @torch.inference_mode()
    def observe(self, images: Tensor) -> Evidence:
        """Returns the evidence of one batch, computed in float32 on every device.

        In bfloat16 it would move the AUROC by up to 1.7 points.

        Raises:
            MethodError: If the images have a wrong size, or nothing has been learnt.
        """
        self.check_images(images)
        self.network.eval()
        with full_precision(self.device):
            return self.evidence(images)

    @torch.inference_mode()
    def judge(
        self, evidence: Evidence, scoring: Scoring, size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns maps and scores as a scoring draws them from evidence.

        Args:
            evidence: Of N images.
            scoring: Any; what it says of the forward pass has happened.
            size: Side of the maps; default: ``image_size``. Smaller ones take less time.

        Returns:
            Float32 maps ``(N, size, size)`` and scores ``(N,)``.
        """
        with full_precision(self.device):
            size = size or self.image_size
            maps = self.maps_of(evidence, scoring, size)
            if scoring.reduce == "own":
                if evidence.scores is None:
                    raise MethodError("reduce: this method has no score of its own; use max")
                scores = evidence.scores
            else:
                scores = image_scores(maps, scoring)
            return surround(maps, size), scores

    def maps_of(self, evidence: Evidence, scoring: Scoring, size: int) -> Tensor:
        """Returns the maps of `judge` where the network sees something, their middle."""
        maps = evidence.maps
        if scoring.normalise == "position":
            maps = self._normalised(maps)
        chosen = {
            name: of_scale
            for name, of_scale in zip(self.hyperparameters.scales, maps, strict=True)
            if scoring.scales is None or name in scoring.scales
        }
        seen = round(scaled(self.seen_size, size, self.image_size))
        if scoring.sigma == "own":
            return self.own_maps(chosen, scoring, seen)
        one = combined([self.resized(maps, seen) for maps in chosen.values()], scoring.combine)
        return gaussian_smooth(one, scaled(scoring.sigma, size))

    def _normalised(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns maps in deviations from the normal ones; where these are rare, less of them."""
        if not self.normal:
            raise MethodError("scoring.normalise: call learn_normal after fit")
        return tuple(
            (of_scale - mean) / (deviation + 0.1 * deviation.mean() + 1e-9)
            for of_scale, (mean, deviation) in zip(maps, self.normal, strict=True)
        )

    def resized(self, maps: Tensor, size: int) -> Tensor:
        """Returns a map of the evidence ``(N, h, w)`` at another size, ``(N, size, size)``."""
        shrinks = size < maps.shape[-1]
        return resized(
            maps,
            size,
            align_corners=self.align_corners,
            # Maps that are smaller than asked for must still be like those.
            antialias=shrinks and (self.antialias or size < self.seen_size),
        )

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns maps ``(N, S, S)`` and scores ``(N,)`` of one batch, higher = more anomalous.

        Both are float32; see `observe`.

        Raises:
            MethodError: If the images have a wrong size, or nothing has been learnt.
        """
        return self.judge(self.observe(images), self.scoring)

    def anomaly_maps(self, images: Tensor) -> Tensor:
        """Returns the maps alone; see `predict`."""
        return self.predict(images)[0]

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
        state |= {f"normal.{index}": value for index, value in enumerate(self.normal)}
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
        normal = part_of(state, "normal.")
        self.normal = tuple(
            normal[str(index)].to(self.device, copy=True) for index in range(len(normal))
        )
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
