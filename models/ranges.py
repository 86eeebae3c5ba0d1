"""Search ranges, which fields of a model carry in their annotations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, model_validator
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


class SizeRange(_Range):
    """Sides of images, given by factors of the sweep's ``image_size``; of a field's own sizes.

    The field is null by default, which means ``image_size``: factor 1 is trial 0.

    >>> list(SizeRange(factors=(0.75, 1, 1.5)).sides(256))
    [192, 256, 384]
    """

    factors: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> SizeRange:
        if 1 not in self.factors or min(self.factors) <= 0:
            raise ValueError("factors must be positive, and 1, the size of trial 0, among them")
        return self

    def sides(self, image_size: int, step: int = 32) -> Iterator[int]:
        """Yields the sides in pixels, from small to large, each once.

        Args:
            image_size: Side of the sweep's maps in pixels.
            step: They are multiples of this, the nearest ones, of two as near the larger.
        """
        steps = {max(1, int(factor * image_size / step + 0.5)) for factor in self.factors}
        yield from (step * number for number in sorted(steps))

    def __str__(self) -> str:
        *others, last = (f"{factor:g}" for factor in self.factors)
        return f"{', '.join(others)}{' or ' if others else ''}{last} of image_size"


#: What a search varies a hyperparameter over.
SearchRange = FloatRange | IntRange | Choice
#: What the annotation of a field may carry.
FieldRange = SearchRange | SizeRange


def _check_bounds(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"low ({low}) is above high ({high})")
    if log and low <= 0:
        raise ValueError(f"low ({low}) must be positive on a log scale")


def ranges_of(model: type[BaseModel]) -> dict[str, FieldRange]:
    """Returns the range of every field that has one, in field order."""
    return {
        name: item
        for name, field in model.model_fields.items()
        for item in field.metadata
        if isinstance(item, FieldRange)
    }


def choices_of(model: type[BaseModel], name: str) -> tuple[bool | int | float | str, ...]:
    """Returns the choices of a field, none if it has none."""
    item = ranges_of(model).get(name)
    return item.choices if isinstance(item, Choice) else ()
