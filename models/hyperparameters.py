"""Hyperparameters that carry their search ranges.

This module does not import torch, so that configurations can be read and checked quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema

from anomtune.settings import Settings


class _Range(Settings):
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # In a field's annotation a range describes the field: it must not become its type.
        return handler(source)


class FloatRange(_Range):
    """Real numbers in ``[low, high]``, sampled uniformly or, with ``log``, log-uniformly."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> FloatRange:
        _check_bounds(self.low, self.high, self.log)
        return self


class IntRange(_Range):
    """Integers ``low, low + step, ... <= high``, sampled uniformly or log-uniformly."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    @model_validator(mode="after")
    def _check(self) -> IntRange:
        _check_bounds(self.low, self.high, self.log)
        if self.step < 1 or (self.log and self.step != 1):
            raise ValueError("step must be 1 or more, and 1 on a log scale")
        return self


class Choice(_Range):
    """One of a list of values."""

    choices: tuple[bool | int | float | str, ...]

    @model_validator(mode="after")
    def _check(self) -> Choice:
        if not self.choices:
            raise ValueError("choices must not be empty")
        return self


SearchRange = FloatRange | IntRange | Choice


def _check_bounds(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"low ({low}) is above high ({high})")
    if log and low <= 0:
        raise ValueError(f"low ({low}) must be positive on a log scale")


#: How images are brought to the size that a method wants; both antialiased.
Resize = Literal["bilinear", "lanczos"]


@dataclass(frozen=True)
class Setting:
    """What produced a paper's numbers on one dataset where the method's defaults did not.

    >>> tiles = Setting("mvtec", {"lr": 1e-4}, "paper, Table 2.", categories=("tile",))
    >>> tiles.holds("mvtec", "tile"), tiles.holds("mvtec", "wood"), tiles.holds("mvtec", None)
    (True, False, False)

    Attributes:
        dataset: Name of the dataset as it is registered.
        values: The hyperparameters in question and their values.
        source: Where it says so.
        categories: The categories that it holds for; none: for all of them.
        inferred: Whether it is our reading, which the source does not say.
    """

    dataset: str
    values: Mapping[str, Any]
    source: str
    categories: tuple[str, ...] = ()
    inferred: bool = False

    def holds(self, dataset: str, category: str | None) -> bool:
        """Returns whether it holds for a category; of ``None``, whether it does for all."""
        return dataset == self.dataset and (not self.categories or category in self.categories)


@dataclass(frozen=True)
class Protocol:
    """How the paper of a method judges it: what ``anomtune reproduce`` does.

    Attributes:
        source: Where it says so.
        seeds: What its figures were trained with.
        masks: How masks are brought to the size of maps: anomalous is a pixel of which more than
            half is (``resized``), or any part (``touched``).
        aupro_per_image: Whether its AUPRO is the mean of an area per image, not that of all.
        middle: Name of the hyperparameter that has the side of the middle that the method sees, in
            pixels of its input: figures of pixels leave out the rim then; null: all is seen.
        inferred: Whether some of it is our reading, which the source does not say.
    """

    source: str
    seeds: tuple[int, ...] = (0,)
    masks: Literal["resized", "touched"] = "resized"
    aupro_per_image: bool = False
    middle: str | None = None
    inferred: bool = False


class Hyperparameters(Settings):
    """Everything about a method that can be set: the defaults are the paper's values.

    Where a paper used others on some dataset or category, ``settings`` says so: trial 0 of a study
    has those. A field is searched by default if its annotation carries a range. Every field has a
    ``description`` that ends with the source of its default and range.

    >>> from typing import Annotated
    >>> from pydantic import Field
    >>>
    >>> class MineHyperparameters(Hyperparameters):
    ...     epochs: int = Field(default=20, ge=1, description="Passes. Source: ours.")
    ...     lr: Annotated[float, FloatRange(low=1e-3, high=1e-2, log=True)] = Field(
    ...         default=5e-3, gt=0, description="Learning rate of Adam. Source: ours."
    ...     )
    ...
    ...     def training_iterations(self, n_images: int) -> int:
    ...         return self.epochs * n_images
    >>>
    >>> MineHyperparameters(epochs=3).training_iterations(10)
    30
    >>> MineHyperparameters.search_space()
    {'lr': FloatRange(low=0.001, high=0.01, log=True)}
    """

    #: Named settings of the paper (ablation rows and recipes): name -> fields they change.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: What the papers set by dataset and category; of two that name a field the later one holds.
    settings: ClassVar[tuple[Setting, ...]] = ()
    #: How its paper judges it.
    protocol: ClassVar[Protocol] = Protocol("not published", inferred=True)
    #: How the images that the method is given are resized, in training and ever after.
    resize: ClassVar[Resize] = "bilinear"

    @classmethod
    def search_space(cls) -> dict[str, SearchRange]:
        """Returns the range of every field that is searched by default, in field order."""
        return {
            name: item
            for name, field in cls.model_fields.items()
            for item in field.metadata
            if isinstance(item, SearchRange)
        }

    @classmethod
    def settings_for(cls, dataset: str, category: str | None) -> dict[str, Setting]:
        """Returns by field the setting that decides its default for a category.

        Args:
            dataset: Name of the dataset as it is registered.
            category: One of its categories; ``None``: what holds for all of them.
        """
        holding = (setting for setting in cls.settings if setting.holds(dataset, category))
        return {name: setting for setting in holding for name in setting.values}

    @classmethod
    def paper_values(cls, dataset: str, category: str | None) -> dict[str, Any]:
        """Returns the values of `settings_for`; all other fields have their own defaults."""
        decided = cls.settings_for(dataset, category)
        return {name: setting.values[name] for name, setting in decided.items()}

    def training_iterations(self, n_images: int) -> int:
        """Returns the total number of optimiser steps of a full training run.

        Args:
            n_images: Number of training images (papers that count epochs need it).
        """
        raise NotImplementedError

    def input_size(self, image_size: int) -> int:
        """Returns the side of the images that the method wants to be given, in pixels.

        Args:
            image_size: Side of the maps, and of the images if the method does not care.
        """
        return image_size

    def foreign_images(self) -> str | None:
        """Returns where the method's images of other things come from.

        A folder of images, ``categories`` for the training images of the dataset's other
        categories (where they are other products, not the anomalies themselves), or ``None`` for
        a method that uses none or draws its own.
        """
        return None

    def training_damage(self) -> frozenset[str]:
        """Returns the kinds of artificial damage that the method learns to find or to repair.

        Synthetic validation then leaves them out, for all methods of the sweep: else it would
        praise the method for what it was shown. The names are those of
        `anomtune.datasets.splits.damage`: ``cut_paste``, ``blur``, ``occlusion``, ``texture``,
        ``roughen``, ``elastic``. Damage is local; noise or augmentation that befalls whole images
        is none. It may depend on fields that are searched over choices, not on those with a
        numeric range.
        """
        return frozenset()
