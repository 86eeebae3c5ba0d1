"""What every record, and every part of one, is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Refuses what it does not know. NaN is no JSON: a figure that was not measured is null."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_assignment=True)
