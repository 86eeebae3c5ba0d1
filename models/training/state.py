"""Seeds and states of detectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Lets PyTorch's CPU random numbers follow a seed; afterwards they go on as if nothing was."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs' generators as well.
        torch.default_generator.manual_seed(seed)
        yield


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state with longer names."""
    return {prefix + name: value for name, value in state.items()}


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the entries that begin so, without the prefix: the inverse of `prefixed`."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def self_contained(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns copies that own their memory, in plain layout.

    Safetensors wants that, and the caller a state that later steps do not change.
    """
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
