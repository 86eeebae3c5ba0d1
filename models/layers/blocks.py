"""Large results block by block: what bounds memory, and what a graph can be exported of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def block_size(size: int, total: int) -> int:
    """Returns how many of ``total`` rows are worked on at a time: ``size``, or all of them.

    A graph that is exported (to ONNX) for batches of any size cannot have as many blocks as a
    batch needs: there it is a single one.
    """
    return total if torch.compiler.is_compiling() else size


def split_rows(rows: Tensor, size: int) -> Sequence[Tensor]:
    """Splits a tensor along its first dimension into blocks of `block_size` rows."""
    return (rows,) if torch.compiler.is_compiling() else torch.split(rows, size)
