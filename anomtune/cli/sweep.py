"""The command `anomtune sweep`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomtune.cli.terminal import cell, console
from anomtune.errors import INTERRUPTED, UNUSABLE, AnomtuneError

if TYPE_CHECKING:
    from anomtune.search.results.result import SweepResult

_GOES_ON = "Interrupted. The same command goes on from here."


def sweep(
    file: Annotated[
        Path | None, typer.Argument(metavar="SWEEP.yaml", help="Default: the built-in demo sweep.")
    ] = None,
    directory: Annotated[
        str | None, typer.Option("--dir", help="Where results go. Default: sweeps/NAME.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster.")] = None,
) -> None:
    """Run a sweep, or go on with it; the same command again resumes it."""
    from anomtune.search.config import load_sweep

    config = load_sweep(file, overrides or ())
    where = directory or f"sweeps/{config.name}"
    log = console(stderr=True)
    log.print(cell(f"anomtune sweep {config.name} -> {where}"))

    from anomtune.cli.monitor import Monitor
    from anomtune.search.run.process import terminate_as_interrupt
    from anomtune.search.sweep import run

    monitor = Monitor(log)
    try:
        with terminate_as_interrupt():
            result = run(config, where, address=address, on_event=monitor)
    except KeyboardInterrupt:
        monitor.stop()
        _show_what_there_is(where)
        log.print(_GOES_ON, style="bold")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        monitor.stop()
    _show(result, where)


def _show_what_there_is(where: str) -> None:
    """Prints the leaderboard of a sweep that was interrupted, if it had begun."""
    from anomtune.cli.tables import leaderboard_note, leaderboard_table
    from anomtune.search.results.result import open_sweep

    try:
        board = open_sweep(where).leaderboard
    except AnomtuneError:
        return
    out = console()
    out.print(leaderboard_table(board))
    out.print(leaderboard_note(board), style="dim", highlight=False, markup=False)


def _show(result: SweepResult, where: str) -> None:
    """Prints the leaderboard and what to do next; ends with the exit code of the sweep."""
    from anomtune.cli.tables import failed_confirm_runs, leaderboard_note, leaderboard_table

    out, log = console(), console(stderr=True)
    board = result.leaderboard
    out.print(leaderboard_table(board))
    out.print(leaderboard_note(board), style="dim", highlight=False, markup=False)
    rows = board.to_pylist()
    unusable = [f"{row['category']}/{row['method']}" for row in rows if row["params"] is None]
    for study in unusable:
        log.print(
            cell(f"{study}: no trial completed; the records in {where}/trials/{study} say why"),
            style="bold red",
            soft_wrap=True,
        )
    failed = failed_confirm_runs(result.progress)
    for line in failed:
        log.print(line, soft_wrap=True)
    if failed:
        remedy = f"the records in {where}/confirm say where; without its record a run is run again"
        log.print(cell(remedy), style="red", soft_wrap=True)
    place = shlex.quote(where)
    commands = [
        (f"anomtune report {place}", "the decision in one page"),
        (f"anomtune leaderboard {place} --format csv", "every column"),
        (f"anomtune tensorboard {place}", "curves and hyperparameters"),
    ]
    usable = [row for row in rows if row["params"] is not None]
    if usable:
        chosen = f"anomtune best {place} --category {shlex.quote(usable[0]['category'])}"
        commands.insert(0, (chosen, "the chosen config as YAML"))
    out.print("\nNext:")
    for command, purpose in commands:
        out.print(cell(f"  {command}  # {purpose}"), soft_wrap=True)
    if unusable or failed:
        raise typer.Exit(UNUSABLE)
