"""The loggers of a sweep file, and what must not stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import field_validator, model_validator

from anomtune.datasets.io.uri import has_secrets, is_uri, mask_uri
from anomtune.settings import Settings

#: An option of a logger that is the value of an environment variable.
VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
#: The name of an option whose value others must not read.
_SECRET = re.compile(r"token|secret|passw|credential|api_?key|access_?key", re.IGNORECASE)


class LoggerConfig(Settings):
    """A logger: its name or import path alone, or with options.

    ``$NAME`` in the place of an option's value is the environment variable of that name.
    """

    name: str
    options: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @field_validator("options", mode="after")
    @classmethod
    def _holds_no_secret(cls, options: dict[str, Any]) -> dict[str, Any]:
        # The resolved sweep is written into its directory, for everybody to read.
        for name, value in _options_in(options):
            if isinstance(value, str) and VARIABLE.fullmatch(value):
                continue
            if _SECRET.search(name) and value is not None:
                raise ValueError(
                    f"{name} looks like a secret, and everybody can read sweep.yaml; put it into "
                    "an environment variable and write $NAME here"
                )
            if isinstance(value, str) and is_uri(value) and has_secrets(value):
                raise ValueError(
                    f"{name}: {mask_uri(value)} carries credentials; put it into an environment "
                    "variable and write $NAME here"
                )
        return options


def _options_in(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every option that is no section of its own, below its name."""
    match value:
        case dict():
            for key, item in value.items():
                yield from _options_in(item, str(key))
        case list():
            for item in value:
                yield from _options_in(item, name)
        case _:
            yield name, value
