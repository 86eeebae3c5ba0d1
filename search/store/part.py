"""What every record, and every part of one, is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from anomtune.names import readable

#: A message, which may name a file: JSON takes no byte that is no UTF-8.
MessageText = Annotated[str, AfterValidator(readable)]


def _exists(time: str) -> str:
    try:
        datetime.fromisoformat(time).astimezone(UTC)
    except OverflowError:
        raise ValueError("a time that no calendar has") from None
    return time


#: A time, ISO 8601.
Time = Annotated[str, AfterValidator(_exists)]


#: A whole number that tables have room for.
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
#: How many images there are, or which trial it is: tables have 32 bits for it.
Count = Annotated[int, Field(ge=0, lt=2**31)]


class Part(BaseModel):
    """Refuses what it does not know. NaN is no JSON: a figure that was not measured is null."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_assignment=True)
