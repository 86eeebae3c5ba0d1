"""The commands that show what a sweep has found. Each imports what it needs itself."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomtune.cli.completion import searched_categories, searched_methods
from anomtune.cli.output import is_json, write_rows
from anomtune.cli.terminal import console, refuse, require_writable

if TYPE_CHECKING:
    import pyarrow as pa

Directory = Annotated[str, typer.Argument(help="The directory of a sweep.", metavar="DIR")]
Directories = Annotated[
    list[str],
    typer.Argument(
        help="The directory of a sweep; or those that its categories are divided among.",
        metavar="DIR...",
    ),
]
OnlyCategory = Annotated[
    str | None, typer.Option(help="Only this category.", autocompletion=searched_categories)
]


def leaderboard(
    directories: Directories,
    category: OnlyCategory = None,
    method: Annotated[
        str | None, typer.Option(help="Only this method.", autocompletion=searched_methods)
    ] = None,
    form: Annotated[str, typer.Option("--format", help="table, json or csv.")] = "table",
) -> None:
    """Show the leaderboard, also of a sweep that still runs."""
    board = _board(directories, category, method)
    if is_json():
        if form != "table":
            refuse(f"--format {form}: goes without --json, which has a form of its own")
        write_rows(board.to_pylist())
    elif form == "json":
        print(json.dumps(board.to_pylist(), default=str, indent=2))
    elif form == "csv":
        from pyarrow import csv

        buffer = io.BytesIO()
        plain = board.cast(_without_dictionaries(board))
        csv.write_csv(plain, buffer)
        # UTF-8 in every locale.
        sys.stdout.flush()
        sys.stdout.buffer.write(buffer.getvalue())
    elif form == "table":
        from anomtune.cli.tables import leaderboard_note, leaderboard_table

        out = console()
        out.print(leaderboard_table(board))
        out.print(leaderboard_note(board), style="dim", highlight=False, markup=False)
    else:
        refuse(f"--format {form}: there is table, json, csv")


def best(
    directory: Directory,
    category: Annotated[
        str | None,
        typer.Option(
            help="The category to decide for; may be left out if one.",
            autocompletion=searched_categories,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Default: the method of rank 1.", autocompletion=searched_methods),
    ] = None,
) -> None:
    """Print the chosen config of a category as YAML."""
    from anomtune.names import typed
    from anomtune.search.results.result import open_sweep
    from anomtune.search.yaml_text import dump_yaml

    result = open_sweep(directory)
    if category is None:
        if len(result.categories) > 1:
            refuse(f"--category: say which; there is {', '.join(result.categories)}")
        category = result.categories[0]
    chosen = result.best(typed(category), method).spec
    sys.stdout.write(dump_yaml(chosen.model_dump(mode="json", exclude_none=True)))


def report(
    directories: Directories,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where it is written; default: report.html in DIR, of one alone.",
        ),
    ] = None,
) -> None:
    """Write report.html, one page for people, also of a sweep that still runs."""
    from anomtune.search.report import write_report

    if out is not None:
        require_writable("--out", out, out)
    written = write_report(*directories, out=out)
    console().print(
        f"{written.location} ({written.size / 1e6:.1f} MB)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def tensorboard(
    directory: Directory,
    category: OnlyCategory = None,
    method: Annotated[
        str | None,
        typer.Option(help="Only this method of the category.", autocompletion=searched_methods),
    ] = None,
    port: Annotated[int, typer.Option(help="0 = any free port.")] = 6006,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open TensorBoard on the curves of a sweep."""
    from anomtune.names import plain_name, typed

    if method is not None and category is None:
        refuse("--method: say which --category too")
    names = (plain_name(typed(name)) for name in (category, method) if name is not None)
    logdir = "/".join((directory, "tensorboard", *names))
    if "://" not in directory and not Path(logdir).is_dir():
        refuse(f"{logdir}: no such folder; give the directory of a sweep with trials")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir]
    raise typer.Exit(subprocess.call([*command, "--port", str(port), "--host", host]))  # noqa: S603


def watch(
    directory: Directory,
    port: Annotated[int, typer.Option(help="0 = any free port.")] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Show a sweep on a page of this machine while it runs, and when it has ended."""
    import getpass
    import socket
    import webbrowser

    if not 0 <= port < 2**16:
        refuse(f"--port {port}: not a port; give one from 0 (any free one) to 65535")
    from anomtune.search.watch import watch as serve

    def ready(port: int) -> None:
        url = f"http://127.0.0.1:{port}/"
        out = console()
        out.print(f"{url} (Ctrl-C ends it; the sweep goes on)", highlight=False, markup=False)
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user may have no name
            user = "USER"
        there = f"{user}@{socket.gethostname()}"
        out.print(
            f"From another machine: ssh -L {port}:127.0.0.1:{port} {there}, then the same address",
            style="dim",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        if browser and _has_display():
            webbrowser.open_new_tab(url)

    try:
        serve(directory, port=port, ready=ready)
    except OSError as error:
        refuse(f"--port {port}: {error.strerror or error}; choose another, or 0 for a free one")
    except KeyboardInterrupt:
        return


def _has_display() -> bool:
    """Whether a browser would open a window here; else one of text would take the terminal."""
    if sys.platform in {"win32", "darwin"}:
        return True
    return any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _board(directories: Sequence[str], category: str | None, method: str | None) -> pa.Table:
    """Compiles the leaderboard and keeps the rows that were asked for."""
    import pyarrow.compute as pc

    from anomtune.errors import suggest
    from anomtune.names import typed
    from anomtune.search.results.result import open_sweep

    result = open_sweep(*directories)
    board = result.leaderboard
    for column, given, known in (
        ("category", category, result.categories),
        ("method", method, result.methods),
    ):
        if given is None:
            continue
        value = typed(given)
        if value not in known:
            refuse(f"--{column} {value}: not in this sweep{suggest(value, known)}")
        board = board.filter(pc.equal(board[column].cast("string"), value))
    return board


def _without_dictionaries(table: pa.Table) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            (field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type)
            for field in table.schema
        ]
    )
