"""What trainings on the same images have in common, for a search to compute once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor


class Memo(Protocol):
    """Finds what a training computed, or computes it, for itself and for the next ones.

    It belongs to the images of one search, to the weights of the frozen encoders and to the
    arithmetic: `name` says the rest.
    """

    def wanted(self, name: Sequence[object]) -> bool:
        """Whether a training has asked for this before: what one alone needs is not shared."""

    def __call__(
        self, name: Sequence[object], compute: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Returns the tensors of this name; they may lie in a file, so they are not written to.

        Args:
            name: What they are and all that they depend on, JSON-like.
            compute: Computes them, on the CPU.
        """
