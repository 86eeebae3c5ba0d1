"""What people set: in a sweep file, in a config, in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Settings(BaseModel):
    """Refuses what it does not know, what is no number, and booleans in the place of numbers.

    ``trials: yes`` is ``true`` in YAML, which Python takes for 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _boolean_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = set(_kinds(cls.model_fields[str(info.field_name)].annotation))
        if {int, float} & kinds and bool not in kinds and _holds_boolean(value, kinds):
            raise ValueError(
                "a number is meant, not true or false (as which YAML reads yes, no, on and off)"
            )
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yields the types that an annotation is made of."""
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _kinds(argument)


def _holds_boolean(value: Any, kinds: set[Any]) -> bool:
    if isinstance(value, Mapping):
        # A section of its own looks for itself.
        section = any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)
        return not section and any(_holds_boolean(item, kinds) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_boolean(item, kinds) for item in value)
    return isinstance(value, bool)
