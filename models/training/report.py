"""What a detector reports of its training, for monitoring. This module does not import torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Histogram:
    """How often values fall into bins.

    >>> Histogram((0.0, 0.5, 1.0), (3, 1)).counts
    (3, 1)

    Attributes:
        edges: ``n + 1`` ascending, finite limits of the bins.
        counts: How many values fall into each of the ``n`` bins.

    Raises:
        pydantic.ValidationError: If it is none; also a `ValueError`.
    """

    edges: tuple[Annotated[float, Field(strict=True)], ...]
    counts: tuple[Annotated[int, Field(strict=True, ge=0)], ...]

    @model_validator(mode="after")
    def _check(self) -> Histogram:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(
                f"{len(self.counts)} bins have {len(self.counts) + 1} edges, not {len(self.edges)}"
            )
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges must ascend")
        return self


#: What `anomtune.models.base.Detector.fit` reports: figures by name.
Report = dict[str, float | Histogram]
