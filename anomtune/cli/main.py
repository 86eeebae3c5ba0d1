"""The `anomtune` command. Each command is a thin call, and imports what it needs itself."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import requires

import typer

from anomtune.cli.bench import bench
from anomtune.cli.catalogue import audit, cache, datasets, methods
from anomtune.cli.cluster import doctor, jobs, logs, status, stop, submit
from anomtune.cli.detector import export, predict, train
from anomtune.cli.output import with_output
from anomtune.cli.reproduce import reproduce
from anomtune.cli.results import best, leaderboard, report, tensorboard, watch
from anomtune.cli.sweep import init, sweep
from anomtune.cli.terminal import escape_what_cannot_be_shown, refuse
from anomtune.errors import AnomtuneError

app = typer.Typer(
    help="Search hyperparameters for visual anomaly detection, honestly, on one machine or many.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_COMMANDS = (
    *(init, sweep, leaderboard, best, report, tensorboard, watch),
    *(train, predict, bench, export),
    *(methods, datasets, audit, cache, reproduce),
    *(submit, jobs, status, logs, stop, doctor),
)
#: Those that have rows to tell, and so ``--json``.
_WITH_ROWS = {
    *(sweep, leaderboard, predict, bench),
    *(methods, datasets, audit, cache, jobs, status),
}
for _command in _COMMANDS:
    app.command()(with_output(_command, rows=_command in _WITH_ROWS))


def main() -> None:
    """Runs the command; bad input ends with one line and exit code 2, never with a traceback."""
    # What an import path in a sweep file names may lie where the command is run, as for a script.
    sys.path.append(os.getcwd())
    escape_what_cannot_be_shown()
    try:
        app()
    except AnomtuneError as error:
        refuse(str(error))
    except ModuleNotFoundError as error:
        if (package := _missing(error)) is None:
            raise
        refuse(
            f"{package} is not installed, which this command needs; install all that anomtune "
            "has: pip install anomtune"
        )


def _missing(error: ModuleNotFoundError) -> str | None:
    """Returns the package of anomtune's that is not installed, ``None`` if it is another's."""
    module = (error.name or "").partition(".")[0]
    name = module.replace("_", "-").lower()
    lines = [line for line in requires("anomtune") or () if "extra ==" not in line]
    needed = {re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in lines}
    return module if name in needed else None
