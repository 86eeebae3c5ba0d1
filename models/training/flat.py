"""Optimisers that step through weights as they lie in memory."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer


class FlatWeights:
    """Steps of an optimiser; of a fused one through flat views of the weights, as memory has them.

    On a CPU a fused step copies every weight that is not in plain layout, and those of a
    channels-last network are not: two thirds of its time. What it does to a number depends on no
    other, so it may see them in any order.

    Args:
        optimizer: Steps through views from now on; one that is not fused is left as it is.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for group in optimizer.param_groups:
            if group.get("fused"):
                views = [_flat(weight).requires_grad_() for weight in group["params"]]
                self._pairs += zip(group["params"], views, strict=True)
                group["params"] = views

    def zero_grad(self) -> None:
        """Forgets the gradients of the weights, whatever module they belong to."""
        self._optimizer.zero_grad(set_to_none=True)
        for weight, _ in self._pairs:
            weight.grad = None

    def step(self) -> None:
        """Does a step with the gradients that the backward pass has left with the weights."""
        for weight, view in self._pairs:
            if view.data_ptr() != weight.data_ptr():  # The network was moved, or cast.
                view.data = _flat(weight)
            gradient = weight.grad
            if gradient is not None and gradient.stride() != weight.stride():
                gradient = weight.detach().clone().copy_(gradient)
            view.grad = None if gradient is None else _flat(gradient)
        self._optimizer.step()


def _flat(values: Tensor) -> Tensor:
    """Returns a view ``(N,)`` of dense values in any order of dimensions."""
    order = sorted(range(values.dim()), key=values.stride, reverse=True)
    return values.detach().permute(order).view(-1)
