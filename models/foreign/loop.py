"""What a Lightning Trainer does for a model, a step at a time: hooks, optimisers, schedulers.

No Trainer is built. A model's hooks ask theirs for a few things, which a stand-in answers.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from anomtune.models.foreign.borrowed import imported
from anomtune.models.training.state import part_of, prefixed


class Batches:
    """All training images, batch by batch, for hooks that look at them before or between passes.

    Args:
        images: As the network sees them, ``(N, 3, I, I)`` by a slice of them.
        count: How many there are.
        batch_size: Images in a batch.
    """

    def __init__(self, images: Any, count: int, batch_size: int) -> None:
        self._images, self.count, self._batch_size = images, count, batch_size

    def __len__(self) -> int:
        return math.ceil(self.count / self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.count, self._batch_size):
            yield as_batch(self._images(slice(start, start + self._batch_size)))


def as_batch(images: Tensor) -> Any:
    """Returns normal images as a batch of anomalib's."""
    kind = imported("anomalib.data").ImageBatch
    labels = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    return kind(image=images, gt_label=labels)


class Loop:
    """A model in training.

    Args:
        model: A LightningModule; its ``trainer`` becomes the stand-in.
        epochs: Length of the full training in passes, rounded up.
        steps_per_epoch: Batches of a pass.
        batch_size: Images in a batch.
        factor: What all learning rates are multiplied with.
    """

    def __init__(
        self,
        model: Any,
        *,
        epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        factor: float = 1.0,
    ) -> None:
        self._model, self._steps_per_epoch = model, steps_per_epoch
        self.trainer = SimpleNamespace(
            # Models take the smaller of two lengths, or whichever is there.
            max_epochs=epochs,
            max_steps=-1,
            current_epoch=0,
            global_step=0,
            train_dataloader=[None] * steps_per_epoch,
            strategy=SimpleNamespace(backward=_backward),
            datamodule=SimpleNamespace(train_batch_size=batch_size),
        )
        self.trainer.datamodule.train_dataloader = lambda: self.trainer.train_dataloader
        model._trainer = self.trainer
        model.log = model.log_dict = _log_nothing
        #: Whether a training step wants the number of its batch.
        self.takes_index = len(inspect.signature(model.training_step).parameters) > 1
        self._clip = model.trainer_arguments.get("gradient_clip_val")
        self.optimizers, self._schedulers = self._configured()
        self.trainer.optimizers = self.optimizers
        self.trainer.strategy._lightning_optimizers = self.optimizers
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= factor
                if "initial_lr" in group:
                    group["initial_lr"] *= factor
        for scheduler, _ in self._schedulers:
            scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
            if hasattr(scheduler, "schedule"):  # Dinomaly's has its rates in a table
                scheduler.schedule = scheduler.schedule * factor
                scheduler.final_value *= factor

    def _configured(self) -> tuple[list[Optimizer], list[tuple[Any, str]]]:
        """Returns the optimisers of the model, and its schedulers with when they step."""
        configured = self._model.configure_optimizers()
        if configured is None:
            return [], []
        if (
            isinstance(configured, tuple)
            and len(configured) == 2
            and all(isinstance(part, list) for part in configured)
        ):
            optimizers, schedulers = configured
            return list(optimizers), [_scheduler(item) for item in schedulers]
        parts = configured if isinstance(configured, list | tuple) else [configured]
        optimizers, found = [], []
        for part in parts:
            if isinstance(part, Mapping):
                optimizers.append(part["optimizer"])
                if "lr_scheduler" in part:
                    found.append(_scheduler(part["lr_scheduler"]))
            else:
                optimizers.append(part)
        return optimizers, found

    def at(self, iteration: int) -> None:
        """Says how many steps have been done."""
        self.trainer.global_step = iteration
        self.trainer.current_epoch = iteration // self._steps_per_epoch

    def catch_up(self, iteration: int) -> None:
        """Brings the schedulers of a new loop to where they are after so many steps."""
        for done in range(iteration):
            self._schedule(done)

    def step(self, images: Tensor, iteration: int) -> Tensor:
        """Trains on a batch of images as the network sees them; returns the loss."""
        self.at(iteration)
        model, position = self._model, iteration % self._steps_per_epoch
        if position == 0:
            model.on_train_epoch_start()
        arguments = (position,) if self.takes_index else ()
        loss = _loss(model.training_step(as_batch(images), *arguments))
        if model.automatic_optimization:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            model.backward(loss)
            if self._clip:
                torch.nn.utils.clip_grad_norm_(_parameters(self.optimizers), self._clip)
            for optimizer in self.optimizers:
                optimizer.step()
        self.trainer.global_step = iteration + 1
        if position == self._steps_per_epoch - 1:
            model.on_train_epoch_end()
        self._schedule(iteration)
        return loss.detach()

    def _schedule(self, iteration: int) -> None:
        ended = (iteration + 1) % self._steps_per_epoch == 0
        for scheduler, interval in self._schedulers:
            if interval == "step" or ended:
                with warnings.catch_warnings():  # of a loop that catches up
                    warnings.simplefilter("ignore")
                    scheduler.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the state of the optimisers; that of schedulers follows from the iteration."""
        state: dict[str, Tensor] = {}
        for number, optimizer in enumerate(self.optimizers):
            for index, entries in optimizer.state_dict()["state"].items():
                tensors = {
                    key: value if isinstance(value, Tensor) else torch.tensor(value)
                    for key, value in entries.items()
                    if value is not None
                }
                state |= prefixed(f"{number}.{index}.", tensors)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the state of the optimisers of another loop."""
        for number, optimizer in enumerate(self.optimizers):
            entries: dict[int, dict[str, Any]] = {}
            for name, value in part_of(state, f"{number}.").items():
                index, _, key = name.partition(".")
                # PyTorch's own optimisers count in float32 tensors, others in Python's integers.
                whole = key == "step" and not value.is_floating_point()
                entries.setdefault(int(index), {})[key] = int(value) if whole else value.clone()
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _backward(loss: Tensor, _optimizer: object, *args: Any, **kwargs: Any) -> None:
    loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    """Stands for Lightning's logging."""


def _scheduler(configured: Any) -> tuple[Any, str]:
    """Returns a scheduler and when it steps; after every pass unless it says otherwise."""
    if isinstance(configured, Mapping):
        return configured["scheduler"], str(configured.get("interval", "epoch"))
    return configured, "epoch"


def _loss(result: Any) -> Tensor:
    """Returns the loss of a training step; of several the sum."""
    if isinstance(result, Mapping):
        found = [result["loss"]] if "loss" in result else list(result.values())
        return torch.stack([value.reshape(-1)[0] for value in found]).sum()
    loss: Tensor = result
    return loss.reshape(-1)[0] if loss.ndim else loss


def _parameters(optimizers: list[Optimizer]) -> list[Tensor]:
    return [
        parameter
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
