"""The `anomtune` command. Each command is a thin call, and imports what it needs itself."""

from __future__ import annotations

import os
import sys

import typer

from anomtune.cli.catalogue import audit, cache, datasets, methods
from anomtune.cli.cluster import doctor, jobs, logs, status, stop, submit
from anomtune.cli.detector import export, predict, train
from anomtune.cli.reproduce import reproduce
from anomtune.cli.results import best, leaderboard, report, tensorboard, watch
from anomtune.cli.sweep import init, sweep
from anomtune.cli.terminal import escape_what_cannot_be_shown, refuse
from anomtune.errors import AnomtuneError

app = typer.Typer(
    help="Search hyperparameters for visual anomaly detection, honestly, on one machine or many.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for _command in (
    *(init, sweep, leaderboard, best, report, tensorboard, watch),
    *(train, predict, export),
    *(methods, datasets, audit, cache, reproduce),
    *(submit, jobs, status, logs, stop, doctor),
):
    app.command()(_command)


def main() -> None:
    """Runs the command; bad input ends with one line and exit code 2, never with a traceback."""
    # What an import path in a sweep file names may lie where the command is run, as for a script.
    sys.path.append(os.getcwd())
    escape_what_cannot_be_shown()
    try:
        app()
    except AnomtuneError as error:
        refuse(str(error))
