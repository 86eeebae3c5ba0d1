"""Hyperparameters: what can be set of a method, with the paper's values as defaults.

This module does not import torch, so that configurations can be read and checked quickly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from anomtune.errors import suggest
from anomtune.models.ranges import FieldRange, ranges_of
from anomtune.models.scoring import Scoring
from anomtune.settings import Settings

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
    >>> from anomtune.models.ranges import FloatRange
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
    >>> MineHyperparameters.merged({"scoring": {"sigma": 4.0}}, {"scoring": {"reduce": "mean"}})
    {'scoring': {'sigma': 4.0, 'reduce': 'mean'}}
    """

    #: Named settings of the paper (ablation rows and recipes): name -> fields they change.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: What the papers set by dataset and category; of two that name a field the later one holds.
    settings: ClassVar[tuple[Setting, ...]] = ()
    #: How its paper judges it.
    protocol: ClassVar[Protocol] = Protocol("not published", inferred=True)
    #: How the images that the method is given are resized, in training and ever after.
    resize: ClassVar[Resize] = "bilinear"
    scoring: Scoring = Field(
        default=Scoring(),
        description="How evidence becomes maps and scores: the only part that training does not "
        "depend on. Source: the map as it is, and its maximum.",
    )

    @field_validator("scoring", mode="before")
    @classmethod
    def _rest_of_scoring_is_usual(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {**cls.model_fields["scoring"].default.model_dump(), **given}

    @model_validator(mode="after")
    def _scales_exist(self) -> Self:
        for name in self.scoring.scales or ():
            if name not in self.scales:
                known = suggest(name, self.scales)
                raise _at(("scoring", "scales"), f"no map {name!r}{known}", name)
        return self

    @property
    def scales(self) -> tuple[str, ...]:
        """Names of the maps of the detector's evidence, from fine to coarse."""
        return ("map",)

    @property
    def localises(self) -> bool:
        """Whether maps say where: not those of a method that judges images as a whole.

        Its maps are one value, its scorings one, and it has no figures of pixels.
        """
        return True

    @classmethod
    def in_full(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns given fields with those of the scoring where they belong, in ``scoring``.

        Whoever writes ``sigma: 0.0`` for a method that has no such field means its scoring's.

        Raises:
            pydantic.ValidationError: If one of them is given in ``scoring`` as well.
        """
        scoring = given.get("scoring", {})
        own = type(cls.model_fields["scoring"].default).model_fields
        short = {
            name: v for name, v in given.items() if name in own and name not in cls.model_fields
        }
        if not short or not isinstance(scoring, Mapping):
            return dict(given)
        for name, value in short.items():
            if name in scoring:
                raise _at((name,), f"given as scoring.{name} too; keep one of them", value)
        rest = {name: value for name, value in given.items() if name not in short}
        return {**rest, "scoring": {**scoring, **short}}

    @classmethod
    def merged(cls, *parts: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields that parts of hyperparameters set: of two that name one the later.

        Of ``scoring`` each part may set a few keys.
        """
        whole: dict[str, Any] = {}
        for part in parts:
            before, now = whole.get("scoring"), part.get("scoring")
            whole.update(part)
            if isinstance(before, Mapping) and isinstance(now, Mapping):
                whole["scoring"] = {**before, **now}
        return whole

    @classmethod
    def search_space(cls) -> dict[str, FieldRange]:
        """Returns the range of every field that is searched by default, in field order."""
        return ranges_of(cls)

    def scorings(self, pinned: Collection[str] | None = ()) -> tuple[Scoring, ...]:
        """Returns the scorings that a training is judged with, its own first.

        Args:
            pinned: Fields of the scoring that keep their value; ``None``: all of them.
        """
        if pinned is None or not self.localises:
            return (self.scoring,)
        return tuple(self.scoring.alternatives(self.scales, pinned))

    def scored(self, scoring: Scoring) -> Self:
        """Returns the same with another scoring.

        Raises:
            pydantic.ValidationError: If the method cannot be scored so.
        """
        return type(self)(**{**dict(self), "scoring": scoring})

    @classmethod
    def settings_for(cls, dataset: str, category: str | None) -> dict[str, Setting]:
        """Returns by field the setting that decides its default for a category.

        Those of the scoring are named apart: ``scoring.sigma``.

        Args:
            dataset: Name of the dataset as it is registered.
            category: One of its categories; ``None``: what holds for all of them.
        """
        holding = (setting for setting in cls.settings if setting.holds(dataset, category))
        return {name: setting for setting in holding for name in _names(setting.values)}

    @classmethod
    def paper_values(cls, dataset: str, category: str | None) -> dict[str, Any]:
        """Returns the values that differ for a category; all other fields have their defaults.

        See `settings_for` for the arguments.
        """
        holding = (setting for setting in cls.settings if setting.holds(dataset, category))
        return cls.merged(*(setting.values for setting in holding))

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


class TrainedHyperparameters(Hyperparameters):
    """Those of a method that learns step by step: how long, and in which batches.

    The length is counted in epochs or in iterations. A method sets one of the two by default, as
    its paper does; whoever sets the other one replaces it.

    >>> class MineHyperparameters(TrainedHyperparameters):
    ...     epochs: int | None = Field(default=20, ge=1, description="Passes. Source: ours.")
    >>>
    >>> MineHyperparameters().training_iterations(40)
    60
    >>> MineHyperparameters(iterations=7).training_iterations(40)
    7
    >>> MineHyperparameters.merged({"epochs": 5, "batch_size": 8}, {"iterations": 7})
    {'batch_size': 8, 'iterations': 7}
    """

    epochs: int | None = Field(
        default=None,
        ge=1,
        description="Passes over the training images; null: iterations are counted. Source: as "
        "for iterations.",
    )
    iterations: int | None = Field(
        default=None,
        ge=1,
        description="Optimiser steps; null: epochs are counted. Source: as for epochs.",
    )
    batch_size: int = Field(default=16, ge=1, description="Images per optimiser step.")

    @model_validator(mode="before")
    @classmethod
    def _given_length_replaces_the_usual(cls, given: Any) -> Any:
        lengths = _lengths(given) if isinstance(given, Mapping) else ()
        return {**dict.fromkeys(_LENGTHS), **given} if lengths else given

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.iterations is None):
            both = "" if self.epochs is None else ", not both"
            raise _at(("epochs",), f"set epochs or iterations{both}", self.epochs)
        return self

    @classmethod
    def merged(cls, *parts: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields that parts set, the length as the last part has it that names one."""
        whole: dict[str, Any] = {}
        for part in parts:
            if _lengths(part):
                whole = {name: value for name, value in whole.items() if name not in _LENGTHS}
            whole = super().merged(whole, part)
        return whole

    def steps_per_epoch(self, n_images: int) -> int:
        """Returns the optimiser steps of a pass over so many training images."""
        return -(-n_images // self.batch_size)

    def training_iterations(self, n_images: int) -> int:
        """Returns ``iterations``, or the steps of so many ``epochs``."""
        if self.epochs is not None:
            return self.epochs * self.steps_per_epoch(n_images)
        assert self.iterations is not None
        return self.iterations


_LENGTHS = ("epochs", "iterations")


def _lengths(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns which lengths of training are given; null stands for none."""
    return tuple(name for name in _LENGTHS if given.get(name) is not None)


def _names(values: Mapping[str, Any]) -> Iterator[str]:
    """Yields the names of fields; those of a scoring one by one."""
    for name, value in values.items():
        if name == "scoring":
            yield from (f"scoring.{field}" for field in value)
        else:
            yield name


def _at(place: tuple[str, ...], message: str, given: Any) -> ValidationError:
    """Returns an error of a field, for what is only known when all fields are there."""
    error = PydanticCustomError("value_error", "{message}", {"message": message})
    return ValidationError.from_exception_data(
        "Hyperparameters", [InitErrorDetails(type=error, loc=place, input=given)]
    )
