"""Models of anomalib as detectors: built, trained in steps, judged and kept as any other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anomtune.errors import MethodError, TrainingDivergedError
from anomtune.models.base import Detector
from anomtune.models.foreign import special
from anomtune.models.foreign.borrowed import imported, quiet, random_numbers
from anomtune.models.foreign.loop import Batches, Loop
from anomtune.models.foreign.maps import evidence_of
from anomtune.models.foreign.signature import (
    ForeignHyperparameters,
    arguments_named,
)
from anomtune.models.foreign.table import Entry
from anomtune.models.foreign.weights import weights_from_files
from anomtune.models.layers import backbones
from anomtune.models.layers.evidence import Evidence, combined
from anomtune.models.scoring import Scoring
from anomtune.models.training.batches import BatchOrder
from anomtune.models.training.report import Report
from anomtune.models.training.state import part_of, prefixed, seeded, self_contained

#: Training images that models which learn in one pass are shown at a time.
_BATCH = 16
#: Losses are looked at this often: reading one makes the CPU wait for the GPU.
_CHECK_EVERY = 50


class AnomalibDetector(Detector[ForeignHyperparameters]):
    """A model of anomalib; see `Detector` for the arguments.

    Its constructor gives the hyperparameters, its own hooks the steps, and what it says of an image
    the evidence. Weights are float32 throughout, as in anomalib.
    """

    #: Of the model: its folder, its class, and what the table says of it.
    name: ClassVar[str]
    model: ClassVar[type]
    entry: ClassVar[Entry]
    one_pass: ClassVar[bool]

    training_state: ClassVar[tuple[str, ...]] = (
        *Detector.training_state,
        "n_images",
        "optimizer.",
        "order.",
        "kept.",
    )

    @classmethod
    def check_input_size(cls, hyperparameters: ForeignHyperparameters, image_size: int) -> None:
        """Makes sure that the model can see images of the size; see `Detector`."""
        side, step = hyperparameters.input_size(image_size), hyperparameters.side_step
        if side < cls.smallest_input or side % step:
            nearest = max(-(-cls.smallest_input // step) * step, round(side / step) * step)
            raise MethodError(
                f"images of {side} x {side} pixels do not suit the network: "
                f"use {nearest} or another multiple of {step}"
            )

    @classmethod
    def prepare(cls, hyperparameters: ForeignHyperparameters) -> None:
        """Makes sure that the weights of the model are on the machine; see `Detector.prepare`."""
        if getattr(hyperparameters, "weights", "random") == "pretrained":
            with seeded(0):
                model = _built(cls, hyperparameters, hyperparameters.input_size(256))
            if cls.name in special.FILES:
                special.FILES[cls.name](model)

    def build(self) -> nn.Module:
        """Returns the LightningModule, of which the model is a part; see `Detector.build`."""
        model: nn.Module = _built(type(self), self.hyperparameters, self.input_size)
        return model

    def set_up(self) -> None:
        """Takes down what is in training, and how training begins; see `Detector.set_up`."""
        # Models take views of their features, which lie as PyTorch lays them by default.
        self.network.to(memory_format=torch.contiguous_format)
        #: What the random part of the network that is no tensor follows from.
        self.build_seed = self.seed
        self._modes = [(module, module.training) for module in self.network.modules()]
        self._loop: Loop | None = None
        self._n_images = 0
        smallest = getattr(self.network, "smallest_batch", 2)
        self._order = BatchOrder(self._batch_size, self.seed, smallest=smallest)
        mean, deviation = _normalisation(self.model)
        self._mean = torch.tensor(mean, device=self.device).view(3, 1, 1)
        self._deviation = torch.tensor(deviation, device=self.device).view(3, 1, 1)

    @property
    def _batch_size(self) -> int:
        return getattr(self.hyperparameters, "batch_size", _BATCH)

    @property
    def _module(self) -> Any:
        return self.network

    def inputs(self, images: Tensor) -> Tensor:
        """Returns images as anomalib's pre-processor would; see `Detector.inputs`."""
        pixels = images.to(self.device).float().div_(255)
        return ((pixels - self._mean) / self._deviation).contiguous()

    def fit(self, images: Tensor, iterations: int) -> Report:
        """Trains for some more steps, or passes over the images once; see `Detector.fit`."""
        self.check_training_images(images)
        if self.iteration > 0 and self.one_pass:
            self.iteration += iterations
            return {}
        if iterations < 1:
            return {}
        batches = Batches(lambda rows: self.inputs(images[rows]), len(images), self._batch_size)
        loop = self._begin(len(images))
        loop.trainer.train_dataloader = batches
        for module, mode in self._modes:
            module.training = mode
        try:
            with quiet(), torch.enable_grad():
                report = (
                    self._pass(loop, batches, iterations)
                    if self.one_pass
                    else self._steps(loop, images, batches, iterations)
                )
        finally:
            loop.trainer.train_dataloader = [None] * len(batches)
        self._settle()
        return report

    def _pass(self, loop: Loop, batches: Batches, iterations: int) -> Report:
        """Shows the model all images, as often as it wants."""
        self._hook(special.STARTS, batches)
        passes = self._module.trainer_arguments.get("max_epochs") or 1
        with self._random(), torch.no_grad():
            for _ in range(passes):
                self._module.on_train_epoch_start()
                for number, batch in enumerate(batches):
                    arguments = (number,) if loop.takes_index else ()
                    self._module.training_step(batch, *arguments)
                self._module.on_train_epoch_end()
        self.iteration += iterations
        return {}

    def _steps(self, loop: Loop, images: Tensor, batches: Batches, iterations: int) -> Report:
        """Does optimiser steps; returns their mean loss.

        Raises:
            TrainingDivergedError: If a loss is not finite; at most 50 steps late.
        """
        self._hook(special.GOES_ON, batches)
        losses: list[Tensor] = []
        means: list[float] = []
        for _ in range(iterations):
            rows = self._order.draw(len(images), images.device)
            with self._random():
                if self.iteration == 0:
                    self._hook(special.STARTS, batches)
                losses.append(loop.step(self.inputs(images[rows]), self.iteration))
            self.iteration += 1
            if len(losses) == _CHECK_EVERY:
                means += self._finite(losses)
                losses.clear()
        means += self._finite(losses)
        with torch.no_grad(), self._random_of_nothing():
            if self.name in special.ENDS:
                special.ENDS[self.name](self._module, self.hyperparameters, batches)
        return {"loss": math.fsum(means) / len(means)}

    def _hook(self, hooks: Mapping[str, Any], batches: Batches) -> None:
        if self.name in hooks:
            hooks[self.name](self._module, self.hyperparameters, batches, self.foreign)

    def _random(self) -> Any:
        """Lets the model's random numbers follow the detector's."""
        drawn = torch.randint(2**31, (1,), generator=self.generator)
        return random_numbers(int(drawn), self.device)

    def _random_of_nothing(self) -> Any:
        """Keeps random numbers from the process that are of no consequence."""
        return random_numbers(0, self.device)

    def _finite(self, losses: Sequence[Tensor]) -> list[float]:
        values: list[float] = torch.stack(list(losses)).tolist() if losses else []
        for age, value in zip(range(len(values), 0, -1), values, strict=True):
            if not math.isfinite(value):
                raise TrainingDivergedError(
                    f"the loss is {value} at iteration {self.iteration - age}: "
                    "lower the learning rate"
                )
        return values

    def _begin(self, n_images: int) -> Loop:
        """Returns the loop for a number of training images, with optimisers and schedulers."""
        if self._loop is not None and self._n_images == n_images:
            return self._loop
        hp = self.hyperparameters
        steps = -(-n_images // self._batch_size)
        epochs = -(-hp.training_iterations(n_images) // steps)
        if arguments_named(self.model, ("epochs",)):
            self._module.epochs = epochs  # GeneralAD's scheduler goes by it
        before = None if self._loop is None else self._loop.state_dict()
        loop = Loop(
            self._module,
            epochs=epochs,
            steps_per_epoch=steps,
            batch_size=self._batch_size,
            factor=getattr(hp, "lr_factor", 1.0),
        )
        loop.catch_up(self.iteration)
        if before is not None:
            loop.load_state_dict(before)
        self._loop, self._n_images = loop, n_images
        return loop

    def _settle(self) -> None:
        """Lays what was learnt as a file will give it back, down to the last bit of a product."""
        for name, buffer in list(self.network.named_buffers()):
            if not buffer.is_contiguous() or buffer.requires_grad:
                self._set_buffer(name, buffer.detach().contiguous())

    def _set_buffer(self, name: str, value: Tensor) -> None:
        owner, _, attribute = name.rpartition(".")
        setattr(self.network.get_submodule(owner), attribute, value)

    def evidence(self, images: Tensor) -> Evidence:
        """Returns what the model says of images; see `Detector.evidence`.

        Raises:
            MethodError: If a model that learns in one pass has not.
        """
        if self.one_pass and self.iteration == 0:
            raise MethodError("nothing is learnt yet: fit the detector first")
        n_scales = len(self.hyperparameters.scales)
        with quiet(), self._random_of_nothing():
            return evidence_of(self._module, self.name, self.entry, self.inputs(images), n_scales)

    def own_maps(self, maps: Mapping[str, Tensor], scoring: Scoring, size: int) -> Tensor:
        """Returns maps smoothed as the model does it; see `Detector.own_maps`."""
        smoothing = self.entry.smoothing
        assert smoothing is not None
        seen = self.input_size
        one = combined([self.resized(each, seen) for each in maps.values()], scoring.combine)
        kind = imported("anomalib.models.components").GaussianBlur2d
        blur = kind(sigma=smoothing.sigma, kernel_size=smoothing.kernel).to(one.device)
        smooth: Tensor = blur(one[:, None])[:, 0]
        return smooth if size == seen else self.resized(smooth, size)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the state, optimisers and order of the batches included; see `Detector`."""
        state = super().state_dict()
        own = {
            "build_seed": torch.tensor(self.build_seed),
            "n_images": torch.tensor(self._n_images),
            **prefixed("order.", self._order.state_dict()),
        }
        if self._loop is not None:
            own |= prefixed("optimizer.", self._loop.state_dict())
        for path in self.entry.kept:
            owner, _, attribute = path.rpartition(".")
            value = getattr(attrgetter(owner)(self.network), attribute, None)
            if isinstance(value, Tensor):
                own[f"kept.{path}"] = value
        return state | self_contained(own)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state; see `Detector.load_state_dict`."""
        seed = int(state["build_seed"])
        if seed != self.build_seed:
            # Some of what is drawn when a model is built is no tensor, and in no state.
            with seeded(seed), backbones.weights_come_later():
                self.network = self.build().to(self.device)
            self.set_up()
            self.build_seed = seed
        for name, buffer in list(self.network.named_buffers()):
            # Statistics have a size once they are learnt, and another one before.
            learnt = state.get(f"network.{name}")
            if learnt is not None and (buffer.shape, buffer.dtype) != (learnt.shape, learnt.dtype):
                self._set_buffer(name, torch.empty_like(learnt, device=self.device))
        super().load_state_dict(state)
        self._order.load_state_dict(part_of(state, "order."))
        for path, value in part_of(state, "kept.").items():
            owner, _, attribute = path.rpartition(".")
            setattr(attrgetter(owner)(self.network), attribute, value.to(self.device, copy=True))
        self._loop = None
        if int(state["n_images"]) > 0:
            self._begin(int(state["n_images"])).load_state_dict(part_of(state, "optimizer."))


def _built(kind: type[AnomalibDetector], hyperparameters: ForeignHyperparameters, side: int) -> Any:
    """Returns a new LightningModule.

    Raises:
        MethodError: If it cannot be built so, or its weights cannot be had.
    """
    later = backbones.building_for_weights()
    pretrained = getattr(hyperparameters, "weights", "random") == "pretrained"
    arguments = hyperparameters.constructor_arguments()
    if "batch_size" in arguments_named(kind.model, ("batch_size",)):
        arguments["batch_size"] = getattr(hyperparameters, "batch_size", _BATCH)
    if kind.name in special.ARGUMENTS:
        arguments = special.ARGUMENTS[kind.name](arguments, side)
    around: dict[str, Any] = {"pre_processor": _pre_processor(kind.model, side)}
    around |= dict.fromkeys(("post_processor", "evaluator", "visualizer"), False)
    try:
        with quiet(), weights_from_files(pretrained=pretrained and not later):
            model: Any = kind.model(**arguments, **around)
            model.seen_size = side
            if kind.name in special.BUILT:
                special.BUILT[kind.name](model, hyperparameters, side)
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, MethodError | torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MethodError(f"anomalib cannot build it so: {reason}") from error
    return model


def _pre_processor(model: Any, side: int) -> Any:
    """Returns a pre-processor that says how large the images are; it is never called."""
    transforms = imported("torchvision.transforms.v2")
    resize = transforms.Resize((side, side), antialias=True)
    kind = imported("anomalib.pre_processing").PreProcessor
    return kind(transform=transforms.Compose([resize, *_normalisers(model)]))


def _normalisers(model: Any) -> list[Any]:
    """Returns the normalisation of the model's own pre-processor, none if it has none."""
    transforms = imported("torchvision.transforms.v2")
    own = model.configure_pre_processor()
    parts = own.transform.transforms if hasattr(own.transform, "transforms") else [own.transform]
    return [part for part in parts if isinstance(part, transforms.Normalize)]


def _normalisation(model: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Returns what is taken from pixels in [0, 1], and what they are then divided by."""
    found = _normalisers(model)
    return (found[0].mean, found[0].std) if found else ((0.0,) * 3, (1.0,) * 3)
