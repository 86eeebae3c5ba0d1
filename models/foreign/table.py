"""What anomalib's models do not say of themselves; see the head of ``anomalib.yaml``.

This module imports neither torch nor anomalib.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import model_validator

from anomtune.models.ranges import Choice, FloatRange, IntRange, SearchRange
from anomtune.models.scoring import Combine
from anomtune.settings import Settings


class Smoothing(Settings):
    """The Gaussian that a model smooths its maps with.

    Attributes:
        sigma: Deviation in pixels of what the model sees.
        kernel: Side of the kernel, which may cut it off early.
    """

    sigma: float
    kernel: int


class Sourced(Settings):
    """What a search tries of a hyperparameter, and where that is from."""

    source: str
    choices: tuple[bool | int | float | str, ...] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False

    def of(self, kind: Any) -> SearchRange:
        """Returns the range for a hyperparameter of a type."""
        if self.choices is not None:
            return Choice(choices=self.choices)
        assert self.low is not None
        assert self.high is not None
        if kind in (int, int | None):
            return IntRange(low=int(self.low), high=int(self.high), log=self.log)
        return FloatRange(low=self.low, high=self.high, log=self.log)


class Default(Settings):
    """A default that is not that of the model's signature, and why."""

    value: bool | int | float | str | None
    source: str


class Entry(Settings):
    """What the table says of a model; see the head of ``anomalib.yaml``."""

    paper: str = "not known here"
    licence: str = "Apache-2.0"
    refused: str | None = None
    epochs: int | None = None
    iterations: int | None = None
    batch_size: int = 32
    length_source: str = "inferred"
    learning_rate: float | None = None
    ranges: Mapping[str, Sourced] = {}
    defaults: Mapping[str, Default] = {}
    weights: bool = True
    multiple_of: int = 32
    smallest: int = 32
    smoothing: Smoothing | None = None
    scores: Literal["map", "own", "alone"] = "map"
    scales: str | tuple[str, ...] | None = None
    combine: Combine = "sum"
    align_corners: bool = False
    damage: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    source_images: str | None = None
    hidden: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _length_of_those_that_are_not_listed(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and not {"epochs", "iterations"} & set(given):
            return {**given, "epochs": 100}
        return given


@cache
def table() -> Mapping[str, Entry]:
    """Returns the entries by the folder of the model."""
    text = resources.files("anomtune.models.foreign").joinpath("anomalib.yaml").read_text("utf-8")
    return {name: Entry.model_validate(entry) for name, entry in yaml.safe_load(text).items()}


def entry_of(name: str) -> Entry:
    """Returns what is known of a model; of one that is not listed, what is usual."""
    return table().get(name) or Entry()
