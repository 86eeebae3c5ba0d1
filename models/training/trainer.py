"""What detectors trained by gradient descent share: batches, optimiser steps and their state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anomtune.errors import MethodError, TrainingDivergedError

#: Losses are looked at this often: reading one makes the CPU wait for the GPU.
_CHECK_EVERY = 50

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor, device: torch.device) -> Tensor:
    """Returns uint8 images ``(B, 3, S, S)`` as float32 with ImageNet's mean and deviation."""
    mean, std = _imagenet_statistics(device)
    pixels = images.to(device, non_blocking=True)
    return pixels.to(torch.float32, memory_format=torch.channels_last).sub_(mean).div_(std)


@cache
def _imagenet_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation of 8-bit images; kept, as each copy makes the CPU wait."""
    with torch.inference_mode(False):  # Kept for training, whoever asks first.
        mean = torch.tensor(_IMAGENET_MEAN, device=device).view(1, 3, 1, 1) * 255
        std = torch.tensor(_IMAGENET_STD, device=device).view(1, 3, 1, 1) * 255
    return mean, std


class BatchOrder:
    """Indices of the batches: pass after pass over the images, each in a new random order.

    The last batch of a pass is as small as it comes, unless it is dropped.

    Args:
        batch_size: Images per batch; fewer if there are not as many.
        seed: Seed of the order.
        smallest: A last batch with fewer images is filled up from the start of its pass, for
            networks whose batch norm sees a single value per image.
        drop_last: Leave a last batch with fewer images out, if the pass has a full one.
    """

    def __init__(
        self, batch_size: int, seed: int, smallest: int = 1, *, drop_last: bool = False
    ) -> None:
        self._batch_size = batch_size
        self._smallest = smallest
        self._drop_last = drop_last
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    def draw(self, n_images: int, device: torch.device | None = None) -> Tensor:
        """Returns the indices ``(<= batch_size,)`` of the next batch among ``n_images``.

        Args:
            n_images: Number of images.
            device: Where the images are; default: the CPU.
        """
        full = n_images - n_images % self._batch_size
        end = full if self._drop_last and full > 0 else n_images
        if len(self._order) != n_images or self._position >= end:
            self._order = torch.randperm(n_images, generator=self._generator)
            self._position = 0
        # Copied once a pass: a copy per batch would make the CPU wait for the GPU.
        self._order = self._order.to(device or torch.device("cpu"), non_blocking=self._order.is_cpu)
        batch = self._order[self._position : self._position + self._batch_size]
        self._position += self._batch_size
        if len(batch) < self._smallest:
            batch = torch.cat([batch, self._order[: self._smallest - len(batch)]])
        return batch

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the random state, the order of the current pass and the place in it."""
        return {
            "generator": self._generator.get_state(),
            "order": self._order.clone(),
            "position": torch.tensor(self._position),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on where `state_dict` was taken."""
        self._generator.set_state(state["generator"].cpu())
        self._order = state["order"].cpu().clone()
        self._position = int(state["position"])


class Trainer:
    """Runs optimiser steps of a network on batches of uint8 images.

    Args:
        network: What is trained; its train mode is set here.
        optimizers: All stepped once per batch.
        order: The batches.
        device: Where the network lives.
    """

    #: Beginnings of the names in `state_dict` that only training needs.
    TRAINING_STATE = ("optimizer.", "order.")

    def __init__(
        self,
        network: nn.Module,
        optimizers: Sequence[Optimizer],
        order: BatchOrder,
        device: torch.device,
    ) -> None:
        self._network = network
        self._optimizers = optimizers
        self._order = order
        self._device = device
        #: Optimiser steps done so far.
        self.iteration = 0

    def fit(
        self,
        images: Tensor,
        iterations: int,
        loss: Callable[[Tensor, int], Tensor],
        *,
        before_step: Callable[[int], None] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """Does some more optimiser steps.

        Args:
            images: All training images, uint8 ``(N, 3, S, S)``.
            iterations: Number of steps.
            loss: Gives the scalar loss of uint8 images ``(B, 3, S, S)``, which lie where
                ``images`` does, at an iteration.
            before_step: Called with the iteration when the gradients are there and not yet used:
                the place to clip them or to set a learning rate.
            after_step: Called with the iteration when the weights have changed: the place for
                averages that follow them.

        Returns:
            The mean ``loss`` of these steps.

        Raises:
            MethodError: If there are no images.
            TrainingDivergedError: If a loss is not finite; at most 50 steps late.
        """
        if len(images) == 0:
            raise MethodError("there is no training image")
        self._network.train()
        losses: list[Tensor] = []
        means: list[float] = []
        for _ in range(iterations):
            indices = self._order.draw(len(images), images.device)
            with mixed_precision(self._device):
                value = loss(images[indices], self.iteration)
            for optimizer in self._optimizers:
                optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            if before_step is not None:
                before_step(self.iteration)
            for optimizer in self._optimizers:
                optimizer.step()
            if after_step is not None:
                after_step(self.iteration)
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
        """Returns network, optimisers, order of the batches and iteration, flat."""
        state = {f"network.{key}": value for key, value in self._network.state_dict().items()}
        for number, optimizer in enumerate(self._optimizers):
            for index, entries in optimizer.state_dict()["state"].items():
                for key, value in entries.items():
                    state[f"optimizer.{number}.{index}.{key}"] = value
        state |= {f"order.{key}": value for key, value in self._order.state_dict().items()}
        state["iteration"] = torch.tensor(self.iteration)
        # Safetensors wants tensors of their own memory in plain layout, and the caller a state
        # that later steps do not change.
        return {
            key: value.detach().clone(memory_format=torch.contiguous_format)
            for key, value in state.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on where `state_dict` was taken."""
        self._network.load_state_dict(_under(state, "network."))
        for number, optimizer in enumerate(self._optimizers):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            entries: dict[int, dict[str, Tensor]] = {}
            for name, value in _under(state, f"optimizer.{number}.").items():
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
        self._order.load_state_dict(_under(state, "order."))
        self.iteration = int(state["iteration"])


def mixed_precision(device: torch.device) -> torch.autocast:
    """Returns bfloat16 autocast on GPUs that have it, else a context that changes nothing.

    float16 is not used: it would need loss scaling.
    """
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
