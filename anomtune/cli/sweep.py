"""The command `anomtune sweep`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomtune.cli.terminal import cell, console, refuse
from anomtune.errors import INTERRUPTED, UNUSABLE, AnomtuneError

if TYPE_CHECKING:
    from rich.console import Console

    from anomtune.search.config import Sweep
    from anomtune.search.results.result import SweepResult

_GOES_ON = "Interrupted. The same command goes on from here."


def sweep(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="SWEEP.yaml|FOLDER|TABLE",
            help="A sweep file; or images, which are swept as `anomtune init` proposes it. "
            "Default: the built-in demo sweep.",
        ),
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

    log = console(stderr=True)
    if file is not None and _is_data(file):
        config = _proposed(file, overrides or (), log)
    else:
        config = load_sweep(file, overrides or ())
    where = directory or f"sweeps/{config.name}"
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


def init(
    place: Annotated[
        str, typer.Argument(metavar="FOLDER|TABLE", help="Images, or a table that names them.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="SWEEP.yaml", help="Default: NAME.yaml, here.")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.01, help="What the sweep may take.")] = 1.0,
) -> None:
    """Look at images and write a sweep file that fits them and this machine."""
    from anomtune.errors import StorageError
    from anomtune.files import write_whole
    from anomtune.names import typed
    from anomtune.search.config import sweep_of
    from anomtune.search.propose.file import propose

    proposal = propose(typed(place), hours)
    sweep_of(proposal.text, "the proposed sweep")
    target = out or Path(f"{proposal.name}.yaml")
    if target.exists():
        refuse(f"{target}: is there already; remove it, or choose another file with --out")
    try:
        write_whole(target, proposal.text.encode())
    except OSError as error:
        raise StorageError(
            f"{target}: cannot be written ({error.strerror or error}); choose another file"
        ) from error
    for line in proposal.text.splitlines():
        console().print(cell(line), soft_wrap=True, highlight=False)
    console(stderr=True).print(cell(f"{target} written; run it: anomtune sweep {target}"))


def _is_data(given: str) -> bool:
    """Whether images are named, and no sweep file."""
    from anomtune.datasets.io.remote import SUFFIXES, is_uri

    return is_uri(given) or Path(given).is_dir() or Path(given).suffix.lower() in SUFFIXES


def _proposed(place: str, overrides: Sequence[str], log: Console) -> Sweep:
    from anomtune.names import typed
    from anomtune.search.config import sweep_of
    from anomtune.search.propose.file import propose

    proposal = propose(typed(place))
    for note in proposal.notes:
        log.print(cell(f"note: {note}"), soft_wrap=True)
    return sweep_of(proposal.text, place, overrides)


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
