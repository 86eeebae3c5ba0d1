"""Optimisers that step through weights as they lie in memory."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer


class FlatWeights:
    """The weights of a fused optimiser as flat views of them, in the order of their memory.

    On a CPU a fused step copies every weight that is not in plain layout, and those of a
    channels-last network are not: two thirds of its time. What it does to a number depends on no
    other, so it may see them in any order.

    Args:
        optimizer: Steps through views from now on; one that is not fused is left as it is.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for group in optimizer.param_groups:
            if group.get("fused"):
                views = [_flat(weight).requires_grad_() for weight in group["params"]]
                self._pairs += zip(group["params"], views, strict=True)
                group["params"] = views

    def take_gradients(self) -> None:
        """Gives the views what the backward pass has left with the weights."""
        for weight, view in self._pairs:
            if view.data_ptr() != weight.data_ptr():  # The network was moved, or cast.
                view.data = _flat(weight)
            gradient = weight.grad
            if gradient is not None and gradient.stride() != weight.stride():
                gradient = weight.detach().clone().copy_(gradient)
            view.grad = None if gradient is None else _flat(gradient)


def _flat(values: Tensor) -> Tensor:
    """Returns a view ``(N,)`` of dense values in any order of dimensions."""
    order = sorted(range(values.dim()), key=values.stride, reverse=True)
    return values.detach().permute(order).view(-1)
