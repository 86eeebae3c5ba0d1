"""The order in which training images are seen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


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
