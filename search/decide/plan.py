"""What a study searches: the space, and trial 0."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import ValidationError

from anomtune.errors import MethodError, SweepError, suggest
from anomtune.models.hyperparameters import Hyperparameters, TrainedHyperparameters
from anomtune.models.ranges import Choice, FloatRange, IntRange, SearchRange, SizeRange
from anomtune.registry import METHODS
from anomtune.search.config import MethodConfig, Sweep
from anomtune.search.decide.scoring import neighbours
from anomtune.search.explain import explain
from anomtune.search.store.records import StudyKey

if TYPE_CHECKING:  # it brings torch
    from anomtune.models.base import Detector


@dataclass(frozen=True)
class SearchPlan:
    """How one method is searched on one category.

    Attributes:
        method: Name of the method.
        defaults: Trial 0: the paper's values for that dataset and category, changed only by
            ``preset`` and ``fixed``.
        space: The range of every hyperparameter that is searched.
        pinned: Fields of the scoring that keep their value; ``None``: all of them.
    """

    method: str
    defaults: Hyperparameters
    space: dict[str, SearchRange]
    pinned: tuple[str, ...] | None = None

    @cached_property
    def scorings(self) -> tuple[dict[str, Any], ...]:
        """The scorings that every training is judged with, the paper's first."""
        judged = self.defaults.scorings(self.pinned)
        return tuple(scoring.model_dump(mode="json") for scoring in judged)

    @cached_property
    def neighbours(self) -> npt.NDArray[np.float64]:
        """Which of them are alike; see `anomtune.search.decide.scoring.neighbours`."""
        return neighbours(self.scorings)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The space as Optuna knows it."""
        return {name: _distribution(item) for name, item in self.space.items()}

    def anchor(self) -> tuple[dict[str, Any], bool]:
        """Returns trial 0 as a point of the space, and whether it really lies in it.

        A user's range may leave the paper's value out. Trial 0 still runs it, as the baseline of
        ``gain``; Optuna is shown the nearest point and must then not learn from the result.
        """
        values = self.defaults.model_dump()
        point = {name: _nearest(item, values[name]) for name, item in self.space.items()}
        return point, all(point[name] == values[name] for name in point)

    def variants(self) -> list[Hyperparameters]:
        """Returns trial 0, and for every choice of the space trial 0 with that choice."""
        return [self.defaults] + [
            self.defaults.model_copy(update={name: value})
            for name, item in self.space.items()
            if isinstance(item, Choice)
            for value in item.choices
        ]

    def hyperparameters(self, point: Mapping[str, Any]) -> Hyperparameters:
        """Returns the complete hyperparameters at a point of the space.

        Raises:
            ValidationError: If the values do not go together.
        """
        return type(self.defaults)(**{**self.defaults.model_dump(), **point})


def plan_studies(config: Sweep) -> dict[StudyKey, SearchPlan]:
    """Returns how each study of a sweep is searched.

    Args:
        config: The sweep, its categories spelled out.

    Raises:
        SweepError: As `plan_search`.
    """
    return {
        StudyKey(category, name): plan_search(
            name,
            method,
            config.dataset.name,
            category,
            image_size=config.image_size,
            paper_scoring=config.scoring == "paper",
        )
        for category in config.dataset.categories or ()
        for name, method in config.methods.items()
    }


def plan_search(
    method: str,
    config: MethodConfig,
    dataset: str = "",
    category: str | None = None,
    *,
    image_size: int | None,
    paper_scoring: bool = False,
) -> SearchPlan:
    """Checks what a sweep file says of a method against the method itself.

    Args:
        method: Its name.
        config: What the sweep file says of it; that overrides what a paper set.
        dataset: Name of the dataset; "": any.
        category: The category; ``None``: any.
        image_size: Side of the maps in pixels. ``None``: any; what depends on it is not searched.
        paper_scoring: Whether there is no scoring but the paper's.

    Raises:
        SweepError: Naming the key that is wrong and what would be right.
    """
    where = f"methods.{method}"
    try:
        detector = METHODS.get(method)
    except MethodError as error:
        raise SweepError(f"{where}: {error}") from None
    kind = detector.Hyperparameters
    _check_names(where, config, kind)
    preset: Mapping[str, Any] = {}
    if config.preset is not None:
        if config.preset not in kind.presets:
            names = list(kind.presets) or ["none"]
            raise SweepError(f"{where}.preset: no {config.preset!r}{suggest(config.preset, names)}")
        preset = kind.presets[config.preset]
    usual = kind.paper_values(dataset, category)
    try:
        fixed = kind.in_full(config.fixed)
        defaults = kind(**kind.merged(usual, preset, fixed))
    except ValidationError as error:
        raise SweepError(f"{where}.fixed.{explain(error, kind)}") from None
    pinned = None if paper_scoring else tuple(sorted(fixed.get("scoring", {})))
    space = {
        name: _with(item, getattr(defaults, name)) if name in usual else item
        for name, item in _own_space(detector, defaults, image_size, usual).items()
        if name not in fixed and name not in preset
    }
    defaults = _sized(defaults, {*space, *config.space}, image_size)
    for name, given in config.space.items():
        _check_length(where, defaults, name)
        space[name] = _parse_range(f"{where}.space.{name}", given, defaults, name)
    return SearchPlan(method, defaults, space, pinned)


def _check_names(where: str, config: MethodConfig, kind: type[Hyperparameters]) -> None:
    """Refuses what is fixed or searched and is nothing that can be."""
    scoring = type(kind.model_fields["scoring"].default).model_fields
    for section in ("fixed", "space"):
        for name in getattr(config, section):
            if name in kind.model_fields:
                continue
            if name not in scoring:
                known = suggest(name, list(kind.model_fields))
                raise SweepError(f"{where}.{section}.{name}: unknown hyperparameter{known}")
            if section == "space":
                raise SweepError(
                    f"{where}.space.{name}: part of the scoring, which every trial judges whole; "
                    f"to fix it set {where}.fixed.{name}"
                )
    if "scoring" in config.space:
        raise SweepError(
            f"{where}.space.scoring: every trial judges all scorings; to fix a part of it set "
            f"{where}.fixed.scoring"
        )
    both = sorted(set(config.fixed) & set(config.space))
    if both:
        raise SweepError(f"{where}: {both[0]} is both fixed and searched; remove one of the two")


def _own_space(
    detector: type[Detector[Any]],
    defaults: Hyperparameters,
    image_size: int | None,
    usual: Collection[str],
) -> dict[str, SearchRange]:
    """Returns the method's own ranges, with the sizes of images for one size of the maps."""
    space: dict[str, SearchRange] = {}
    for name, item in defaults.search_space().items():
        if not isinstance(item, SizeRange):
            space[name] = item
        # A paper's own size for a dataset stays: these are factors of the sweep's.
        elif image_size is not None and name not in usual:
            sides = _sides(detector, defaults, name, item, image_size)
            if len(sides) > 1 and image_size in sides:
                space[name] = Choice(choices=sides)
    return space


def _sides(
    detector: type[Detector[Any]],
    defaults: Hyperparameters,
    name: str,
    item: SizeRange,
    image_size: int,
) -> tuple[int, ...]:
    """Returns the sizes of images that a search tries: none that the method would refuse."""
    fitting = []
    for side in item.sides(image_size, math.lcm(32, detector.multiple_of)):
        try:
            sized = type(defaults)(**{**defaults.model_dump(), name: side})
            detector.check_input_size(sized, image_size)
        except (ValidationError, MethodError):
            continue
        fitting.append(side)
    return tuple(fitting)


def _sized(
    defaults: Hyperparameters, searched: Collection[str], image_size: int | None
) -> Hyperparameters:
    """Returns trial 0 as a point of the space: sizes that are searched spelled out, not null."""
    null = [
        name
        for name, item in defaults.search_space().items()
        if isinstance(item, SizeRange) and name in searched and getattr(defaults, name) is None
    ]
    return defaults.model_copy(update=dict.fromkeys(null, image_size))


def _check_length(where: str, defaults: Hyperparameters, name: str) -> None:
    """Refuses to search over epochs where trial 0 counts iterations, and the other way round."""
    others = {"epochs": "iterations", "iterations": "epochs"}
    if isinstance(defaults, TrainedHyperparameters) and name in others:
        other = others[name]
        if getattr(defaults, other) is not None:
            raise SweepError(
                f"{where}.space.{name}: trial 0 counts {other}; search over those instead"
            )


def _with(item: SearchRange, value: Any) -> SearchRange:
    """Returns a method's own range; choices with what the paper chose on this dataset."""
    if isinstance(item, Choice) and value not in item.choices:
        return Choice(choices=(*item.choices, value))
    return item


def _parse_range(
    where: str, given: Mapping[str, Any], defaults: Hyperparameters, name: str
) -> SearchRange:
    kind = type(defaults)
    numeric: dict[Any, type[SearchRange]] = {
        int: IntRange,
        float: FloatRange,
        int | None: IntRange,
        float | None: FloatRange,
    }
    shape = numeric.get(kind.model_fields[name].annotation, Choice)
    if "choices" in given or getattr(defaults, name) is None:  # null lies between no numbers
        shape = Choice
    try:
        parsed = shape(**given)
    except ValidationError as error:
        raise SweepError(f"{where}: {explain(error, shape)}") from None
    match parsed:
        case Choice():
            tried: tuple[Any, ...] = parsed.choices
        case IntRange():  # the second of the grid as well: a field may take multiples alone
            tried = (parsed.low, min(parsed.low + parsed.step, parsed.high), parsed.high)
        case FloatRange():
            tried = (parsed.low, parsed.high)
    values = tuple(_field_value(where, kind, name, value) for value in tried)
    # Choices become what the field makes of them, which is what a record will hold.
    return Choice(choices=values) if isinstance(parsed, Choice) else parsed


def _field_value(where: str, kind: type[Hyperparameters], name: str, value: Any) -> Any:
    try:
        return getattr(kind(**{name: value}), name)
    except ValidationError as error:
        # Only the value itself is judged here: how values go together, each trial shows.
        wrong = [item for item in error.errors() if item["loc"][:1] == (name,)]
        if wrong:
            raise SweepError(f"{where}: {value!r} cannot be: {wrong[0]['msg']}") from None
        return value


def _distribution(item: SearchRange) -> BaseDistribution:
    match item:
        case FloatRange():
            return FloatDistribution(item.low, item.high, log=item.log)
        case IntRange():
            high = item.high - (item.high - item.low) % item.step  # the last on the grid
            return IntDistribution(item.low, high, log=item.log, step=item.step)
        case Choice():
            return CategoricalDistribution(item.choices)


def _nearest(item: SearchRange, value: Any) -> Any:
    match item:
        case FloatRange():
            return min(max(float(value), item.low), item.high)
        case IntRange():
            last = (item.high - item.low) // item.step
            return item.low + min(max(round((value - item.low) / item.step), 0), last) * item.step
        case Choice():
            return value if value in item.choices else item.choices[0]
