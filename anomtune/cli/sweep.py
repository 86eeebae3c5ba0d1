"""The command `anomtune sweep`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomtune.cli.output import is_json, is_quiet, notes
from anomtune.cli.terminal import cell, console, refuse
from anomtune.errors import INTERRUPTED, UNUSABLE, AnomtuneError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

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

    log = notes()
    if file is not None and _is_data(file):
        config = _proposed(file, overrides or (), log)
    else:
        config = load_sweep(file, overrides or ())
    where = directory or f"sweeps/{config.name}"
    log.print(cell(f"anomtune sweep {config.name} -> {where}"))

    from anomtune.cli.events import JsonEvents
    from anomtune.cli.monitor import Monitor
    from anomtune.search.run.process import terminate_as_interrupt
    from anomtune.search.sweep import run

    monitor, events = Monitor(log), JsonEvents()
    try:
        with terminate_as_interrupt():
            observer = events if is_json() else monitor
            result = run(config, where, address=address, on_event=observer)
    except KeyboardInterrupt:
        monitor.stop()
        if is_json():
            events.write("finished", directory=where, exit_code=INTERRUPTED)
        else:
            _show_what_there_is(where)
        log.print(_GOES_ON, style="bold")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        monitor.stop()
    unusable, failed = _wrong(result)
    code = UNUSABLE if unusable or failed else 0
    if is_json():
        events.write("finished", directory=where, exit_code=code)
    else:
        _show(result, where)
    _complain(unusable, failed, where)
    if not is_json():
        _say_what_next(result, where)
    raise typer.Exit(code)


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
    notes().print(cell(f"{target} written; run it: anomtune sweep {target}"))


def _is_data(given: str) -> bool:
    """Whether images are named, and no sweep file."""
    from anomtune.datasets.io.uri import SUFFIXES, is_uri

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
    """Prints the leaderboard."""
    from anomtune.cli.tables import leaderboard_note, leaderboard_table

    out, board = console(), result.leaderboard
    out.print(leaderboard_table(board))
    out.print(leaderboard_note(board), style="dim", highlight=False, markup=False)


def _wrong(result: SweepResult) -> tuple[list[str], list[Text]]:
    """Returns the studies without a usable trial, and what is said of failed confirm runs."""
    from anomtune.cli.tables import failed_confirm_runs

    rows = result.leaderboard.to_pylist()
    unusable = [f"{row['category']}/{row['method']}" for row in rows if row["params"] is None]
    return unusable, failed_confirm_runs(result.progress)


def _complain(unusable: Sequence[str], failed: Sequence[Text], where: str) -> None:
    errors = console(stderr=True)
    for study in unusable:
        errors.print(
            cell(f"{study}: no trial completed; the records in {where}/trials/{study} say why"),
            style="bold red",
            soft_wrap=True,
        )
    for line in failed:
        errors.print(line, soft_wrap=True)
    if failed:
        remedy = f"the records in {where}/confirm say where; without its record a run is run again"
        errors.print(cell(remedy), style="red", soft_wrap=True)


def _say_what_next(result: SweepResult, where: str) -> None:
    if is_quiet():
        return
    from rich.text import Text

    from anomtune.search.report.conclusion import conclude
    from anomtune.search.report.evidence import gather
    from anomtune.search.store.directory import read_sweeps

    out, place = console(), shlex.quote(where)
    conclusion = conclude(gather(*read_sweeps([where])))
    if conclusion is not None:
        out.print()
        for title, sentence in (
            ("Found", conclusion.found),
            ("How sure", conclusion.sure),
            ("Next", conclusion.next),
        ):
            out.print(Text.assemble((f"{title}: ", "bold"), cell(sentence)))
    commands = [
        (f"anomtune report {place}", "the decision in one page"),
        (f"anomtune leaderboard {place} --format csv", "every column"),
        (f"anomtune tensorboard {place}", "curves and hyperparameters"),
    ]
    usable = [row for row in result.leaderboard.to_pylist() if row["params"] is not None]
    if usable:
        chosen = f"anomtune best {place} --category {shlex.quote(usable[0]['category'])}"
        commands.insert(0, (chosen, "the chosen config as YAML"))
    out.print()
    for command, purpose in commands:
        out.print(cell(f"  {command}  # {purpose}"), soft_wrap=True)
