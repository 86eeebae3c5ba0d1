"""What every command of the terminal shares: consoles, names on them, the line of a refusal."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import NoReturn, TextIO

from rich.console import Console
from rich.text import Text

from anomtune.errors import BAD_INPUT, one_line
from anomtune.files import check_writable


def console(*, stderr: bool = False) -> Console:
    """Returns a console on standard output, or on standard error."""
    return _on(sys.stderr if stderr else sys.stdout, stderr=stderr)


@lru_cache(maxsize=2)  # One of each: what is printed and the bars below it must know each other.
def _on(stream: TextIO, *, stderr: bool) -> Console:
    # A pipe has no width: wide enough that no line of a table is folded.
    return Console(stderr=stderr, width=None if stream.isatty() else 160)


def cell(text: str) -> Text:
    """Returns text of anybody's as it is: no markup, no control sequences, in one line."""
    return Text(one_line(text))


def escape_what_cannot_be_shown() -> None:
    """Lets the standard streams take any text, whatever the locale's encoding."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def refuse(message: str) -> NoReturn:
    """Ends the command with one line on standard error and the exit code of bad input."""
    print(f"anomtune: {one_line(message)}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def require_writable(option: str, given: Path, file: Path) -> None:
    """Refuses, before any work, an option that names a place where a file cannot be written."""
    try:
        check_writable(file)
    except OSError as error:
        refuse(f"{option} {given}: cannot be written ({error.strerror}); choose another place")
