"""What is wrong with what somebody has set, in one line."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from anomtune.errors import SweepError, suggest

# Of a value as long as a file the beginning says what it is.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Says in one line what is wrong with the first wrong value of a pydantic model."""
    first, *rest = error.errors()
    if isinstance(reason := first.get("ctx", {}).get("error"), SweepError):
        return str(reason)  # of a model that says itself what is wrong in it
    location = _plain_location(first["loc"])
    if first["type"] == "extra_forbidden":
        above, key = _plain_location(first["loc"][:-1]), str(first["loc"][-1])
        return f"{'.'.join([*above, key])}: unknown key{suggest(key, _keys_at(model, above))}"
    where = ".".join(location) or "the whole"
    if first["type"] == "missing":
        return f"{where}: missing, please set it"
    # A key that may be one thing or another has an error for each.
    same = [item for item in rest if _plain_location(item["loc"]) == location]
    messages = [item["msg"].removeprefix("Value error, ") for item in (first, *same)]
    said = isinstance(first["input"], dict) or first["type"] == "value_error"
    shown = "" if said else f", not {_SHORT.repr(first['input'])}"
    quote = "; put it in quotes" if first["type"] == "string_type" else ""
    return f"{where}: {' or: '.join(messages)}{shown}{quote}"


def _plain_location(location: Sequence[int | str]) -> list[str]:
    """Returns the keys of an error's location, without pydantic's names for types."""
    tag = re.compile(r"[\[(]|^(int|float|str|constrained-\w+)$")
    return [str(part) for part in location if not tag.search(str(part))]


def _keys_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Returns the keys of the section at a location below a model."""
    for part in location:
        field = model.model_fields.get(part)
        if field is not None:
            model = next(_models_in(field.annotation), model)
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
