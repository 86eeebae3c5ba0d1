"""Search ranges, which fields of a model carry in their annotations."""

from __future__ import annotations

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


SearchRange = FloatRange | IntRange | Choice


def _check_bounds(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"low ({low}) is above high ({high})")
    if log and low <= 0:
        raise ValueError(f"low ({low}) must be positive on a log scale")


def ranges_of(model: type[BaseModel]) -> dict[str, SearchRange]:
    """Returns the range of every field that has one, in field order."""
    return {
        name: item
        for name, field in model.model_fields.items()
        for item in field.metadata
        if isinstance(item, SearchRange)
    }


def choices_of(model: type[BaseModel], name: str) -> tuple[bool | int | float | str, ...]:
    """Returns the choices of a field, none if it has none."""
    item = ranges_of(model).get(name)
    return item.choices if isinstance(item, Choice) else ()
