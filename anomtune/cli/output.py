"""What every command shows and to whom: results for people or machines, notes, progress.

Each command has ``--quiet``; those that have rows to tell have ``--json`` as well. Neither is a
parameter of the command itself: `with_output` adds them, and what a command calls here asks them.

==============  =====================================  =====================================
                standard output                        standard error
==============  =====================================  =====================================
as it is        results, as tables and text            notes, progress (on a terminal), errors
``--quiet``     the same                               errors
``--json``      results, a JSON object a line          errors
==============  =====================================  =====================================
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from anomtune.cli.bars import Bars
from anomtune.cli.terminal import console
from anomtune.progress import listening

_QUIET = Annotated[
    bool, typer.Option("--quiet", "-q", help="No notes, no progress: results and errors alone.")
]
_JSON = Annotated[
    bool, typer.Option("--json", help="Results as JSON, an object a line; no notes, no progress.")
]


@dataclass(frozen=True)
class _Output:
    quiet: bool = False
    json: bool = False


_output: ContextVar[_Output] = ContextVar("anomtune_output", default=_Output())  # noqa: B039 - frozen


def with_output(command: Callable[..., None], *, rows: bool) -> Callable[..., None]:
    """Returns a command that also takes ``--quiet``, and ``--json`` if it has rows to tell."""
    signature = inspect.signature(command, eval_str=True)
    added = {"quiet": _QUIET, **({"as_json": _JSON} if rows else {})}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in added.items()
    ]

    @functools.wraps(command)
    def call(*arguments: Any, quiet: bool, as_json: bool = False, **options: Any) -> None:
        with _shown_as(_Output(quiet or as_json, as_json)):
            command(*arguments, **options)

    call.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *parameters]
    )
    call.__annotations__ = {
        name: parameter.annotation for name, parameter in signature.parameters.items()
    } | added
    return call


@contextmanager
def _shown_as(output: _Output) -> Iterator[None]:
    token, bars = _output.set(output), Bars(notes())
    try:
        with listening(bars):
            yield
    finally:
        bars.stop()
        _output.reset(token)


def is_quiet() -> bool:
    """Whether nothing but results and errors is wanted."""
    return _output.get().quiet


def is_json() -> bool:
    """Whether results are wanted as rows of JSON."""
    return _output.get().json


def notes() -> Console:
    """Returns where to put what a person may want to know: on standard error, or nowhere."""
    return Console(quiet=True) if is_quiet() else console(stderr=True)


def write_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """Prints results for machines: an object a line, ASCII, without NaN."""
    for row in rows:
        print(json.dumps(_plain(row), allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it: numbers that are none become null."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case None | bool() | int() | float() | str():
            return value
        case _:
            return value.isoformat() if isinstance(value, datetime) else str(value)
