"""What every command of the terminal shares: consoles and the line of a refusal."""

from __future__ import annotations

import sys
from typing import NoReturn

from rich.console import Console

from anomtune.errors import BAD_INPUT


def console(*, stderr: bool = False) -> Console:
    """Returns a console on standard output, or on standard error."""
    # A pipe has no width: wide enough that no line of a table is folded.
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 160)


def refuse(message: str) -> NoReturn:
    """Ends the command with one line on standard error and the exit code of bad input."""
    print(f"anomtune: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)
