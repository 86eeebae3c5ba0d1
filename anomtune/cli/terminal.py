"""What every command of the terminal shares: consoles, exit codes and the line of a refusal."""

from __future__ import annotations

import sys
from typing import NoReturn

from rich.console import Console

#: Exit codes: 0 done, 1 not all of it is usable, 2 bad input, 3 interrupted, resumable.
UNUSABLE, BAD_INPUT, INTERRUPTED = 1, 2, 3


def console(*, stderr: bool = False) -> Console:
    """Returns a console on standard output, or on standard error."""
    # A pipe has no width: wide enough that no line of a table is folded.
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 160)


def refuse(message: str) -> NoReturn:
    """Ends the command with one line on standard error and the exit code of bad input."""
    print(f"anomtune: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)
