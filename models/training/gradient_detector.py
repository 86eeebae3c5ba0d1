"""Detectors that learn by gradient descent: all of it but the network, the loss and the maps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from anomtune.errors import TrainingDivergedError
from anomtune.models.base import Detector, H
from anomtune.models.images.pixels import upload
from anomtune.models.layers.precision import mixed_precision
from anomtune.models.layers.small_maps import use_small_maps
from anomtune.models.training.batches import BatchOrder
from anomtune.models.training.flat import FlatWeights
from anomtune.models.training.report import Report
from anomtune.models.training.state import part_of, prefixed, self_contained

#: Losses are looked at this often: reading one makes the CPU wait for the GPU.
_CHECK_EVERY = 50


class GradientDetector(Detector[H]):
    """A detector that is trained by gradient descent; see `Detector` for the arguments.

    A subclass writes its network (`build`), the loss of a batch (`loss`) and what is anomalous
    about an image (`evidence`). Seeds, batches, optimiser steps, the check of the images and the
    state are done here. Plain convolutions give way to ones that are faster on small maps
    (`use_small_maps`), with the same weights. An autoencoder:

    >>> import torch.nn.functional as F
    >>> from pydantic import Field
    >>> from torch import Tensor, nn
    >>> from anomtune.models.hyperparameters import Hyperparameters
    >>> from anomtune.models.layers.evidence import Evidence
    >>>
    >>> class MineHyperparameters(Hyperparameters):
    ...     steps: int = Field(default=200, description="Optimiser steps.")
    ...     lr: float = Field(default=1e-2, description="Learning rate of Adam.")
    ...
    ...     def training_iterations(self, n_images: int) -> int:
    ...         return self.steps
    >>>
    >>> class Mine(GradientDetector[MineHyperparameters]):
    ...     def build(self) -> nn.Module:
    ...         return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ConvTranspose2d(4, 3, 8, 8))
    ...
    ...     def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
    ...         return F.mse_loss(self.network(images / 255), images / 255)
    ...
    ...     def evidence(self, images: Tensor) -> Evidence:
    ...         error = self.network(images / 255) - images / 255
    ...         return Evidence((error.square().mean(1),))
    >>>
    >>> detector = Mine(MineHyperparameters(), image_size=32)
    >>> images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    >>> sorted(detector.fit(images, 3))
    ['loss']
    >>> detector.score(images).shape
    torch.Size([5])

    Optional: `build_optimizers`, `build_order`, `batch`, `training_rows`, `before_step` and
    `after_step`. What a method keeps beside its network is named in ``extra_state``.
    """

    training_state: ClassVar[tuple[str, ...]] = (
        *Detector.training_state,
        "optimizer.",
        "order.",
    )

    def set_up(self) -> None:
        """Builds optimisers and the order of the batches; see `Detector.set_up`."""
        use_small_maps(self.network)
        #: All stepped once per batch.
        self.optimizers = self.build_optimizers()
        self._steps = [FlatWeights(optimizer) for optimizer in self.optimizers]
        self._order = self.build_order()

    def build_optimizers(self) -> Sequence[Optimizer]:
        """Returns the optimisers of ``network``: Adam, with the hyperparameter ``lr`` if any."""
        learning = [p for p in self.network.parameters() if p.requires_grad]
        return [torch.optim.Adam(learning, getattr(self.hyperparameters, "lr", 1e-3), fused=True)]

    def build_order(self) -> BatchOrder:
        """Returns the order of the batches: of the hyperparameter ``batch_size``, else of 16."""
        return BatchOrder(getattr(self.hyperparameters, "batch_size", 16), self.seed)

    def training_rows(self, n_images: int) -> Tensor | None:
        """Returns the numbers ``(M,)`` of the images to learn from; ``None``: of all.

        For methods that hold some out.
        """
        return None

    def batch(self, images: Tensor, rows: Tensor) -> Tensor:
        """Returns what `loss` is given: uint8 images ``(B, 3, I, I)`` on the detector's device.

        Args:
            images: All training images.
            rows: Numbers ``(B,)`` of those whose turn it is, where ``images`` lies.
        """
        return upload(images[rows], self.device)

    @abstractmethod
    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns the scalar loss of a batch; the network is in train mode.

        Whatever is drawn comes from ``generator``, so that training can go on where it stopped.

        Args:
            images: What `batch` returned.
            iteration: Steps done so far.
            total: Steps of the full training, whose end the detector may not see.
        """

    def before_step(self, iteration: int, total: int) -> None:
        """Called when the gradients are there and not yet used.

        The place to clip them or to set a learning rate.
        """

    def after_step(self, iteration: int, total: int) -> None:
        """Called when the weights have changed: the place for averages that follow them."""

    def fit(self, images: Tensor, iterations: int) -> Report:
        """Does some more optimiser steps; see `Detector.fit`.

        Returns:
            The mean ``loss`` of these steps.

        Raises:
            MethodError: If there are no images, or they have a wrong size.
            TrainingDivergedError: If a loss is not finite; at most 50 steps late.
        """
        self.check_training_images(images)
        total = self.hyperparameters.training_iterations(len(images))
        chosen = self.training_rows(len(images))
        if chosen is not None:
            chosen = chosen.to(images.device)
        self.network.train()
        losses: list[Tensor] = []
        means: list[float] = []
        for _ in range(iterations):
            rows = self._order.draw(len(images if chosen is None else chosen), images.device)
            with mixed_precision(self.device):
                batch = self.batch(images, rows if chosen is None else chosen[rows])
                value = self.loss(batch, self.iteration, total)
            for step in self._steps:
                step.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            self.before_step(self.iteration, total)
            for step in self._steps:
                step.step()
            self.after_step(self.iteration, total)
            losses.append(value.detach())
            self.iteration += 1
            if len(losses) == _CHECK_EVERY:
                means += self._finite(losses)
                losses.clear()
        means += self._finite(losses)
        return {"loss": math.fsum(means) / len(means)} if means else {}

    def _finite(self, losses: list[Tensor]) -> list[float]:
        """Returns the losses of the latest iterations as numbers.

        Raises:
            TrainingDivergedError: If one of them is not finite.
        """
        values: list[float] = torch.stack(losses).tolist() if losses else []
        for age, value in zip(range(len(values), 0, -1), values, strict=True):
            if not math.isfinite(value):
                raise TrainingDivergedError(
                    f"the loss is {value} at iteration {self.iteration - age}: "
                    "lower the learning rate"
                )
        return values

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the state, optimisers and order of the batches included; see `Detector`."""
        state = prefixed("order.", self._order.state_dict())
        for number, optimizer in enumerate(self.optimizers):
            for index, entries in optimizer.state_dict()["state"].items():
                state |= prefixed(f"optimizer.{number}.{index}.", entries)
        return super().state_dict() | self_contained(state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state; see `Detector.load_state_dict`."""
        super().load_state_dict(state)
        for number, optimizer in enumerate(self.optimizers):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            entries: dict[int, dict[str, Tensor]] = {}
            for name, value in part_of(state, f"optimizer.{number}.").items():
                index, key = name.split(".")
                parameter = parameters[int(index)]
                # Moments lie in memory as their parameter does: fused steps rely on it.
                entries.setdefault(int(index), {})[key] = (
                    torch.empty_like(parameter).copy_(value)
                    if value.shape == parameter.shape
                    else value.clone()
                )
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self._order.load_state_dict(part_of(state, "order."))
